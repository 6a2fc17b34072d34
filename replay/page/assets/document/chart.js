/** A chart of a document: panels in SVG, heat maps on a canvas below, one pointer for all panels. */
import { html, useEffect, useMemo, useState } from "../vendor/htm-preact.js";
import { Folded, useSize } from "../hooks.js";
import { onTheme } from "../theme.js";
import { LETTER, scale, ticks } from "./axis.js";
import { EdgesView } from "./edges.js";
import { FlowView } from "./flow.js";
import { Cells, ColourBar, cellText } from "./heat.js";
import { drawn, extentOf, legendOf, numbersOf, readingOf } from "./layers.js";
import { TableView } from "./table.js";

const [RIGHT, LABELS_MOST] = [12, 210];
const NARROW = 620;
const LABEL_ROOM = 58;

/** Draws `chart`, a Chart of tracepaper.replay.document.charts. */
export function ChartView({ chart }) {
  const [width, setWidth] = useState(0);
  const box = useSize(({ clientWidth }) => setWidth(clientWidth));
  const theme = useTheme();
  const [only] = chart.panels[0].layers;
  const view =
    only.type === "edges" ? html`<${EdgesView} edges=${only} name=${nameOf(chart)} />`
    : only.type === "flow" ? html`<${FlowView} flow=${only} name=${nameOf(chart)} />`
    : width > 0 && html`<${Panels} chart=${chart} width=${width} theme=${theme} />`;
  return html`<figure ref=${box}>
    ${chart.title && html`<h3>${chart.title}</h3>`} ${view}
    <figcaption>${chart.caption}</figcaption>
    <${Folded} class="numbers" summary="as a table" make=${() => html`<${TableView} table=${numbersOf(chart)} name=${`Numbers: ${nameOf(chart)}`} />`} />
  </figure>`;
}

/** The accessible name of a chart. */
const nameOf = (chart, panel) => [chart.title, panel?.title, chart.caption].filter(Boolean).join(". ") || "chart";

/** A number that changes with the theme. */
function useTheme() {
  const [turns, setTurns] = useState(0);
  useEffect(() => onTheme(() => setTurns((before) => before + 1)), []);
  return turns;
}

function Panels({ chart, width, theme }) {
  const [pointer, setPointer] = useState(null); // {panel, x, y} in the units of the panel's axes
  const [zoom, setZoom] = useState(null); // [low, high] on x
  const wanted = chart.columns ?? 1;
  const columns = width < NARROW ? Math.min(wanted, 2) : wanted;
  const gap = columns > 1 ? 18 : 0;
  const each = (width - gap * (columns - 1)) / columns;
  const left = Math.max(...chart.panels.map(leftOf));
  const shared = chart.is_aligned ? joined(chart.panels.map((panel) => extentOf(panel, "x"))) : null;
  const reading = pointer && readingOf(chart, pointer);
  const legend = legendOf(chart);
  const first = chart.lines_first ?? Infinity;
  const comparable = chart.panels.map((panel) => panel.layers.filter((layer) => layer.type === "line")).filter((layers) => layers.length > 1).flat();
  const lines = [...new Set(comparable.map((layer) => layer.name))];
  const [toggled, setToggled] = useState(new Set()); // names that were tapped
  // The last lines are shown first; they are drawn over the others, the run's account last.
  const isShown = (name) => !lines.includes(name) || lines.slice(-first).includes(name) !== toggled.has(name);
  const tap = (name) => setToggled((before) => new Set(before.has(name) ? [...before].filter((each) => each !== name) : [...before, name]));
  const kept = (panel) => ({ ...panel, layers: panel.layers.filter((layer) => layer.type !== "line" || isShown(layer.name)) });
  const panels = useMemo(() => (lines.length > first ? chart.panels.map(kept) : chart.panels), [chart, toggled]);
  const heats = chart.panels.flatMap((panel) => panel.layers.filter((layer) => layer.type === "heat"));
  const scales = [...new Map(heats.filter((heat) => !heat.texts || heat.name).map((heat) => [`${heat.name} ${heat.low}`, heat])).values()];
  return html`<div class="plot">
    <div class="panels" style=${{ gridTemplateColumns: `repeat(${columns}, 1fr)`, columnGap: `${gap}px` }}>
      ${panels.map(
        (panel, place) => html`<${PanelView}
          panel=${panel}
          name=${nameOf(chart, panel)}
          width=${each}
          theme=${theme}
          shared=${shared}
          room=${left}
          zoom=${zoom}
          onZoom=${panel.x?.kind === "category" || !(chart.is_aligned || wanted === 1) ? null : setZoom}
          is_last=${!chart.is_aligned || place === chart.panels.length - 1}
          pointer=${pointer && (chart.is_aligned || pointer.panel === place) ? pointer : null}
          onPointer=${(at) => setPointer(at && { ...at, panel: place })}
        />`,
      )}
    </div>
    <p class="plot-legend">
      ${legend.map(({ name, role, sign }) => {
        const key = html`<svg width="18" height="10" aria-hidden="true">${sign}</svg>${name}`;
        return lines.length > first && lines.includes(name)
          ? html`<button type="button" class=${`key ${role}`} aria-pressed=${isShown(name)} onClick=${() => tap(name)}>${key}</button>`
          : html`<span class=${`key ${role}`}>${key}</span>`;
      })}
      ${scales.map((heat) => html`<${ColourBar} heat=${heat} />`)}
      ${zoom && html`<button type="button" onClick=${() => setZoom(null)}>show all</button>`}
    </p>
    <p class="plot-reading" aria-live="polite">${reading || " "}</p>
  </div>`;
}

function joined(extents) {
  return [Math.min(...extents.map(([low]) => low)), Math.max(...extents.map(([, high]) => high))];
}

function leftOf({ y = {} }) {
  if (y.ticks) return 14 + LETTER * Math.max(...y.ticks.map(([, text]) => text.length));
  if (y.kind !== "category") return y.has_labels === false ? 12 : y.kind === "time" ? 84 : LABEL_ROOM;
  if (y.has_labels === false) return 4;
  return Math.min(LABELS_MOST, 14 + LETTER * Math.max(...y.names.map((name) => name.length)));
}

function PanelView({ panel, name, width, theme, shared, room, zoom, onZoom, is_last, pointer, onPointer }) {
  const [drag, setDrag] = useState(null);
  const xAxis = panel.x ?? {};
  const yAxis = panel.y ?? {};
  const left = Math.min(room, width * 0.45);
  const top = (panel.title ? 18 : 0) + (yAxis.title ? 18 : 6);
  const has_labels = is_last && xAxis.has_labels !== false;
  const has_title = is_last && xAxis.title;
  const bottom = (has_labels ? 20 : 6) + (has_title ? 18 : 0);
  const [wide, high] = [Math.max(20, width - left - RIGHT), panel.height ?? 240];
  const height = top + high + bottom;
  const geometry = useMemo(() => {
    const x = scale(xAxis, zoom ?? shared ?? extentOf(panel, "x"), left, left + wide);
    const y = scale(yAxis, extentOf(panel, "y", zoom), top + high, top); // pixels count downwards
    return { x, y };
  }, [panel, zoom, shared?.join(), left, wide, top, high]);
  const { x, y } = geometry;
  const heat = panel.layers.find((layer) => layer.type === "heat");
  const toNumbers = (event) => {
    const frame = event.currentTarget.getBoundingClientRect();
    const [across, down] = [event.clientX - frame.left, event.clientY - frame.top];
    if (across < left - 4 || across > left + wide + 4) return null;
    return { x: x.value(Math.min(Math.max(across, left), left + wide)), y: y.value(down), across };
  };
  const move = (event) => {
    const at = toNumbers(event);
    onPointer(at && { ...at, near: x.value(left + 10) - x.value(left) });
    if (drag && at) setDrag({ ...drag, until: at.across });
  };
  const release = () => {
    if (drag && Math.abs(drag.until - drag.from) > 8) {
      onZoom([x.value(drag.from), x.value(drag.until)].sort((a, b) => a - b));
    }
    setDrag(null);
  };
  const keys = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      const steps = stepsOf(panel).filter((at) => at >= x.extent[0] && at <= x.extent[1]);
      const before = steps.findIndex((at) => at >= (pointer?.x ?? -Infinity));
      const next = pointer ? Math.min(Math.max(before + step, 0), steps.length - 1) : 0;
      onPointer({ x: steps[next], y: pointer?.y ?? y.extent[0], near: 0 });
    } else if (heat && { ArrowUp: 1, ArrowDown: 1 }[event.key]) {
      event.preventDefault();
      const rows = [...heat.y].sort((upper, lower) => y.at(upper) - y.at(lower));
      const row = rows.findIndex((at) => at >= (pointer?.y ?? rows[0]));
      const next = row + (event.key === "ArrowUp" ? -1 : 1);
      onPointer({ x: pointer?.x ?? heat.x[0], y: rows[Math.min(Math.max(next, 0), rows.length - 1)], near: 0 });
    } else if (event.key === "Escape") {
      onPointer(null);
      onZoom?.(null);
    }
  };
  const labels = { x: has_labels ? ticks(x, wide, true) : [], y: yAxis.has_labels === false ? [] : ticks(y, high, false) };
  const isGrid = yAxis.kind !== "category" && !heat;
  return html`<div class="panel" style=${{ height: `${height}px` }}>
    ${heat &&
    html`<${Cells} heat=${heat} x=${x} y=${y} left=${left} top=${top} width=${wide} height=${high} theme=${theme} />`}
    <svg
      width=${width} height=${height} role="img" aria-label=${name} tabindex="0"
      onPointerMove=${move}
      onPointerDown=${(event) => onZoom && event.pointerType === "mouse" && setDrag(((at) => at && { from: at.across, until: at.across })(toNumbers(event)))}
      onPointerUp=${release}
      onPointerLeave=${() => { onPointer(null); setDrag(null); }}
      onDblClick=${() => onZoom?.(null)}
      onKeyDown=${keys}
      onBlur=${() => onPointer(null)}
    >
      ${panel.title && html`<text class="title" x=${left} y="12">${panel.title}</text>`}
      ${yAxis.title && html`<text class="axis" x="0" y=${top - 7}>${yAxis.title}</text>`}
      ${labels.y.map(
        ([value, text]) => html`<g>
          ${isGrid && html`<line class="grid" x1=${left} x2=${left + wide} y1=${y.at(value)} y2=${y.at(value)} />`}
          <text class="axis" x=${left - 7} y=${y.at(value) + 4} text-anchor="end">${cut(text, left)}</text>
        </g>`,
      )}
      ${labels.x.map(([value, text]) => html`<text class="axis" x=${inside(x.at(value), text, left, left + wide)} y=${top + high + 15} text-anchor="middle">${text}</text>`)}
      ${has_title && html`<text class="axis" x=${left + wide / 2} y=${height - 4} text-anchor="middle">${xAxis.title}</text>`}
      <svg x=${left} y=${top - 4} width=${wide} height=${high + 8} viewBox=${`${left} ${top - 4} ${wide} ${high + 8}`}>
        ${drawn(panel, x, y, { top, bottom: top + high, left, right: left + wide })}
        ${heat && html`<${CellNumbers} heat=${heat} x=${x} y=${y} />`}
        ${pointer && html`<line class="pointer" x1=${x.at(pointer.x)} x2=${x.at(pointer.x)} y1=${top} y2=${top + high} />`}
        ${drag && html`<rect class="drag" x=${Math.min(drag.from, drag.until)} y=${top} width=${Math.abs(drag.until - drag.from)} height=${high} />`}
      </svg>
    </svg>
  </div>`;
}

const cut = (text, room) => {
  const most = Math.floor((room - 8) / LETTER);
  return text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text;
};

const inside = (place, text, low, high) => {
  const half = (text.length * LETTER) / 2;
  return Math.min(Math.max(place, low + half - 20), high - half + 10);
};

/** The positions on x through which the arrow keys step. */
function stepsOf(panel) {
  const places = panel.layers.flatMap((layer) => (layer.x && layer.type !== "rule" ? [...layer.x] : []));
  return [...new Set(places)].sort((left, right) => left - right);
}

/** The numbers on the cells of a heat map. */
function CellNumbers({ heat, x, y }) {
  if (!heat.is_written) return null;
  const numbers = heat.y.flatMap((down, row) => heat.x.map((across, column) => ({ across, down, text: cellText(heat, row, column) })));
  return numbers.map((cell) => html`<text class="plot-cell" x=${x.at(cell.across)} y=${y.at(cell.down) + 4} text-anchor="middle">${cell.text}</text>`);
}
