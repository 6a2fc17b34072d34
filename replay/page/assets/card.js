/** The why card: the result of one decision, its reasons, and what would have changed it. */
import { html } from "./vendor/htm-preact.js";
import { askDecision, getNearest, source, verifyDecision } from "./api.js";
import { Parts } from "./document.js";
import { moment, number, word, zoneName } from "./format.js";
import { useAnswer, useTask } from "./hooks.js";

/** The title, with the name of the refusing gate in red. */
function Title({ decision }) {
  const name = decision.refused_by;
  const at = name ? decision.title.indexOf(name) : -1;
  if (at < 0) return html`<h2>${decision.title}</h2>`;
  return html`<h2>
    ${decision.title.slice(0, at)}<span class="loss">${word(name)}</span>${decision.title.slice(at + name.length)}
  </h2>`;
}

const REST = 500; // ms that a decision must stay before it is derived again

/** The smallest changes with which a decision that did not trade would have traded. */
function Nearest({ decision: { run_id: run, sequence } }) {
  const ask = async (signal) => {
    if (source.isRecord) return null;
    await new Promise((resolve) => setTimeout(resolve, REST));
    return signal.aborted ? null : { sequence, parts: (await getNearest(run, sequence, { signal })).parts };
  };
  const { value } = useAnswer(ask, [run, sequence]);
  if (value?.sequence !== sequence || !value.parts.length) return null; // else it is of the decision before
  return html`<div class="because"><${Parts} parts=${value.parts} /></div>`;
}

/** The recomputed answer of the model: features and heads. */
function Ask({ decision }) {
  const { progress, result, error, ask, cancel } = useTask([decision.run_id, decision.sequence]);
  if (!decision.forecast) return null;
  if (source.isRecord)
    return html`<section class="part">
      <header><h3>What each feature added</h3></header>
      <p class="muted">Beside the record, <code>tracepaper explain ${decision.run_id}:${decision.sequence} --full</code> asks the model.</p>
    </section>`;
  const begin = () => ask((progressed, signal) => askDecision(decision.run_id, decision.sequence, progressed, signal), "asking the model");
  if (result) return html`<div class="document"><${Parts} parts=${result.parts} /></div>`;
  return html`<section class="part">
    <header>
      <h3>What each feature added</h3>
      ${!progress && html`<button class="plain" onClick=${begin}>ask the model</button>`}
      ${progress && html`<button class="plain" onClick=${cancel}>cancel</button>`}
    </header>
    ${progress && html`<progress max="1" value=${progress.share} aria-label=${progress.doing}></progress><p class="muted" role="status">${progress.doing}</p>`}
    ${error && html`<p class="loss">${error.message}</p>`}
  </section>`;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

function Verify({ decision, verify }) {
  const { progress, result: derived, error, ask } = useTask([decision.run_id, decision.sequence]);
  // No signal: the check continues if the reader goes to another decision.
  const run = () => source.isRecord || progress || ask((progressed) => verifyDecision(decision.run_id, decision.sequence, progressed), "asking for the record");
  verify.current = run;
  const differs = derived?.parts[0].style === "warning";
  return html`<div class="verify">
    <button class="action" onClick=${run} disabled=${source.isRecord} aria-busy=${progress != null}>Verify</button>
    <p role="status" class=${error || differs ? "loss" : ""}>
      ${source.isRecord
        ? html`Run <code>tracepaper verify ${decision.run_id}</code> beside the record.`
        : progress
          ? html`${sentence(progress.doing)}…`
          : error
            ? error.message
            : !derived
              ? "Derives this decision again from the record, now."
              : html`<b class=${differs ? "" : "accent"}>${derived.title}</b> · ${derived.parts[0].text}`}
    </p>
  </div>`;
}

/**
 * @param {{decision: Object, run: Object, gate: string|null, viewFrom: number, isOld: boolean}} props
 *   isOld: another decision was requested and has not arrived yet
 */
export function Card({ decision, run, gate, toGate, toSequence, viewFrom, isOld, verify, error }) {
  if (error) return html`<aside class="card" aria-label="Why"><div class="body"><p class="loss">${error.message}</p></div></aside>`;
  if (!decision) return html`<aside class="card" aria-label="Why" aria-busy="true"></aside>`;
  const instrument = run.instruments.find((each) => each.id === decision.instrument);
  const others = decision.parts.findIndex((part) => part.kind !== "paragraph");
  const reasons = others < 0 ? decision.parts.length : others;
  return html`<aside class="card" aria-label="Why" aria-busy=${isOld}>
    <div class="body" tabindex="0" role="group" aria-label="Reasons of this decision">
      <header class="when">
        <span>${moment(decision.open_time_ms)} ${zoneName()} · ${instrument?.symbol} ${number(decision.close, instrument?.price_decimals)}</span>
        <span class="steps">
          <button class="plain" aria-label="Decision before" disabled=${decision.previous == null} onClick=${() => toSequence(decision.previous)}>‹</button>
          <button class="plain" aria-label="Decision after" disabled=${decision.following == null} onClick=${() => toSequence(decision.following)}>›</button>
        </span>
      </header>
      <${Title} decision=${decision} />
      <div class="because"><${Parts} parts=${decision.parts.slice(0, reasons)} /></div>
      <${Nearest} decision=${decision} />
      <${Parts} parts=${decision.parts.slice(reasons)} links=${{ gate, toGate, refusedBy: decision.refused_by, viewFrom, at: decision.close_time_ms }} />
      <${Ask} decision=${decision} />
    </div>
    <footer>
      <${Verify} decision=${decision} verify=${verify} />
      ${decision.digest && html`<p class="spread"><span>digest <code title=${decision.digest}>${decision.digest.slice(0, 16)}…</code></span></p>`}
    </footer>
  </aside>`;
}

