/** The page's first sentence, and the line under it. */
import { html } from "./vendor/htm-preact.js";
import { count, moment, number, percent, quantity, sentenceText, when, word, zoneName } from "./format.js";

const baseOf = (run, id) => run.instruments.find((each) => each.id === id)?.base ?? id;

/**
 * The position in words: one with what protects it, "Long 0.5 BTC from 103,634.6, stop 103,323.7, +0.21 %";
 * "Long 0.5 BTC, short 4 ETH"; for more than two symbols their number.
 */
export function heldWords(run) {
  const open = run.holdings.filter((each) => each.side !== "FLAT");
  if (!open.length) return "Flat";
  if (open.length > 2) return `Holds ${open.length} of ${run.instruments.length}`;
  const texts = open.length === 1 ? [sentenceText(open[0].text)] : open.map((each) => `${each.side.toLowerCase()} ${quantity(each.quantity_text)} ${baseOf(run, each.instrument)}`);
  const text = texts.join(", ");
  return text[0].toUpperCase() + text.slice(1);
}

function Parity({ run, toHealth }) {
  const { parity } = run;
  if (!parity) return html`<button class="plain" title="The record holds no comparison with a replay; Health makes one" onClick=${toHealth}>parity not checked</button>.`;
  if (parity.error) return html`<button class="plain loss" title=${parity.error} onClick=${toHealth}>parity failed</button>.`;
  const isWhole = parity.identical === parity.decisions;
  return html`parity${" "}
    <button class=${isWhole ? "plain" : "plain loss"} title=${parity.day || "the whole run"} onClick=${toHealth}>
      ${count(parity.identical)} of ${count(parity.decisions)}</button>.`;
}

/** "Long 0.036 BTC from 103,634.6, stop 103,323.7, +0.21 %; account +0.4 %; last refused 14:59 by shifted, short by .015; parity 1,440 of 1,440." */
export function Sentence({ run, toDecision, toHealth }) {
  const refused = run.last_refusal;
  const symbol = refused && run.instruments.length > 1 ? `${baseOf(run, refused.instrument)} ` : "";
  return html`<h1 class="sentence">
    ${heldWords(run)}; account <span class="figure">${percent(run.row.total_return, { sign: true })}</span>;${" "}
    ${refused
      ? html`last refused${" "}
          <button class="plain" onClick=${() => toDecision(refused.sequence, refused.instrument)}>
            ${symbol}${when(refused.open_time_ms, run.row.last_ms)} by ${word(refused.gate)}</button>${refused.missed && `, ${refused.missed}`}`
      : run.row.decisions == null
        ? "refusals are being counted"
        : "nothing refused yet"};${" "}
    <span class="together"><${Parity} run=${run} toHealth=${toHealth} /></span>
  </h1>`;
}

function Against({ account, other }) {
  const gap = account.total_return - other.total_return;
  const size = percent(Math.abs(gap), { decimals: Math.abs(gap) < 0.0005 ? 3 : 2 });
  return html`<span class="term" title=${other.source}>
    <b>${size}</b> ${gap < 0 ? "behind" : "ahead of"} ${other.title}
  </span>`;
}

/** Equity, newest fill with its reason or why nothing filled, and the shadow account that holds. */
export function SecondLine({ run, toDecision, toAccount }) {
  const [account, ...others] = run.accounts;
  const quote = run.instruments[0]?.quote ?? "";
  const fill = run.last_fill;
  const holding = others.find((each) => each.name === "held");
  return html`<div class="second">
    ${account && html`<button class="plain term" title="Account" onClick=${toAccount}><b>${number(account.equity)}</b> ${quote}</button>`}
    ${fill &&
    html`<button class="plain term" title=${`${moment(fill.filled_ms)} ${zoneName()}`} onClick=${() => toDecision(fill.decision_sequence ?? fill.sequence, fill.instrument)}>
      ${fill.side === "BUY" ? "bought" : "sold"} ${quantity(fill.quantity_text)} ${baseOf(run, fill.instrument)} at ${when(fill.filled_ms, run.row.last_ms)}${fill.reason && `: ${fill.reason}`}
    </button>`}
    ${run.without_fills && html`<span>${run.without_fills}</span>`}
    ${holding && html`<${Against} account=${account} other=${holding} />`}
    <${Words} />
  </div>`;
}

/** The page's terms, for a reader who knows order, price, profit, loss and fee. */
function Words() {
  return html`<details class="words">
    <summary>What the words mean</summary>
    <p>Long: the account holds the coin and wins when its price rises. Short: it wins when the price falls. Flat: it holds nothing. A full triangle is a purchase, a hollow one a sale.</p>
    <p>Under the candles, “looked at” is where the model's attention lay and “asked” is what the strategy wanted; then come the gates. A gate is a check before an order; a red mark is a bar where it refused, and “short by” or “over by” is how far it was from passing. The fan is the model's forecast: it expects the price to end inside it in 90 of 100 cases.</p>
    <p>Buy and hold at its own exposure keeps as much as this run held on average. Parity counts the decisions that a replay of the record repeated. One bp is .01 %.</p>
  </details>`;
}
