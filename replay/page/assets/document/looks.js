/** Tables with a look, which find their figures by key: gauges, shares, timelines and pairs. */
import { html, useState } from "../vendor/htm-preact.js";
import { moment, percent, when, word } from "../format.js";

const LINE = 22; // position of the threshold in every gauge, in %

const recordsOf = ({ columns, rows }) =>
  rows.map((row) => Object.fromEntries(columns.map(({ key }, at) => [key, typeof row[at] === "string" ? { text: row[at] } : row[at]])));

/** Text with bold numbers and typographic minus signs. */
const numbered = (text) =>
  text
    .replace(/(^|\s)-(?=\d)/g, "$1−")
    .split(/([+−]?\d[\d,.:]*\d|[+−]?\d)/)
    .map((part, at) => (at % 2 ? html`<b>${part}</b>` : part));

function Gauge({ share, passed }) {
  const size = passed ? (share / (1 + Math.max(0, share))) * (100 - LINE) : Math.min(LINE, Math.abs(share) * LINE);
  const style = passed ? { left: `${LINE}%`, width: `${Math.max(0, size)}%` } : { right: `${100 - LINE}%`, width: `max(6px, ${size}%)` };
  return html`<span class="gauge" aria-hidden="true"><i class=${passed ? "" : "failed"} style=${style}></i></span>`;
}

/** A gate as a gauge; `links` {gate, toGate, refusedBy} make its name a button that marks its refusals. */
function GateLine({ row, links }) {
  const { text: name } = row.gate;
  const passed = row.passed.sort;
  const title = `${name}: ${row.meaning.text}${row.unit.text === "–" ? "" : ` ${row.unit.text}`}`;
  return html`<li class=${passed ? "gate" : "gate failed"} data-gate=${name}>
    ${links?.toGate
      ? html`<button class=${`name ${name === links.refusedBy ? "refuser" : ""}`} aria-pressed=${name === links.gate} title=${title} onClick=${() => links.toGate(name)}>${word(name)}</button>`
      : html`<span class="name" title=${title}>${word(name)}</span>`}
    <${Gauge} share=${row.share.sort ?? 0} passed=${passed} />
    <span class="figure"><b>${row.measure.text}</b> ${row.bound.text} ${row.threshold.text}<span class="unseen">${passed ? ", passed" : ", refused"}</span></span>
  </li>`;
}

function Gauges({ rows, links }) {
  const drawn = rows.filter((row) => row.drawn.sort);
  const others = rows.filter((row) => !row.drawn.sort);
  const refused = others.filter((row) => !row.passed.sort).map((row) => word(row.gate.text));
  return html`<ul class="gates">
      ${drawn.map((row) => html`<${GateLine} row=${row} links=${links} />${row.gate.text === links?.refusedBy && html`<li class="words muted">${row.meaning.text}</li>`}`)}
    </ul>
    ${others.length > 0 &&
    html`<details>
      <summary>
        ${others.length} ${drawn.length ? "other " : ""}${others.length === 1 ? "gate" : "gates"},${" "}
        ${refused.length ? html`refused: <b class="loss">${refused.join(", ")}</b>` : others.length === 1 ? "passed" : "all passed"}
      </summary>
      <ul class="switches">
        ${others.map(
          ({ gate, meaning, measure, bound, threshold, passed }) =>
            html`<li data-gate=${gate.text} title=${meaning.text}>
              <span>${passed.text} ${word(gate.text)}</span>
              <span class="figure">${threshold.text === "yes" ? (passed.sort ? "yes" : "no") : `${measure.text} ${bound.text} ${threshold.text}`}</span>
            </li>`,
        )}
      </ul>
    </details>`}`;
}

function Stack({ rows, notes }) {
  return html`${rows.length > 0 &&
    html`<div class="thirds" aria-hidden="true">${rows.map((row) => html`<i class=${row.name.text} style=${{ flexGrow: Math.max(0.001, row.bar.bar) }}></i>`)}</div>
      <p class="spread">${rows.map((row) => html`<span>${row.name.text} <b>${row.share.text}</b></span>`)}</p>`}
    <p class="spread">${notes.map((note) => html`<span>${numbered(note)}</span>`)}</p>`;
}

/** Shares of the blocks of bars, oldest first; blocks before the view are pale. */
function Columns({ rows, notes, links }) {
  if (!rows.length) return notes.map((note) => html`<p class="muted">${note}</p>`);
  const blocks = rows.slice().sort((left, right) => (left.from.sort ?? 0) - (right.from.sort ?? 0));
  const most = Math.max(...blocks.map(({ weight }) => Math.abs(weight.sort)), 1e-9);
  const oldest = blocks.find(({ from }) => from.sort != null);
  return html`<div class="blocks" role="img" aria-label=${`Shares of the blocks of bars, oldest first; ${notes[0] ?? ""}`}>
      ${blocks.map(
        ({ from, weight }, at) =>
          html`<i
            class=${`${from.sort != null && (blocks[at + 1]?.from.sort ?? Infinity) > (links?.viewFrom ?? 0) ? "" : "earlier"} ${weight.sort < 0 ? "less" : ""}`}
            style=${{ height: `${Math.max(2, (100 * Math.abs(weight.sort)) / most)}%` }}
            title=${`${from.sort == null ? "all before" : moment(from.sort)}: ${percent(weight.sort, { decimals: 1 })}`}
          ></i>`,
      )}
    </div>
    <p class="spread"><span>${oldest ? moment(oldest.from.sort) : ""}</span>${notes[0] && html`<span>${numbered(notes[0])}</span>`}</p>
    ${notes.slice(1).map((note) => html`<p class="muted">${note}</p>`)}`;
}

const Timeline = ({ rows, notes, links }) => html`<ol title="At the left, when the engine saw it (market time)">
  ${rows.map(({ time, event }) => html`<li><time>${when(time.sort, links?.at)}</time> ${numbered(event.text)}</li>`)}
  ${notes.map((note) => html`<li>${numbered(note)}</li>`)}
</ol>`;

const Pairs = ({ rows, notes }) => html`<ul class="switches">
    ${rows.map(({ name, value }) => html`<li><span>${word(name.text)}</span><span class="figure">${value.text}</span></li>`)}
  </ul>
  ${notes.map((note) => html`<p class="muted">${note}</p>`)}`;

/** Signed bars from the middle; further rows on request. */
function Balance({ rows, shown }) {
  const [isWhole, setWhole] = useState(false);
  const most = Math.max(...rows.map(({ added }) => Math.abs(added.sort)), 1e-12);
  return html`<ul class="features">
      ${rows.slice(0, isWhole ? rows.length : shown).map(
        ({ feature, added }) =>
          html`<li>
            <span title=${feature.text}>${word(feature.text)}</span>
            <span class="beam" aria-hidden="true"><i style=${{ [added.sort < 0 ? "right" : "left"]: "50%", width: `${(50 * Math.abs(added.sort)) / most}%` }}></i></span>
            <span class="figure">${added.text}</span>
          </li>`,
      )}
    </ul>
    ${rows.length > shown && html`<button class="plain small" onClick=${() => setWhole(!isWhole)}>${isWhole ? "fewer" : `all ${rows.length}`}</button>`}`;
}

const LOOKS = { gauges: Gauges, stack: Stack, columns: Columns, balance: Balance, timeline: Timeline, pairs: Pairs };
const ASIDES = { gauges: "right of the line passes", stack: "the fan: 50 % and 90 %" };

/** Whether a table has a look that is drawn here. */
export const isDrawn = (table) => table.look in LOOKS;

/** A table by its look, under its title. */
export function Drawn({ table, links }) {
  const rows = recordsOf(table);
  if (!rows.length && !table.notes.length) return null;
  const View = LOOKS[table.look];
  return html`<section class=${`part ${table.look}`}>
    <header><h3>${table.title}</h3><span>${table.aside ?? ASIDES[table.look]}</span></header>
    <${View} rows=${rows} notes=${table.notes} shown=${table.shown} links=${links} />
  </section>`;
}
