/** Flow of shares between groups: one column per level, bands between, the newest group on top. */
import { html } from "../vendor/htm-preact.js";

const [WIDTH, HEIGHT, TOP, PAD, NODE, SIDE] = [960, 340, 28, 8, 8, 110];
const LEAST = 0.002; // smaller groups are not drawn
const BAND_LEAST = 0.5; // pixels; thinner bands are not drawn

export function FlowView({ flow: { columns, groups, held, flows }, name }) {
  const room = HEIGHT - (groups.length - 1) * PAD;
  const tops = held.map((shares) => {
    let sum = 0;
    return shares.map((share, group) => {
      const top = sum * room + group * PAD + TOP;
      sum += share;
      return top;
    });
  });
  const across = columns.map((_, at) => SIDE + (at * (WIDTH - 2 * SIDE - NODE)) / (columns.length - 1));
  const last = columns.length - 1;
  return html`<div class="flow sideways" tabindex="0" role="region" aria-label=${`${name} (it scrolls)`}>
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT + TOP + 4}`} role="img" aria-label=${name}>
      ${flows.map((matrix, at) => bands(matrix, room, [tops[at], tops[at + 1]], [across[at] + NODE, across[at + 1]]))}
      ${held.map((shares, column) =>
        shares.map((share, group) => share >= LEAST && html`<rect class="area accent" x=${across[column]} y=${tops[column][group]} width=${NODE} height=${Math.max(share * room, 0.5)} />`),
      )}
      ${columns.map((title, column) => html`<text class="axis" x=${across[column] + NODE / 2} y="14" text-anchor="middle">${title}</text>`)}
      ${groups.map((group, place) => held[last][place] >= LEAST && html`<text class="axis" x=${across[last] + NODE + 8} y=${tops[last][place] + (held[last][place] * room) / 2 + 4}>${group}: ${Math.round(100 * held[last][place])}%</text>`)}
    </svg>
  </div>`;
}

/** The bands between two columns, in the order of the groups on both sides. */
function bands(matrix, room, [from, to], [left, right]) {
  const [leaves, arrives] = [[...from], [...to]];
  const middle = (left + right) / 2;
  return matrix.flatMap((row, source) =>
    row.map((share, target) => {
      const tall = share * room;
      const [first, last] = [leaves[source], arrives[target]];
      leaves[source] += tall;
      arrives[target] += tall;
      return tall >= BAND_LEAST && html`<path class="area soft" d=${`M${left} ${first}C${middle} ${first} ${middle} ${last} ${right} ${last}v${tall}C${middle} ${last + tall} ${middle} ${first + tall} ${left} ${first + tall}z`} />`;
    }),
  );
}
