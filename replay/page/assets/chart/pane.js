/** The chart as a component: it keeps a frame loaded around the view, and reports the cell under the pointer. */
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../vendor/htm-preact.js";
import { Swatch } from "../accounts.js";
import { interval as intervalText, percent, plain, word } from "../format.js";
import { colours, onTheme } from "../theme.js";
import { Chart, within } from "./chart.js";
import { loadFrame, stepFor } from "./frame.js";
import { ROW, rowsOf } from "./rows.js";

const FIRST_BARS = 1440; // of the first view, a day of minutes
const CELLS_MOST = 4000; // of a growing frame
const MARGIN = 1; // spans loaded on each side of the view
const SETTLE = 90; // ms without a move before the range is requested
const FREE = 4; // empty cells beyond the ends of the run
const LINES = 3; // accounts in the equity pane
const AXIS = 94; // least px of the right axis
const LEGEND_ROOM = 85; // px of an account in the legend of the equity pane, without its name
const COUNT_ROOM = 40; // px for the count of a row's refusals, with its margins
const measuring = document.createElement("canvas").getContext("2d");

function textWidth(text) {
  measuring.font = `11px ${colours().font}`;
  return Math.ceil(measuring.measureText(text).width);
}

/** The width of a row's label with its count, in pixels. */
const labelWidth = ({ label }) => textWidth(label) + COUNT_ROOM;

/** The number of lines of the equity pane's legend in a width of pixels. */
const legendHeight = (lines, width) => {
  const widest = Math.max(...lines.map(({ name }) => textWidth(name))) + LEGEND_ROOM;
  return Math.ceil(lines.length / Math.max(1, Math.floor(width / widest)));
};

/**
 * The accounts of the equity pane: the run's, and shadow accounts. In the low pane of a phone the
 * run's account alone sets the scale: beside a shadow account that moved by 3 % its own .1 % would be
 * a flat line.
 */
export function accountLines(run, { isCompact = false } = {}) {
  const asReturn = ({ name, start }) => (frame) => frame.equity[name]?.map((value) => (value == null ? null : (value / start - 1) * 100));
  return run.accounts.slice(0, LINES).map((account, index) => ({
    name: account.title,
    tone: account.tone,
    dash: account.dash,
    width: Math.round(account.width), // the library draws whole pixels
    isShadow: index > 0,
    isScaled: !isCompact || index === 0,
    column: asReturn(account),
    format: (value) => percent(value / 100, { decimals: Math.abs(value) < 10 ? 2 : 1 }),
  }));
}

/** Lines of confidence and of the strategy's notes: prices on the price pane, each other in its own. */
function extraLines(run, instrument, frame, { hasPanes }) {
  const extras = [];
  if (hasPanes && run.has_model) {
    const gate = run.gates.find((each) => each.gate === "confidence_entropy");
    extras.push({ name: "confidence_entropy", tone: "accent", column: (each) => each.confidence_entropy, threshold: gate?.threshold ?? null, format: (value) => plain(value, 3) });
  }
  const price = frame.close[frame.length - 1];
  for (const { name } of run.notes.filter((each) => each.instrument === instrument)) {
    const values = (frame.numbers[name] ?? []).filter((value) => value != null);
    const isPrice = values.length > 0 && values.every((value) => value > price / 2 && value < price * 2);
    if (!isPrice && !hasPanes) continue;
    extras.push({ name, tone: isPrice ? "ink" : "muted", onPrice: isPrice, isSparse: values.length * 2 < frame.length, column: (each) => each.numbers[name], format: (value) => plain(value, 4) });
  }
  return extras;
}

const MOST_PANES = { wide: 3, low: 1, compact: 0 };

function EquityLegend({ lines, chart, index, isCompact }) {
  const frame = chart?.frame;
  if (!frame) return null;
  const at = index ?? frame.length - 1;
  const values = lines.map((line) => line.column(frame)?.[at]);
  return lines.map((line, each) => {
    const isSame = each > 0 && line.isShadow && values[each] != null && Math.abs(values[each] - values[0]) < 5e-7;
    if (isSame && isCompact) return null;
    return html`<span key=${line.name} class="term">
      <${Swatch} ...${line} />${each === 0 ? "equity" : line.name}
      ${" "}<b>${isSame ? "the same" : percent((values[each] ?? NaN) / 100, { decimals: 3 })}</b>
    </span>`;
  });
}

/**
 * @param {Object} props
 * @param {Object} props.run Run
 * @param {string} props.instrument
 * @param {Object|null} props.decision the one under the pointer, or the pinned one
 * @param {number|null} props.pinnedMs open time of the pinned bar
 * @param {Function} props.onHover (sequence|null, cell)
 * @param {Function} props.onPick (sequence)
 * @param {number} props.connected number of reconnections of the stream
 * @param {{current: Object}} props.handle is set to `{chart, frame, follow, goTo, showWhole, reload}`
 */
export function ChartPane({ run, instrument, decision, pinnedMs, pointer, gate, toGate, tint, least, isCompact, hasPanes, connected, onHover, onPick, onFrame, onSettled, handle }) {
  const element = useRef();
  const chart = useRef(null);
  const work = useRef({ abort: null, timer: null, isFirst: true });
  const [layout, setLayout] = useState({ tops: [], axis: 94, extras: [] });
  const [state, setState] = useState({ isLoading: true, error: null });
  const interval = run.row.interval_ms;
  const rows = useMemo(() => rowsOf(run, { compact: isCompact }), [run.row.run_id, isCompact, run.has_attention, run.has_regime]);
  const lines = useMemo(() => accountLines(run, { isCompact }), [run.row.run_id, isCompact]);
  const decimals = run.instruments.find((each) => each.id === instrument)?.price_decimals ?? 2;
  const listeners = useRef({});
  const lastMs = useRef(run.row.last_ms);
  lastMs.current = Math.max(lastMs.current ?? 0, run.row.last_ms);

  /** Load the range and draw it; `view` is the range to show then. */
  const load = async ({ from_ms, until_ms, step, view }) => {
    const { current } = work;
    current.abort?.abort();
    const abort = (current.abort = new AbortController());
    current.loading = { from_ms, until_ms, step };
    setState({ isLoading: true, error: null });
    try {
      const frame = await loadFrame({ run: run.row.run_id, instrument, from_ms, until_ms, step, held: chart.current.frame, signal: abort.signal });
      if (abort.signal.aborted || !chart.current) return;
      const before = chart.current.frame;
      const { isNewest } = current;
      current.loading = null;
      current.loaded = { from_ms, until_ms, step };
      current.isNewest = until_ms >= lastMs.current;
      if (frame.length === 0) {
        setState({ isLoading: false, error: null, isEmpty: true });
        return;
      }
      // The view may have moved while the range was loading.
      const wanted = view === undefined ? chart.current.view() : view;
      if (current.isFirst) {
        const extras = extraLines(run, instrument, frame, { hasPanes });
        const most = isCompact ? MOST_PANES.compact : element.current.clientHeight < 560 ? MOST_PANES.low : MOST_PANES.wide;
        let panes = 0;
        const axis = Math.max(...rows.map(labelWidth));
        const legendLines = legendHeight(lines, element.current.clientWidth - Math.max(AXIS, axis));
        chart.current.setRun({ interval, rows, accounts: lines, axis, legendLines, isCompact, extras: extras.filter((each) => each.onPrice || panes++ < most) });
      }
      // Keep the newest bar in view, even if bars arrived while the range was loading.
      const ahead = isNewest && view === undefined && wanted && wanted.until_ms >= before.lastMs ? Math.max(0, frame.lastMs - before.lastMs) : 0;
      const moved = wanted && { from_ms: wanted.from_ms + ahead, until_ms: wanted.until_ms + ahead };
      chart.current.setFrame(frame, { view: current.isFirst ? null : moved });
      if (current.isFirst) {
        current.isFirst = false;
        chart.current.showNewest(run.has_model ? run.gate_horizon : 8);
      }
      setState({ isLoading: false, error: null });
      listeners.current.onFrame?.(frame);
      if (current.isDue) catchUp();
    } catch (error) {
      if (abort.signal.aborted) return;
      current.loading = null;
      setState({ isLoading: false, error });
    }
  };

  const isAtNewest = () => {
    const view = chart.current.view();
    return view != null && view.until_ms >= chart.current.frame.lastMs;
  };

  /** Load the newest bars if they are in view, after a pending load. */
  const catchUp = () => {
    const { loaded, loading } = work.current;
    work.current.isDue = loading != null;
    if (loaded && !loading && (!chart.current.frame || isAtNewest())) handle.current.reload();
  };

  /** The range to load for a view: as much again on each side, within the run. */
  const around = ({ from_ms, until_ms }) => {
    const room = MARGIN * (until_ms - from_ms);
    return { from_ms: Math.max(run.bars_from_ms, from_ms - room), until_ms: Math.min(lastMs.current + interval, until_ms + room) };
  };

  /** Load the range that the view needs, if the frame lacks it. */
  const settle = () => {
    const view = chart.current?.view();
    if (!view || work.current.isFirst) return;
    listeners.current.onSettled?.();
    const span = view.until_ms - view.from_ms;
    const shownStep = chart.current.frame.step;
    const step = stepFor({ interval, least: listeners.current.least, span, width: view.width, current: shownStep });
    const { loaded } = work.current;
    const first = run.bars_from_ms;
    const end = lastMs.current + interval;
    const needed = { from_ms: Math.max(first, view.from_ms - span / 4), until_ms: Math.min(end, view.until_ms + span / 4) };
    // A file returns longer cells than requested if it has no shorter ones.
    const isLoaded = step === shownStep || (step === loaded.step && shownStep > step);
    if (isLoaded && needed.from_ms >= loaded.from_ms && needed.until_ms <= loaded.until_ms) return;
    if (needed.until_ms <= first || needed.from_ms >= end) return;
    const { loading } = work.current;
    if (loading && loading.step === step && loading.from_ms <= needed.from_ms && loading.until_ms >= needed.until_ms) return;
    load({ ...around(view), step });
  };

  listeners.current = {
    least,
    onFrame,
    onSettled,
    onView: () => {
      clearTimeout(work.current.timer);
      work.current.timer = setTimeout(settle, SETTLE);
    },
    onHover: (index) => onHover(index == null ? null : { index, sequence: chart.current.frame.sequence[index] }),
    onPick: (index) => onPick(chart.current.frame.sequence[index]),
  };

  /** Let the page scroll if the chart is too low, because shrunk rows would overlap. */
  const giveRoom = (missing) => {
    const page = element.current?.closest(".whole");
    if (page) page.style.minHeight = `${page.clientHeight + missing}px`;
  };

  useLayoutEffect(() => {
    const drawing = new Chart(element.current, {
      decimals,
      onView: () => listeners.current.onView(),
      onHover: (index) => listeners.current.onHover(index),
      onPick: (index) => listeners.current.onPick(index),
      onLayout: ({ missing, ...placed }) => {
        setLayout(placed);
        giveRoom(missing);
      },
    });
    chart.current = drawing;
    work.current = { abort: null, timer: null, isFirst: true };
    const unsubscribe = onTheme(() => drawing.theme());
    handle.current = {
      chart: drawing,
      get frame() {
        return drawing.frame;
      },
      /** A bar was stored: load the newest bars again. */
      follow: (step) => {
        lastMs.current = Math.max(lastMs.current, step.bar[0]);
        if (step.instrument === instrument) catchUp();
      },
      /** Bring a bar into view, and load its surroundings. */
      goTo: (ms, room = 0) => {
        if (!drawing.frame?.length) return;
        const { step } = drawing.frame;
        const ends = [run.bars_from_ms - FREE * step, lastMs.current + Math.max(room, FREE) * step];
        const index = drawing.frame.indexOf(ms);
        if (index >= 0) {
          drawing.reveal(index, Math.min(room, Math.max(0, drawing.frame.length - 1 - index + room)), ends.map((end) => drawing.frame.position(end)));
          return;
        }
        const view = drawing.view();
        const span = view.until_ms - view.from_ms;
        const { from, to } = within({ from: ms - span * 0.55, to: ms + span * 0.45 }, ends);
        const wanted = { from_ms: from, until_ms: to };
        load({ ...around(wanted), step, view: wanted });
      },
      /** Show the whole run. */
      showWhole: () => {
        const whole = { from_ms: run.bars_from_ms, until_ms: lastMs.current + interval };
        const step = stepFor({ interval, least: listeners.current.least, span: whole.until_ms - whole.from_ms, width: drawing.view().width });
        load({ ...whole, step, view: whole });
      },
      /** Load all again, after a lost connection. */
      reload: () => {
        const { loaded } = work.current;
        if (!loaded) return;
        const until_ms = !drawing.frame || isAtNewest() ? lastMs.current + interval : loaded.until_ms;
        load({ ...loaded, from_ms: Math.max(loaded.from_ms, until_ms - CELLS_MOST * loaded.step), until_ms });
      },
    };
    const until_ms = lastMs.current + interval;
    const step = Math.max(interval, least ?? interval);
    load({ from_ms: Math.max(run.bars_from_ms, until_ms - FIRST_BARS * step), until_ms, step });
    return () => {
      work.current.abort?.abort();
      clearTimeout(work.current.timer);
      unsubscribe();
      drawing.remove();
      chart.current = handle.current = null;
      element.current?.closest(".whole")?.style.removeProperty("min-height");
    };
  }, [run.row.run_id, instrument, isCompact, hasPanes]);

  // Reload the chart once the run was read again after a lost connection.
  const wasConnected = useRef(connected);
  useEffect(() => {
    if (wasConnected.current === connected) return;
    wasConnected.current = connected;
    handle.current?.reload();
  }, [run]);

  // For another cell length, show as many cells as before, until the same time.
  useEffect(() => {
    const drawing = chart.current;
    if (!drawing?.frame || work.current.isFirst) return;
    const { from_ms, until_ms } = drawing.view();
    const step = Math.max(interval, least ?? interval);
    const view = { from_ms: until_ms - ((until_ms - from_ms) * step) / drawing.frame.step, until_ms };
    load({ ...around(view), step, view });
  }, [least]);

  useEffect(() => {
    const drawing = chart.current;
    if (!drawing?.frame) return;
    drawing.show({
      decision,
      tint,
      gate,
      pointer: pointer == null || pointer >= drawing.frame.length ? null : pointer,
      pinned: pinnedMs == null ? null : drawing.frame.indexOf(pinnedMs),
    });
  });

  // The rows stay as first drawn; their counts are updated.
  const counts = useMemo(() => new Map(run.gates.map((each) => [each.gate, each.refused])), [run]);
  const refused = (row) => row.gates.reduce((sum, each) => sum + counts.get(each), 0);
  const drawn = chart.current?.frame;
  const pinned = drawn && pinnedMs != null ? drawn.indexOf(pinnedMs) : -1;
  const at = pointer ?? (pinned >= 0 ? pinned : (drawn?.length ?? 1) - 1);
  const regime = drawn?.regime[at];
  const asked = drawn && !drawn.refused_by[at] && drawn.action[at];
  const labels = { regime: word((regime || "regime").toLowerCase()).replace("mean ", ""), asked: asked ? `asked ${asked}` : "asked for" };
  return html`<div class="chart" aria-busy=${state.isLoading}>
    <div class="canvas" ref=${element} role="img" aria-label=${`Candles of ${instrument}, with gates and equity. The arrow keys step through the decisions; the card says each in words.`}></div>
    ${drawn?.length && layout.tops.length > 1 &&
    html`<ul class="rows" style=${{ top: `${layout.tops[1] + 5}px`, width: `${layout.axis - 6}px` }}>
        ${rows.map(
          (row) =>
            html`<li key=${row.key} style=${{ height: `${ROW}px` }}>
              ${row.kind === "gate" && !isCompact
                ? html`<button
                    class=${decision?.refused_by === row.key ? "refuser" : ""}
                    aria-pressed=${gate === row.key}
                    title=${run.gates.find((each) => each.gate === row.key).meaning}
                    onClick=${() => toGate(row.key)}
                  ><span>${row.label}</span><span class="figure">${refused(row) || ""}</span><span class="unseen">${refused(row) ? " refusals" : " no refusal"}</span></button>`
                : html`<span title=${row.gates.join(", ")} class=${row.gates.includes(decision?.refused_by) ? "refuser" : ""}>
                    <span>${labels[row.kind] ?? row.label}</span><span class="figure">${refused(row) || ""}</span>
                  </span>`}
            </li>`,
        )}
      </ul>
      <p class="over" style=${{ top: `${layout.tops[2] + 4}px`, right: `${layout.axis}px` }}><${EquityLegend} lines=${lines} chart=${chart.current} index=${at} isCompact=${isCompact} /></p>
      ${layout.extras.map(
        (name, index) => html`<p key=${name} class="over" style=${{ top: `${(layout.tops[3 + index] ?? 0) + 4}px`, right: `${layout.axis}px` }}>${word(name)}</p>`,
      )}`}
    ${state.isLoading && html`<p class="reading late" role="status">reading the bars</p>`}
    ${state.error && html`<p class="reading loss" role="alert">${state.error.message}</p>`}
    ${state.isEmpty && html`<p class="reading">No bar of ${instrument} lies here.</p>`}
    ${drawn && drawn.step > interval && html`<p class="cell">${intervalText(drawn.step)} a cell${drawn.isCut ? "; newest fills only" : ""}</p>`}
  </div>`;
}

