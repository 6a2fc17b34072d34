/** The accounts of a run: of what it consists, and the sign of a line in a legend. */
import { html } from "./vendor/htm-preact.js";

/** The dashes of the library that draws the lines, in widths of the line. */
const DASHES = { solid: [], dot: [1, 1], dash: [2, 2], dashdot: [6, 6] };

/** The sign of a line, dashed as the line is. */
export function Swatch({ tone, dash, width }) {
  const pattern = DASHES[dash].map((each) => each * width).join(" ");
  return html`<svg class=${`swatch ${tone}`} width="26" height="6" aria-hidden="true"><line x1="0" x2="26" y1="3" y2="3" stroke="currentColor" stroke-width=${width} stroke-dasharray=${pattern} /></svg>`;
}

/** Whether a run holds a long and a short side of each symbol. */
export const isHedged = (run) => run.config.account?.position_mode === "hedge";

/** Whether the accounts beside the run's own are what it consists of: sides, or strategies. */
export const hasParts = (run) => isHedged(run) || run.config.strategies != null;
