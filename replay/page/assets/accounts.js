/** How the accounts of a run are drawn: each in a colour and a dash of its own, the same everywhere. */

import { html } from "./vendor/htm-preact.js";

/** The dashes of the library that draws the lines, in widths of the line. */
const DASHES_OF = { solid: [], dotted: [1, 1], dashed: [2, 2], long: [6, 6], sparse: [1, 4] };

/** The sign of a line in a legend, dashed as the line is. */
export function Swatch({ tone, dash = "solid", width = 1 }) {
  const pattern = (DASHES_OF[dash] ?? []).map((each) => each * width).join(" ");
  return html`<svg class=${`swatch ${tone}`} width="26" height="6" aria-hidden="true"><line x1="0" x2="26" y1="3" y2="3" stroke="currentColor" stroke-width=${width} stroke-dasharray=${pattern} /></svg>`;
}

const OWN = { tone: "accent", dash: "solid", width: 2 };
const SHADOWS = [
  { tone: "shadow-1", dash: "dashed", width: 1 },
  { tone: "shadow-2", dash: "long", width: 1 },
  { tone: "shadow-3", dash: "sparse", width: 2 },
];
const DASHES = SHADOWS.map((each) => each.dash);
const BENCHMARKS = [
  { tone: "muted", dash: "solid", width: 1 },
  { tone: "ink", dash: "dotted", width: 1 },
];

/** The shadow account or strategy in place `index`: past the first three, other dashes of the tones, then wider. */
function shadow(index) {
  if (index < SHADOWS.length) return SHADOWS[index];
  const turn = Math.floor(index / SHADOWS.length);
  const dash = DASHES[(index + turn) % SHADOWS.length];
  const isSolid = turn % 4 === 3;
  return { tone: SHADOWS[index % SHADOWS.length].tone, dash: isSolid ? "solid" : dash, width: (dash === "sparse" && !isSolid ? 2 : 1) + Math.floor(turn / 4) };
}

/** Whether a run holds a long and a short side of each symbol. */
export const isHedged = (run) => run.config.account?.position_mode === "hedge";

/** Whether the accounts beside the run's own are what it consists of: sides, or strategies. */
export const hasParts = (run) => isHedged(run) || run.config.strategies != null;

/** Tone, dash and width of each account, by its name. @returns {Map<string, {tone: string, dash: string, width: number}>} */
export function accountStyles(run) {
  const [own, ...others] = run.accounts;
  const styles = new Map(own ? [[own.name, OWN]] : []);
  others.filter((each) => each.is_stored).forEach((each, index) => styles.set(each.name, shadow(index)));
  others.filter((each) => !each.is_stored).forEach((each, index) => styles.set(each.name, BENCHMARKS[index % BENCHMARKS.length]));
  return styles;
}
