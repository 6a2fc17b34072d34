/** Tables: complete ones, and pages of longer ones, which the server sorts. */
import { html, useMemo, useState } from "../vendor/htm-preact.js";
import { stamp } from "../format.js";
import { useAnswer, useSize } from "../hooks.js";

const ROWS_AT_ONCE = 200;
const LONG = 32; // letters; longer texts in a column wrap

/** The text of a cell; a time is in the chosen zone. */
const textOf = (cell) => (typeof cell === "string" ? cell : cell.time ? stamp(cell.sort).slice(0, cell.text.length) : cell.text);
const toneOf = (cell) => cell.tone ?? "";

export function Figure({ cell }) {
  return html`<span class=${`number ${toneOf(cell)}`}>${textOf(cell)}</span>`;
}

/** Handles clicks on a cell with a `step`, which opens that decision, and on links within the page. */
export const pressed = (onStep) => (event) => {
  const { target } = event;
  if (target.dataset.step) onStep?.(Number(target.dataset.step));
  if (!target.hash || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault(); // in a notebook a relative URL would be the notebook's
  location.hash = target.hash;
};

/** A table; `name` is its label without a title, and `ask(path, parameters, options)` loads another page. */
export function TableView({ table, ask, name }) {
  const title = table.title && html`<h3>${table.title}</h3>`;
  const notes = table.notes.map((note) => html`<p class="note">${note}</p>`);
  if (table.pages && ask) return [title, html`<${Paged} table=${table} ask=${ask} />`];
  if (!table.rows.length) return [title, notes];
  if (table.look === "tiles") return [title, html`<${Tiles} table=${table} />`, notes];
  return [title, html`<${Upright} table=${table} name=${name} />`, notes];
}

/** A page of rows; the first page is that of the document. */
function Paged({ table: first, ask }) {
  const [asked, setAsked] = useState(null);
  const { value, error } = useAnswer((signal) => asked && ask(first.pages.address, asked, { signal }), [asked, asked?.after ? null : first]);
  const table = (asked && value?.parts[0]) || first;
  const { total, before, after, limit, sort, descending, exact, symbols, chosen } = table.pages;
  // Change the last request, even if it has no answer yet.
  const turn = (change) => setAsked((last) => ({ limit, descending, ...last, after: null, ...change }));
  const served = {
    order: { place: table.columns.findIndex(({ key }) => key === sort), isDown: descending },
    turn: (place) => turn({ sort: table.columns[place].key, descending: table.columns[place].key !== sort || !descending }),
    pager: html`<span>${total.toLocaleString("en")} in all</span>
      ${before != null && html`<button type="button" onClick=${() => turn({ after: before })}>before</button>`}
      ${after != null && html`<button type="button" onClick=${() => turn({ after })}>after</button>`}`,
  };
  const names = Object.entries(symbols);
  return [
    html`<p class="filter">
      ${names.length > 0 &&
      html`<label>Symbol
        <select value=${chosen} onChange=${({ target }) => turn({ instrument: target.value || null })}>
          <option value="">all</option>
          ${names.map(([id, symbol]) => html`<option key=${id} value=${id}>${symbol}</option>`)}
        </select></label>`}
      <label><input type="checkbox" checked=${asked?.exact ?? exact} onChange=${({ target }) => turn({ exact: target.checked })} /> Exact money</label>
    </p>`,
    error && html`<p class="loss" role="alert">${error.message}</p>`,
    table.rows.length ? html`<${Upright} table=${table} served=${served} />` : table.notes.map((note) => html`<p class="note">${note}</p>`),
  ];
}

function Tiles({ table: { columns, rows } }) {
  return html`<dl class="tiles">
    ${columns.map(
      (column, place) => html`<div>
        <dt>${column.title}</dt>
        <dd class=${toneOf(rows[0][place])}>${textOf(rows[0][place])}</dd>
      </div>`,
    )}
  </dl>`;
}

/** A box that scrolls a wide or long table, also by keyboard. */
function Scrolled({ name, children }) {
  const [isWide, setWide] = useState(false);
  const box = useSize(({ scrollWidth, clientWidth, scrollHeight, clientHeight }) => setWide(scrollWidth > clientWidth || scrollHeight > clientHeight));
  const reached = isWide ? { tabindex: 0, role: "region", "aria-label": name || "table" } : {};
  return html`<div class="sideways" ref=${box} ...${reached}>${children}</div>`;
}

/** A table with sorting; `served` {order: {place, isDown}, turn(place), pager} if the server sorts. */
function Upright({ table, served, name }) {
  const [chosen, setOrder] = useState(null); // {place, isDown}
  const order = served?.order ?? chosen;
  const [more, setMore] = useState(0);
  const most = more + (table.shown ?? ROWS_AT_ONCE);
  const [search, setSearch] = useState("");
  const fitting = useMemo(() => fits(table, search.trim().toLowerCase()), [table, search]);
  let rows = sorted(fitting, chosen);
  const left = Math.max(0, rows.length - most);
  if (left) rows = table.newest && !order ? rows.slice(-most) : rows.slice(0, most);
  const turn =
    served?.turn ?? ((place) => setOrder(order?.place !== place ? { place, isDown: true } : order.isDown ? { place } : null));
  const direction = (place) =>
    order?.place === place ? (order.isDown ? "descending" : "ascending") : null;
  const kinds = useMemo(
    () =>
      table.columns.map(({ text, wide }, place) => {
        const room = wide ? "roomy " : "";
        if (!text && place) return room;
        if (table.rows.some((row) => row[place].time)) return `${room}text time`;
        return room + (table.rows.some((row) => textOf(row[place]).length > LONG) ? "text long" : "text");
      }),
    [table],
  );
  return [
    (table.terms || (table.pages && !served)) &&
      html`<p class="filter">
        <label>Filter <input type="search" value=${search} onInput=${(event) => setSearch(event.target.value)} /></label>
        <span>${fitting.length ? `${fitting.length.toLocaleString("en")} of ${table.rows.length.toLocaleString("en")}` : "No row fits the filter; clear it to see all."}</span>
      </p>`,
    html`<${Scrolled} name=${table.title || name || table.key}>
      <table class=${table.turned ? "stacks turned" : "stacks"}>
        <thead>
          <tr>
            ${table.columns.map(
              ({ title, meaning }, place) =>
                title
                  ? html`<th scope="col" class=${kinds[place]} title=${meaning} aria-sort=${direction(place)}>
                      ${table.turned ? title : html`<button type="button" onClick=${() => turn(place)}>${title}</button>`}
                    </th>`
                  : html`<td></td>`,
            )}
          </tr>
        </thead>
        <tbody>
          ${rows.map(
            (row) => html`<tr>
              ${row.map((cell, place) =>
                table.turned && !place
                  ? html`<th scope="row" class="text">${cell}</th>`
                  : html`<${Cell} cell=${cell} title=${table.columns[place].title} kind=${kinds[place]} />`,
              )}
            </tr>`,
          )}
        </tbody>
      </table>
    <//>`,
    (left > 0 || served) &&
      html`<p class="note pager">
        ${left > 0 && html`<button type="button" onClick=${() => setMore(more + ROWS_AT_ONCE)}>show ${Math.min(left, ROWS_AT_ONCE)} more${left > ROWS_AT_ONCE && ` of ${left.toLocaleString("en")}`}</button>`}
        ${served?.pager}
      </p>`,
  ];
}

/** The rows whose cells or terms contain a text. */
const fits = ({ rows, terms }, text) => (text ? rows.filter((row, at) => [terms?.[at], ...row.map(textOf)].join(" ").toLowerCase().includes(text)) : rows);

/** The number at the beginning of a text, else the text. */
function numberIn(text) {
  const digits = /^[+−-]?[\d,]*\.?\d+(?=$|\s)/.exec(text);
  return digits ? Number(digits[0].replaceAll(",", "").replace("−", "-")) : text;
}

function sorted(rows, order) {
  if (!order) return rows;
  const keyOf = (row) => {
    const key = row[order.place].sort ?? numberIn(textOf(row[order.place]));
    return typeof key === "boolean" ? Number(key) : key;
  };
  const by = (first, second) => {
    const [left, right] = [keyOf(first), keyOf(second)];
    if (typeof left !== typeof right) return typeof left === "number" ? -1 : 1; // texts, such as a dash, go last
    const compared =
      typeof left === "number" ? left - right : left.localeCompare(right, "en", { numeric: true });
    return order.isDown ? -compared : compared;
  };
  return [...rows].sort(by);
}

function Cell({ cell, title, kind = "" }) {
  if (cell.bar !== undefined) {
    const style = { width: `${(100 * cell.bar).toFixed(1)}%` };
    return html`<td data-title=${title} class="meter"><span class=${toneOf(cell)} style=${style}></span></td>`;
  }
  if (cell.to) return html`<td data-title=${title} class=${kind}><a href=${cell.to}>${cell.text}</a></td>`;
  if (cell.step !== undefined) return html`<td data-title=${title} class=${kind}><button type="button" data-step=${cell.step}>${cell.text}</button></td>`;
  const tint = cell.tint && {
    background: `color-mix(in srgb, var(--${cell.tint > 0 ? "gain" : "loss"}) ${Math.round(
      38 * Math.abs(cell.tint),
    )}%, transparent)`,
  };
  return html`<td data-title=${title} class=${`${kind} ${tint ? "tint" : toneOf(cell)}`} style=${tint}>${textOf(cell)}</td>`;
}
