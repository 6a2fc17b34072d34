/** Gates: refusals over time, and what each gate saved or cost beside random gates. */
import { html } from "../vendor/htm-preact.js";
import { getOf } from "../api.js";
import { basisPoints, count, word } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";
import { Table } from "./table.js";

/** A day a column, a gate a row: the darker, the more; the number is in its title and in the table. */
function Days({ days, gates }) {
  const most = Math.max(1, ...days.flatMap((day) => gates.map((gate) => day.counts[gate] ?? 0)));
  return html`<div class="scrolled" tabindex="0" role="group" aria-label="First refusals by day and gate">
    <table class="days stacks">
      <caption class="unseen">First refusals by UTC day and gate</caption>
      <thead><tr><th scope="col" class="text">gate</th><th scope="col">all</th>${days.map(({ day }) => html`<th key=${day} scope="col">${day.slice(5)}</th>`)}</tr></thead>
      <tbody>
        ${gates.map(
          (gate) =>
            html`<tr key=${gate}><th scope="row" class="text" title=${gate}>${word(gate)}</th>
              <td data-title="all">${count(days.reduce((sum, day) => sum + (day.counts[gate] ?? 0), 0))}</td>
              ${days.map(({ day, counts }) => {
                const refused = counts[gate] ?? 0;
                return html`<td key=${day} data-title=${day.slice(5)} class="shade" style=${{ "--share": `${refused ? Math.round(6 + 42 * Math.sqrt(refused / most)) : 0}%` }}>${refused || ""}</td>`;
              })}</tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** A dot with its error bar on one scale, and a tick where random gates lie. */
function Whisker({ row, reach }) {
  if (row.mean_return == null) return "–";
  const at = (value) => `${50 + (48 * value) / reach}%`;
  const error = row.error ?? 0;
  return html`<span class="whisker" role="img" aria-label=${`${basisPoints(row.mean_return)} plus or minus ${basisPoints(error, { sign: false })} basis points`}>
    <i class="bar" style=${{ left: at(row.mean_return - error), width: `${(96 * error) / reach}%` }}></i>
    ${row.random_mean != null && html`<i class="random" style=${{ left: at(row.random_mean) }}></i>`}
    <i class="dot" style=${{ left: at(row.mean_return) }}></i>
  </span>`;
}

export function GatesView({ run, go, refreshed }) {
  const id = run.row.run_id;
  const { value, error } = useAnswer((signal) => getOf(id, "refusals", { signal }), [id, refreshed]);
  if (error) return html`<p class="loss" role="alert">${error.message}</p>`;
  if (!value) return html`<div class="place"><${Waiting} doing="Counting refusals, and what each gate saved or cost" /></div>`;
  const gates = run.gates.map((each) => each.gate).filter((gate) => value.days.some((day) => day.counts[gate]));
  const worth = value.worth.filter((row) => row.mean_return != null);
  const reach = Math.max(1e-9, ...value.worth.map((row) => Math.max(Math.abs(row.mean_return ?? 0) + (row.error ?? 0), Math.abs(row.random_mean ?? 0))));
  return html`<div class="place">
    <h1>Gates</h1>
    <h2>Refusals by day</h2>
    ${gates.length ? html`<${Days} days=${value.days} gates=${gates} />` : html`<p class="muted">Nothing refused yet.</p>`}
    <h2>What each gate saved or cost</h2>
    <p class="muted">The mean return of the signals that a gate refused, over ${run.gate_horizon} bars: left of the middle it saved, right of it it cost. The tick is as many random refusals.${worth.some((row) => row.error == null) ? " Without an error: too few signals were refused to know." : ""}</p>
    ${value.worth.length > 0 && !worth.length && html`<p class="muted">Nothing that was refused was a signal to trade: at those bars there was no side to take, so nothing was saved or lost.</p>`}
    <${Table} caption="What each gate saved or cost" empty=${value.worth.length ? "" : "No gate refused a signal."} rows=${worth} columns=${[
      { title: "gate", text: true, of: (row) => word(row.gate) },
      { title: "refused", of: (row) => count(row.refused), by: (row) => row.refused },
      { title: "of them signals", of: (row) => count(row.signals), by: (row) => row.signals },
      { title: "on days", of: (row) => count(row.days), by: (row) => row.days },
      { title: "mean, bp", of: (row) => basisPoints(row.mean_return), by: (row) => row.mean_return },
      { title: "± error", of: (row) => basisPoints(row.error, { sign: false }), by: (row) => row.error },
      { title: "random", of: (row) => basisPoints(row.random_mean), by: (row) => row.random_mean },
      { title: "saved · cost", text: true, of: (row) => html`<${Whisker} row=${row} reach=${reach} />`, by: (row) => row.mean_return },
    ]} />
    <h2>Why no order was sent</h2>
    <${Table} caption="Why no order was sent" empty="Every signal that passed was sent." rows=${Object.entries(value.unfilled)} columns=${[
      { title: "reason", text: true, of: ([reason]) => reason },
      { title: "decisions", of: ([, times]) => count(times), by: ([, times]) => times },
    ]} />
    <p><button class="plain" onClick=${() => go({ run: id })}>Back to Now</button></p>
  </div>`;
}
