/** Axes: scales, ticks, and numbers and times as text. */
import { MONTHS, number, plain as rounded } from "../format.js";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const STEPS = [1, 2, 5, 10, 15, 30].map((n) => n * MINUTE)
  .concat([1, 2, 4, 6, 12].map((n) => n * HOUR))
  .concat([1, 2, 5, 7, 14, 30, 90, 180, 365].map((n) => n * DAY));
export const LETTER = 6.3; // approximate width of a letter on an axis, in pixels
const TICK_ROOM = { time: 86, number: 64 };
const LINE_ROOM = 38; // pixels between labels of a vertical axis

/** A time as "2025-06-02 09:33", UTC. */
export const minute = (ms) => new Date(ms).toISOString().slice(0, 16).replace("T", " ");

/** A number with `decimals`, by default with four significant digits. */
export const plain = (value, decimals) => (decimals === undefined ? rounded(value, Math.abs(value) >= 1000 ? 8 : 4) : number(value, decimals));

/** The text of `value` on `axis`: a name, a time, or a number with its unit. */
export function textAt(axis, value) {
  if (axis.kind === "category") return axis.names[Math.round(value)] ?? "";
  if (axis.kind === "time") return `${minute(value)} UTC`;
  return `${plain(value, axis.digits)}${axis.unit ?? ""}`;
}

/**
 * A scale from `extent` [low, high] of `axis` to pixels [first, last].
 * `at(value)` returns the pixel, `value(pixel)` is the inverse.
 */
export function scale(axis, extent, first, last) {
  const [low, high] = extent;
  const [from, to] = axis.is_reversed ? [last, first] : [first, last];
  const slope = high > low ? (to - from) / (high - low) : 0;
  const middle = (from + to) / 2;
  return {
    axis,
    extent,
    at: (value) => (slope ? from + (value - low) * slope : middle),
    value: (pixel) => (slope ? low + (pixel - from) / slope : extent[0]),
  };
}

/** Labels along a scale of `length` pixels, as [value, text]. */
export function ticks({ axis, extent, at }, length, isAcross) {
  if (axis.ticks) return spread(axis.ticks, at, 34);
  if (axis.kind === "category") return names(axis, at, isAcross);
  const count = Math.max(2, Math.floor(length / (isAcross ? TICK_ROOM[axis.kind ?? "number"] : LINE_ROOM)));
  if (axis.kind === "time") return times(extent, count);
  return numbers(extent, count, axis.digits);
}

function names(axis, at, isAcross) {
  if (axis.has_labels === false) return [];
  const longest = Math.max(...axis.names.map((name) => name.length));
  return spread(axis.names.map((name, place) => [place, name]), at, isAcross ? 12 + LETTER * longest : 14);
}

/** Keeps labels that are at least `room` pixels from the kept ones. */
function spread(labels, at, room) {
  const kept = [];
  for (const [value, text] of labels) {
    const place = at(value);
    if (kept.every(([other]) => Math.abs(at(other) - place) >= room)) kept.push([value, text]);
  }
  return kept;
}

function numbers([low, high], count, digits) {
  if (!(high > low)) return [[low, plain(low)]];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const finest = digits === 0 ? 1 : 0;
  const step = Math.max(finest, [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw));
  const shown = Math.max(0, Math.ceil(-Math.log10(step) + (step / power === 2.5 ? 1 : 0)));
  const labels = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at++) {
    labels.push([at * step, plain(at * step + 0, Math.min(shown, 10))]);
  }
  return labels;
}

function times([low, high], count) {
  const step = STEPS.find((each) => (high - low) / each <= count) ?? STEPS[STEPS.length - 1];
  const labels = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) {
    const day = new Date(at);
    const date = `${day.getUTCDate()} ${MONTHS[day.getUTCMonth()]}`;
    const isDay = at % DAY === 0;
    const text = step >= 90 * DAY
      ? `${MONTHS[day.getUTCMonth()]} ${day.getUTCFullYear()}`
      : isDay ? date : day.toISOString().slice(11, 16);
    labels.push([at, text]);
  }
  return labels;
}
