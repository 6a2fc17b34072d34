/** The Now view: one sentence, one chart, one card. The pointer is time. */
import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { findDecision, getDecision, knownDecision, source } from "./api.js";
import { indexAt } from "./cells.js";
import { Card } from "./card.js";
import { shareBetween } from "./chart/attention.js";
import { ChartPane } from "./chart/pane.js";
import { rowsOf } from "./chart/rows.js";
import { clock, count, interval as intervalText, moment, number, percent, when, word } from "./format.js";
import { useAnswer } from "./hooks.js";
import { useKeys } from "./keys.js";
import { SecondLine, Sentence } from "./sentence.js";

const REST = 25; // ms that the pointer must rest before a decision is requested
const MOMENT = 3_000; // ms that a notice stays
const ROOM = 4; // cells right of the newest decision or its fan
const SPEEDS = [1, 2, 5, 10, 30]; // decisions a second

/** A decision by its sequence, requested once the pointer rests; the last one stays until it arrives. */
function useDecision(run, sequence, rest = 0) {
  const { current: latest } = useRef({});
  const cached = knownDecision(run, sequence);
  latest.decision = cached ?? latest.decision;
  const ask = async (signal) => {
    if (cached || sequence == null) return cached;
    if (rest) await new Promise((resolve) => setTimeout(resolve, rest));
    await latest.request?.catch(() => null); // one request at a time: keys may be faster than answers
    if (signal.aborted) return null;
    return (latest.decision = await (latest.request = getDecision(run, sequence)));
  };
  const { error } = useAnswer(ask, [run, sequence]);
  return { decision: error ? null : latest.decision, error };
}

/** A notice that stays for a moment: the current one, and a function that sets it. */
function useNotice() {
  const [notice, setNotice] = useState("");
  const timer = useRef(null);
  useEffect(() => () => clearTimeout(timer.current), []);
  const say = (sentence) => {
    clearTimeout(timer.current);
    setNotice(sentence);
    timer.current = setTimeout(() => setNotice(""), MOMENT);
  };
  return [notice, say];
}

/** The next refused or filled decision after or before a decision. */
async function seek({ run, frame, from, direction, kind, gate, instrument }) {
  const isLater = direction > 0;
  const after = (ms) => (isLater ? { from_ms: ms + 1 } : { until_ms: ms });
  const find = (view, wanted) => findDecision(run.row.run_id, view, !isLater, { instrument, ...wanted });
  if (kind === "fill") {
    const ahead = frame.fills.filter((fill) => fill.decision_sequence != null && (fill.decision_sequence - from.sequence) * direction > 0);
    if (ahead.length) return ahead.at(isLater ? 0 : -1).decision_sequence;
    return source.isRecord ? null : find("fills", after(from.close_time_ms));
  }
  const names = gate ? [gate] : run.gates.filter((each) => each.refused !== 0).map((each) => each.gate);
  const found = await Promise.all(names.map((name) => find("decisions", { ...after(from.open_time_ms), refused_by: name })));
  const sequences = found.filter((sequence) => sequence != null);
  return sequences.length ? Math[isLater ? "min" : "max"](...sequences) : null;
}

/** The decision of the bar at or before a time. */
export const sequenceAt = (run, instrument, ms) => findDecision(run, "decisions", true, { instrument, until_ms: ms + 1 });

function Legend({ frame, index, decimals, instrument, tint, setTint, decision, share, others, toInstrument, least, toLeast, playing, player }) {
  const at = index ?? (frame ? frame.length - 1 : 0);
  const price = (name) => html`<b>${number(frame[name][at], decimals)}</b>`;
  return html`<div class="legend">
    <span class="values">
      ${others.length > 1 &&
      html`<select aria-label="Symbol" value=${instrument} onChange=${(event) => toInstrument(event.target.value)}>
        ${others.map((each) => html`<option key=${each.id} value=${each.id}>${each.symbol}</option>`)}
      </select>`}
      ${frame?.length
        ? html`<span>${moment(frame.times[at]).replace(clock(frame.times[at]), "")}<b>${clock(frame.times[at])}</b></span>
            <span class="wide wider">O ${price("open")}</span><span class="wide first">H ${price("high")}</span><span class="wide first">L ${price("low")}</span><span>C ${price("close")}</span>
            ${frame.isWarmUp(at) && html`<span>warm-up</span>`}
            <span>position <b>${frame.held[at] == null ? "–" : number(frame.held[at], 8).replace(/\.?0+$/, "")}</b></span>`
        : " "}
    </span>
    <span class="switches">
      ${share != null && html`<span class="wide share">${percent(share, { decimals: 0 })} of it in view</span>`}
      <button class="plain quiet wide" title="Longer cells: i, shorter: I" onClick=${toLeast}>${least}</button>
      <button class="plain quiet wide" aria-pressed=${playing} title="Play the decisions: space" onClick=${player}>${playing ? "pause" : "play"}</button>
      ${decision?.forecast &&
      html`<button class="switch" role="switch" aria-checked=${tint} title="Where it looked, not why" onClick=${() => setTint(!tint)}><i></i>attention</button>`}
    </span>
  </div>`;
}

/** The most urgent banner on the run or the connection. */
function Banner({ run, connection }) {
  if (run.damage) return html`<p class="banner" role="alert">${run.damage}</p>`;
  if (connection.state === "lost")
    return html`<p class="banner" role="alert"><b>The daemon has not answered since ${when(connection.since, Date.now())}.</b> This page shows its last answer and reconnects by itself.</p>`;
  if (connection.state === "ended")
    return html`<p class="banner calm"><b>The daemon ended in good order.</b> This page continues when it starts again; <code>tracepaper ui --db ${run.row.database}</code> shows its record until then.</p>`;
  if (connection.state === "refused")
    return html`<p class="banner" role="alert"><b>This page receives no steps since ${when(connection.since, Date.now())}:</b> it has too many readers. It is refreshed every 15 s.</p>`;
  if (run.halt) return html`<p class="banner" role=${run.row.ended_ms == null ? "alert" : null}><b>${run.halt}</b> Decisions go on.</p>`;
  if (run.below_zero) return html`<p class="banner">${run.below_zero}</p>`;
  if (run.absent) return html`<p class="banner calm">${run.absent}</p>`;
  if (run.warming) return html`<p class="banner calm">${run.warming}</p>`;
  if (!run.has_model) return html`<p class="banner calm">This run has no model: no forecast, no attention and none of their gates.</p>`;
  return null;
}

function PhoneBar({ earlier, later, refusal, newest, fill }) {
  return html`<nav class="phone" aria-label="Decisions">
    <button aria-label="Decision before" onClick=${earlier}>‹</button>
    <button onClick=${refusal}>refusal</button>
    <button onClick=${newest}>newest</button>
    <button onClick=${fill}>fill</button>
    <button aria-label="Decision after" onClick=${later}>›</button>
  </nav>`;
}

/** Least lengths of cells, in bars. */
const LEAST = [1, 5, 15, 60, 240, 1440];

/**
 * @param {{run: Object, address: Object, go: Function, connection: Object, connected: number, steps: {current: Object}}} props
 */
export function NowView({ run, address, go, connection, connected, steps, isCompact, openKeys }) {
  const id = run.row.run_id;
  const instrument = address.instrument ?? run.instruments[0]?.id;
  const [newest, setNewest] = useState(run.last_sequence);
  const pinned = address.sequence ?? newest;
  const [hover, setHover] = useState(null);
  const [gate, setGate] = useState(null);
  const [tint, setTint] = useState(false);
  const [hasPanes, setPanes] = useState(!run.has_model);
  const [multiple, setMultiple] = useState(0);
  const [playing, setPlaying] = useState(null); // speed
  const [frameVersion, setFrameVersion] = useState(0);
  const handle = useRef(null);
  const verify = useRef(null);
  const [notice, say] = useNotice();
  const shown = hover?.sequence ?? pinned;
  const { decision: last, error } = useDecision(id, shown, hover ? REST : 0);
  const { decision: pinnedDecision } = useDecision(id, pinned);
  const decision = last && last.run_id === id ? last : null;
  const frame = handle.current?.frame;
  const interval = run.row.interval_ms;

  // With several symbols the newest decision may be of another one; then the frame sets this symbol's.
  useEffect(() => {
    if (run.instruments.length === 1) setNewest((now) => Math.max(now ?? 0, run.last_sequence ?? 0) || null);
  }, [run.last_sequence]);
  const framed = (loaded) => {
    const last = loaded.sequence.findLast((sequence) => sequence != null);
    if (last != null && loaded.times[loaded.length - 1] + loaded.step > run.row.last_ms) setNewest(last);
    setFrameVersion((now) => now + 1);
  };

  const pin = (sequence, symbol = address.instrument) => {
    setHover(null);
    go({ run: id, view: "now", sequence, instrument: symbol }, true);
  };
  const toSequence = (sequence, symbol) => sequence != null && pin(sequence, symbol);
  const toNewest = () => {
    pin(null);
    handle.current?.chart.frame && handle.current.goTo(run.row.last_ms, (run.has_model ? (run.gate_horizon * interval) / frame.step : 0) + ROOM);
  };

  // An address may have a decision without a symbol: show the chart of its symbol.
  useEffect(() => {
    if (pinnedDecision?.run_id !== id || pinnedDecision.sequence !== address.sequence || pinnedDecision.instrument === instrument) return;
    pin(pinnedDecision.sequence, pinnedDecision.instrument);
  }, [pinnedDecision]);

  // Bring a pinned decision into view.
  useEffect(() => {
    if (pinnedDecision && pinnedDecision.run_id === id && pinnedDecision.sequence === pinned && address.sequence != null) {
      const room = pinnedDecision.forecast ? (pinnedDecision.forecast.comes_ms - pinnedDecision.close_time_ms) / (handle.current?.frame?.step ?? interval) : 0;
      handle.current?.goTo(pinnedDecision.open_time_ms, room);
    }
  }, [pinnedDecision, frameVersion === 0]);

  // On a step of the stream, the chart follows; without a pinned decision the newest is shown.
  steps.current = (step) => {
    if (!step.bar) return; // quotes and mark prices are not drawn
    handle.current?.follow(step);
    if (step.instrument === instrument) setNewest(step.sequence);
  };
  useEffect(() => () => (steps.current = () => {}), []);

  const step = (by) => {
    if (!pinnedDecision) return;
    const index = frame && Math.abs(by) > 1 ? indexAt(frame.times, pinnedDecision.open_time_ms) + by : null;
    toSequence(index != null ? frame.sequence[Math.max(0, Math.min(frame.length - 1, index))] : by > 0 ? pinnedDecision.following : pinnedDecision.previous);
  };
  const toNext = async (kind, direction) => {
    if (!pinnedDecision || !frame) return;
    const sequence = await seek({ run, frame, from: pinnedDecision, direction, kind, gate: kind === "refusal" ? gate : null, instrument }).catch(() => null);
    if (sequence != null) toSequence(sequence);
    else say(`no ${direction > 0 ? "later" : "earlier"} ${kind}${kind === "refusal" && gate ? ` by ${word(gate)}` : ""}`);
  };
  const gates = useMemo(() => rowsOf(run, { compact: isCompact }).filter((row) => row.kind === "gate").map((row) => row.key), [id, isCompact]);
  const toGate = (name) => setGate((now) => (now === name ? null : name));
  const nextGate = () => setGate((now) => gates[gates.indexOf(now) + 1] ?? null);
  const longer = (by) => setMultiple((now) => Math.max(0, Math.min(LEAST.length - 1, now + by)));
  const nextSymbol = () => {
    const index = run.instruments.findIndex((each) => each.id === instrument);
    toInstrument(run.instruments[(index + 1) % run.instruments.length].id);
  };
  const toInstrument = async (other) => {
    setHover(null);
    pin(pinnedDecision && address.sequence != null ? await sequenceAt(id, other, pinnedDecision.open_time_ms).catch(() => null) : null, other);
  };

  // Play the decisions one after another until the newest.
  const player = () => setPlaying((now) => (now ? null : SPEEDS[1]));
  const faster = (by) => setPlaying((now) => SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, SPEEDS.indexOf(now ?? SPEEDS[1]) + by))]);
  useEffect(() => {
    if (!playing || pinnedDecision?.sequence !== pinned) return undefined;
    if (pinnedDecision.following == null) return setPlaying(null);
    const cell = frame && frame.step > interval ? frame.sequence[indexAt(frame.times, pinnedDecision.open_time_ms) + 1] : null;
    const timer = setTimeout(() => toSequence(cell ?? pinnedDecision.following), 1000 / playing);
    return () => clearTimeout(timer);
  }, [playing, pinnedDecision, pinned]);

  useKeys({
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    "Shift+ArrowLeft": () => step(-10),
    "Shift+ArrowRight": () => step(10),
    n: () => toNext("refusal", 1),
    N: () => toNext("refusal", -1),
    f: () => toNext("fill", 1),
    F: () => toNext("fill", -1),
    End: toNewest,
    Home: () => toSequence(run.first_sequence),
    a: () => setTint((now) => !now),
    g: nextGate,
    v: () => verify.current?.(),
    i: () => longer(1),
    I: () => longer(-1),
    s: nextSymbol,
    c: () => setPanes((now) => !now),
    "-": () => handle.current?.chart.zoom(1.5),
    "+": () => handle.current?.chart.zoom(1 / 1.5),
    "=": () => handle.current?.chart.zoom(1 / 1.5),
    w: () => frame && handle.current.showWhole(),
    " ": player,
    "<": () => faster(-1),
    ">": () => faster(1),
    Escape: () => (playing ? setPlaying(null) : gate ? setGate(null) : toNewest()),
  });

  if (run.last_sequence == null && newest == null)
    return html`<div class="empty"><h1 class="sentence">No decision yet.</h1><p>The first bar that closes makes one; this page shows it by itself. To look at a recorded market at once: <code>tracepaper demo</code></p></div>`;

  const view = handle.current?.chart.view();
  const index = hover?.index ?? (pinnedDecision && frame ? frame.indexOf(pinnedDecision.open_time_ms) : null);
  const at = index == null || index < 0 ? null : index;
  const share = decision?.attended.length && view ? shareBetween(decision.attended, view.from_ms, Math.min(view.until_ms, decision.close_time_ms)) : null;
  const least = interval * LEAST[multiple];
  const traded = run.instruments.find((each) => each.id === instrument);
  return html`<div class="now">
    <header class="top">
      <${Sentence} run=${run} toDecision=${toSequence} toHealth=${() => go({ run: id, view: "health" })} />
      <${SecondLine} run=${run} toDecision=${toSequence} toAccount=${() => go({ run: id, view: "account" })} />
      <${Banner} run=${run} connection=${connection} />
    </header>
    <section class="figure" aria-label="Chart">
      <${Legend}
        frame=${frame}
        index=${at}
        decimals=${traded?.price_decimals}
        instrument=${instrument}
        others=${run.instruments}
        toInstrument=${toInstrument}
        tint=${tint}
        setTint=${setTint}
        decision=${decision}
        share=${share}
        least=${intervalText(frame ? Math.max(frame.step, least) : least)}
        toLeast=${() => setMultiple((now) => (now + 1) % LEAST.length)}
        playing=${playing != null}
        player=${player}
      />
      <${ChartPane}
        run=${run}
        instrument=${instrument}
        decision=${decision}
        pinnedMs=${pinnedDecision?.run_id === id ? pinnedDecision.open_time_ms : null}
        pointer=${hover?.index ?? null}
        gate=${gate}
        toGate=${toGate}
        tint=${tint}
        least=${least}
        isCompact=${isCompact}
        hasPanes=${hasPanes}
        connected=${connected}
        onHover=${(next) => setHover((now) => (now?.index === next?.index ? now : next?.sequence == null ? null : next))}
        onPick=${toSequence}
        onFrame=${framed}
        onSettled=${() => setFrameVersion((now) => now + 1)}
        handle=${handle}
      />
    </section>
    <${Card}
      decision=${decision}
      run=${run}
      gate=${gate}
      toGate=${toGate}
      toSequence=${toSequence}
      viewFrom=${view?.from_ms ?? 0}
      isOld=${decision != null && decision.sequence !== shown}
      verify=${verify}
      error=${error}
    />
    <p class="notice" role="status">${notice}</p>
    ${isCompact &&
    html`<${PhoneBar} earlier=${() => step(-1)} later=${() => step(1)} refusal=${() => toNext("refusal", -1)} fill=${() => toNext("fill", -1)} newest=${toNewest} />`}
    ${!isCompact &&
    html`<footer class="hints">
      <span class="wide">
        <span class="key"><kbd>←</kbd><kbd>→</kbd> decision</span><span class="key"><kbd>N</kbd><kbd>n</kbd> refusal</span><span class="key"><kbd>F</kbd><kbd>f</kbd> fill</span><span class="key"><kbd>v</kbd> verify</span><button class="plain quiet" onClick=${openKeys}><kbd>?</kbd> keys</button>
        ${playing && html`<b class="accent">playing, ${playing} a second</b>`}
      </span>
    </footer>`}
  </div>`;
}

