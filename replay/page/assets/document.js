/** A document of the interface (a report, an explanation, a sweep, a judgement) as a view. */
import { html, useRef } from "./vendor/htm-preact.js";
import { ChartView } from "./document/chart.js";
import { Drawn, isDrawn } from "./document/looks.js";
import { TableView, pressed } from "./document/table.js";
import { Folded } from "./hooks.js";

/**
 * Draws `document`: {title, parts}, as returned by `as_document` of tracepaper.replay.document.values.
 * `onStep` is called with the decision to open, `ask` loads pages of tables, and `children` are
 * placed before the first heading.
 */
export function DocumentView({ document: shown, onStep, ask, children }) {
  const article = useRef();
  const start = shown.parts.findIndex((part) => part.style === "heading");
  const at = start < 0 ? shown.parts.length : start;
  const headings = shown.parts.filter((part) => part.style === "heading").map((part) => part.text);
  const go = (at) => {
    const place = article.current.querySelectorAll(":scope > h2")[at];
    place.scrollIntoView({ behavior: "smooth" });
    place.focus({ preventScroll: true });
  };
  return html`<article class="document" ref=${article} onClick=${pressed(onStep)}>
    <h1>${shown.title}</h1>
    ${headings.length > 2 &&
    html`<nav aria-label="sections">
      ${headings.map((name, at) => html`<button type="button" onClick=${() => go(at)}>${name}</button>`)}
    </nav>`}
    <${Parts} parts=${shown.parts.slice(0, at)} ask=${ask} />
    ${children}
    <${Parts} parts=${shown.parts.slice(at)} ask=${ask} />
  </article>`;
}

/** `links` connect tables that have a look with the chart: {gate, toGate, refusedBy, viewFrom, at}. */
export function Parts({ parts, links, ask }) {
  return gathered(parts).map((part) => {
    switch (part.kind) {
      case "item":
        return html`<ul>${part.parts.map((item) => html`<li>${item.text}</li>`)}</ul>`;
      case "detail":
        return html`<details><summary>In numbers</summary>${part.parts.map((detail) => html`<p>${detail.text}</p>`)}</details>`;
      case "paragraph":
        return html`<${Paragraph} part=${part} />`;
      case "fold":
        return html`<${Fold} part=${part} />`;
      case "table":
        return isDrawn(part) ? html`<${Drawn} table=${part} links=${links} />` : html`<${TableView} table=${part} ask=${ask} />`;
      case "chart":
        return html`<${ChartView} chart=${part} />`;
    }
  });
}

/** Groups neighbouring list items, and neighbouring details. */
function gathered(parts) {
  const groups = [];
  for (const part of parts) {
    const last = groups[groups.length - 1];
    if (!["item", "detail"].includes(part.style)) groups.push(part);
    else if (last?.kind === part.style) last.parts.push(part);
    else groups.push({ kind: part.style, parts: [part] });
  }
  return groups;
}

function Paragraph({ part: { style, text, to } }) {
  if (style === "heading") return html`<h2 tabindex="-1">${text}</h2>`;
  if (style === "code") return html`<pre tabindex="0">${text}</pre>`;
  if (to) return html`<p><a class="plain" href=${to}>${text}</a></p>`;
  return html`<p class=${style === "plain" ? "" : style} role=${style === "warning" ? "alert" : null}>${text}</p>`;
}

function Fold({ part: { summary, parts } }) {
  return html`<${Folded} class="fold" summary=${html`<span>${summary}</span>`} make=${() => html`<div><${Parts} parts=${parts} /></div>`} />`;
}
