/** Ranges and cells of columns: what the server does for a range, for a record that is all here. */

/** Multiples of a run's interval that a cell may have: those of the server. */
export const MULTIPLES = [1, 2, 5, 10, 15, 30, 60, 120, 240, 720, 1440, 2880, 7200, 10080];
const DAY = 864e5; // ms

/** The first index whose value is at least `value`; `times` ascends. */
export function lowerBound(times, value) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The index of the last value at most `value`, or -1. */
export const indexAt = (times, value) => lowerBound(times, value + 1) - 1;

const last = (values) => values[values.length - 1];
const lastKnown = (values) => values.findLast((value) => value != null) ?? null;
const sum = (values) => values.reduce((total, value) => total + value, 0);
const least = (values) => values.reduce((low, value) => (value == null || (low != null && low <= value) ? low : value), null);
const most = (values) => values.reduce((high, value) => (value > high ? value : high), -Infinity);

/** How each column of a cell follows from its bars; what is not named is the last one's. */
const RULES = {
  open: (values) => values[0],
  high: most,
  low: least,
  volume: sum,
  spare: least,
  failed: sum,
  sequence: lastKnown,
  numbers: lastKnown,
};

/**
 * Columns of a range, in at most `points` cells.
 * @param {Object} answer Candles, Series, Equity or Noted
 * @returns {Object} the same shape
 */
export function cut(answer, { from_ms, until_ms, points }) {
  const isEquity = "time_ms" in answer;
  // Equity is dated at the end of its cell; a bar belongs to the range where it opened.
  const opens = isEquity ? answer.time_ms.map((time) => time - 1) : answer.open_time_ms;
  const start = from_ms == null ? 0 : lowerBound(opens, Number(from_ms));
  const end = until_ms == null ? opens.length : lowerBound(opens, Number(until_ms));
  const from = from_ms == null ? opens[start] : Number(from_ms);
  const until = until_ms == null ? (last(opens) ?? 0) + answer.interval_ms : Number(until_ms);
  const step = cellLength(answer.interval_ms, until - from, points);
  const isHeld = step === answer.interval_ms; // so long cells are here, and begin where they do
  const groups = [];
  let key = null;
  for (let index = start; index < end; index++) {
    const cell = isHeld ? index : Math.floor(opens[index] / step);
    if (cell !== key) groups.push([]);
    last(groups).push(index);
    key = cell;
  }
  const column = (values, rule) => groups.map((group) => rule(group.map((index) => values[index])));
  const result = { ...answer, interval_ms: step };
  for (const [name, values] of Object.entries(answer)) {
    if (isHeld && name.endsWith("time_ms")) result[name] = values.slice(start, end);
    else if (name === "time_ms") result[name] = groups.map((group) => (Math.floor(opens[group[0]] / step) + 1) * step);
    else if (name === "open_time_ms") result[name] = groups.map((group) => Math.floor(opens[group[0]] / step) * step);
    else if (Array.isArray(values)) result[name] = column(values, isEquity ? last : (RULES[name] ?? last));
    else if (values && typeof values === "object")
      result[name] = Object.fromEntries(
        Object.entries(values).map(([each, column_]) => [
          each,
          column(column_, isEquity ? (name === "low" ? least : last) : (RULES[name] ?? last)),
        ]),
      );
  }
  return result;
}

/** The shortest cell with which `span` fits into `points`, as the server chooses it. */
export function cellLength(interval, span, points) {
  if (points == null) return interval;
  const multiple = MULTIPLES.find((each) => Math.ceil(span / (interval * each)) + 1 <= Number(points));
  if (multiple != null) return interval * multiple;
  const longest = Math.max(interval * last(MULTIPLES), DAY);
  return Math.ceil(Math.ceil(span / Math.max(points - 1, 1)) / longest) * longest;
}

/** Marks that lie in a range. */
export function cutMarks(answer, { from_ms, until_ms }) {
  const from = Number(from_ms ?? -Infinity);
  const until = Number(until_ms ?? Infinity);
  const overlaps = (mark) => mark.from_ms < until && (mark.until_ms ?? Infinity) >= from;
  return {
    ...answer,
    fills: answer.fills.filter((fill) => fill.filled_ms >= from && fill.filled_ms < until),
    orders: answer.orders.filter(overlaps),
    gaps: answer.gaps.filter(overlaps),
  };
}

const TIMES = ["open_time_ms", "filled_ms", "closed_ms", "created_ms", "market_ms", "from_ms"];

/** Rows of a view as the server gives them: filtered, sorted, and one page of them. */
export function cutRows(answer, { from_ms, until_ms, sort = "sequence", descending, limit = 100, after = 0, ...filters }) {
  const at = (name) => answer.columns.findIndex((column) => column.name === name);
  const time = at(TIMES.find((name) => at(name) >= 0));
  const equal = Object.entries(filters).map(([name, value]) => [at(name), String(value)]);
  const rows = answer.rows.filter(
    (row) =>
      (from_ms == null || row[time] >= from_ms) &&
      (until_ms == null || row[time] < until_ms) &&
      equal.every(([column, value]) => String(row[column] ?? "") === value),
  );
  const order = [...new Set([sort, "sequence", "ordinal"])].map(at).filter((column) => column >= 0);
  const way = descending ? -1 : 1;
  rows.sort((one, other) => {
    for (const column of order) {
      const [a, b] = [one[column], other[column]];
      // As in SQLite, null is less than any value.
      if (a !== b) return way * (a == null ? -1 : b == null ? 1 : a < b ? -1 : 1);
    }
    return 0;
  });
  const end = Number(after) + Number(limit);
  return { ...answer, rows: rows.slice(Number(after), end), total: rows.length === answer.rows.length ? answer.total : rows.length, next: end < rows.length ? String(end) : null };
}
