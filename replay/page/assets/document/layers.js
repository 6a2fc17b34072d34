/** The layers of a panel: their extent, drawing, text under the pointer, and numbers. */
import { html } from "../vendor/htm-preact.js";
import { count, percent } from "../format.js";
import { plain, textAt } from "./axis.js";
import { cellText, edgesOf } from "./heat.js";

const DASHES = { dash: "6 4", dot: "2 3", dashdot: "7 3 2 3" };
const ROWS_MOST = 200;
const PAD = 0.08; // margin around the data, as a share of the extent

/** The functions of each kind of layer: extents, drawing, legend sign, text under the pointer. */
const KINDS = {
  line: {
    x: (layer) => layer.x,
    y: (layer, within) => [...kept(layer.x, layer.y, within), ...(layer.is_filled ? [0] : [])],
    draw: drawLine,
    sign: ({ width, dash }) => html`<line x1="0" x2="18" y1="5" y2="5" stroke="currentColor" stroke-width=${width ?? 1.6} stroke-dasharray=${DASHES[dash] ?? ""} />`,
    say: (layer, { x }, axis) => {
      const at = nearest(layer.x, x, layer.y);
      if (at === null) return "";
      const place = layer.texts?.[at] ? `${layer.texts[at]}: ` : "";
      return `${layer.name} ${place}${textAt(axis.y, layer.y[at])}`;
    },
  },
  band: {
    x: (layer) => layer.x,
    y: (layer, within) => [...kept(layer.x, layer.low, within), ...kept(layer.x, layer.high, within)],
    draw: drawBand,
    sign: () => html`<rect width="18" height="10" fill="currentColor" />`,
    say: (layer, { x }, axis) => {
      const at = nearest(layer.x, x, layer.low);
      return at === null ? "" : `${layer.name} ${textAt(axis.y, layer.low[at])} to ${textAt(axis.y, layer.high[at])}`;
    },
  },
  bars: {
    x: (layer, _, panel) => (isFlat(panel) ? [0, ...ends(layer)] : edgesOf(layer.x)),
    y: (layer, within, panel) => (isFlat(panel) ? layer.y : [0, ...kept(layer.x, ends(layer, "y"), within)]),
    draw: drawBars,
    sign: () => html`<rect y="1" width="12" height="8" fill="currentColor" />`,
    say: (layer, pointer, axis, panel) => {
      const at = isFlat(panel) ? nearest(layer.y, pointer.y, layer.x) : nearest(layer.x, pointer.x, layer.y);
      if (at === null) return "";
      const [along, length] = isFlat(panel) ? [axis.y, textAt(axis.x, layer.x[at])] : [axis.x, textAt(axis.y, layer.y[at])];
      const where = layer.texts?.[at] ?? textAt(along, isFlat(panel) ? layer.y[at] : layer.x[at]);
      const from = layer.base ? `${textAt(axis.x, layer.base[at])} to ${textAt(axis.x, layer.base[at] + layer.x[at])}` : length;
      return `${where}, ${layer.name} ${from}`;
    },
  },
  marks: {
    x: (layer) => layer.x.flatMap((at, place) => [at - (layer.errors?.[place] ?? 0), at + (layer.errors?.[place] ?? 0)]),
    y: (layer, within) => kept(layer.x, layer.y, within),
    draw: drawMarks,
    sign: (layer) => mark(layer.shape ?? "dot", 9, 5),
    say: (layer, pointer, axis, panel) => {
      const isRow = panel.y?.kind === "category";
      const at = isRow ? nearest(layer.y, pointer.y, layer.x) : nearest(layer.x, pointer.x, layer.y);
      if (at === null || (!isRow && Math.abs(layer.x[at] - pointer.x) > Math.abs(pointer.near ?? 0))) return "";
      const text = layer.texts?.[at] ? `${layer.texts[at]}, ` : "";
      const error = layer.errors ? ` ± ${plain(layer.errors[at], axis.x.digits)}` : "";
      return isRow
        ? `${textAt(axis.y, layer.y[at])}: ${text}${textAt(axis.x, layer.x[at])}${error}`
        : `${layer.name}: ${text}${textAt(axis.y, layer.y[at])}`;
    },
  },
  rule: {
    x: (layer) => (layer.axis === "x" ? [layer.at] : []),
    y: (layer) => (layer.axis === "x" ? [] : [layer.at]),
    draw: drawRule,
    sign: () => html`<line x1="0" x2="18" y1="5" y2="5" stroke="currentColor" stroke-dasharray="2 3" />`,
    say: () => "",
  },
  heat: {
    x: (layer, _, panel) => (panel.x?.kind === "category" ? [] : edgesOf([...layer.x])),
    y: (layer, _, panel) => (panel.y?.kind === "category" ? [] : edgesOf([...layer.y])),
    draw: () => null,
    sign: null,
    say: (layer, pointer, axis) => {
      const [column, row] = [nearest(layer.x, pointer.x, layer.x), nearest(layer.y, pointer.y ?? layer.y[0], layer.y)];
      const text = row === null || column === null ? "" : cellText(layer, row, column);
      if (!text) return "";
      const down = layer.y.length > 1 ? `${textAt(axis.y, layer.y[row])}: ` : "";
      const across = axis.x.kind === "time" || !axis.x.title && !axis.x.names ? "" : `, ${textAt(axis.x, layer.x[column])}`;
      return `${down}${text} ${layer.texts ? "" : layer.name}${across}`.trim();
    },
  },
};

const isFlat = (panel) => panel.y?.kind === "category";
const ends = (layer, side = "x") => layer[side].flatMap((length, at) => [layer.base?.[at] ?? 0, (layer.base?.[at] ?? 0) + length]);
const roleOf = (layer, at) => (layer.roles ? layer.roles[at % layer.roles.length] : "accent");

/** The known values whose x is in view. */
function kept(x, y, within) {
  return y.filter((value, at) => value !== null && (!within || (x[at] >= within[0] && x[at] <= within[1])));
}

/** The index with a known value whose `xs` is nearest to `x`, or null. */
function nearest(xs, x, values) {
  let [best, least] = [null, Infinity];
  for (let at = 0; at < xs.length; at++) {
    const distance = Math.abs(xs[at] - x);
    if (distance < least && values[at] !== null) [best, least] = [at, distance];
  }
  return best;
}

const least = (values) => values.reduce((left, right) => Math.min(left, right), Infinity);
const most = (values) => values.reduce((left, right) => Math.max(left, right), -Infinity);

/** The extent of the panel's axis ("x" or "y") for the data with x `within` a range. */
export function extentOf(panel, side, within = null) {
  const axis = panel[side] ?? {};
  if (axis.kind === "category") return [-0.5, axis.names.length - 0.5];
  const values = panel.layers.flatMap((layer) => [...KINDS[layer.type][side](layer, within, panel)]);
  if (axis.has_zero) values.push(0);
  const finite = values.filter((value) => value !== null && Number.isFinite(value));
  if (!finite.length) return [0, 1];
  let [low, high] = [least(finite), most(finite)];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const isCells = panel.layers.some((layer) => layer.type === "heat");
  const isTight = isCells || (side === "x" && !isFlat(panel));
  const room = isTight ? 0 : PAD * (high - low);
  const holdsZero = axis.has_zero || panel.layers.some((layer) => layer.type === "bars" || layer.is_filled);
  return [holdsZero && low === 0 ? 0 : low - room, holdsZero && high === 0 ? 0 : high + room];
}

/** The layers in SVG. */
export function drawn(panel, x, y, frame) {
  const bars = panel.layers.filter((layer) => layer.type === "bars");
  const piled = new Map(); // end of the stacked bars, by place and sign
  return panel.layers.map((layer) => KINDS[layer.type].draw(layer, x, y, frame, { panel, piled, bars }));
}

const point = (x, y, across, value) => `${x.at(across).toFixed(1)} ${y.at(value).toFixed(1)}`;

/** The points of a line in pixels, one list per stretch without a hole, with the corners of steps. */
function stretchesOf(layer, x, y) {
  const stretches = [];
  let points = null;
  layer.x.forEach((across, at) => {
    const place = x.at(across).toFixed(1);
    const value = layer.y[at];
    if (layer.is_step && points) points.push([place, points.at(-1)[1]]);
    if (value !== null && !points) stretches.push((points = []));
    if (value !== null) points.push([place, y.at(value).toFixed(1)]);
    else points = null;
  });
  return stretches;
}

const lineOf = (points) => `M${points.map((each) => each.join(" ")).join("L")}`;

/** The area between a stretch of a line and zero. */
const areaOf = (points, zero) => `${lineOf(points)}L${points.at(-1)[0]} ${zero}L${points[0][0]} ${zero}z`;

function drawLine(layer, x, y) {
  const stretches = stretchesOf(layer, x, y);
  const role = layer.role ?? "accent";
  return html`<g class=${role}>
    ${layer.is_filled && html`<path class="fill" d=${stretches.map((points) => areaOf(points, y.at(0).toFixed(1))).join("")} />`}
    <path class="line" d=${stretches.map(lineOf).join("")} stroke-width=${layer.width ?? 1.6} stroke-dasharray=${DASHES[layer.dash] ?? ""} />
    ${layer.has_points && layer.x.map((across, at) => layer.y[at] !== null && html`<circle class="dot" cx=${x.at(across)} cy=${y.at(layer.y[at])} r="3" />`)}
  </g>`;
}

function drawBand(layer, x, y) {
  const places = layer.x.map((_, at) => at).filter((at) => layer.low[at] !== null && layer.high[at] !== null);
  if (!places.length) return null;
  const over = places.map((at) => point(x, y, layer.x[at], layer.high[at]));
  const under = places.reverse().map((at) => point(x, y, layer.x[at], layer.low[at]));
  return html`<path class=${`area ${layer.role ?? "soft"}`} d=${`M${[...over, ...under].join("L")}z`} />`;
}

function drawBars(layer, x, y, _, { panel, piled, bars }) {
  const flat = isFlat(panel);
  const [along, across] = flat ? [x, y] : [y, x];
  const [places, lengths] = flat ? [layer.y, layer.x] : [layer.x, layer.y];
  const edges = edgesOf([...places]).map(across.at);
  const rank = bars.indexOf(layer);
  return html`<g>
    ${places.map((place, at) => {
      if (lengths[at] === null) return null;
      const room = Math.abs(edges[at + 1] - edges[at]) * (flat ? 0.66 : 0.94);
      const thick = Math.max(panel.is_grouped ? room / bars.length : room, 0.8);
      const middle = across.at(place) + (panel.is_grouped ? (rank - (bars.length - 1) / 2) * thick : 0);
      const key = `${place} ${lengths[at] > 0}`;
      const from = layer.base?.[at] ?? (panel.is_grouped ? 0 : (piled.get(key) ?? 0));
      if (!layer.base) piled.set(key, from + lengths[at]);
      const [low, high] = [along.at(from), along.at(from + lengths[at])].sort((a, b) => a - b);
      const size = Math.max(high - low, lengths[at] ? 0.5 : 0);
      return html`<rect
        class=${`area ${roleOf(layer, at)}`}
        x=${flat ? low : middle - thick / 2} y=${flat ? middle - thick / 2 : low}
        width=${flat ? size : thick} height=${flat ? thick : size}
      />`;
    })}
  </g>`;
}

function mark(shape, x, y) {
  switch (shape) {
    case "ring":
      return html`<circle class="hollow" cx=${x} cy=${y} r="3.6" />`;
    case "cross":
      return html`<path class="hollow" d=${`M${x - 3.4} ${y - 3.4}l6.8 6.8m0 -6.8l-6.8 6.8`} />`;
    case "up":
      return html`<path class="dot" d=${`M${x} ${y - 4.6}l4.4 8h-8.8z`} />`;
    case "down":
      return html`<path class="dot" d=${`M${x} ${y + 4.6}l4.4 -8h-8.8z`} />`;
    case "tick":
      return html`<path class="hollow" d=${`M${x} ${y - 5}v10`} />`;
    default:
      return html`<circle class="dot" cx=${x} cy=${y} r="4" />`;
  }
}

function drawMarks(layer, x, y) {
  return layer.x.map((across, at) => {
    if (layer.y[at] === null) return null;
    const [left, down] = [x.at(across), y.at(layer.y[at])];
    const error = layer.errors?.[at];
    return html`<g class=${roleOf(layer, at)}>
      ${error !== undefined && html`<path class="error" d=${`M${x.at(across - error)} ${down}H${x.at(across + error)}M${x.at(across - error)} ${down - 4}v8M${x.at(across + error)} ${down - 4}v8`} />`}
      ${mark(layer.shape ?? "dot", left, down)}
    </g>`;
  });
}

function drawRule(layer, x, y, { top, bottom, left, right }) {
  const role = layer.role ?? "muted";
  const isUpright = layer.axis === "x";
  const at = isUpright ? x.at(layer.at) : y.at(layer.at);
  const ends = isUpright ? { x1: at, x2: at, y1: top, y2: bottom } : { x1: left, x2: right, y1: at, y2: at };
  return html`<g class=${role}>
    <line class="rule" ...${ends} stroke-dasharray=${layer.name && role !== "faint" ? "2 3" : ""} stroke-width=${role === "faint" ? 4 : 1} />
    ${layer.name && isUpright && html`<text class="axis" x=${at + 5} y=${top + 11}>${layer.name}</text>`}
  </g>`;
}

/** The named layers of a chart, each once: name, role and sign. */
export function legendOf(chart) {
  const named = chart.panels.flatMap((panel) => panel.layers.filter((layer) => layer.name && KINDS[layer.type].sign));
  const keys = new Map();
  for (const layer of named) {
    const role = layer.role ?? (new Set(layer.roles).size > 1 ? "muted" : layer.roles?.[0]) ?? (layer.type === "rule" ? "muted" : layer.type === "band" ? "soft" : "accent");
    if (!keys.has(layer.name)) keys.set(layer.name, { name: layer.name, role, sign: KINDS[layer.type].sign(layer) });
  }
  return keys.size > 1 ? [...keys.values()] : [];
}

/** The text of the values under the pointer. */
export function readingOf(chart, pointer) {
  const panels = chart.is_aligned ? chart.panels : [chart.panels[pointer.panel]];
  const words = panels.flatMap((panel) => {
    const axis = { x: panel.x ?? {}, y: panel.y ?? {} };
    const within = panel === chart.panels[pointer.panel] ? pointer : { ...pointer, y: null };
    return panel.layers.map((layer) => KINDS[layer.type].say(layer, within, axis, panel));
  });
  const axis = panels[0].x ?? {};
  const isPlace = panels[0].y?.kind !== "category" && axis.kind !== "category" && panels[0].layers.every((layer) => layer.type !== "bars");
  const where = axis.kind === "time" || isPlace && !axis.ticks ? textAt(axis, pointer.x) : "";
  const reading = [...new Set(words.filter(Boolean))].join("; ");
  return reading && where ? `${where}: ${reading}` : reading || where;
}

/** The chart's numbers as a table of at most ROWS_MOST evenly chosen rows. */
export function numbersOf(chart) {
  const numbers = [];
  for (const panel of chart.panels) {
    const axis = { x: panel.x ?? {}, y: panel.y ?? {} };
    for (const layer of panel.layers) {
      if (layer.type === "rule") numbers.push([panel.title, layer.name || "line", "", textAt(axis[layer.axis ?? "y"], layer.at)]);
      else if (layer.type === "heat") heatNumbers(numbers, panel, layer, axis);
      else if (layer.type === "edges") edgeNumbers(numbers, layer);
      else if (layer.type === "flow") flowNumbers(numbers, layer);
      else pointNumbers(numbers, panel, layer, axis);
    }
  }
  const step = Math.max(1, Math.ceil(numbers.length / ROWS_MOST));
  const rows = numbers.filter((_, at) => at % step === 0).map((row) => row.map((text) => text ?? ""));
  const left = numbers.length - rows.length;
  const columns = ["panel", "what", "at", "value"].map((title) => ({ title, text: true }));
  return { columns, rows, notes: left ? [`${count(left)} more rows are left out, evenly.`] : [] };
}

function pointNumbers(rows, panel, layer, axis) {
  const flat = layer.type !== "line" && isFlat(panel);
  layer.x.forEach((across, at) => {
    const value = layer.type === "band" ? `${textAt(axis.y, layer.low[at] ?? NaN)} to ${textAt(axis.y, layer.high[at] ?? NaN)}`
      : flat ? textAt(axis.x, across) : layer.y[at] === null ? "" : textAt(axis.y, layer.y[at]);
    const where = flat ? textAt(axis.y, layer.y[at]) : textAt(axis.x, across);
    const text = layer.texts?.[at] ? ` (${layer.texts[at]})` : "";
    if (value) rows.push([panel.title ?? axis.y.title, layer.name, where, value + text]);
  });
}

function heatNumbers(rows, panel, layer, axis) {
  layer.y.forEach((down, row) => layer.x.forEach((across, column) => {
    const text = cellText(layer, row, column);
    if (text) rows.push([panel.title ?? axis.y.title, textAt(axis.y, down), textAt(axis.x, across), text]);
  }));
}

function edgeNumbers(rows, { shares, times, firsts, scale }) {
  shares.forEach((heads, layer) => heads.forEach((rows, head) => rows.forEach((cells, decision) => {
    const strongest = cells.indexOf(Math.max(...cells));
    const at = textAt({ kind: "time" }, times[decision]);
    rows.push([`layer ${layer + 1}`, `head ${head + 1}`, at, `most ${firsts[strongest]} bars back: ${percent(cells[strongest] / scale, { decimals: 1 })}`]);
  })));
}

function flowNumbers(rows, { columns, groups, held }) {
  held.forEach((shares, column) => shares.forEach((share, group) => {
    rows.push([columns[column], groups[group], "", percent(share, { decimals: 1 })]);
  }));
}
