/** What if: a slider for each threshold and fee; releasing one computes the result. */
import { html, useState } from "../vendor/htm-preact.js";
import { source } from "../api.js";
import { DocumentView } from "../document.js";
import { word } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";

const STEPS = 200;
const MOST_FEE = 0.002;

const sliderOf = (key, name, title, at, most, isCount) => ({ key, name, title, at, most, least: isCount ? 1 : Math.min(0, 2 * at), step: isCount ? 1 : most / STEPS });

/** The sliders of a run, with their positions and ranges. */
const slidersOf = ({ gates, fees }) => [
  ...gates.filter((gate) => gate.key).map((gate) => sliderOf(gate.key, word(gate.gate), gate.unit, gate.threshold, 2 * Math.abs(gate.threshold) || 1, gate.is_count)),
  ...Object.entries(fees).map(([key, fee]) => sliderOf(`execution.${key}`, word(key), "share of the notional", fee, Math.max(MOST_FEE, 2 * fee))),
];

const shown = (value) => String(Number(value.toPrecision(3)));

function Slider({ slider: { name, title, at, most, least, step }, value, choose }) {
  const [moved, setMoved] = useState(null); // while it is dragged
  const position = moved ?? value ?? at;
  return html`<label class="slider" title=${title}>
    <span>${name}</span>
    <input type="range" min=${least} max=${most} step=${step} value=${position} onInput=${(event) => setMoved(Number(event.target.value))} onChange=${(event) => {
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
