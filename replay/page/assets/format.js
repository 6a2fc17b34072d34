/** Numbers and times as text. Digits are tabular, the minus is U+2212, times are UTC or local. */
import { keep, kept } from "./storage.js";

const MINUS = "\u2212";
const NARROW = "\u202f";
const ZONE_KEY = "tracepaper.zone";

let local = kept(ZONE_KEY) === "local";

export const isLocal = () => local;

/** Show times in this computer's zone, or in UTC. */
export function setLocal(value) {
  local = value;
  keep(ZONE_KEY, value ? "local" : "utc");
}

export const zoneName = () => (local ? "local time" : "UTC");

const signed = (text) => text.replace("-", MINUS);

/** Cached formats: creating one costs more than all other work of a pointer move. */
const formats = new Map();

function formatted(value, options) {
  const key = JSON.stringify(options);
  let format = formats.get(key);
  if (!format) formats.set(key, (format = new Intl.NumberFormat("en-US", options)));
  return format.format(value);
}

/** `1234.5` as `1,234.5`; null as a dash. */
export function number(value, decimals = 2) {
  if (value == null || !Number.isFinite(value)) return "–";
  const text = formatted(value, { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  return signed(/^-[0.,]*$/.test(text) ? text.slice(1) : text);
}

/** A whole number. */
export const count = (value) => number(value, 0);

/** A number with as many digits as it needs, at most `digits` significant ones. */
export function plain(value, digits = 4) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e9 || Math.abs(value) < 1e-7)) return signed(value.toExponential(2));
  return signed(formatted(value, { maximumSignificantDigits: digits }));
}

/** A fraction as a percentage: `.00412` as `0.41 %`, with `sign` as `+0.41 %`. */
export function percent(value, { sign = false, decimals = 2 } = {}) {
  if (value == null || !Number.isFinite(value)) return "–";
  const text = number(value * 100, decimals);
  const plus = sign && !text.startsWith(MINUS) && /[1-9]/.test(text) ? "+" : "";
  return `${plus}${text}${NARROW}%`;
}

/** A quantity's exact text without sign and trailing zeros. */
export function quantity(text) {
  const bare = String(text ?? "0").replace(/^[-\u2212]/, "");
  return bare.includes(".") ? bare.replace(/0+$/, "").replace(/\.$/, "") : bare;
}

/** A sentence of the server with the page's minus, and no break before a per cent. */
export const sentenceText = (text) => text.replace(/ %/g, `${NARROW}%`).replace(/ -(?=\d)/g, ` ${MINUS}`);

export const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** A time in the chosen zone, as `2025-06-03T09:33:00`. */
function iso(ms) {
  const date = new Date(ms);
  return new Date(local ? ms - 6e4 * date.getTimezoneOffset() : ms).toISOString().slice(0, 19);
}

/** `2025` */
export const year = (ms) => iso(ms).slice(0, 4);

/** `09:33` */
export const clock = (ms) => iso(ms).slice(11, 16);

/** `3 Jun` */
export const day = (ms) => `${Number(iso(ms).slice(8, 10))} ${MONTHS[Number(iso(ms).slice(5, 7)) - 1]}`;

/** `3 Jun 09:33`, with the year if it is not that of `near` */
export function moment(ms, near = ms) {
  if (ms == null) return "–";
  return [day(ms), ...(year(near ?? ms) === year(ms) ? [] : [year(ms)]), clock(ms)].join(" ");
}

/** A time, with its date unless that is the date of `newest`. */
export function when(ms, newest) {
  const isSameDay = ms != null && newest != null && iso(ms).slice(0, 10) === iso(newest).slice(0, 10);
  return isSameDay ? clock(ms) : moment(ms, newest);
}

/** `2025-06-03 09:33:00` */
export const stamp = (ms) => (ms == null ? "–" : iso(ms).replace("T", " "));

/** An interval as traders write it: `1m`, `4h`, `1d` */
export function interval(ms) {
  const minutes = ms / 6e4;
  if (minutes < 1) return `${ms / 1e3}s`;
  if (minutes % 1440 === 0) return `${minutes / 1440}d`;
  return minutes % 60 === 0 ? `${minutes / 60}h` : `${minutes}m`;
}

/** A name of the record as words: without prefixes and suffixes, underscores as spaces. */
export const word = (name) =>
  name.replace(/^risk[._]/, "").replaceAll("_", " ");

/** A strategy's name without the module of its class. */
export const strategyName = (name) => name.slice(name.lastIndexOf(":") + 1);
