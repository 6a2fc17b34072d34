/** The frame: the line of places, the open place, and the dialogs over it. */
import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { go, useAddress } from "./address.js";
import { getRun, source } from "./api.js";
import { count, interval, isLocal, setLocal, strategyName, zoneName } from "./format.js";
import { useAnswer, useEvent } from "./hooks.js";
import { KeyList, useKeys } from "./keys.js";
import { useStream } from "./live.js";
import { NowView, sequenceAt } from "./now.js";
import { Operator } from "./operator.js";
import { Palette } from "./palette.js";
import { CompareView } from "./places/compare.js";
import { AccountView, GatesView, HealthView, ListView, ModelView, ReportView, SweepView } from "./places/documents.js";
import { toggleTheme } from "./theme.js";

const NARROW = "(max-width: 759px)";
const REFRESH = 15_000; // ms between two requests for a growing run
const RETRY = 3_000; // ms between two requests while there is nothing to show

const VIEWS = { now: NowView, account: AccountView, gates: GatesView, health: HealthView, compare: CompareView, model: ModelView, report: ReportView };

/** Whether a media query matches, as state. */
function useMedia(query) {
  const media = useMemo(() => matchMedia(query), [query]);
  const [holds, setHolds] = useState(media.matches);
  useEvent(media, "change", () => setHolds(media.matches));
  return holds;
}

function Places({ address, run, openPalette, openOperator }) {
  const present = { run: address.run ?? run?.row.run_id };
  const is = (place, view) => (address.place === place && (place !== "run" || address.view === view) ? "page" : undefined);
  const row = run?.row;
  return html`<header class="places">
    <nav aria-label="Places">
      <strong class="wide">tracepaper</strong>
      <button aria-current=${is("run", "now")} onClick=${() => go({ ...present, view: "now" })}>Now</button>
      <button aria-current=${is("runs")} onClick=${() => go({ place: "runs" })}>Runs</button>
      <button aria-current=${is("run", "health")} onClick=${() => go({ ...present, view: "health" })}>Health</button>
    </nav>
    <span class="what wide">
      ${row && address.place === "run" && html`${strategyName(row.strategy)} on ${row.instruments.slice(0, 2).join(", ")}${row.instruments.length > 2 ? ` and ${row.instruments.length - 2} more` : ""}, ${interval(row.interval_ms)} · ${row.kind} ${row.run_id.slice(0, 8)} · paper money`}
    </span>
    <span class="tools">
      ${row?.is_served && html`<button class="outlined" onClick=${openOperator}>${run.halt ? "Resume…" : "Halt…"}</button>`}
      <button class="outlined" onClick=${openPalette}>Go to <kbd class="wide">Ctrl K</kbd></button>
      <button class="theme" aria-label="Light or dark" title="Light or dark: t" onClick=${toggleTheme}>◐</button>
    </span>
  </header>`;
}

/** A note on the contents of a file, and on how to see the rest. */
function FileNote() {
  const { value } = useAnswer(() => source.get("/file"), []);
  if (!value) return null;
  const { database, whole } = value;
  const rounded = `Equity and noted numbers are rounded to 7 digits, confidence_entropy, forecasts and exposure to 5, margins to thousandths; prices, volumes and positions are exact; money in tables is to the cent. tracepaper ui --db ${database} shows all.`;
  return html`<span class="file" title=${rounded}>A file of ${database}, ${count(whole)} complete decisions; lines are rounded.</span>`;
}

/** A placeholder while the run is read, the same as in index.html. */
const Reading = () => html`<div class="now"><header class="top"><p class="sentence awaited" role="status">Reading the run…</p></header></div>`;

/** The run of an address without one: that of the daemon, else the newest. */
const newestOf = (runs) => runs.find((row) => row.is_served) ?? runs[0] ?? null;

function Nothing({ refused }) {
  return html`<div class="empty">
    <h1 class="sentence">Nothing is recorded yet.</h1>
    <p>Record a market in a minute and come back: <code>tracepaper demo</code></p>
    ${refused.map((each) => html`<p key=${each.database} class="loss">${each.database}: ${each.error}</p>`)}
  </div>`;
}

export function App() {
  const address = useAddress();
  const isCompact = useMedia(NARROW);
  const [open, setOpen] = useState(null); // palette, keys, operator
  const [, setZone] = useState(isLocal());
  const [refreshed, setRefreshed] = useState(0);
  const [connected, setConnected] = useState(0);
  const steps = useRef(() => {});
  const version = `${connected} ${Math.floor(refreshed / 4)}`;
  const runs = useAnswer((signal) => source.get("/runs", {}, { signal }), [version]);
  const id = address.run ?? newestOf(runs.value?.runs ?? [])?.run_id ?? null;
  const answer = useAnswer(() => (id ? getRun(id) : null), [id, connected, refreshed]);
  const first = answer.value?.row.run_id === id ? answer.value : null;
  // Show the run at once, and request the counts of a long run behind it.
  const isUncounted = first != null && first.row.decisions == null;
  const counted = useAnswer(() => (isUncounted ? getRun(id, { counted: true }) : null), [id, isUncounted]);
  const run = isUncounted && counted.value?.row.run_id === id ? counted.value : first;
  const isGrowing = run != null && run.row.ended_ms == null && !source.isRecord;
  const connection = useStream({
    isWanted: isGrowing,
    run: id,
    onHello: (isAgain) => (isAgain ? setConnected : setRefreshed)((now) => now + 1),
    onStep: (step) => {
      if (step.run_id !== id) return;
      steps.current(step);
      if (step.fills?.length || step.happening) setRefreshed((now) => now + 1);
    },
  });
  useEffect(() => {
    if (source.isRecord || (run && !isGrowing)) return undefined;
    const timer = run ? setInterval(() => setRefreshed((now) => now + 1), REFRESH) : setInterval(() => setConnected((now) => now + 1), RETRY);
    return () => clearInterval(timer);
  }, [isGrowing, run == null]);
  useEvent(window, "verified", () => setRefreshed((now) => now + 1));
  useEffect(() => {
    document.title = run ? `${strategyName(run.row.strategy)} ${run.row.run_id.slice(0, 8)} · tracepaper` : "tracepaper";
  }, [run]);

  const zone = () => {
    setLocal(!isLocal());
    setZone(isLocal());
  };
  useKeys({ "Ctrl+k": () => setOpen("palette"), "?": () => setOpen("keys"), "Shift+?": () => setOpen("keys"), t: toggleTheme, u: zone });

  const entries = useMemo(() => {
    const to = (words, kind, place) => ({ words, kind, act: () => go(place) });
    const does = (words, act) => ({ words, kind: "command", act });
    const nameOf = (row, each) => `${strategyName(row.strategy)} ${each.slice(0, 8)}`;
    const views = [
      ["Now", "now"],
      ["Account: equity, positions, orders, trades, ledger", "account"],
      ["Gates: refusals, and what each gate saved or cost", "gates"],
      ["Health: parity, feed, latency, gaps, restarts", "health"],
      ...(run?.has_model ? [["Model: card, calibration, intervals, risk and coverage", "model"]] : []),
      ["Report", "report"],
    ];
    const rows = runs.value?.runs ?? [];
    return [
      ...(run ? views.map(([words, view]) => to(words, "view", { run: id, view })) : []),
      to("Runs", "view", { place: "runs" }),
      ...(run?.instruments.length > 1 ? run.instruments.map((each) => to(each.symbol, "symbol", { run: id, instrument: each.id })) : []),
      ...rows.map((row) => to(`${strategyName(row.strategy)} on ${row.instruments[0] ?? ""} ${row.run_id.slice(0, 8)}`, "run", { run: row.run_id })),
      ...(runs.value?.sweeps ?? []).map((row) => to(`Sweep of ${nameOf(row, row.sweep_id)}`, "sweep", { place: "sweep", sweep: row.sweep_id })),
      ...rows.filter((row) => id && row.run_id !== id).map((row) => to(`Compare with ${nameOf(row, row.run_id)}`, "view", { run: id, view: "compare", other: row.run_id })),
      does("Light or dark", toggleTheme),
      does(`Times in ${isLocal() ? "UTC" : "local time"}`, zone),
      does("Keys", () => setOpen("keys")),
      ...(run?.row.is_served ? [does("HALT, RESUME or FLATTEN", () => setOpen("operator"))] : []),
    ];
  }, [run, runs.value, id]);

  const instrument = address.instrument ?? run?.instruments[0]?.id;
  const toSequence = (sequence) => go({ run: id, sequence, instrument: address.instrument });
  const counts = { version, lacksCounts: runs.value?.runs.some((row) => row.decisions == null) };
  const place = () => {
    if (address.place === "sweep") return html`<${SweepView} key=${address.sweep} sweep=${address.sweep} />`;
    if (address.place === "runs" || (runs.value?.sweeps?.length && !id)) return html`<${ListView} path="/overview" ...${counts} />`;
    if (runs.value && !id) return html`<${Nothing} refused=${runs.value.refused} />`;
    const error = runs.error ?? answer.error;
    if (!run) return error ? html`<div class="empty"><p class="loss" role="alert">${error.message}</p></div>` : html`<${Reading} />`;
    const View = VIEWS[address.view];
    return html`<${View} key=${id} run=${run} address=${address} go=${go} ...${counts} refreshed=${connected + refreshed} connection=${connection} connected=${connected} steps=${steps} isCompact=${isCompact} openKeys=${() => setOpen("keys")} />`;
  };
  return html`<div class=${`page ${address.place === "run" && address.view === "now" ? "whole" : ""}`}>
    <${Places} address=${address} run=${run} openPalette=${() => setOpen("palette")} openOperator=${() => setOpen("operator")} />
    <main>${place()}</main>
    <footer class="attribution"><span>${zoneName()}</span>${source.isRecord && html`<${FileNote} />`} Charts: <a href="https://www.tradingview.com/" rel="noreferrer" target="_blank">TradingView Lightweight Charts™</a></footer>
    ${open === "palette" &&
    html`<${Palette} entries=${entries} toTime=${run && ((ms) => sequenceAt(id, instrument, ms).then((sequence) => sequence != null && toSequence(sequence)))} toSequence=${run && toSequence} last=${run?.row.last_ms} isLocal=${isLocal()} close=${() => setOpen(null)} />`}
    ${open === "keys" && html`<${KeyList} close=${() => setOpen(null)} />`}
    ${open === "operator" && html`<${Operator} run=${run} close=${() => setOpen(null)} />`}
  </div>`;
}
