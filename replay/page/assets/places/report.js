/** Documents as places: the report of a run, its gates, its model, and a sweep. */
import { html } from "../vendor/htm-preact.js";
import { getOf, source } from "../api.js";
import { DocumentView } from "../document.js";
import { count } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";
import { WhatIf } from "./whatif.js";

function Place({ ask, of, doing, onStep, children }) {
  const answer = useAnswer(ask, of);
  if (answer.error) return html`<div class="place"><p class="loss" role="alert">${answer.error.message}</p></div>`;
  if (!answer.value) return html`<div class="place"><${Waiting} doing=${doing} /></div>`;
  return html`<${DocumentView} document=${answer.value} onStep=${onStep}>${children}<//>`;
}

/** A document of a run, asked for again with another `version`; `children` stand at its end. */
export function OfRun({ name, run, version = 0, ...rest }) {
  const ask = (signal) => getOf(run.row.run_id, name, { signal });
  return html`<${Place} ask=${ask} of=${[name, run.row.run_id, version]} ...${rest} />`;
}

/** Performance, costs, refusals and attention of the whole run, as `tracepaper report` writes it. */
export const ReportView = ({ run, go }) =>
  html`<${OfRun} name="report" run=${run} onStep=${(sequence) => go({ run: run.row.run_id, sequence })} doing=${`working out the report of ${count(run.row.decisions)} decisions`} />`;

/** Refusals over time, and what each gate saved or cost; what other thresholds would have made. */
export const GatesView = ({ run }) =>
  html`<${OfRun} name="refusals" run=${run} doing="Counting refusals, and what each gate saved or cost" />
    ${!source.isRecord && html`<${WhatIf} key=${run.row.run_id} run=${run} />`}`;

/** The card of the run's model, and how its forecasts came true. */
export const ModelView = ({ run }) => html`<${OfRun} name="model" run=${run} doing="reading what the model said and what came" />`;

/** Heat map, every run, and what luck would do. */
export const SweepView = ({ sweep }) =>
  html`<${Place} ask=${(signal) => source.get(`/sweeps/${encodeURIComponent(sweep)}`, {}, { signal })} of=${[sweep]} doing="reading the sweep" />`;
