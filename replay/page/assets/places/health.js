/** Health: whether the run is sound. */
import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { getOf, source, verifyRun } from "../api.js";
import { Parts } from "../document.js";
import { count, moment } from "../format.js";
import { useAnswer, useTask, Waiting } from "../hooks.js";

const AGAIN = 5_000; // ms between two readings of a daemon that runs
const SHORT = 20_000; // steps of a run that is derived again without being asked: some seconds

function Parity({ parity }) {
  if (!parity) return html`<p>The record holds no comparison with a replay. <code>tracepaper verify</code> and <code>tracepaper parity</code> store one.</p>`;
  if (parity.error) return html`<p class="loss">The replay of ${parity.day || "the run"} could not be compared: ${parity.error}</p>`;
  const isSame = parity.identical === parity.decisions;
  return html`<p>
    ${isSame ? "✓" : "✗"} <b class=${isSame ? "accent" : "loss"}>${count(parity.identical)} of ${count(parity.decisions)}</b> decisions of ${parity.day || "the whole run"} are the same in a replay, as of ${moment(parity.at_ms)}.
    ${parity.first_difference && html`<span class="loss"> First difference: ${parity.first_difference}</span>`}
  </p>`;
}

function WholeRun({ run, isAsked }) {
  const { progress, result, error, ask, cancel } = useTask([run]);
  const begin = () => ask((progressed, signal) => verifyRun(run, progressed, signal), "deriving every decision again");
  useEffect(() => void (isAsked && begin()), [run]);
  if (source.isRecord) return html`<p>Beside the record, <code>tracepaper verify ${run}</code> derives every decision again.</p>`;
  return html`<p class="verify">
      <button class="action" onClick=${progress ? cancel : begin}>${progress ? "Cancel" : "Verify the run"}</button>
      <span role="status" class=${error ? "loss" : "muted"}>${progress?.doing ?? error?.message ?? (result ? "Derived again, now." : "Derives every decision again from the record, now.")}</span>
    </p>
    ${progress && html`<progress max="1" value=${progress.share} aria-label=${progress.doing}></progress>`}`;
}

/** One word for all below; what is not known is not called sound. */
function verdict(health, parity) {
  const isWrong = health.is_wrong || parity?.error || (parity && parity.identical !== parity.decisions);
  if (isWrong) return html`<span class="loss">Not sound.</span> `;
  if (!health.is_ready) return "Not ready. ";
  return parity ? "Sound. " : "Nothing wrong is known. ";
}

export function HealthView({ run, go, refreshed }) {
  const id = run.row.run_id;
  const [isLive, setLive] = useState(false); // of a daemon that runs
  const { value: health, error } = useAnswer((signal) => getOf(id, "health", { signal }), [id, refreshed], isLive && AGAIN);
  useEffect(() => setLive(Boolean(health?.is_live)), [health]);
  if (error) return html`<p class="loss" role="alert">${error.message}</p>`;
  if (!health) return html`<${Waiting} />`;
  const isDue = !source.isRecord && ["ended", "killed"].includes(health.state) && !run.parity && health.steps <= SHORT;
  return html`<div class="place">
    <h1 class="sentence">${verdict(health, run.parity)} ${health.title}</h1>
    <h2>Parity</h2>
    <${Parity} parity=${run.parity} />
    <${WholeRun} key=${id} run=${id} isAsked=${isDue} />
    <div class="document"><${Parts} parts=${health.parts} /></div>
    <p><button class="plain" onClick=${() => go({ run: id, view: "gates" })}>Refusals and what each gate saved or cost</button> · <button class="plain" onClick=${() => go({ run: id, view: "account" })}>Account</button></p>
  </div>`;
}
