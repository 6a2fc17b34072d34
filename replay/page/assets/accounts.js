/** The swatch of an account's line in a legend. */
import { html } from "./vendor/htm-preact.js";

/** The dash patterns of the chart library, in line widths. */
const DASHES = { solid: [], dot: [1, 1], dash: [2, 2], dashdot: [6, 6] };

/** A swatch with the tone, dash and width of a line. */
export function Swatch({ tone, dash, width }) {
  const pattern = DASHES[dash].map((each) => each * width).join(" ");
  return html`<svg class=${`swatch ${tone}`} width="26" height="6" aria-hidden="true"><line x1="0" x2="26" y1="3" y2="3" stroke="currentColor" stroke-width=${width} stroke-dasharray=${pattern} /></svg>`;
}
