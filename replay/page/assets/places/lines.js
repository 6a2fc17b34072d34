/** A small chart of lines over time: one lightweight-charts instance, a legend beside it. */
import { html, useEffect, useRef } from "../vendor/htm-preact.js";
import { ColorType, LineSeries, createChart } from "../vendor/lightweight-charts.js";
import { lineStyle } from "../chart/chart.js";
import { colours, onTheme } from "../theme.js";

/**
 * @param {{label: string, times: number[], lines: {name: string, values: number[], tone: string, dash?: string, width?: number}[], format: Function, height?: number}} props
 *   times in ms, ascending
 */
export function Lines({ label, times, lines, format, height = 200 }) {
  const element = useRef();
  useEffect(() => {
    const chart = createChart(element.current, { autoSize: true, layout: { attributionLogo: false }, timeScale: { borderVisible: false, timeVisible: true }, rightPriceScale: { borderVisible: false, minimumWidth: 70, entireTextOnly: true }, handleScroll: { vertTouchDrag: false } });
    const series = lines.toReversed().map((line) => {
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
  }, [times, lines]);
  return html`<figure class="lines">
    <figcaption>${lines.map((line) => html`<span key=${line.name} class="term"><i class=${`swatch ${line.tone} ${line.dash ?? "solid"}`}></i>${line.name}</span>`)}</figcaption>
    <div ref=${element} style=${{ height: `${height}px` }} role="img" aria-label=${label}></div>
  </figure>`;
}
