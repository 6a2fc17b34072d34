/** Rows under the chart: what was asked for, attention, a thin row for each gate, and regimes. */
import { word } from "../format.js";

export const ROW = 17;
const DRAWN = 9;

/** Gates on the data, which a sound feed never comes near; they have a row only after a refusal. */
const DATA_GATES = new Set(["late", "gap", "stale"]);

/** Whether the distance from a gate's threshold is worth a row: not for a switch or a count. */
const isGraded = (gate) => !gate.is_switch && !gate.is_capped && (gate.refused > 0 || !DATA_GATES.has(gate.gate));

/**
 * The rows of a run, top to bottom.
 * @param {Object} run Run
 * @param {{compact: boolean}} options compact: fewer rows, for a phone
 */
export function rowsOf(run, { compact = false } = {}) {
  const graded = run.gates.filter(isGraded);
  const most = compact ? 3 : 7;
  const ranked = graded.slice().sort((left, right) => right.refused - left.refused);
  const kept = new Set(
    (compact ? ranked.filter((gate) => gate.refused || gate.gate !== "plausible") : ranked).slice(0, most),
  );
  const shown = graded.filter((gate) => kept.has(gate));
  const others = run.gates.filter((gate) => !shown.includes(gate));
  const rows = shown.map((gate) => ({ kind: "gate", key: gate.gate, label: word(gate.gate), gates: [gate.gate] }));
  rows.unshift({ kind: "asked", key: "asked", label: "asked for", gates: [] });
  if (run.has_attention) rows.unshift({ kind: "attention", key: "attention", label: "looked at", gates: [] });
  if (others.length)
    rows.push({
      kind: "others",
      key: "others",
      label: `${others.length} ${shown.length ? "others" : "gates"}`,
      gates: others.map((gate) => gate.gate),
    });
  if (run.has_regime && !compact) rows.push({ kind: "regime", key: "regime", label: "regime", gates: [] });
  return rows;
}

/** Draw a gate's row; a pixel column shows the worst of its cells. */
export function drawGateRow(context, { gates, frame, across, top, colours }) {
  const [first, end] = across.span(frame.length);
  const y = top + (ROW - DRAWN) / 2;
  const columns = gates.map((gate) => [frame.spare[gate], frame.failed[gate]]).filter(([spare]) => spare);
  let column = null;
  let nearest = Infinity;
  let hasFailed = false;
  let until = null;
  let refusedUntil = -Infinity;
  let markedUntil = -Infinity;
  const flush = () => {
    if (column == null) return;
    const width = Math.max(1, until - column);
    if (hasFailed) {
      // Emphasise a single refusal, and only the first of consecutive ones.
      const isNew = column > refusedUntil;
      context.globalAlpha = isNew ? 1 : 0.4;
      context.fillStyle = colours.loss;
      if (isNew) context.fillRect(column - Math.max(0, (3 - width) >> 1), y - 2, Math.max(3, width), DRAWN + 4);
      else context.fillRect(Math.max(column, markedUntil), y, Math.max(0, column + width - Math.max(column, markedUntil)), DRAWN);
      if (isNew) markedUntil = column + Math.max(2, width);
      refusedUntil = column + width + 1;
    } else if (nearest < 2) {
      context.globalAlpha = 0.85 * Math.exp(-2.6 * Math.max(0, nearest));
      context.fillStyle = colours.accent;
      context.fillRect(column, y, width, DRAWN);
    }
  };
  for (let index = first; index <= end; index++) {
    const left = Math.round(across.x(index - 0.5));
    if (left !== column) {
      flush();
      column = left;
      nearest = Infinity;
      hasFailed = false;
    }
    until = Math.round(across.x(index + 0.5));
    for (const [spare, failed] of columns) {
      if (failed?.[index] > 0) hasFailed = true;
      else if (spare[index] != null && spare[index] < nearest && gates.length === 1) nearest = spare[index];
    }
  }
  flush();
  context.globalAlpha = 1;
}

/** The place and height of an action in its row: LONG above, SHORT below, FLAT a line between. */
const ASKED = { LONG: [3, 5], FLAT: [8, 1], SHORT: [9, 5], ORDERS: [6, 5] };

/** Draw what the strategy asked for; HOLD, and a decision that a gate refused, leave a blank. */
export function drawAsked(context, { frame, across, top, colours }) {
  const [first, end] = across.span(frame.length);
  const asked = (index) => (frame.refused_by[index] ? null : frame.action[index]);
  context.fillStyle = colours.ink;
  let start = first;
  for (let index = first; index <= end; index++) {
    if (index < end && asked(index + 1) === asked(index)) continue;
    const place = ASKED[asked(index)];
    if (place) {
      const left = Math.round(across.x(start - 0.5));
      context.globalAlpha = 0.6;
      context.fillRect(left, top + place[0], Math.max(1, Math.round(across.x(index + 0.5)) - left), place[1]);
    }
    start = index + 1;
  }
  context.globalAlpha = 1;
}

const LEVELS = { MOMENTUM: 0, MIXED: 1, MEAN_REVERSION: 2 };
const SHADES = [0.75, 0.45, 0.22];

/** Draw regimes: momentum high and dark, mixed in the middle, mean reversion low and pale. */
export function drawRegimes(context, { frame, across, top, colours }) {
  const [first, end] = across.span(frame.length);
  context.fillStyle = colours.ink;
  let start = first;
  for (let index = first; index <= end; index++) {
    if (index < end && frame.regime[index + 1] === frame.regime[index]) continue;
    const level = LEVELS[frame.regime[index]];
    if (level != null) {
      context.globalAlpha = SHADES[level];
      const left = Math.round(across.x(start - 0.5));
      context.fillRect(left, top + 4 + level * 3, Math.max(1, Math.round(across.x(index + 0.5)) - left), 3);
    }
    start = index + 1;
  }
  context.globalAlpha = 1;
}
