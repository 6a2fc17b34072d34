/** Health: whether the run is sound. */
import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { getOf, source, verifyRun } from "../api.js";
import { count, duration, moment, seconds, stamp, word } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";
import { Table } from "./table.js";

const AGAIN = 5_000; // ms between two readings of a daemon that runs
const SHORT = 20_000; // steps of a run that is derived again without being asked: some seconds

const COUNTED = {
  requests: "REST requests",
  rest_bars: "bars by REST",
  connects: "connections",
  bars: "bars by stream",
  resyncs: "server time asked",
};

function Parity({ parity, due }) {
  if (!parity) return html`<p>The record holds no comparison with a replay${due ? `; the daemon stores one at ${moment(due)}` : ""}. <code>tracepaper verify</code> and <code>tracepaper parity</code> store one.</p>`;
  if (parity.error) return html`<p class="loss">The replay of ${parity.day || "the run"} could not be compared: ${parity.error}</p>`;
  const isSame = parity.identical === parity.decisions;
  return html`<p>
    ${isSame ? "✓" : "✗"} <b class=${isSame ? "accent" : "loss"}>${count(parity.identical)} of ${count(parity.decisions)}</b> decisions of ${parity.day || "the whole run"} are the same in a replay, as of ${moment(parity.at_ms)}.
    ${parity.first_difference && html`<span class="loss"> First difference: ${parity.first_difference}</span>`}
  </p>`;
}

function WholeRun({ run, isAsked }) {
  const [state, setState] = useState({});
  const abort = useRef(null);
  useEffect(() => void (isAsked && ask()), [run]);
  useEffect(() => () => abort.current?.abort(), [run]);
  if (source.isRecord) return html`<p>Beside the record, <code>tracepaper verify ${run}</code> derives every decision again.</p>`;
  const ask = async () => {
    const own = (abort.current = new AbortController());
    setState({ progress: { share: 0, doing: "deriving every decision again" } });
    try {
      const result = await verifyRun(run, (progress) => own.signal.aborted || setState({ progress }), own.signal);
      if (!own.signal.aborted) setState({ result });
    } catch (error) {
      if (!own.signal.aborted) setState({ error: error.message });
    }
  };
  const cancel = () => {
    abort.current.abort();
    setState({});
  };
  const { progress, result, error } = state;
  return html`<p class="verify">
      <button class="action" onClick=${progress ? cancel : ask}>${progress ? "Cancel" : "Verify the run"}</button>
      <span role="status" class=${error ? "loss" : "muted"}>${progress?.doing ?? error ?? (result ? "Derived again, now." : "Derives every decision again from the record, now.")}</span>
    </p>
    ${progress && html`<progress max="1" value=${progress.share} aria-label=${progress.doing}></progress>`}`;
}

const age = (value) => (value == null ? "–" : value < 10 ? seconds(value) : duration(value * 1e3));

const gapsOf = ({ gaps, missing_bars: missing }) =>
  !gaps ? "no gap" : missing ? `${count(missing)} bars of ${count(gaps)} gaps never came` : `${gaps === 1 ? "one gap" : `${count(gaps)} gaps`}, repaired`;

/** One word for all below; what is not known is not called sound. */
function verdict(health, parity) {
  const isWrong = health.damage || parity?.error || (parity && parity.identical !== parity.decisions) || health.missing_bars > 0;
  if (isWrong) return html`<span class="loss">Not sound.</span> `;
  if (health.not_ready.length) return "Not ready. ";
  return parity ? "Sound. " : "Nothing wrong is known. ";
}

export function HealthView({ run, go, refreshed }) {
  const id = run.row.run_id;
  const [again, setAgain] = useState(0);
  const { value: health, error } = useAnswer((signal) => getOf(id, "health", { signal }), [id, refreshed, again]);
  useEffect(() => {
    if (!health?.is_live) return undefined;
    const timer = setInterval(() => setAgain((now) => now + 1), AGAIN);
    return () => clearInterval(timer);
  }, [health?.is_live]);
  if (error) return html`<p class="loss" role="alert">${error.message}</p>`;
  if (!health) return html`<${Waiting} />`;
  const state = health.state === "halted" ? html`<span class="loss">halted${health.halted_by ? ` by ${health.halted_by}` : ""}</span>` : health.state;
  return html`<div class="place">
    <h1 class="sentence">
      ${verdict(health, run.parity ?? health.parity)}
      ${run.row.kind[0].toUpperCase() + run.row.kind.slice(1)} run, ${state}; ${gapsOf(health)};
      ${health.starts === 1 ? " one start" : ` ${count(health.starts)} starts`}.
    </h1>
    ${health.damage && html`<p class="banner" role="alert">${health.damage.sentence}</p>`}
    ${health.not_ready.map((why) => html`<p key=${why} class="banner" role="alert">Not ready: ${why}</p>`)}
    <div class="halves">
      <section>
        <h2>Parity</h2>
        <${Parity} parity=${run.parity ?? health.parity} due=${health.parity_due_ms} />
        ${health.is_checking && html`<p class="muted" role="status">A replay of the last day runs.</p>`}
        <${WholeRun} key=${id} run=${id} isAsked=${!source.isRecord && ["ended", "killed"].includes(health.state) && !(run.parity ?? health.parity) && health.steps <= SHORT} />
        <p class="muted">${count(health.steps)} steps; head digest <code>${health.head_digest.slice(0, 16)}…</code></p>
      </section>
      <section>
        <h2>Feed and speed</h2>
        ${!health.is_live && html`<p class="muted">Feed age and latency are known of a daemon while it runs, on its own page; this is read from the record.</p>`}
        ${health.frame_s != null && html`<p>Newest frame ${age(health.frame_s)} ago; newest step stored ${age(health.commit_s)} ago.</p>`}
        ${health.feeds.length > 0 &&
        html`<${Table} caption="Age of the feed" empty="" rows=${health.feeds} columns=${[
          { title: "symbol", text: true, of: (row) => row.instrument },
          { title: "last bar", of: (row) => age(row.bar_s), by: (row) => row.bar_s },
          { title: "last quote", of: (row) => age(row.quote_s), by: (row) => row.quote_s },
        ]} />`}
        ${health.latencies.length > 0 &&
        html`<${Table} caption="Latency" empty="" rows=${health.latencies} columns=${[
          { title: "what", text: true, of: (row) => word(row.name) },
          { title: "count", of: (row) => count(row.count), by: (row) => row.count },
          { title: "mean", of: (row) => seconds(row.mean), by: (row) => row.mean },
          { title: "p50 ≤", of: (row) => seconds(row.p50), by: (row) => row.p50 },
          { title: "p90 ≤", of: (row) => seconds(row.p90), by: (row) => row.p90 },
          { title: "p99 ≤", of: (row) => seconds(row.p99), by: (row) => row.p99 },
        ]} />`}
        ${Object.keys(health.counters).length > 0 &&
        html`<dl class="pairs">${Object.entries(health.counters).map(([name, value]) => html`<div key=${name}><dt>${COUNTED[name] ?? word(name)}</dt><dd>${count(value)}</dd></div>`)}</dl>`}
      </section>
    </div>
    <section>
      <h2>What happened</h2>
      <${Table} caption="What happened" empty="Nothing but bars." rows=${health.happenings} columns=${[
        { title: "time", text: true, of: (row) => stamp(row.market_ms), by: (row) => row.market_ms },
        { title: "kind", text: true, of: (row) => word(row.kind) },
        { title: "symbol", text: true, of: (row) => row.instrument ?? "" },
        { title: "what", text: true, of: (row) => row.text },
      ]} />
    </section>
    <p><button class="plain" onClick=${() => go({ run: id, view: "gates" })}>Refusals and what each gate saved or cost</button> · <button class="plain" onClick=${() => go({ run: id, view: "account" })}>Account</button></p>
  </div>`;
}
