/** Heat maps on a canvas: a colour for each pixel, looked up by its row and column of cells. */
import { html, useLayoutEffect, useRef } from "../vendor/htm-preact.js";
import { plain } from "./axis.js";

const LEVELS = 254;
const NONE = 255;
const PALETTES = {
  sequential: ["--heat-low", "--heat-mid", "--heat-high"],
  diverging: ["--loss", "--paper", "--gain"],
};
const STEPS = ["--rule", "--heat-mid", "--accent"];
const DIVERGING_MOST = 0.5; // of the pure colour, so that numbers on it stay legible

/** The share of the scale at which `number` stands, 0 to 1. */
export const share = (heat, number) =>
  heat.high === heat.low ? 0.5 : Math.min(1, Math.max(0, (number - heat.low) / (heat.high - heat.low)));

const unpacked = new WeakMap();

/** The cell's number as it was sent (a logarithm where the scale is one), or null. */
export function cellOf(heat, row, column) {
  if (heat.rows) return heat.rows[row]?.[column] ?? null;
  if (!unpacked.has(heat)) {
    unpacked.set(heat, Uint8Array.from(atob(heat.packed), (letter) => letter.charCodeAt(0)));
  }
  const level = unpacked.get(heat)[row * heat.x.length + column];
  return level === NONE ? null : heat.low + ((heat.high - heat.low) * level) / LEVELS;
}

/** What people read of a number of the scale. */
export function written(heat, number) {
  if (heat.palette === "steps") return heat.names[number] ?? "";
  const power = { log2: 2 ** number, log10: 10 ** number }[heat.scale] ?? number;
  return `${plain(power * (heat.times ?? 1), heat.digits)}${heat.unit ?? ""}`;
}

/** What people read of one cell; empty where there is none. */
export function cellText(heat, row, column) {
  const number = cellOf(heat, row, column);
  return number === null ? "" : (heat.texts?.[row]?.[column] ?? written(heat, number));
}

/** The edges between cells whose middles are `middles`. */
export function edgesOf(middles) {
  const count = middles.length;
  if (count < 2) return [middles[0] - 0.5, middles[0] + 0.5];
  const inner = Array.from({ length: count - 1 }, (_, at) => (middles[at] + middles[at + 1]) / 2);
  return [2 * middles[0] - inner[0], ...inner, 2 * middles[count - 1] - inner[count - 2]];
}

/** The index of the cell in which each pixel of a scale lies; -1 between and outside cells. */
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

const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

/** A colour of the page as [red, green, blue]. */
function rgb(name) {
  probe.clearRect(0, 0, 1, 1);
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

const mixed = (left, right, share) => left.map((part, at) => part + (right[at] - part) * share);

/** Colours from 0 to 1 of the scale. */
export function colours(heat) {
  if (heat.palette === "steps") {
    const steps = STEPS.map(rgb);
    return (share) => steps[Math.round(share * (steps.length - 1))];
  }
  let [low, middle, high] = PALETTES[heat.palette ?? "sequential"].map(rgb);
  if (heat.palette === "diverging") {
    low = mixed(middle, low, DIVERGING_MOST);
    high = mixed(middle, high, DIVERGING_MOST);
  }
  return (share) => (share < 0.5 ? mixed(low, middle, 2 * share) : mixed(middle, high, 2 * share - 1));
}

const light = (colour) =>
  colour.map((part) => (part / 255) ** 2.2).reduce((sum, part, at) => sum + part * [0.21, 0.72, 0.07][at], 0);

/** Which of paper and ink is the more legible on a cell. */
export function inkOn(heat, number) {
  const ground = light(colours(heat)(share(heat, number)));
  const contrast = (name) => {
    const ink = light(rgb(name));
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  };
  return contrast("--ink") >= contrast("--paper") ? "var(--ink)" : "var(--paper)";
}

/** The cells, `width` by `height` pixels; `theme` changes where colours do. */
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
    const colour = colours(heat);
    const shades = Array.from({ length: 256 }, (_, at) => colour(at / 255).map(Math.round));
    const image = new ImageData(wide, high);
    let at = 0;
    for (const row of rows) {
      for (const column of columns) {
        const number = row < 0 || column < 0 ? null : cellOf(heat, row, column);
        if (number !== null) {
          image.data.set(shades[Math.round(255 * share(heat, number))], at);
          image.data[at + 3] = 255;
        }
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

/** The scale of colours, with its ends. */
export function ColourBar({ heat, theme }) {
  const canvas = useRef();
  const isSteps = heat.palette === "steps";
  useLayoutEffect(() => {
    const [width, height] = [96, 8];
    const colour = colours(heat);
    const drawn = canvas.current.getContext("2d");
    for (let at = 0; at < width; at++) {
      const place = isSteps ? Math.floor((3 * at) / width) / 2 : at / (width - 1);
      drawn.fillStyle = `rgb(${colour(place).map(Math.round).join()})`;
      drawn.fillRect(at, 0, 1, height);
    }
  }, [heat, theme]);
  const ends = isSteps
    ? [heat.names[0], heat.names.slice(1).join(", ")]
    : (heat.ends ?? [written(heat, heat.low), written(heat, heat.high)]);
  return html`<span class="scale">
    ${ends[0]}<canvas ref=${canvas} width="96" height="8" aria-hidden="true"></canvas>${ends[1]}
    ${!isSteps && ` ${heat.name}`}
  </span>`;
}
