/** A document of the interface (a report, an explanation, a sweep, a judgement) as a view. */
import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { ChartView } from "./document/chart.js";
import { Drawn, isDrawn } from "./document/looks.js";

const ROWS_AT_ONCE = 200;
const LONG = 32; // letters beyond which a column of text breaks its lines

/**
 * Draws `document`: {title, parts}, as `as_parts` of tracepaper.replay.document.values writes it;
 * `onStep` hears of a decision that is to be opened, `children` stand behind the parts.
 */
export function DocumentView({ document: shown, onStep, children }) {
  const places = useRef(new Map());
  const headings = shown.parts.filter((part) => part.style === "heading").map((part) => part.text);
  const go = (name) => {
    const place = places.current.get(name);
    place?.scrollIntoView({ behavior: "smooth" });
    place?.focus({ preventScroll: true });
  };
  const open = ({ target }) => target.dataset.step && onStep?.(Number(target.dataset.step));
  return html`<article class="document" onClick=${open}>
    <h1>${shown.title}</h1>
    ${headings.length > 2 &&
    html`<nav aria-label="sections">
      ${headings.map((name) => html`<button type="button" onClick=${() => go(name)}>${name}</button>`)}
    </nav>`}
    <${Parts} parts=${shown.parts} places=${places.current} />
    ${children}
  </article>`;
}

/** `links` say where tables with a look lead: {gate, toGate, refusedBy, viewFrom, at}. */
export function Parts({ parts, places, links }) {
  return gathered(parts).map((part) => {
    switch (part.kind) {
      case "item":
        return html`<ul>${part.parts.map((item) => html`<li>${item.text}</li>`)}</ul>`;
      case "detail":
        return html`<details><summary>In numbers</summary>${part.parts.map((detail) => html`<p>${detail.text}</p>`)}</details>`;
      case "paragraph":
        return html`<${Paragraph} part=${part} places=${places} />`;
      case "fold":
        return html`<${Fold} part=${part} />`;
      case "table":
        return isDrawn(part) ? html`<${Drawn} table=${part} links=${links} />` : html`<${TableView} table=${part} />`;
      case "chart":
        return html`<${ChartView} chart=${part} />`;
    }
  });
}

/** Puts neighbouring items of a list together, and neighbouring details. */
function gathered(parts) {
  const found = [];
  for (const part of parts) {
    const last = found[found.length - 1];
    if (!["item", "detail"].includes(part.style)) found.push(part);
    else if (last?.kind === part.style) last.parts.push(part);
    else found.push({ kind: part.style, parts: [part] });
  }
  return found;
}

function Paragraph({ part: { style, text }, places }) {
  if (style === "heading") {
    return html`<h2 tabindex="-1" ref=${(place) => places?.set(text, place)}>${text}</h2>`;
  }
  if (style === "code") return html`<pre tabindex="0">${text}</pre>`;
  return html`<p class=${style === "plain" ? "" : style}>${text}</p>`;
}

function Fold({ part: { summary, cells, parts } }) {
  const [isOpen, setOpen] = useState(false);
  return html`<details class="fold" onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>
      <span>${summary}</span>
      ${cells.map((cell) => html`<${Figure} cell=${cell} />`)}
    </summary>
    ${isOpen && html`<div><${Parts} parts=${parts} /></div>`}
  </details>`;
}

const textOf = (cell) => (typeof cell === "string" ? cell : cell.text);
const toneOf = (cell) => cell.tone ?? "";

function Figure({ cell }) {
  return html`<span class=${`number ${toneOf(cell)}`}>${textOf(cell)}</span>`;
}

function TableView({ table }) {
  const title = table.title && html`<h3>${table.title}</h3>`;
  const notes = table.notes.map((note) => html`<p class="note">${note}</p>`);
  if (!table.rows.length) return [title, notes];
  if (table.look === "tiles") return [title, html`<${Tiles} table=${table} />`, notes];
  const View = table.turned ? Turned : Upright;
  return [title, html`<${View} table=${table} />`, notes];
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

/** A box that scrolls sideways where its table is wide, by keyboard as well. */
function Scrolled({ name, children }) {
  const box = useRef();
  const [isWide, setWide] = useState(false);
  useEffect(() => {
    const observer = new ResizeObserver(() =>
      setWide(box.current.scrollWidth > box.current.clientWidth),
    );
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  const reached = isWide ? { tabindex: 0, role: "region", "aria-label": name || "table" } : {};
  return html`<div class="sideways" ref=${box} ...${reached}>${children}</div>`;
}

function Upright({ table }) {
  const [order, setOrder] = useState(null); // {place, isDown}
  const [isWhole, setWhole] = useState(false);
  const most = isWhole ? Infinity : (table.shown ?? ROWS_AT_ONCE);
  let rows = sorted(table.rows, order);
  const left = Math.max(0, rows.length - most);
  if (left) rows = table.newest && !order ? rows.slice(-most) : rows.slice(0, most);
  const turn = (place) =>
    setOrder(order?.place !== place ? { place, isDown: true } : order.isDown ? { place } : null);
  const direction = (place) =>
    order?.place === place ? (order.isDown ? "descending" : "ascending") : null;
  const kinds = useMemo(
    () =>
      table.columns.map(({ text }, place) => {
        if (!text && place) return "";
        return table.rows.some((row) => textOf(row[place]).length > LONG) ? "text long" : "text";
      }),
    [table],
  );
  const kind = (place) => kinds[place];
  return [
    html`<${Scrolled} name=${table.title}>
      <table class="stacks">
        <thead>
          <tr>
            ${table.columns.map(
              (column, place) =>
                column.title
                  ? html`<th scope="col" class=${kind(place)} aria-sort=${direction(place)}>
                      <button type="button" onClick=${() => turn(place)}>${column.title}</button>
                    </th>`
                  : html`<td></td>`,
            )}
          </tr>
        </thead>
        <tbody>
          ${rows.map(
            (row) => html`<tr>
              ${row.map((cell, place) => html`<${Cell} cell=${cell} title=${table.columns[place].title} kind=${kind(place)} />`)}
            </tr>`,
          )}
        </tbody>
      </table>
    <//>`,
    left > 0 &&
      html`<p class="note">
        <button type="button" onClick=${() => setWhole(true)}>
          show ${left.toLocaleString("en")} more
        </button>
      </p>`,
  ];
}

/** The number that a text begins with, else the text. */
function numberIn(text) {
  const found = /^[+−-]?[\d,]*\.?\d+(?=$|\s)/.exec(text);
  return found ? Number(found[0].replaceAll(",", "").replace("−", "-")) : text;
}

function sorted(rows, order) {
  if (!order) return rows;
  const keyOf = (row) => row[order.place].sort ?? numberIn(textOf(row[order.place]));
  const by = (one, other) => {
    const [left, right] = [keyOf(one), keyOf(other)];
    if (typeof left !== typeof right) return typeof left === "number" ? -1 : 1; // none goes last
    const compared =
      typeof left === "number" ? left - right : left.localeCompare(right, "en", { numeric: true });
    return order.isDown ? -compared : compared;
  };
  return [...rows].sort(by);
}

/** The figures as rows, a subject a column. */
function Turned({ table: { title, columns, rows } }) {
  return html`<${Scrolled} name=${title}>
    <table class="stacks turned">
      <thead>
        <tr>
          <td></td>
          ${rows.map((row) => html`<th scope="col">${textOf(row[0])}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${columns.slice(1).map(
          (column, at) => html`<tr>
            <th scope="row" class="text">${column.title}</th>
            ${rows.map((row) => html`<${Cell} cell=${row[at + 1]} title=${textOf(row[0])} />`)}
          </tr>`,
        )}
      </tbody>
    </table>
  <//>`;
}

function Cell({ cell, title, kind = "" }) {
  if (cell.bar !== undefined) {
    const style = { width: `${(100 * cell.bar).toFixed(1)}%` };
    return html`<td data-title=${title} class="meter"><span class=${toneOf(cell)} style=${style}></span></td>`;
  }
  if (cell.step !== undefined) return html`<td data-title=${title} class=${kind}><button type="button" data-step=${cell.step}>${cell.text}</button></td>`;
  const tint = cell.tint && {
    background: `color-mix(in srgb, var(--${cell.tint > 0 ? "gain" : "loss"}) ${Math.round(
      38 * Math.abs(cell.tint),
    )}%, transparent)`,
  };
  return html`<td data-title=${title} class=${`${kind} ${tint ? "tint" : toneOf(cell)}`} style=${tint}>${textOf(cell)}</td>`;
}
