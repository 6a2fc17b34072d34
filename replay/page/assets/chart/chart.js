/**
 * The chart: one lightweight-charts instance with panes for price, rows and equity, and layers for
 * decisions. It knows frames, cells and pixels, but not the views of the page.
 */
import {
  CandlestickSeries,
  ColorType,
  CrosshairMode,
  HistogramSeries,
  LineSeries,
  LineStyle,
  LineType,
  createChart,
} from "../vendor/lightweight-charts.js";
import { clock, day, number, year } from "../format.js";
import { colours as themeColours } from "../theme.js";
import { densities, drawStrip, drawTint } from "./attention.js";
import { drawFan, fanRange } from "./fan.js";
import { drawFills, drawGaps, drawOrders, drawRefusals } from "./marks.js";
import { ROW, drawAsked, drawGateRow, drawRegimes } from "./rows.js";
import { Across, Layer } from "./scale.js";

const AXIS = 94; // least px of the right axis and of the column of row labels
const DENSITY = { wide: 2.5, compact: 3.5 }; // font sizes between the labels of a vertical axis
const LEGEND = 16; // px per line of the legend over the equity
const SPACING = 4; // least px per bar in the first view, so that bodies are visible
const FIRST = { least: 40, most: 120 }; // bars in the first view
const PALE = "66"; // opacity of warm-up bars, after a colour
const ROOM = 4; // bars right of the fan
const EQUITY = { tall: 84, low: 74 };
const NOTE = 64;
const TIME_AXIS = 26;
const PRICE_LEAST = 120; // least px of the price pane
const PROTECTIVE = new Set(["STOP", "TRAILING", "TARGET"]);
const SLIP = 5; // px that the pointer may move during a click

export class Chart {
  frame = null;
  #chart;
  #isRemoved = false;
  #element;
  #candles;
  #volume;
  #lines = new Map(); // account or note → series
  #rows = [];
  #shown = { pointer: null, pinned: null, decision: null, tint: false, gate: null };
  #layers = [];
  #blocks = { decision: null, list: [] };
  #cache = { key: "", canvas: document.createElement("canvas") };
  #listeners;
  #overlays = [];
  #hasMouse = false;
  #hasMoved = false;
  #press = null;
  #wanted = null;
  #extraPanes = [];
  #legendLines = 1;

  /**
   * @param {HTMLElement} element
   * @param {{decimals: number, onHover: Function, onPick: Function, onView: Function, onLayout: Function}} options
   */
  constructor(element, { decimals, ...listeners }) {
    this.#element = element;
    this.#listeners = listeners;
    this.#chart = createChart(element, {
      autoSize: true,
      layout: { attributionLogo: false }, // it would insert a style and markup that the content policy refuses
      crosshair: {
        mode: CrosshairMode.Normal,
        vertLine: { visible: false, labelVisible: false },
        horzLine: { visible: false, labelVisible: false },
      },
      handleScroll: { vertTouchDrag: false },
      handleScale: { axisPressedMouseMove: { time: true, price: false } },
      timeScale: {
        borderVisible: false,
        barSpacing: SPACING,
        minBarSpacing: 0.05, // small enough to zoom out over a year of minutes before the cells get longer
        rightOffset: 0,
        timeVisible: true,
        secondsVisible: false,
        tickMarkFormatter: tickMark,
      },
      rightPriceScale: { borderVisible: false, minimumWidth: AXIS, entireTextOnly: true },
    });
    this.#candles = this.#chart.addSeries(CandlestickSeries, {
      borderVisible: false,
      priceLineVisible: false,
      priceFormat: { type: "custom", formatter: (price) => number(price, decimals), minMove: 10 ** -decimals },
    });
    this.#candles.priceScale().applyOptions({ scaleMargins: { top: 0.04, bottom: 0.14 } });
    this.#volume = this.#chart.addSeries(HistogramSeries, {
      priceScaleId: "volume",
      priceFormat: { type: "volume" },
      lastValueVisible: false,
      priceLineVisible: false,
    });
    this.#volume.priceScale().applyOptions({ scaleMargins: { top: 0.88, bottom: 0 } });
    this.#chart.addPane(true);
    this.#chart.addPane(true);
    this.#attach();
    this.theme();
    this.#chart.subscribeCrosshairMove((event) => this.#moved(event));
    this.#chart.subscribeClick((event) => this.#hasMouse || this.#clicked(this.#cellAt(event), event.paneIndex, event.point?.y));
    // Ignore a pointer that rests where the chart appears, until it moves.
    element.addEventListener("pointermove", (event) => (this.#hasMoved ||= event.movementX !== 0 || event.movementY !== 0), { capture: true });
    element.addEventListener("pointerdown", (event) => this.#pressed(event));
    element.addEventListener("pointerup", (event) => this.#released(event));
    this.#chart.timeScale().subscribeVisibleLogicalRangeChange(() => this.#listeners.onView());
    this.observer = new ResizeObserver(() => this.layout());
    this.observer.observe(element);
  }

  remove() {
    this.#isRemoved = true;
    this.observer.disconnect();
    this.#chart.remove();
  }

  #attach() {
    const below = new Layer(
      this.#drawn((context, view) => {
        drawGaps(context, view);
        if (this.#shown.tint && this.#blocksShown().length)
          drawTint(context, { ...view, blocks: this.#blocksShown(), last: this.#decidedIndex() });
      }),
      { zOrder: "bottom" },
    );
    const above = new Layer(
      this.#drawn((context, view) => {
        drawOrders(context, view);
        const { decision, gate } = this.#shown;
        if (decision?.forecast) {
          const bars = (decision.forecast.comes_ms - decision.close_time_ms) / this.frame.step;
          drawFan(context, { ...view, decision, index: this.#decidedIndex(), bars });
        }
        drawFills(context, view);
        if (gate) drawRefusals(context, { ...view, gate });
        this.#drawPointer(context, view, true);
      }),
      { range: (from, to) => this.#priceRange(from, to) },
    );
    this.#candles.attachPrimitive(below);
    this.#candles.attachPrimitive(above);
    const rows = new Layer(this.#drawn((context, view) => this.#drawRows(context, view)));
    this.#chart.panes()[1].attachPrimitive(rows);
    this.#layers = [below, above, rows];
    this.#pointIn(this.#chart.panes()[2]);
  }

  /** Add the layer of the pointer's line to a pane. */
  #pointIn(pane) {
    const layer = new Layer(this.#drawn((context, view) => this.#drawPointer(context, view)));
    pane.attachPrimitive(layer);
    this.#layers.push(layer);
  }

  /** Wrap `draw` as the function of a layer, clipped to its pane. */
  #drawn(draw) {
    const y = (price) => this.#candles.priceToCoordinate(price) ?? 0;
    return (context, size) => {
      if (!this.frame?.length) return;
      const across = new Across(this.#chart.timeScale());
      context.beginPath();
      context.rect(0, 0, size.width, size.height);
      context.clip();
      draw(context, { frame: this.frame, across, y, colours: themeColours(), height: size.height, width: size.width });
    };
  }

  /** Return the prices that the scale must include: the newest fan, what protects, and other orders near the candles. */
  #priceRange(from, to) {
    if (!this.frame?.length) return null;
    const first = Math.max(0, Math.floor(from));
    const end = Math.min(this.frame.length - 1, Math.ceil(to));
    if (end < first) return null;
    const low = Math.min(...this.frame.low.slice(first, end + 1));
    const high = Math.max(...this.frame.high.slice(first, end + 1));
    const inView = this.frame.orders.filter(
      (order) => this.frame.position(order.from_ms) <= to && (order.until_ms == null || this.frame.position(order.until_ms) >= from),
    );
    // What protects the position now is in the picture, as long as the candles keep a quarter of it.
    const far = (order) => (high - low) * (order.until_ms == null && PROTECTIVE.has(order.role) ? 3 : 0.5);
    const prices = inView.filter((order) => order.price > low - far(order) && order.price < high + far(order)).map((order) => order.price);
    const { decision } = this.#shown;
    const index = this.#decidedIndex();
    if (decision && decision.following == null && index >= from && index <= to) prices.push(...(fanRange(decision) ?? []));
    return prices.length ? { priceRange: { minValue: Math.min(...prices), maxValue: Math.max(...prices) } } : null;
  }

  #decidedIndex() {
    const { decision } = this.#shown;
    return decision && decision.instrument === this.frame.instrument ? this.frame.indexOf(decision.open_time_ms) : -1;
  }

  #blocksShown() {
    const { decision } = this.#shown;
    if (this.#blocks.decision !== decision) {
      const list = densities(decision?.attended ?? [], this.interval);
      this.#blocks = { decision, list };
    }
    return this.#blocks.list;
  }

  #drawPointer(context, { across, colours, height }, isPrice = false) {
    const { pointer, pinned } = this.#shown;
    const at = pointer ?? pinned;
    if (at == null || at < 0) return;
    context.strokeStyle = colours.accent;
    context.globalAlpha = 0.65;
    context.lineWidth = 1;
    const x = Math.round(across.x(at)) + 0.5;
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, height);
    context.stroke();
    context.globalAlpha = 1;
    if (isPrice && pointer != null && pinned != null && pinned !== pointer) {
      const tick = Math.round(across.x(pinned));
      context.fillStyle = colours.accent;
      context.fillRect(tick - 1, height - 9, 3, 9);
    }
  }

  /** Draw gate rows once per view, into a cache; only strip and pointer change on hover. */
  #drawRows(context, view) {
    const { frame, across, colours, width, height } = view;
    const ratio = devicePixelRatio || 1;
    const key = [frame.run, frame.instrument, frame.step, frame.times[0], frame.length, across.from, across.to, across.spacing, width, height, ratio, colours.accent, this.#rows.length].join();
    const { canvas } = this.#cache;
    if (this.#cache.key !== key) {
      this.#cache.key = key;
      canvas.width = Math.ceil(width * ratio);
      canvas.height = Math.ceil(height * ratio);
      const still = canvas.getContext("2d");
      still.scale(ratio, ratio);
      this.#rows.forEach((row, index) => {
        const top = this.#top(index);
        still.fillStyle = colours.grid;
        still.fillRect(0, top + ROW - 1, width, 1);
        if (row.gates.length) drawGateRow(still, { ...view, gates: row.gates, top });
        else if (row.kind === "asked") drawAsked(still, { ...view, top });
        else if (row.kind === "regime") drawRegimes(still, { ...view, top });
      });
    }
    if (canvas.width) context.drawImage(canvas, 0, 0, canvas.width / ratio, canvas.height / ratio);
    const strip = this.#rows.findIndex((row) => row.kind === "attention");
    if (strip >= 0 && this.#blocksShown().length)
      drawStrip(context, { ...view, blocks: this.#blocksShown(), top: this.#top(strip) + 4, height: 9, last: this.#decidedIndex() });
    this.#drawPointer(context, view);
  }

  #top(row) {
    return 5 + row * ROW;
  }

  /** Apply the colours of the theme to all that the library draws. */
  theme() {
    const tokens = themeColours();
    const { paper, muted, rule, up, down, grid, font } = tokens;
    this.#chart.applyOptions({
      layout: {
        background: { type: ColorType.Solid, color: paper },
        textColor: muted,
        fontFamily: font,
        fontSize: 11,
        panes: { separatorColor: rule, separatorHoverColor: rule, enableResize: false },
      },
      grid: { vertLines: { color: grid }, horzLines: { color: grid } },
    });
    this.#candles.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down, priceLineColor: muted });
    this.#candles.applyOptions({ lastValueVisible: true });
    this.#volume.applyOptions({ color: grid.includes("rgb") ? grid.replace(/[\d.]+%?\)$/, "0.16)") : grid });
    for (const [, { series, tone }] of this.#lines)
      series.applyOptions({ color: tokens[tone] });
    this.#cache.key = "";
    if (this.frame?.length) this.#drawCandles();
    this.#update();
  }

  /** Set the run whose rows and lines are drawn. */
  setRun({ interval, rows, accounts, extras, axis = AXIS, legendLines = 1, isCompact = false }) {
    this.interval = interval;
    this.#rows = rows;
    this.#legendLines = legendLines;
    this.#chart.applyOptions({ rightPriceScale: { minimumWidth: Math.max(AXIS, axis), tickMarkDensity: isCompact ? DENSITY.compact : DENSITY.wide } });
    for (const [, { series }] of this.#lines) this.#chart.removeSeries(series);
    this.#lines.clear();
    const tokens = themeColours();
    const add = (key, pane, { tone, width = 1, dash = "solid", column, format, price = false, threshold = null, isSparse = false, isScaled = true }) => {
      const series = this.#chart.addSeries(
        LineSeries,
        {
          color: tokens[tone],
          lineWidth: width,
          lineType: isSparse ? LineType.WithSteps : LineType.Simple,
          lineStyle: STYLES[dash],
          lastValueVisible: false,
          priceLineVisible: false,
          crosshairMarkerVisible: false,
          ...(isScaled ? {} : { autoscaleInfoProvider: () => null }), // it may leave the pane
          ...(format ? { priceFormat: { type: "custom", formatter: format, minMove: 1e-9 } } : {}),
        },
        pane,
      );
      if (!price) series.priceScale().applyOptions({ scaleMargins: { top: pane === 2 ? 0.05 + 0.23 * Math.min(this.#legendLines, 3) : 0.28, bottom: 0.08 } });
      if (threshold != null)
        series.createPriceLine({ price: threshold, color: tokens.muted, lineStyle: LineStyle.Dotted, lineWidth: 1, axisLabelVisible: false });
      this.#lines.set(key, { series, tone, column });
    };
    // Draw the run's account over the others.
    accounts.toReversed().forEach((account) => add(`account ${account.name}`, 2, account));
    while (this.#chart.panes().length > 3) this.#chart.removePane(this.#chart.panes().length - 1);
    this.#extraPanes = [];
    this.#layers.length = 4;
    for (const extra of extras) {
      if (extra.onPrice) {
        add(`note ${extra.name}`, 0, { ...extra, price: true });
        continue;
      }
      const pane = this.#chart.addPane(true);
      this.#pointIn(pane);
      add(`note ${extra.name}`, pane.paneIndex(), extra);
      this.#extraPanes.push(extra.name);
    }
    this.layout();
  }

  /** Set the pane heights in pixels, and report the positions of their labels. */
  layout() {
    const height = this.#element.clientHeight;
    if (!height) return;
    const rows = this.#rows.length ? this.#rows.length * ROW + 10 : 30;
    const equity = (height < 560 ? EQUITY.low : EQUITY.tall) + (this.#legendLines - 1) * LEGEND;
    const extras = this.#extraPanes.map(() => NOTE);
    const panes = this.#chart.panes();
    const others = rows + equity + extras.reduce((sum, each) => sum + each, 0);
    const heights = [Math.max(PRICE_LEAST, height - TIME_AXIS - others - panes.length + 1), rows, equity, ...extras];
    panes.forEach((pane, index) => pane.setStretchFactor(heights[index] ?? NOTE));
    requestAnimationFrame(() => {
      if (this.#isRemoved || !this.#element.isConnected) return;
      let top = 0;
      this.#overlays = panes.map((pane) => {
        const at = top;
        top += pane.getHeight() + 1;
        return at;
      });
      this.#listeners.onLayout({
        tops: this.#overlays,
        axis: this.#chart.priceScale("right").width(),
        extras: this.#extraPanes,
        missing: PRICE_LEAST + others + TIME_AXIS + panes.length - 1 - height, // px by which the chart is too low
      });
      this.#update();
    });
  }

  /** Draw a frame, and go to `view` if it is given. */
  setFrame(frame, { view = null } = {}) {
    this.frame = frame;
    this.#wanted = null;
    const seconds = frame.times.map((time) => time / 1e3);
    this.#drawCandles();
    this.#volume.setData(seconds.map((time, index) => ({ time, value: frame.volume[index] })));
    for (const [, { series, column }] of this.#lines) {
      const values = column(frame);
      series.setData(seconds.map((time, index) => (values?.[index] == null ? { time } : { time, value: values[index] })));
    }
    this.#cache.key = "";
    if (view) this.setView(view);
  }

  /** Draw the candles; those of the warm-up are paler. */
  #drawCandles() {
    const { frame } = this;
    const { up, down } = themeColours();
    const pale = (index) => {
      const color = (frame.close[index] >= frame.open[index] ? up : down) + PALE;
      return { color, wickColor: color };
    };
    this.#candles.setData(
      frame.times.map((time, index) => ({
        time: time / 1e3,
        open: frame.open[index],
        high: frame.high[index],
        low: frame.low[index],
        close: frame.close[index],
        ...(frame.isWarmUp(index) ? pale(index) : {}),
      })),
    );
  }

  /** The range of cells in view, or the requested one, which the library applies at the next drawing. */
  #range() {
    return this.#wanted ?? this.#chart.timeScale().getVisibleLogicalRange();
  }

  #go(range) {
    this.#wanted = range;
    this.#chart.timeScale().setVisibleLogicalRange(range);
    requestAnimationFrame(() => (this.#wanted = null)); // after the library's request, which was made first
  }

  /** The visible times, and their width in pixels. */
  view() {
    const range = this.#range();
    if (!range || !this.frame?.length) return null;
    return { from_ms: this.frame.timeAt(range.from), until_ms: this.frame.timeAt(range.to), width: this.#chart.timeScale().width() };
  }

  setView({ from_ms, until_ms }) {
    this.#go({ from: this.frame.position(from_ms), to: this.frame.position(until_ms) });
  }

  /** Show some 120 of the newest bars, or all of fewer, with room for the fan. */
  showNewest(horizon) {
    const width = this.#chart.timeScale().width();
    const room = (horizon * this.interval) / this.frame.step + ROOM;
    const known = Math.max(FIRST.least, Math.min(FIRST.most, this.frame.length + ROOM));
    const bars = Math.min(known + room, width / SPACING);
    const to = this.frame.length - 1 + room;
    this.#go({ from: to - bars, to });
  }

  /** Scroll if a cell, or the room right of it, is not in view; `bounds` are the run's ends. */
  reveal(index, room = 0, bounds = [-Infinity, Infinity]) {
    const range = this.#range();
    if (!range || (Math.max(index - 4, bounds[0]) >= range.from && index + room <= range.to)) return;
    const span = range.to - range.from;
    const from = index + room > range.to ? index + room - span * 0.9 : index - span * 0.3;
    this.#go(within({ from, to: from + span }, bounds));
  }

  /** Zoom by a factor, with a fixed right edge. */
  zoom(factor) {
    const range = this.#range();
    if (!range) return;
    const to = range.to;
    this.#go({ from: to - (range.to - range.from) * factor, to });
  }

  /** Set the momentary state; redraw all panes only if something changed. */
  show(shown) {
    if (Object.entries(shown).every(([name, value]) => this.#shown[name] === value)) return;
    this.#shown = { ...this.#shown, ...shown };
    this.#update();
  }

  #update() {
    for (const layer of this.#layers) layer.update();
  }

  #cellAt(event) {
    if (!this.frame?.length || event.point == null || event.logical == null) return null;
    return Math.max(0, Math.min(this.frame.length - 1, Math.round(event.logical)));
  }

  #moved(event) {
    if (!this.#hasMoved) return;
    this.#listeners.onHover(event.point && event.point.x >= 0 ? this.#cellAt(event) : null, event);
  }

  #pressed(event) {
    this.#hasMouse = event.pointerType === "mouse";
    this.#press = event.button === 0 ? event : null;
  }

  /** Handle a mouse click here, since the library swallows a second click within half a second. */
  #released(event) {
    const { left, top } = this.#element.getBoundingClientRect();
    // In whole pixels, as in the library; otherwise a neighbouring bar could be chosen.
    const [x, y] = [Math.floor(event.clientX) - left, Math.floor(event.clientY) - top];
    const isClick = this.#hasMouse && this.#press && Math.abs(event.clientX - this.#press.clientX) + Math.abs(event.clientY - this.#press.clientY) < SLIP;
    this.#press = null;
    const time = this.#chart.timeScale();
    if (!isClick || x > time.width() || y > this.#element.clientHeight - time.height()) return;
    const pane = this.#overlays.findLastIndex((from) => from <= y);
    this.#clicked(this.#cellAt({ point: { x }, logical: time.coordinateToLogical(x) }), pane, y - this.#overlays[pane]);
  }

  /** Choose a cell; a click in a gate's row chooses a refusal within 5 px, if there is one. */
  #clicked(cell, pane, y) {
    let index = cell;
    if (index == null) return;
    if (pane === 1) {
      const row = this.#rows[Math.floor((y - 5) / ROW)];
      const margin = Math.ceil(5 / this.#chart.timeScale().options().barSpacing);
      for (let distance = 0; row && distance <= margin; distance++) {
        const hit = [index - distance, index + distance].find((each) => row.gates.some((gate) => this.frame.failed[gate]?.[each] > 0));
        if (hit != null) {
          index = hit;
          break;
        }
      }
    }
    this.#listeners.onPick(index);
  }
}

/** Move a range between two bounds; a longer range ends at the upper bound. */
export function within({ from, to }, [low, high]) {
  const end = Math.min(Math.max(to, low + to - from), high);
  return { from: end - (to - from), to: end };
}

const STYLES = { solid: LineStyle.Solid, dot: LineStyle.Dotted, dash: LineStyle.Dashed, dashdot: LineStyle.LargeDashed };

/** Ticks of the time axis, in the chosen zone. */
function tickMark(time, kind) {
  const ms = time * 1e3;
  if (kind === 0) return year(ms);
  return kind <= 2 ? day(ms) : clock(ms);
}
