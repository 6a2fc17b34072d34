/** Places that are documents: lists of runs, the documents of a run, and a sweep. */
import { html, useEffect } from "../vendor/htm-preact.js";
import { getOf, source, verifyRun } from "../api.js";
import { DocumentView } from "../document.js";
import { count } from "../format.js";
import { useAnswer, useTask, Waiting } from "../hooks.js";
import { WhatIf } from "./whatif.js";

const AGAIN = 5_000; // ms between two requests to a running daemon
const SHORT = 20_000; // most decisions of a run that is verified at once, which takes seconds

/** Loads another page of a table; null in a file, whose tables are complete. */
const askPage = source.isRecord ? null : (...asked) => source.get(...asked);

/** An answer that is a document; the last one stays while the server does not answer. */
export function Answered({ answer: { value, error, lost }, doing, onStep, children }) {
  if (error) return html`<div class="place"><p class="loss" role="alert">${error.message}</p></div>`;
  if (!value) return html`<div class="place"><${Waiting} doing=${doing} /></div>`;
  return html`${lost && html`<p class="banner" role="alert">${lost.message}</p>`}
    <${DocumentView} document=${value} onStep=${onStep} ask=${askPage}>${children}<//>`;
}

/** A document of a run, requested again with another `version`, and every `again` ms. */
function OfRun({ name, run, version = 0, again, ...rest }) {
  const answer = useAnswer((signal) => getOf(run.row.run_id, name, { signal }), [name, run.row.run_id, version], again);
  return html`<${Answered} answer=${answer} ...${rest} />`;
}

const opens = (run, go) => (sequence) => go({ run: run.row.run_id, sequence });

/** All accounts with their curves, positions, and lists of trades, orders, fills and the ledger. */
export const AccountView = ({ run, go }) =>
  html`<div class="place"><${OfRun} name="account" run=${run} version=${run.last_sequence} doing="reading the accounts" onStep=${opens(run, go)} /></div>`;

/** Whether the run is sound; a short run without a comparison with its replay is verified at once. */
export function HealthView({ run, refreshed }) {
  const { run_id: id, is_served: isServed, decisions } = run.row;
  const isDue = !source.isRecord && !isServed && !run.parity && decisions != null && decisions <= SHORT;
  return html`<div class="place"><${OfRun} name="health" run=${run} version=${refreshed} again=${isServed && AGAIN}>
    <${WholeRun} key=${id} run=${id} isAsked=${isDue} />
  <//></div>`;
}

function WholeRun({ run, isAsked }) {
  const { progress, result, error, ask, cancel } = useTask([run]);
  const begin = () => ask((progressed, signal) => verifyRun(run, progressed, signal), "deriving every decision again");
  useEffect(() => void (isAsked && begin()), [run]);
  if (source.isRecord) return html`<p>Beside the record, <code>tracepaper verify ${run}</code> derives every decision again.</p>`;
  return html`<div class="verify">
      <button class="action" onClick=${progress ? cancel : begin}>${progress ? "Cancel" : "Verify the run"}</button>
      <span role="status" class=${error ? "loss" : "muted"}>${progress?.doing ?? error?.message ?? (result ? "Derived again, now." : "Derives every decision again from the record, now.")}</span>
    </div>
    ${progress && html`<progress max="1" value=${progress.share} aria-label=${progress.doing}></progress>`}`;
}

/** Performance, costs, refusals and attention of the whole run, as in `tracepaper report`. */
export const ReportView = ({ run, go }) =>
  html`<${OfRun} name="report" run=${run} onStep=${opens(run, go)} doing=${`building the report of ${count(run.row.decisions)} decisions`} />`;

/** Refusals over time, what each gate saved or cost, and results with other thresholds. */
export const GatesView = ({ run }) =>
  html`<${OfRun} name="refusals" run=${run} doing="Counting refusals, and what each gate saved or cost" />
    ${!source.isRecord && html`<${WhatIf} key=${run.row.run_id} run=${run} />`}`;

/** The card of the run's model, and its forecasts compared with outcomes. */
export const ModelView = ({ run }) => html`<${OfRun} name="model" run=${run} doing="reading forecasts and outcomes" />`;

/** A sweep: heat map, all runs, and how much is luck. */
export function SweepView({ sweep }) {
  const answer = useAnswer((signal) => source.get(`/sweeps/${encodeURIComponent(sweep)}`, {}, { signal }), [sweep]);
  return html`<${Answered} answer=${answer} doing="reading the sweep" />`;
}

/** A list of runs at `path`; if it `lacksCounts`, they are requested behind it. */
export function ListView({ path, version, lacksCounts }) {
  const listed = useAnswer((signal) => source.get(path, {}, { signal }), [path, version]);
  const counted = useAnswer((signal) => (lacksCounts ? source.get(path, { counted: true }, { signal }) : null), [path, version, lacksCounts]);
  return html`<div class="place"><${Answered} answer=${counted.value ? counted : listed} /></div>`;
}
