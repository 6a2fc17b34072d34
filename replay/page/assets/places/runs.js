/** Runs: all that the databases hold, to filter, to open and to compare. */
import { html, useState } from "../vendor/htm-preact.js";
import { count, interval, number, percent, stamp, strategyName } from "../format.js";
import { Waiting } from "../hooks.js";
import { Table } from "./table.js";

function Choice({ row, chosen, choose }) {
  const { run_id: id, strategy } = row;
  return html`<input type="checkbox" aria-label=${`Compare ${strategyName(strategy)} ${id.slice(0, 8)}`} checked=${chosen.includes(id)} onChange=${() => choose(id)} />`;
}

export function RunsView({ runs, go }) {
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState([]); // ids of at most two runs to compare
  if (runs.error) return html`<p class="loss" role="alert">${runs.error.message}</p>`;
  if (!runs.value) return html`<${Waiting} />`;
  // A third choice takes the place of the older one.
  const choose = (id) => setChosen((now) => (now.includes(id) ? now.filter((each) => each !== id) : [...now, id].slice(-2)));
  const text = search.trim().toLowerCase();
  const rows = runs.value.runs.filter((row) => !text || [row.run_id, row.kind, row.strategy, row.database, row.model_id, ...row.instruments].join(" ").toLowerCase().includes(text));
  return html`<div class="place">
    <h1>Runs</h1>
    <p class="spread">
      <label class="filter">Filter <input type="search" value=${search} onInput=${(event) => setSearch(event.target.value)} placeholder="strategy, symbol, file" /></label>
      ${runs.value.runs.length > 1 &&
      html`<button class="outlined" disabled=${chosen.length < 2} onClick=${() => go({ run: chosen[0], view: "compare", other: chosen[1] })}>${chosen.length < 2 ? "Choose two to compare" : "Compare the two"}</button>`}
      <span class="muted">${count(rows.length)} of ${count(runs.value.runs.length)}</span>
    </p>
    <${Table}
      caption="Runs"
      empty=${text ? "No run fits the filter; clear it to see all." : "No run is recorded here."}
      rows=${rows}
      onRow=${(row) => go({ run: row.run_id })}
      columns=${[
        { title: "run", text: true, of: (row) => `${strategyName(row.strategy)} ${row.run_id.slice(0, 8)}` },
        ...(runs.value.runs.length > 1 ? [{ title: "compare", text: true, of: (row) => html`<${Choice} row=${row} chosen=${chosen} choose=${choose} />`, by: (row) => chosen.includes(row.run_id) }] : []),
        { title: "kind", text: true, of: (row) => (row.is_served ? `${row.kind}, running` : row.kind) },
        { title: "symbols", text: true, of: (row) => row.instruments.map((id) => id.split(":").pop()).slice(0, 3).join(", ") + (row.instruments.length > 3 ? ` +${row.instruments.length - 3}` : "") },
        { title: "bars", text: true, of: (row) => interval(row.interval_ms), by: (row) => row.interval_ms },
        { title: "from", text: true, of: (row) => stamp(row.first_ms).slice(0, 16), by: (row) => row.first_ms },
        { title: "until", text: true, of: (row) => stamp(row.last_ms).slice(0, 16), by: (row) => row.last_ms },
        { title: "decisions", of: (row) => count(row.decisions), by: (row) => row.decisions },
        { title: "fills", of: (row) => count(row.fills), by: (row) => row.fills },
        { title: "equity", of: (row) => number(row.equity), by: (row) => row.equity },
        { title: "return", of: (row) => percent(row.total_return, { sign: true }), by: (row) => row.total_return },
        { title: "database", text: true, of: (row) => row.database },
      ]}
    />
    ${runs.value.sweeps?.length > 0 &&
    html`<h2>Sweeps</h2>
      <${Table}
        caption="Sweeps"
        rows=${runs.value.sweeps}
        onRow=${(row) => go({ place: "sweep", sweep: row.sweep_id })}
        columns=${[
          { title: "sweep", text: true, of: (row) => `${strategyName(row.strategy)} ${row.sweep_id.slice(0, 8)}` },
          { title: "objective", text: true, of: (row) => row.objective },
          { title: "runs", of: (row) => count(row.cells), by: (row) => row.cells },
          { title: "state", text: true, of: (row) => (row.is_whole ? "whole" : "not finished") },
          { title: "database", text: true, of: (row) => row.database },
        ]}
      />`}
    ${runs.value.refused.map((each) => html`<p key=${each.database} class="loss">${each.database}: ${each.error}</p>`)}
  </div>`;
}
