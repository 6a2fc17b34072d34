/** A small chart of lines over time: one lightweight-charts instance, a legend beside it. */
import { html, useEffect, useRef, useState } from "../vendor/htm-preact.js";
import { ColorType, LineSeries, createChart } from "../vendor/lightweight-charts.js";
import { lineStyle } from "../chart/chart.js";
import { Swatch } from "../accounts.js";
import { colours, onTheme } from "../theme.js";

const LINES_FIRST = 4; // further lines are shown by a tap on the legend
const BEYOND = { top: 0.074, bottom: 0.074 }; // 8 % of what is drawn, on each side

/**
 * @param {{label: string, times: number[], lines: {name: string, values: number[], tone: string, dash?: string, width?: number}[], format: Function, height?: number}} props
 *   times in ms, ascending
 */
export function Lines({ label, times, lines, format, height = 200 }) {
  const element = useRef();
  const [turned, setTurned] = useState(new Set()); // names that were tapped
  const isShown = (name) => (lines.findIndex((line) => line.name === name) < LINES_FIRST) !== turned.has(name);
  const tap = (name) => setTurned((before) => new Set(before.has(name) ? [...before].filter((each) => each !== name) : [...before, name]));
  useEffect(() => {
    const chart = createChart(element.current, { autoSize: true, layout: { attributionLogo: false }, timeScale: { borderVisible: false, timeVisible: true }, rightPriceScale: { borderVisible: false, minimumWidth: 70, entireTextOnly: true, scaleMargins: BEYOND }, handleScroll: { vertTouchDrag: false } });
    const series = lines.filter((line) => isShown(line.name)).toReversed().map((line) => {
      const own = chart.addSeries(LineSeries, { lineWidth: line.width ?? 1, lineStyle: lineStyle(line.dash), priceLineVisible: false, lastValueVisible: false, priceFormat: { type: "custom", formatter: format, minMove: 1e-9 } });
      own.setData(times.map((time, index) => (line.values[index] == null ? { time: time / 1e3 } : { time: time / 1e3, value: line.values[index] })));
      return [own, line];
    });
    const paint = () => {
      const tokens = colours();
      chart.applyOptions({
        layout: { background: { type: ColorType.Solid, color: tokens.paper }, textColor: tokens.muted, fontFamily: tokens.font, fontSize: 11 },
        grid: { vertLines: { color: tokens.grid }, horzLines: { color: tokens.grid } },
      });
      for (const [own, line] of series) own.applyOptions({ color: tokens[line.tone] });
    };
    paint();
    chart.timeScale().fitContent();
    const unsubscribe = onTheme(paint);
    return () => {
      unsubscribe();
      chart.remove();
    };
  }, [times, lines, turned]);
  return html`<figure class="lines">
    <div ref=${element} style=${{ height: `${height}px` }} role="img" aria-label=${label}></div>
    <figcaption>${lines.map((line) => {
      const key = html`<${Swatch} ...${line} />${line.name}`;
      return lines.length > LINES_FIRST
        ? html`<button key=${line.name} class="plain term" aria-pressed=${isShown(line.name)} onClick=${() => tap(line.name)}>${key}</button>`
        : html`<span key=${line.name} class="term">${key}</span>`;
    })}</figcaption>
  </figure>`;
}
