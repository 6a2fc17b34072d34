/** Heat maps on a canvas; each pixel has the colour of its cell. */
import { html, useLayoutEffect, useRef } from "../vendor/htm-preact.js";
import { plain } from "./axis.js";

const LEVELS = 254;
const NONE = 255;
const PALETTES = {
  sequential: ["var(--heat-low)", "var(--heat-mid)", "var(--heat-high)"],
  steps: ["var(--rule)", "var(--heat-mid)", "var(--accent)"],
};
const paletteOf = (heat) => PALETTES[heat.palette ?? "sequential"];

/** The position of `number` on the scale, 0 to 1. */
export const share = (heat, number) =>
  heat.high === heat.low ? 0.5 : Math.min(1, Math.max(0, (number - heat.low) / (heat.high - heat.low)));

const unpacked = new WeakMap();

/** The cell's number (a logarithm if the scale is logarithmic), or null. */
export function cellOf(heat, row, column) {
  if (heat.rows) return heat.rows[row]?.[column] ?? null;
  if (!unpacked.has(heat)) {
    unpacked.set(heat, Uint8Array.from(atob(heat.packed), (letter) => letter.charCodeAt(0)));
  }
  const level = unpacked.get(heat)[row * heat.x.length + column];
  return level === NONE ? null : heat.low + ((heat.high - heat.low) * level) / LEVELS;
}

/** The text of a number on the scale. */
export function written(heat, number) {
  if (heat.palette === "steps") return heat.names[number] ?? "";
  const power = { log2: 2 ** number, log10: 10 ** number }[heat.scale] ?? number;
  return `${plain(power * (heat.times ?? 1), heat.digits)}${heat.unit ?? ""}`;
}

/** The text of one cell; empty without a number. */
export function cellText(heat, row, column) {
  const number = cellOf(heat, row, column);
  return number === null ? "" : (heat.texts?.[row]?.[column] ?? written(heat, number));
}

/** The edges of cells with the centres `middles`. */
export function edgesOf(middles) {
  const count = middles.length;
  if (count < 2) return [middles[0] - 0.5, middles[0] + 0.5];
  const inner = Array.from({ length: count - 1 }, (_, at) => (middles[at] + middles[at + 1]) / 2);
  return [2 * middles[0] - inner[0], ...inner, 2 * middles[count - 1] - inner[count - 2]];
}

/** The index of the cell at each pixel of a scale; -1 between and outside cells. */
function places(middles, { at }, length, gap) {
  const cells = new Int32Array(length).fill(-1);
  const edges = edgesOf(middles).map(at);
  for (let cell = 0; cell < middles.length; cell++) {
    const [low, high] = [edges[cell], edges[cell + 1]].sort((a, b) => a - b);
    const stop = high - low > 6 ? Math.round(high) - gap : Math.max(Math.round(high), Math.round(low) + 1);
    cells.fill(cell, Math.max(0, Math.round(low)), Math.min(length, stop));
  }
  return cells;
}

/** 256 colours along the scale, as a flat array of red, green, blue and opacity. */
function shadesOf(heat) {
  const drawing = new OffscreenCanvas(256, 1).getContext("2d");
  const gradient = drawing.createLinearGradient(0, 0, 256, 0);
  const style = getComputedStyle(document.documentElement);
  // A canvas does not resolve CSS variables.
  const solid = (colour) => colour.replace(/var\((.*?)\)/g, (_, name) => style.getPropertyValue(name).trim());
  paletteOf(heat).forEach((colour, at) => gradient.addColorStop(at / 2, solid(colour)));
  drawing.fillStyle = gradient;
  drawing.fillRect(0, 0, 256, 1);
  return drawing.getImageData(0, 0, 256, 1).data;
}

/** The cells on a canvas of `width` by `height` pixels; a new `theme` redraws them. */
export function Cells({ heat, x, y, left, top, width, height, theme }) {
  const canvas = useRef();
  useLayoutEffect(() => {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (!(wide > 0 && high > 0)) return;
    const scaled = (scale, offset) => ({ at: (value) => (scale.at(value) - offset) * ratio });
    const gap = Math.round(ratio);
    const columns = places(heat.x, scaled(x, left), wide, x.axis.kind === "category" ? gap : 0);
    const rows = places(heat.y, scaled(y, top), high, y.axis.kind === "category" ? gap : 0);
    const shades = shadesOf(heat);
    const image = new ImageData(wide, high);
    let at = 0;
    for (const row of rows) {
      for (const column of columns) {
        const number = row < 0 || column < 0 ? null : cellOf(heat, row, column);
        const shade = 4 * Math.round(255 * share(heat, number));
        if (number !== null) image.data.set(shades.subarray(shade, shade + 4), at);
        at += 4;
      }
    }
    canvas.current.width = wide;
    canvas.current.height = high;
    canvas.current.getContext("2d").putImageData(image, 0, 0);
  }, [heat, x.extent.join(), left, top, width, height, theme]);
  const style = { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` };
  return html`<canvas ref=${canvas} style=${style} aria-hidden="true"></canvas>`;
}

/** The colour scale with its ends. */
export function ColourBar({ heat }) {
  const isSteps = heat.palette === "steps";
  const ends = isSteps
    ? [heat.names[0], heat.names.slice(1).join(", ")]
    : [written(heat, heat.low), written(heat, heat.high)];
  const stops = paletteOf(heat).map((colour, at) => (isSteps ? `${colour} ${at * 33.3}% ${(at + 1) * 33.3}%` : colour));
  return html`<span class="scale">
    ${ends[0]}<i style=${{ background: `linear-gradient(to right, ${stops.join()})` }}></i>${ends[1]}
    ${!isSteps && ` ${heat.name}`}
  </span>`;
}
