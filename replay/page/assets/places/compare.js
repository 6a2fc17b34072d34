/** Compare: two runs over the bars that both decided. */
import { html, useMemo, useState } from "../vendor/htm-preact.js";
import { getColumns, getDecision, getOf, getRun } from "../api.js";
import { Card } from "../card.js";
import { lowerBound } from "../cells.js";
import { count, moment, number, percent, strategyName, word } from "../format.js";
import { useAnswer } from "../hooks.js";
import { Lines } from "./lines.js";
import { Table } from "./table.js";

const POINTS = 1500;
const FIELDS = 4; // named of one difference
const named = (field) => word(field.replace(/_text$/, ""));

function Laid({ left, right }) {
  const ask = (run) => (signal) => getColumns(run.row.run_id, "equity", { points: POINTS }, { signal });
  const one = useAnswer(ask(left), [left.row.run_id]).value;
  const other = useAnswer(ask(right), [right.row.run_id]).value;
  const drawn = useMemo(() => {
    if (!one || !other) return null;
    const times = [...new Set([...one.time_ms, ...other.time_ms])].sort((a, b) => a - b);
    const line = (run, equity, own) => {
      const values = Object.values(equity.equity)[0] ?? [];
      const account = run.accounts[0];
      const start = account.equity / (1 + account.total_return);
      const at = (time) => lowerBound(equity.time_ms, time);
      return { name: `${strategyName(run.row.strategy)} ${run.row.run_id.slice(0, 8)}`, tone: own ? "accent" : "ink", width: own ? 2 : 1, dash: own ? "solid" : "dashed", values: times.map((time) => (equity.time_ms[at(time)] === time ? (values[at(time)] / start - 1) * 100 : null)) };
    };
    return { times, lines: [line(left, one, true), line(right, other, false)] };
  }, [one, other]);
  return drawn && html`<${Lines} label="Equity of both runs, as return" times=${drawn.times} lines=${drawn.lines} format=${(value) => `${number(value, 2)} %`} height=${220} />`;
}

function Beside({ left, right, difference }) {
  const [verify] = useState(() => [{ current: null }, { current: null }]);
  const ask = (run, sequence) => () => (difference ? getDecision(run.row.run_id, sequence) : null);
  const one = useAnswer(ask(left, difference?.left), [difference]);
  const other = useAnswer(ask(right, difference?.right), [difference]);
  if (!difference) return null;
  const card = (answer, run, index) => html`<${Card} decision=${answer.value} error=${answer.error} run=${run} gate=${null} toGate=${() => {}} toSequence=${() => {}} viewFrom=${0} isOld=${answer.isLoading} verify=${verify[index]} />`;
  return html`<div class="halves">${card(one, left, 0)}${card(other, right, 1)}</div>`;
}

export function CompareView({ run, address, go, runs }) {
  const others = runs.filter((row) => row.run_id !== run.row.run_id);
  const { other } = address;
  const right = useAnswer(() => (other ? getRun(other) : null), [other]);
  const answer = useAnswer((signal) => (other ? getOf(run.row.run_id, `compare/${encodeURIComponent(other)}`, { signal }) : null), [run.row.run_id, other]);
  const [chosen, setChosen] = useState(null);
  const pick = html`<label class="filter">Beside
    <select value=${other ?? ""} onChange=${(event) => go({ run: run.row.run_id, view: "compare", other: event.target.value || null })}>
      <option value="">choose a run</option>
      ${others.map((row) => html`<option key=${row.run_id} value=${row.run_id}>${strategyName(row.strategy)} ${row.run_id.slice(0, 8)}, ${row.database}</option>`)}
    </select></label>`;
  const error = answer.error ?? right.error;
  const compared = answer.value;
  return html`<div class="place">
    <h1>Compare</h1>
    ${pick}
    ${!others.length && html`<p class="muted">There is one run only; "tracepaper ui --db ONE --db OTHER" serves several databases.</p>`}
    ${error && html`<p class="loss" role="alert">${error.message}</p>`}
    ${compared &&
    right.value &&
    html`<p class="sentence small">
        ${count(compared.identical)} of ${count(compared.common)} common decisions are the same; ${percent(run.row.total_return, { sign: true })} beside ${percent(right.value.row.total_return, { sign: true })}.
      </p>
      <p class="muted">${
        !compared.common
          ? "The two runs decided no bar in common: they lie in other times, or one goes on where the other ended."
          : compared.total
          ? html`Differing, in so many decisions: ${Object.entries(compared.fields)
              .map(([field, times]) => `${named(field)} ${count(times)}`)
              .join(", ")}.`
          : "Every common decision is the same to the bit."
      }</p>
      <${Laid} left=${run} right=${right.value} />
      <${Table} caption="Decisions that differ" empty=${compared.common ? "No decision differs." : "The two runs decided no bar in common."} rows=${compared.differing} onRow=${setChosen} columns=${[
        { title: "bar", text: true, of: (row) => moment(row.open_time_ms), by: (row) => row.open_time_ms },
        { title: "symbol", text: true, of: (row) => row.instrument.split(":").pop() },
        { title: "what differs", text: true, of: (row) => row.fields.slice(0, FIELDS).map(named).join(", ") + (row.fields.length > FIELDS ? ` and ${row.fields.length - FIELDS} more` : "") },
      ]} />
      ${compared.total > compared.differing.length && html`<p class="muted">The first ${count(compared.differing.length)} of ${count(compared.total)}.</p>`}
      <${Beside} left=${run} right=${right.value} difference=${chosen} />`}
  </div>`;
}
