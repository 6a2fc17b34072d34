/** Ranges of columns, as the server returns them, for a record in a file. */

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

/**
 * Return the columns of a range, in the shortest stored cells of which there are at most `points`.
 * @param {Object[]} levels Candles or Equity in ever longer cells, with `from_ms`
 * @returns {Object} one of the levels, cut to the range
 */
export function cut(levels, { from_ms, until_ms, points }) {
  const [from, until] = [from_ms ?? 0, until_ms ?? Infinity];
  const fits = (level) => level.from_ms <= from && Math.ceil((until - from) / level.interval_ms) + 1 <= (points ?? Infinity);
  const level = levels.find(fits) ?? levels.at(-1);
  const step = level.interval_ms;
  // Equity has the time of its cell's end; a bar belongs to the range in which it opens.
  const [times, shift] = level.time_ms ? [level.time_ms, 1] : [level.open_time_ms, 0];
  const start = lowerBound(times, Math.floor(from / step) * step + shift);
  const end = lowerBound(times, until + shift);
  const within = (value) => {
    if (Array.isArray(value)) return value.slice(start, end);
    return value instanceof Object ? Object.fromEntries(Object.entries(value).map(([name, each]) => [name, within(each)])) : value;
  };
  return within(level);
}

/** Columns from the time `from`: those of `before` until the first cell of `after`, then those of `after`. */
export function joined(before, after, from) {
  const times = ({ time_ms, open_time_ms }) => time_ms ?? open_time_ms;
  const start = lowerBound(times(before), from + (before.time_ms ? 1 : 0)); // equity has the time of its cell's end
  const end = Math.max(start, lowerBound(times(before), times(after)[0] ?? Infinity));
  const nothing = (answer) => new Array(times(answer).length).fill(null);
  const both = (earlier, later) => {
    if (Array.isArray(earlier ?? later)) return [...(earlier ?? nothing(before)).slice(start, end), ...(later ?? nothing(after))];
    if (!(earlier instanceof Object)) return later;
    return Object.fromEntries(Object.keys({ ...earlier, ...later }).map((name) => [name, both(earlier[name], later[name])]));
  };
  return both(before, after);
}
