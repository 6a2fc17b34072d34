/** The model's attention: a strip under the candles, and a tint along them. */

/** Blocks with their attention per bar `v`, relative to the densest complete block, 0 to 1. */
export function densities(attended, interval) {
  const blocks = attended
    .filter((bucket) => bucket.from_ms != null)
    .map((bucket) => ({ ...bucket, density: Math.abs(bucket.weight) / Math.max(1, (bucket.until_ms - bucket.from_ms) / interval) }));
  // The newest block has few bars and would outshine all others.
  const complete = blocks.slice(1).map((block) => block.density);
  const most = Math.max(...(complete.length ? complete : blocks.map((block) => block.density)), 1e-12);
  return blocks.map((block) => ({ ...block, v: Math.min(1, block.density / most) }));
}

/** The share of the attention, or of the absolute relevance, between two times. */
export function shareBetween(attended, from, until) {
  let share = 0;
  for (const bucket of attended) {
    if (bucket.from_ms == null || bucket.until_ms <= bucket.from_ms) continue;
    const overlap = Math.min(until, bucket.until_ms) - Math.max(from, bucket.from_ms);
    if (overlap > 0) share += (Math.abs(bucket.weight) * overlap) / (bucket.until_ms - bucket.from_ms);
  }
  return share;
}

const opacity = (v) => 0.06 + 0.84 * v ** 1.5;

export function drawStrip(context, { blocks, frame, across, top, height, colours, last }) {
  context.fillStyle = colours.accent;
  for (const { from_ms, until_ms, v } of blocks) {
    const left = across.edge(frame.position(from_ms));
    const right = across.edge(Math.min(frame.position(until_ms), last + 1));
    if (right <= left) continue;
    context.globalAlpha = opacity(v);
    context.fillRect(Math.round(left), top, Math.max(1, Math.round(right) - Math.round(left)), height);
  }
  context.globalAlpha = 1;
}

const REACH = 3; // neighbouring bars on each side whose range the tint covers
const EDGE = 5; // px above and below that range

export function drawTint(context, { blocks, frame, across, y, colours, last }) {
  const [first, end] = across.span(frame.length);
  context.fillStyle = colours.accent;
  for (const { from_ms, until_ms, v } of blocks) {
    const from = Math.max(first, Math.ceil(frame.position(from_ms)));
    const until = Math.min(end, last, Math.ceil(frame.position(until_ms)) - 1);
    if (until < from) continue;
    context.globalAlpha = 0.04 + 0.36 * v ** 1.5;
    for (let index = from; index <= until; index++) {
      const low = Math.max(0, index - REACH);
      const high = Math.min(last, index + REACH);
      let top = -Infinity;
      let bottom = Infinity;
      for (let near = low; near <= high; near++) {
        top = Math.max(top, frame.high[near]);
        bottom = Math.min(bottom, frame.low[near]);
      }
      const left = Math.round(across.x(index - 0.5));
      const right = Math.round(across.x(index + 0.5));
      const upper = y(top) - EDGE;
      context.fillRect(left, upper, right - left, y(bottom) + EDGE - upper);
    }
  }
  context.globalAlpha = 1;
}
