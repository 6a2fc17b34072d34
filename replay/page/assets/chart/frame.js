/**
 * A frame: the columns of one instrument over a loaded range, all as long as its candles.
 *
 * It is loaded around the visible range with a cell length that fits the width, so a year of
 * minutes costs no more than a day.
 */
import { getOf } from "../api.js";
import { indexAt, joined } from "../cells.js";

const MULTIPLES = [1, 2, 5, 10, 15, 30, 60, 120, 240, 720, 1440, 2880, 7200, 10080]; // bars per cell, the same as in the server
const SPACING_LEAST = 0.9; // px per cell, below which cells get longer
const SPACING_MOST = 9; // px per cell, above which they get shorter again
const SPACING_NEW = 1.6;
const TAIL = 8; // cells that are requested again to extend a frame; for fewer the server would return shorter cells

export class Frame {
  constructor({ run, instrument, from_ms, answers }) {
    const { candles, equity, marks } = answers;
    Object.assign(this, candles, { run, instrument, from_ms, answers, step: candles.interval_ms, times: candles.open_time_ms });
    this.equity = mapped(equity.equity, (values) => this.#byClose(equity.time_ms, values));
    // A file has the marks of all symbols in one answer.
    for (const kind of ["fills", "orders", "gaps"]) this[kind] = marks[kind].filter((mark) => mark.instrument === instrument);
    this.isCut = marks.is_cut;
  }

  /** Align equity, which has the time of its cell's end, with the candles. */
  #byClose(times, values) {
    const column = new Array(this.times.length).fill(null);
    times.forEach((time, index) => {
      const cell = indexAt(this.times, time - 1);
      if (cell >= 0) column[cell] = values[index];
    });
    for (let index = 1; index < column.length; index++) column[index] ??= column[index - 1];
    return column;
  }

  /** Whether a cell is of the warm-up: no strategy decided there, or none could yet. */
  isWarmUp(cell) {
    return this.sequence[cell] == null || this.refused_by[cell] === "warm";
  }

  get length() {
    return this.times.length;
  }

  /** Open time of the last cell. */
  get lastMs() {
    return this.times[this.length - 1];
  }

  /** The position of a time, in cells; fractional, and extrapolated beyond the ends. */
  position(ms) {
    const index = indexAt(this.times, ms);
    if (index < 0) return (ms - this.times[0]) / this.step;
    return index + Math.min((ms - this.times[index]) / this.step, index === this.length - 1 ? Infinity : 1);
  }

  timeAt(position) {
    const index = Math.floor(position);
    if (index < 0) return this.times[0] + position * this.step;
    if (index >= this.length) return this.times[this.length - 1] + (position - this.length + 1) * this.step;
    return this.times[index] + (position - index) * this.step;
  }

  /** The cell with the decision of the bar that opened at `ms`, or -1. */
  indexOf(ms) {
    const index = indexAt(this.times, ms);
    return index >= 0 && ms < this.times[index] + this.step ? index : -1;
  }
}

const mapped = (columns, each) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, each(values, name)]));

/**
 * The cell length for a span that is `width` pixels wide: the current one if its cells are neither
 * too narrow nor too wide.
 */
export function stepFor({ interval, least = interval, span, width, current = null }) {
  if (current && current >= least) {
    const spacing = (width * current) / span;
    if (spacing >= SPACING_LEAST && (spacing <= SPACING_MOST || current === least)) return current;
  }
  const multiple = MULTIPLES.find((each) => interval * each >= least && (width * interval * each) / span >= SPACING_NEW);
  return interval * (multiple ?? MULTIPLES[MULTIPLES.length - 1]);
}

/** Keys that identify a mark in overlapping ranges. */
const KEYS = { fills: (mark) => [mark.sequence, mark.order_id, mark.price, mark.quantity_text].join(), orders: (mark) => mark.order_id, gaps: (mark) => mark.from_ms };

/** The newest version of each mark of both, without those that ended before `from`. */
const joinedMarks = (before, after, from) => ({
  is_cut: before.is_cut || after.is_cut,
  ...mapped(KEYS, (keyOf, kind) => {
    const marks = [...before[kind], ...after[kind]].map((mark) => [keyOf(mark), mark]);
    return [...new Map(marks).values()].filter((mark) => (mark.until_ms ?? mark.filled_ms ?? Infinity) >= from);
  }),
});

/**
 * Load the frame of a range; `step` is the length of its cells. Cells of the frame `held` are not
 * requested again, because past cells do not change.
 * @returns {Promise<Frame>}
 */
export async function loadFrame({ run, instrument, from_ms, until_ms, step, held, signal }) {
  const from = Math.floor(from_ms / step) * step;
  const until = Math.ceil(until_ms / step) * step;
  const isExtended = held?.step === step && held.from_ms <= from && from < held.times.at(-TAIL) && until > held.lastMs;
  const since = isExtended ? Math.floor(held.times.at(-TAIL) / step) * step : from;
  const range = { instrument, from_ms: since, until_ms: until, points: Math.round((until - since) / step) + 2 };
  const ask = (kind, parameters = range) => getOf(run, kind, { signal }, parameters);
  const [candles, equity, marks] = await Promise.all([
    ask("candles"),
    ask("equity", { ...range, instrument: null }),
    ask("marks", { instrument, from_ms: since, until_ms: until }),
  ]);
  const answers = { candles, equity, marks };
  if (isExtended) for (const kind of Object.keys(answers)) answers[kind] = (kind === "marks" ? joinedMarks : joined)(held.answers[kind], answers[kind], from);
  return new Frame({ run, instrument, from_ms: from, answers });
}
