/** Documents as places: lists of runs, of a fleet, what is said of a run, and a sweep. */
import { html, useEffect } from "../vendor/htm-preact.js";
import { getOf, source, verifyRun } from "../api.js";
import { DocumentView } from "../document.js";
import { count } from "../format.js";
import { useAnswer, useTask, Waiting } from "../hooks.js";
import { WhatIf } from "./whatif.js";

const AGAIN = 5_000; // ms between two readings of a daemon that runs
const SHORT = 20_000; // decisions of a run that is derived again without being asked: some seconds

/** The document of another page of a table; a file has all of its rows. */
const turned = source.isRecord ? null : (...asked) => source.get(...asked);

/** A document that comes as an answer; what came last stays while nobody answers. */
export function Answered({ answer: { value, error, lost }, doing, onStep, children }) {
  if (error) return html`<div class="place"><p class="loss" role="alert">${error.message}</p></div>`;
  if (!value) return html`<div class="place"><${Waiting} doing=${doing} /></div>`;
  return html`${lost && html`<p class="banner" role="alert">${lost.message}</p>`}
    <${DocumentView} document=${value} onStep=${onStep} ask=${turned}>${children}<//>`;
}

/** A document of a run, asked for again with another `version`, or so many ms later where `again` says so. */
function OfRun({ name, run, version = 0, again, ...rest }) {
  const answer = useAnswer((signal) => getOf(run.row.run_id, name, { signal }), [name, run.row.run_id, version], again);
  return html`<${Answered} answer=${answer} ...${rest} />`;
}

const opens = (run, go) => (sequence) => go({ run: run.row.run_id, sequence });

/** All accounts with their curves, what is held, and lists of trades, orders, fills and the ledger. */
export const AccountView = ({ run, go }) =>
  html`<div class="place"><${OfRun} name="account" run=${run} version=${run.last_sequence} doing="reading the accounts" onStep=${opens(run, go)} /></div>`;

/** Whether the run is sound; of a short one that nobody compared with its replay that is begun at once. */
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

/** Performance, costs, refusals and attention of the whole run, as `tracepaper report` writes it. */
export const ReportView = ({ run, go }) =>
  html`<${OfRun} name="report" run=${run} onStep=${opens(run, go)} doing=${`working out the report of ${count(run.row.decisions)} decisions`} />`;

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

/** A list of runs at `path`; where it `lacksCounts`, they are asked for behind it. */
export function ListView({ path, version, lacksCounts }) {
  const listed = useAnswer((signal) => source.get(path, {}, { signal }), [path, version]);
  const counted = useAnswer((signal) => (lacksCounts ? source.get(path, { counted: true }, { signal }) : null), [path, version, lacksCounts]);
  return html`<div class="place"><${Answered} answer=${counted.value ? counted : listed} /></div>`;
}
