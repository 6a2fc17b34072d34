/** Compare: two runs over the bars that both decided. */
import { html, useState } from "../vendor/htm-preact.js";
import { getDecision, getOf, getRun } from "../api.js";
import { Card } from "../card.js";
import { DocumentView } from "../document.js";
import { strategyName } from "../format.js";
import { useAnswer } from "../hooks.js";

function Beside({ run, sequence }) {
  const [verify] = useState(() => ({ current: null }));
  const answer = useAnswer(() => getDecision(run.row.run_id, sequence), [run.row.run_id, sequence]);
  return html`<${Card} decision=${answer.value} error=${answer.error} run=${run} gate=${null} toGate=${() => {}} toSequence=${() => {}} viewFrom=${0} isOld=${answer.isLoading} verify=${verify} />`;
}

export function CompareView({ run, address, go, runs }) {
  const others = runs.filter((row) => row.run_id !== run.row.run_id);
  const { other } = address;
  const right = useAnswer(() => (other ? getRun(other) : null), [other]);
  const answer = useAnswer((signal) => (other ? getOf(run.row.run_id, `compare/${encodeURIComponent(other)}`, { signal }) : null), [run.row.run_id, other]);
  const [chosen, setChosen] = useState(null); // the row of a decision that differs
  const error = answer.error ?? right.error;
  const compared = other && right.value && answer.value;
  const choose = (sequence) => setChosen(compared.parts.flatMap(({ rows = [] }) => rows).find(([, , cell]) => cell?.step === sequence));
  return html`<div class="place">
      ${!compared && html`<h1>Compare</h1>`}
      <label class="filter">Beside
        <select value=${other ?? ""} onChange=${(event) => go({ run: run.row.run_id, view: "compare", other: event.target.value || null })}>
          <option value="">choose a run</option>
          ${others.map((row) => html`<option key=${row.run_id} value=${row.run_id}>${strategyName(row.strategy)} ${row.run_id.slice(0, 8)}, ${row.database}</option>`)}
        </select></label>
      ${!others.length && html`<p class="muted">There is one run only; "tracepaper ui --db ONE --db OTHER" serves several databases.</p>`}
      ${error && html`<p class="loss" role="alert">${error.message}</p>`}
    </div>
    ${compared &&
    html`<${DocumentView} document=${compared} onStep=${choose} />
      ${chosen && html`<div class="halves"><${Beside} run=${run} sequence=${chosen[2].step} /><${Beside} run=${right.value} sequence=${chosen[3].sort} /></div>`}`}`;
}
