/** Runs: all that the databases hold, to filter, to open and to compare. */
import { html, useState } from "../vendor/htm-preact.js";
import { count, interval, number, percent, stamp, strategyName } from "../format.js";
import { Waiting } from "../hooks.js";
import { Listed } from "./table.js";

const nameOf = (row, id) => `${strategyName(row.strategy)} ${id.slice(0, 8)}`;

const COLUMNS = [
  ["kind", (row) => (row.is_served ? `${row.kind}, running` : row.kind)],
  ["symbols", (row) => row.instruments.map((id) => id.split(":").pop()).slice(0, 3).join(", ") + (row.instruments.length > 3 ? ` +${row.instruments.length - 3}` : "")],
  ["bars", (row) => interval(row.interval_ms), (row) => row.interval_ms],
  ["from", (row) => stamp(row.first_ms).slice(0, 16)],
  ["until", (row) => stamp(row.last_ms).slice(0, 16)],
  ["decisions", (row) => count(row.decisions), null, true],
  ["fills", (row) => count(row.fills), null, true],
  ["equity", (row) => number(row.equity), null, true],
  ["return", (row) => percent(row.total_return, { sign: true }), null, true],
  ["database", (row) => row.database],
];
const SWEEPS = [
  ["sweep", (row) => nameOf(row, row.sweep_id)],
  ["objective", (row) => row.objective],
  ["runs", (row) => count(row.cells), null, true],
  ["state", (row) => (row.is_whole ? "whole" : "not finished")],
  ["database", (row) => row.database],
];

export function RunsView({ runs, go }) {
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState([]); // ids of at most two runs to compare
  if (runs.error) return html`<p class="loss" role="alert">${runs.error.message}</p>`;
  if (!runs.value) return html`<${Waiting} />`;
  // A third choice takes the place of the older one.
  const choose = (id) => setChosen((now) => (now.includes(id) ? now.filter((each) => each !== id) : [...now, id].slice(-2)));
  const text = search.trim().toLowerCase();
  const rows = runs.value.runs.filter((row) => !text || [row.run_id, row.kind, row.strategy, row.database, row.model_id, ...row.instruments].join(" ").toLowerCase().includes(text));
  const isChosen = (row) => chosen.includes(row.run_id);
  const choice = (row) => html`<input type="checkbox" aria-label=${`Compare ${nameOf(row, row.run_id)}`} checked=${isChosen(row)} onChange=${() => choose(row.run_id)} />`;
  const several = runs.value.runs.length > 1;
  return html`<div class="place">
    <h1>Runs</h1>
    <p class="spread">
      <label class="filter">Filter <input type="search" value=${search} onInput=${(event) => setSearch(event.target.value)} placeholder="strategy, symbol, file" /></label>
      ${several &&
      html`<button class="outlined" disabled=${chosen.length < 2} onClick=${() => go({ run: chosen[0], view: "compare", other: chosen[1] })}>${chosen.length < 2 ? "Choose two to compare" : "Compare the two"}</button>`}
      <span class="muted">${count(rows.length)} of ${count(runs.value.runs.length)}</span>
    </p>
    <${Listed}
      name="Runs"
      empty=${text ? "No run fits the filter; clear it to see all." : "No run is recorded here."}
      rows=${rows}
      open=${(row) => go({ run: row.run_id })}
      columns=${[["run", (row) => nameOf(row, row.run_id)], ...(several ? [["compare", choice, isChosen]] : []), ...COLUMNS]}
    />
    ${runs.value.sweeps?.length > 0 &&
    html`<h2>Sweeps</h2>
      <${Listed} name="Sweeps" columns=${SWEEPS} rows=${runs.value.sweeps} open=${(row) => go({ place: "sweep", sweep: row.sweep_id })} />`}
    ${runs.value.refused.map((each) => html`<p key=${each.database} class="loss">${each.database}: ${each.error}</p>`)}
  </div>`;
}
