/** What if: a slider for each threshold and for the fee; releasing one computes the result. */
import { html, useState } from "../vendor/htm-preact.js";
import { source } from "../api.js";
import { DocumentView } from "../document.js";
import { word } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";

const FEE = { key: "execution.taker_fee", name: "taker fee", most: 0.002 };
const USUAL_FEE = 0.00055; // if the run configures none
const STEPS = 200;

/** The sliders of a run, with their positions and maxima. */
const slidersOf = ({ gates, config }) => [
  ...gates.filter((gate) => gate.key).map(({ gate, key, unit, threshold }) => ({ key, name: word(gate), title: unit, at: threshold, most: 2 * Math.abs(threshold) || 1 })),
  { ...FEE, title: "share of the notional", at: Number(config.execution?.taker_fee ?? USUAL_FEE) },
];

const shown = (value) => String(Number(value.toPrecision(3)));

function Slider({ slider: { name, title, at, most }, value, choose }) {
  const [moved, setMoved] = useState(null); // while it is dragged
  const position = moved ?? value ?? at;
  return html`<label class="slider" title=${title}>
    <span>${name}</span>
    <input type="range" min="0" max=${most} step=${most / STEPS} value=${position} onInput=${(event) => setMoved(Number(event.target.value))} onChange=${(event) => {
      setMoved(null);
      choose(Number(event.target.value));
    }} />
    <output>${shown(position)}</output>
  </label>`;
}

export function WhatIf({ run }) {
  const sliders = slidersOf(run);
  const [chosen, setChosen] = useState({});
  const changes = Object.entries(chosen)
    .map(([key, value]) => `${key}=${shown(value)}`)
    .join(";");
  const path = `/runs/${encodeURIComponent(run.row.run_id)}/what-if`;
  const { value, error, isLoading } = useAnswer((signal) => (changes ? source.get(path, { changes }, { signal }) : null), [path, changes]);
  return html`<section class="place whatif" aria-label="What if">
    <h2>What if</h2>
    <p class="muted">The run again from its own bars and forecasts, with other thresholds or another fee.</p>
    ${sliders.map((slider) => html`<${Slider} key=${slider.key} slider=${slider} value=${chosen[slider.key]} choose=${(to) => setChosen((before) => ({ ...before, [slider.key]: to }))} />`)}
    ${changes && html`<button type="button" class="plain" onClick=${() => setChosen({})}>as recorded</button>`}
    ${error && html`<p class="loss" role="alert">${error.message}</p>`}
    ${isLoading && html`<${Waiting} doing="Deciding every bar again" />`}
    ${value && changes && html`<div class=${isLoading ? "old" : ""}><${DocumentView} document=${value} /></div>`}
  </section>`;
}
