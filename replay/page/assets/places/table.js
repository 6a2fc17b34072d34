/** Tables: rows that are here, and pages of a documented view. */
import { html, useState } from "../vendor/htm-preact.js";
import { getView } from "../api.js";
import { number, plain, stamp, word } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";

/**
 * @param {{caption: string, columns: {title: string, of: Function, text?: boolean, by?: Function}[], rows: Object[], empty: string}} props
 */
export function Table({ caption, columns, rows, empty, onRow = null, sorted = null, keyOf = null }) {
  const [order, setOrder] = useState(sorted);
  const by = order && (columns[order.column].by ?? columns[order.column].of);
  const compare = (one, other) => {
    const a = by(one);
    const b = by(other);
    if (a == null || b == null) return (a == null) - (b == null);
    return (a < b ? -1 : a > b ? 1 : 0) * (order.down ? -1 : 1);
  };
  const shown = by ? rows.slice().sort(compare) : rows;
  const turn = (column) => setOrder((now) => ({ column, down: now?.column === column ? !now.down : false }));
  if (!rows.length) return html`<p class="muted">${empty}</p>`;
  return html`<div class="scrolled" tabindex="0" role="group" aria-label=${caption}>
    <table class="stacks">
      <caption class="unseen">${caption}</caption>
      <thead>
        <tr>
          ${columns.map(
            ({ title, text }, index) =>
              html`<th key=${title} scope="col" class=${text ? "text" : ""} aria-sort=${order?.column === index ? (order.down ? "descending" : "ascending") : undefined}>
                <button onClick=${() => turn(index)}>${title}</button>
              </th>`,
          )}
        </tr>
      </thead>
      <tbody>
        ${shown.map(
          (row, index) =>
            html`<tr key=${keyOf ? keyOf(row) : index}>
              ${columns.map(({ title, of, text }, column) => {
                const value = of(row);
                const cell = typeof value === "number" ? plain(value, 6) : value;
                return html`<td key=${title} data-title=${title} class=${text ? "text" : ""}>${column === 0 && onRow ? html`<button class="plain" onClick=${() => onRow(row)}>${cell}</button>` : cell}</td>`;
              })}
            </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

const HIDDEN = /(_iso|_text|^run_id|^ordinal|_sha256|^digest)$/;
const PAGE = 50;

/** A documented view: sorted, filtered and paged by the server. */
export function ViewTable({ run, view, caption, columns: wanted, instruments = [], sort = "sequence", refreshed = 0, onSequence }) {
  const [order, setOrder] = useState({ name: sort, down: true });
  const [instrument, setInstrument] = useState("");
  const [pages, setPages] = useState([null]);
  const after = pages[pages.length - 1];
  const answer = useAnswer(
    (signal) => getView(run, view, { sort: order.name, descending: order.down ? "true" : null, instrument: instrument || null, limit: PAGE, after }, { signal }),
    [run, view, order.name, order.down, instrument, after, after == null ? refreshed : 0],
  );
  const rows = answer.value;
  const turn = (name) => {
    setPages([null]);
    setOrder((now) => ({ name, down: now.name === name ? !now.down : true }));
  };
  if (answer.error) return html`<p class="muted">${answer.error.message}</p>`;
  if (!rows) return html`<${Waiting} />`;
  const at = (name) => rows.columns.findIndex((column) => column.name === name);
  const shown = (wanted ?? rows.columns.map((column) => column.name).filter((name) => !HIDDEN.test(name))).filter((name) => at(name) >= 0);
  const cell = (row, name) => {
    const exact = at(`${name}_text`);
    const value = exact >= 0 ? row[exact] : row[at(name)];
    if (value == null) return "–";
    if (/_ms$/.test(name)) return stamp(value);
    if (exact >= 0) return trimmed(value);
    if (name === "sequence" && onSequence) return html`<button class="plain" onClick=${() => onSequence(value)}>${value}</button>`;
    return typeof value === "number" ? (Number.isInteger(value) ? String(value) : plain(value, 7)) : String(value);
  };
  return html`${instruments.length > 1 &&
    html`<label class="filter">Symbol
      <select value=${instrument} onChange=${(event) => (setPages([null]), setInstrument(event.target.value))}>
        <option value="">all</option>
        ${instruments.map((each) => html`<option key=${each.id} value=${each.id}>${each.symbol}</option>`)}
      </select></label>`}
    ${rows.rows.length === 0
      ? html`<p class="muted">None is recorded.</p>`
      : html`<div class="scrolled" tabindex="0" role="group" aria-label=${caption}>
          <table class="stacks">
            <caption class="unseen">${caption}</caption>
            <thead>
              <tr>
                ${shown.map(
                  (name) =>
                    html`<th key=${name} scope="col" class=${isText(rows, at(name)) ? "text" : ""} title=${rows.columns[at(name)].meaning} aria-sort=${order.name === name ? (order.down ? "descending" : "ascending") : undefined}>
                      <button onClick=${() => turn(name)}>${titleOf(name)}</button>
                    </th>`,
                )}
              </tr>
            </thead>
            <tbody>
              ${rows.rows.map((row, index) => html`<tr key=${index}>${shown.map((name) => html`<td key=${name} data-title=${titleOf(name)} class=${isText(rows, at(name)) ? "text" : ""}>${cell(row, name)}</td>`)}</tr>`)}
            </tbody>
          </table>
        </div>`}
    <p class="pager">
      <span>${number(rows.total, 0)} in all</span>
      ${pages.length > 1 && html`<button class="plain" onClick=${() => setPages(pages.slice(0, -1))}>before</button>`}
      ${rows.next && html`<button class="plain" onClick=${() => setPages([...pages, rows.next])}>after</button>`}
    </p>`;
}

const titleOf = (name) => word(name.replace(/_ms$/, ""));
const isText = (rows, index) => rows.columns[index].kind === "text" && !/_ms$/.test(rows.columns[index].name);
const trimmed = (text) => (text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text).replace("-", "−");
