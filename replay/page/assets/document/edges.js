/** Edges of attention: decided bars above, the bars that they attended to below, one colour per head. */
import { html, useState } from "../vendor/htm-preact.js";
import { percent } from "../format.js";
import { minute } from "./axis.js";

const [WIDTH, LEFT, RIGHT, TOP, BOTTOM, HEIGHT] = [960, 16, 944, 52, 262, 330];
const FAINTEST = 1 / 500; // share of a head's attention; thinner lines would not be visible

export function EdgesView({ edges, name }) {
  const { firsts, bars, scale, times, shares } = edges;
  const [layer, setLayer] = useState(shares.length - 1);
  const [hidden, setHidden] = useState(new Set());
  const [shown, setShown] = useState({ decision: times.length - 1 });
  const heads = shares[0].length;
  const cells = firsts.length;
  const isOne = shown.cell === undefined;
  const above = (decision) => LEFT + ((decision + 0.5) * (RIGHT - LEFT)) / times.length;
  const below = (cell) => RIGHT - ((cell + 0.5) * (RIGHT - LEFT)) / cells; // the newest on the right
  const span = (cell) => {
    const last = (cell + 1 < cells ? firsts[cell + 1] : bars) - 1;
    return firsts[cell] === last ? `${last}` : `${firsts[cell]}–${last}`;
  };
  const visible = Array.from({ length: heads }, (_, head) => head).filter((head) => !hidden.has(head));
  const toggle = (head) => {
    const next = new Set(hidden);
    if (!next.delete(head)) next.add(head);
    setHidden(next);
  };
  const choose = (kind, most) => (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    // The oldest decision is on the left, the oldest cell as well.
    const before = shown[kind] ?? most - 1;
    const next = before + (kind === "cell" ? -step : step);
    setShown({ [kind]: Math.min(Math.max(next, 0), most - 1) });
  };

  const lines = visible.flatMap((head) =>
    shares[layer][head].flatMap((row, decision) =>
      row.flatMap((share, cell) => {
        const isChosen = isOne ? decision === shown.decision : cell === shown.cell;
        return isChosen && share > scale * FAINTEST ? [{ head, decision, cell, share }] : [];
      }),
    ),
  ).sort((left, right) => left.share - right.share);
  const most = lines.length ? lines[lines.length - 1].share : 1;
  const path = ({ head, decision, cell }) => {
    const shift = ((head - (heads - 1) / 2) * 0.8) / heads;
    const from = (above(decision) + (shift * (RIGHT - LEFT)) / times.length).toFixed(1);
    const to = (below(cell) + (shift * (RIGHT - LEFT)) / cells).toFixed(1);
    const middle = (TOP + BOTTOM) / 2;
    return `M${from} ${TOP}C${from} ${middle} ${to} ${middle} ${to} ${BOTTOM}`;
  };
  const strongest = visible.map((head) => {
    const rows = shares[layer][head];
    const looks = isOne ? rows[shown.decision] : rows.map((row) => row[shown.cell]);
    const at = looks.indexOf(Math.max(...looks));
    const share = percent(looks[at] / scale, { decimals: 1 });
    return `head ${head + 1} ${share} ${isOne ? `on ${span(at)} bars back` : `from ${minute(times[at])}`}`;
  });
  const whose = isOne ? `From ${minute(times[shown.decision])} UTC` : `To ${span(shown.cell)} bars back`;
  const [wide, narrow] = [(RIGHT - LEFT) / times.length, (RIGHT - LEFT) / cells];

  return html`<div class="edges">
    <p class="plot-legend">
      ${shares.map((_, at) => html`<button type="button" aria-pressed=${String(at === layer)} onClick=${() => setLayer(at)}>layer ${at + 1}</button>`)}
      ${Array.from({ length: heads }, (_, head) => html`<button type="button" class=${`head-${(head % 8) + 1}`} aria-pressed=${String(!hidden.has(head))} onClick=${() => toggle(head)}>head ${head + 1}</button>`)}
    </p>
    <div class="sideways">
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="group" aria-label=${name}>
      <text class="axis" x=${LEFT} y="16">${minute(times[0])} UTC</text>
      <text class="axis" x=${WIDTH / 2} y="16" text-anchor="middle">decided bars: point at one</text>
      <text class="axis" x=${RIGHT} y="16" text-anchor="end">${minute(times[times.length - 1])}</text>
      ${lines.map((line) => html`<path class=${`edge head-${(line.head % 8) + 1}`} d=${path(line)} stroke-width=${(0.5 + (4 * line.share) / most).toFixed(2)} stroke-opacity=${(0.1 + (0.8 * line.share) / most).toFixed(2)} />`)}
      <g tabindex="0" role="slider" aria-label="decided bar" aria-valuemin="1" aria-valuemax=${times.length} aria-valuenow=${(shown.decision ?? times.length - 1) + 1} aria-valuetext=${whose} onKeyDown=${choose("decision", times.length)}>
        ${times.map((_, decision) => html`<rect class=${`bar ${decision === shown.decision ? "chosen" : ""}`} x=${LEFT + decision * wide + 1} y="24" width=${Math.max(wide - 2, 1)} height=${TOP - 24} onPointerEnter=${() => setShown({ decision })} />`)}
      </g>
      <g tabindex="0" role="slider" aria-label="bars looked at" aria-valuemin="1" aria-valuemax=${cells} aria-valuenow=${(shown.cell ?? 0) + 1} aria-valuetext=${whose} onKeyDown=${choose("cell", cells)}>
        ${firsts.map((_, cell) => html`<rect class=${`bar ${cell === shown.cell ? "chosen" : ""}`} x=${RIGHT - (cell + 1) * narrow + 0.5} y=${BOTTOM} width=${Math.max(narrow - 1, 1)} height="22" onPointerEnter=${() => setShown({ cell })} />`)}
      </g>
      ${firsts.map((first, cell) => cell % 8 === 0 && html`<text class="axis" x=${below(cell)} y=${BOTTOM + 38} text-anchor="middle">${first}</text>`)}
      <text class="axis" x=${LEFT} y=${BOTTOM + 58}>bars back from the newest, wider cells further back; point at one to see which decisions attended to it</text>
    </svg>
    </div>
    <p class="plot-reading" aria-live="polite">${whose}, layer ${layer + 1}, most: ${strongest.join("; ")}.</p>
  </div>`;
}
