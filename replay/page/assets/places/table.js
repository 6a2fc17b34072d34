/** Pages of a documented view, as a table beside a document. */
import { html, useState } from "../vendor/htm-preact.js";
import { getOf } from "../api.js";
import { TableAlone } from "../document/table.js";
import { number, plain, quantity, stamp, word } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";

const PAGE = 50;

/** A documented view: sorted, filtered and paged by the server. */
export function ViewTable({ run, view, name, columns, instruments, refreshed, onSequence }) {
  const [order, setOrder] = useState({ name: "sequence", isDown: true });
  const [instrument, setInstrument] = useState("");
  const [pages, setPages] = useState([null]);
  const after = pages.at(-1);
  const { value, error } = useAnswer(
    (signal) => getOf(run, `views/${view}`, { signal }, { sort: order.name, descending: order.isDown ? "true" : null, instrument: instrument || null, limit: PAGE, after }),
    [run, view, order, instrument, after, after == null ? refreshed : 0],
  );
  if (error) return html`<p class="muted">${error.message}</p>`;
  if (!value) return html`<${Waiting} />`;
  const at = new Map(value.columns.map((column, place) => [column.name, place]));
  const turn = (place) => {
    setPages([null]);
    setOrder({ name: columns[place], isDown: order.name === columns[place] ? !order.isDown : true });
  };
  const cell = (row, column) => {
    const exact = row[at.get(`${column}_text`)];
    const held = row[at.get(column)];
    if ((exact ?? held) == null) return "–";
    if (/_ms$/.test(column)) return stamp(held);
    if (column === "instrument") return held.split(":").pop();
    if (exact != null) return (exact.startsWith("-") ? "−" : "") + quantity(exact);
    if (column === "sequence") return { text: held, step: held };
    return typeof held === "number" && !Number.isInteger(held) ? plain(held, 7) : String(held);
  };
  const table = {
    columns: columns.map((column) => {
      const { kind, meaning } = value.columns[at.get(column)];
      return { title: word(column.replace(/_ms$/, "")), text: kind === "text", meaning };
    }),
    rows: value.rows.map((row) => columns.map((column) => cell(row, column))),
    notes: value.rows.length ? [] : ["None is recorded."],
  };
  return html`${instruments.length > 1 &&
    html`<label class="filter">Symbol
      <select value=${instrument} onChange=${(event) => (setPages([null]), setInstrument(event.target.value))}>
        <option value="">all</option>
        ${instruments.map((each) => html`<option key=${each.id} value=${each.id}>${each.symbol}</option>`)}
      </select></label>`}
    <${TableAlone} name=${name} table=${table} onStep=${onSequence} served=${{ order: { place: columns.indexOf(order.name), isDown: order.isDown }, turn }} />
    <p class="pager">
      <span>${number(value.total, 0)} in all</span>
      ${pages.length > 1 && html`<button class="plain" onClick=${() => setPages(pages.slice(0, -1))}>before</button>`}
      ${value.next && html`<button class="plain" onClick=${() => setPages([...pages, value.next])}>after</button>`}
    </p>`;
}
