/** Marks on the candles: fills, resting orders, refusals by the selected gate, gaps. */
import { plain } from "../format.js";

const SIZE = 5;
const FILL_SPACING = 4; // px; of closer fills of one side only the first is drawn

function triangle(context, x, y, isUp, size) {
  const sign = isUp ? 1 : -1;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + size, y + sign * size * 1.7);
  context.lineTo(x - size, y + sign * size * 1.7);
  context.closePath();
}

/** Draw a filled triangle below the bar for a buy, a hollow one above it for a sale. */
export function drawFills(context, { frame, across, y, colours }) {
  const [first, end] = across.span(frame.length);
  const inView = frame.fills.filter((fill) => fill.filled_ms >= frame.times[first] && fill.filled_ms < frame.times[end] + frame.step);
  const size = inView.length > 60 ? SIZE * 0.6 : SIZE;
  const before = { BUY: -Infinity, SELL: -Infinity };
  context.lineWidth = size === SIZE ? 1.5 : 1;
  context.strokeStyle = colours.accent;
  context.fillStyle = colours.accent;
  for (const fill of inView) {
    const index = Math.min(frame.length - 1, Math.floor(frame.position(fill.filled_ms)));
    if (index < first || index > end) continue;
    const x = across.x(index);
    if (x - before[fill.side] < FILL_SPACING && x > before[fill.side]) continue;
    before[fill.side] = x;
    if (fill.side === "BUY") {
      triangle(context, x, y(Math.min(frame.low[index], fill.price)) + 4, true, size);
      context.fill();
    } else {
      triangle(context, x, y(Math.max(frame.high[index], fill.price)) - 4, false, size);
      context.fillStyle = colours.paper;
      context.fill();
      context.fillStyle = colours.accent;
    }
    context.stroke();
  }
}

/** The dash pattern and the label of an order's line, by its role. */
const LINES = {
  STOP: { dash: [2, 3], word: "stop" },
  TRAILING: { dash: [2, 3], word: "trailing stop" },
  TARGET: { dash: [8, 3], word: "target" },
  LIST: { dash: [6, 3, 2, 3], word: "order" },
  LIQUIDATION: { dash: [1, 5], word: "liquidation" },
};
const DEFAULT_LINE = { dash: [6, 3, 2, 3], word: "order" };

/** Draw a line from an order's creation to its end, at its price. */
export function drawOrders(context, { frame, across, y, colours, height }) {
  const [first, end] = across.span(frame.length);
  context.lineWidth = 1;
  context.font = `11px ${colours.font}`;
  context.textBaseline = "bottom";
  for (const order of frame.orders) {
    const from = frame.position(order.from_ms);
    const until = order.until_ms == null ? frame.length : frame.position(order.until_ms);
    if (until < first || from > end) continue;
    const { dash, word } = LINES[order.role] ?? DEFAULT_LINE;
    const left = Math.max(0, across.edge(from));
    const right = across.edge(until);
    const level = Math.round(y(order.price)) + 0.5;
    if (order.until_ms == null && (level < 0 || level > height)) {
      // A resting order beyond the scale is named at its edge.
      context.fillStyle = colours.muted;
      context.fillText(`${word} ${level < 0 ? "↑" : "↓"} ${plain(order.price, 9)}`, 3, level < 0 ? 26 : height - 3);
      continue;
    }
    context.strokeStyle = order.role === "TARGET" ? colours.accent : colours.ink;
    context.setLineDash(dash);
    context.globalAlpha = 0.8;
    context.beginPath();
    context.moveTo(left, level);
    context.lineTo(Math.max(right, left + 2), level);
    context.stroke();
    // Label only lines that are longer than the label.
    if (right - left > 70) {
      context.fillStyle = colours.muted;
      context.globalAlpha = 1;
      context.fillText(word, left + 3, level - 1);
    }
  }
  context.setLineDash([]);
  context.globalAlpha = 1;
}

/** Draw hollow rings over the bars that the selected gate refused. */
export function drawRefusals(context, { frame, gate, across, y, colours }) {
  const [first, end] = across.span(frame.length);
  context.strokeStyle = colours.loss;
  context.lineWidth = 1.5;
  const failed = frame.failed[gate];
  let before = -Infinity;
  for (let index = first; index <= end; index++) {
    if (!(failed?.[index] > 0)) continue;
    const x = across.x(index);
    if (x - before < 6) continue;
    before = x;
    context.beginPath();
    context.arc(x, y(frame.high[index]) - 8, 4, 0, 2 * Math.PI);
    context.stroke();
  }
}

/** Hatch the gaps in the data; at least 5 px, since a gap may have no cell. */
export function drawGaps(context, { frame, across, height, colours }) {
  for (const gap of frame.gaps) {
    const middle = (across.edge(frame.position(gap.from_ms)) + across.edge(frame.position(gap.until_ms))) / 2;
    const width = Math.max(5, across.edge(frame.position(gap.until_ms)) - across.edge(frame.position(gap.from_ms)));
    const left = middle - width / 2;
    if (left > across.x(across.to) || left + width < 0) continue;
    context.save();
    context.beginPath();
    context.rect(left, 0, width, height);
    context.clip();
    context.strokeStyle = colours.muted;
    context.globalAlpha = 0.45;
    context.lineWidth = 1;
    context.beginPath();
    for (let offset = -height; offset < width; offset += 6) {
      context.moveTo(left + offset, height);
      context.lineTo(left + offset + height, 0);
    }
    context.stroke();
    context.restore();
  }
}
