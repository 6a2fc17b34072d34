/** Compare: a list of runs to choose from, or two runs over the bars that both decided. */
import { html, useState } from "../vendor/htm-preact.js";
import { formatAddress } from "../address.js";
import { getDecision, getOf, getRun } from "../api.js";
import { Card } from "../card.js";
import { useAnswer } from "../hooks.js";
import { Answered, ListView } from "./documents.js";

function Beside({ run, sequence }) {
  const [verify] = useState(() => ({ current: null }));
  const answer = useAnswer(() => getDecision(run.row.run_id, sequence), [run.row.run_id, sequence]);
  return html`<${Card} decision=${answer.value} error=${answer.error} run=${run} gate=${null} toGate=${() => {}} toSequence=${() => {}} viewFrom=${0} isOld=${answer.isLoading} verify=${verify} />`;
}

function Compared({ run, other }) {
  const right = useAnswer(() => getRun(other), [other]);
  const answer = useAnswer((signal) => getOf(run.row.run_id, `compare/${encodeURIComponent(other)}`, { signal }), [run.row.run_id, other]);
  const [chosen, setChosen] = useState(null); // the row of a differing decision
  const choose = (sequence) => setChosen(answer.value.parts.flatMap(({ rows = [] }) => rows).find(([, , cell]) => cell?.step === sequence));
  return html`<p><a class="plain" href=${formatAddress({ place: "run", run: run.row.run_id, view: "compare" })}>Another run</a></p>
    <${Answered} answer=${right.error ? right : answer} doing="reading both runs" onStep=${choose} />
    ${chosen && right.value && html`<div class="halves"><${Beside} run=${run} sequence=${chosen[2].step} /><${Beside} run=${right.value} sequence=${chosen[3].sort} /></div>`}`;
}

export const CompareView = ({ run, address: { other }, version, lacksCounts }) =>
  other ? html`<${Compared} run=${run} other=${other} />` : html`<${ListView} path=${`/runs/${encodeURIComponent(run.row.run_id)}/compare`} version=${version} lacksCounts=${lacksCounts} />`;
