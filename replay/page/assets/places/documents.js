/** Documents as places: lists of runs, of a fleet, what is said of a run, and a sweep. */
import { html } from "../vendor/htm-preact.js";
import { getOf, source } from "../api.js";
import { DocumentView } from "../document.js";
import { count } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";
import { WhatIf } from "./whatif.js";

/** A document that comes as an answer; what came last stays while nobody answers. */
export function Answered({ answer: { value, error, lost }, doing, onStep, children }) {
  if (error) return html`<div class="place"><p class="loss" role="alert">${error.message}</p></div>`;
  if (!value) return html`<div class="place"><${Waiting} doing=${doing} /></div>`;
  return html`${lost && html`<p class="banner" role="alert">${lost.message}</p>`}
    <${DocumentView} document=${value} onStep=${onStep}>${children}<//>`;
}

const Banner = ({ of: { damage, halt } }) => (damage ?? halt) && html`<p class="banner" role="alert">${(damage ?? halt).sentence}</p>`;

/** A document of a run, asked for again with another `version`; `children` stand at its end. */
export function OfRun({ name, run, version = 0, ...rest }) {
  const answer = useAnswer((signal) => getOf(run.row.run_id, name, { signal }), [name, run.row.run_id, version]);
  return html`<${Banner} of=${run} /><${Answered} answer=${answer} ...${rest} />`;
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
export function SweepView({ sweep }) {
  const answer = useAnswer((signal) => source.get(`/sweeps/${encodeURIComponent(sweep)}`, {}, { signal }), [sweep]);
  return html`<${Answered} answer=${answer} doing="reading the sweep" />`;
}

/** A list of runs at `path`, beside a `run` or of all; where it `lacksCounts`, they are asked for behind it. */
export function ListView({ path, run = {}, version, lacksCounts }) {
  const listed = useAnswer((signal) => source.get(path, {}, { signal }), [path, version]);
  const counted = useAnswer((signal) => (lacksCounts ? source.get(path, { counted: true }, { signal }) : null), [path, version, lacksCounts]);
  return html`<div class="place"><${Banner} of=${run} /><${Answered} answer=${counted.value ? counted : listed} /></div>`;
}
