/** The why card: what one decision did, why, and what would have changed it. */
import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { askDecision, source, verifyDecision } from "./api.js";
import { cameInside } from "./chart/fan.js";
import { isGraded } from "./chart/rows.js";
import {
  basisPoints,
  delta,
  duration,
  measure,
  moment,
  number,
  percent,
  plain,
  quantity,
  seconds,
  when,
  word,
  zoneName,
} from "./format.js";

const LINE = 22; // % of a gauge at which every threshold stands

/** Name in red where the title names the gate that refused. */
function Title({ decision }) {
  const name = decision.refused_by;
  const at = name ? decision.title.indexOf(name) : -1;
  if (at < 0) return html`<h2>${decision.title}</h2>`;
  return html`<h2>
    ${decision.title.slice(0, at)}<span class="loss">${word(name)}</span>${decision.title.slice(at + name.length)}
  </h2>`;
}

function Gauge({ verdict }) {
  const share = verdict.share ?? 0;
  const isPast = verdict.passed;
  const size = isPast ? (share / (1 + Math.max(0, share))) * (100 - LINE) : Math.min(LINE, Math.abs(share) * LINE);
  const style = isPast ? { left: `${LINE}%`, width: `${Math.max(0, size)}%` } : { right: `${100 - LINE}%`, width: `max(6px, ${size}%)` };
  return html`<span class="gauge" aria-hidden="true"><i class=${isPast ? "" : "failed"} style=${style}></i></span>`;
}

const unitOf = (verdict) => (verdict.unit && verdict.unit !== "yes or no" ? ` ${verdict.unit}` : "");

function GateLine({ verdict, isRefuser, selected, toGate }) {
  const text = measure(verdict.measure, verdict.unit);
  return html`<li class=${verdict.passed ? "gate" : "gate failed"} data-gate=${verdict.gate}>
    <button
      class=${`name ${isRefuser ? "refuser" : ""}`}
      aria-pressed=${selected}
      title=${`${verdict.gate}: ${verdict.words}${unitOf(verdict)}`}
      onClick=${() => toGate(verdict.gate)}
    >${word(verdict.gate)}</button>
    <${Gauge} verdict=${verdict} />
    <span class="figure">
      <b>${text}</b> ${verdict.at_least ? "≥" : "≤"} ${measure(verdict.threshold, verdict.unit)}<span class="unseen">${verdict.passed ? ", passed" : ", refused"}</span>
    </span>
  </li>`;
}

function Gates({ decision, run, gate, toGate }) {
  const known = new Map(run.gates.map((each) => [each.gate, each]));
  const isLine = (each) => isGraded(known.get(each.gate) ?? each) || (!each.passed && !each.is_switch);
  const graded = decision.gates.filter(isLine);
  const switches = decision.gates.filter((each) => !isLine(each));
  const no = switches.filter((each) => !each.passed);
  if (!decision.gates.length) return null;
  return html`<section>
    <header><h3>Gates</h3>${graded.length > 0 && html`<span>right of the line passes</span>`}</header>
    <ul class="gates">
      ${graded.map(
        (verdict) =>
          html`<${GateLine}
            key=${verdict.gate}
            verdict=${verdict}
            isRefuser=${verdict.gate === decision.refused_by}
            selected=${verdict.gate === gate}
            toGate=${toGate}
          />
          ${verdict.gate === decision.refused_by && html`<li key="words" class="words muted">${verdict.words}</li>`}`,
      )}
    </ul>
    ${switches.length > 0 &&
    html`<details>
      <summary>
        ${switches.length} ${graded.length ? "other " : ""}${switches.length === 1 ? "gate" : "gates"},${" "}
        ${no.length ? html`refused: <b class="loss">${no.map((each) => word(each.gate)).join(", ")}</b>` : switches.length === 1 ? "passed" : "all passed"}
      </summary>
      <ul class="switches">
        ${switches.map(
          (verdict) =>
            html`<li key=${verdict.gate} data-gate=${verdict.gate} title=${verdict.words}>
              <span>${verdict.passed ? "✓" : "✗"} ${word(verdict.gate)}</span>
              <span class="figure">${verdict.is_switch ? (verdict.passed ? "yes" : "no") : html`${measure(verdict.measure, verdict.unit)} ${verdict.at_least ? "≥" : "≤"} ${measure(verdict.threshold, verdict.unit)}`}</span>
            </li>`,
        )}
      </ul>
    </details>`}
  </section>`;
}

function ForecastPart({ decision }) {
  const { forecast } = decision;
  if (!forecast) return null;
  const shares = [
    ["down", forecast.p_down],
    ["flat", forecast.p_flat],
    ["up", forecast.p_up],
  ];
  const hasShares = shares.some(([, share]) => share != null);
  return html`<section>
    <header><h3>Forecast, ${forecast.horizon} bars</h3><span>the fan: 50 % and 90 %</span></header>
    ${hasShares &&
    html`<div class="thirds" aria-hidden="true">
        ${shares.map(([name, share]) => html`<i key=${name} class=${name} style=${{ flexGrow: Math.max(0.001, share ?? 0) }}></i>`)}
      </div>
      <p class="spread">
        ${shares.map(([name, share]) => html`<span key=${name}>${name} <b>${percent(share, { decimals: 0 })}</b></span>`)}
      </p>`}
    <p class="spread">
      <span><b>${basisPoints(forecast.mean_return)}</b>${forecast.stdev_return == null ? "" : ` ± ${basisPoints(forecast.stdev_return, { sign: false })}`} bp</span>
      <span>
        ${forecast.came == null
          ? `comes at ${when(forecast.comes_ms, decision.close_time_ms)}`
          : html`came <b>${basisPoints(forecast.came)}</b> bp, ${cameInside(forecast)}`}
      </span>
    </p>
  </section>`;
}

function LookedPart({ decision, viewFrom }) {
  const { looked, no_attribution } = decision;
  if (!looked)
    return no_attribution && decision.forecast
      ? html`<section><header><h3>Where it looked</h3></header><p class="muted">${no_attribution}</p></section>`
      : null;
  const bars = looked.buckets.slice().reverse();
  const most = Math.max(...bars.map((bucket) => Math.abs(bucket.weight)), 1e-9);
  const isSigned = looked.method === "relevance";
  const oldest = bars.find((bucket) => bucket.from_ms != null);
  return html`<section>
    <header><h3>${isSigned ? "What moved its mean" : "Where it looked"}</h3><span>${isSigned ? "relevance; " : ""}not why the price will move</span></header>
    <div class="blocks" role="img" aria-label=${`${isSigned ? "Relevance" : "Attention"} by block of bars, oldest first; half of it in the last ${duration(looked.half_within_ms)}`}>
      ${bars.map(
        (bucket, index) =>
          html`<i
            key=${index}
            class=${`${bucket.from_ms != null && bucket.until_ms > viewFrom ? "" : "earlier"} ${bucket.weight < 0 ? "less" : ""}`}
            style=${{ height: `${Math.max(2, (100 * Math.abs(bucket.weight)) / most)}%` }}
            title=${`${bucket.from_ms == null ? "all before" : moment(bucket.from_ms)}: ${percent(bucket.weight, { decimals: 1 })}`}
          ></i>`,
      )}
    </div>
    <p class="spread">
      <span>${oldest ? moment(oldest.from_ms) : ""}</span>
      ${looked.half_within_ms != null && html`<span>half of it in the last <b>${duration(looked.half_within_ms)}</b></span>`}
    </p>
    ${looked.content_share != null && html`<p class="muted">The rollout differs from that of uniform attention by ${percent(looked.content_share, { decimals: 1 })}; the rest looks at everything alike.</p>`}
  </section>`;
}

function SizePart({ decision, base }) {
  const hasTarget = decision.target_text != null && decision.target_text !== decision.held_after_text;
  if (!hasTarget && !decision.unfilled_reason) return null;
  return html`<section>
    <header><h3>Size</h3></header>
    <p class="spread">
      <span>held <b>${quantity(decision.held_before_text)}</b></span>
      ${decision.target_text != null && html`<span>asked <b>${quantity(decision.target_text)}</b> ${base}</span>`}
    </p>
    ${decision.unfilled_reason && html`<p class="muted">No order: ${decision.unfilled_reason}.</p>`}
  </section>`;
}

/** A fill; a bar's open is the price of a time before the bar was seen. */
const filled = (fill) =>
  html`filled <b>${quantity(fill.quantity_text)}</b> at <b>${number(Number(fill.price_text), fill.price_text.split(".")[1]?.length ?? 0)}</b>${fill.seen_ms == null || moment(fill.filled_ms) === moment(fill.seen_ms) ? "" : `, the price of ${when(fill.filled_ms, fill.seen_ms)}`}, fee ${plain(fill.fee, 5)}${fill.liquidity ? ` (${String(fill.liquidity).toLowerCase()})` : ""}`;

const booked = (line) => html`${String(line.kind).replaceAll("_", " ")} <b>${delta(line.amount, 4)}</b>, balance ${number(line.balance)}`;

function OrderPart({ path, at }) {
  const { order, fills, ledger } = path;
  const price = order.limit_price_text ?? order.trigger_price_text;
  // In the order of the steps, a step's fills before their ledger.
  const lines = [...fills.map((row) => ({ row, text: filled(row) })), ...ledger.map((row) => ({ row, text: booked(row) }))];
  lines.sort((one, other) => one.row.sequence - other.row.sequence);
  return html`<section class="order">
    <header><h3>Order ${order.order_id}</h3><span>${String(order.status).toLowerCase()}</span></header>
    <ol title="At the left, when the engine saw it (market time)">
      <li><time>${when(order.created_ms, at)}</time> ${order.side === "BUY" ? "buy" : "sell"} <b>${quantity(order.quantity_text)}</b> ${String(order.kind).toLowerCase()}${price ? ` at ${price}` : ""}${order.role && order.role !== "SIGNAL" ? `, ${order.role.toLowerCase()}` : ""}${order.position_side ? `, ${order.position_side.toLowerCase()} side` : ""}</li>
      ${path.queue && html`<li><span title="What stood ahead of it at its price, at first and at last">ahead in its queue <b>${path.queue.map((each) => each ?? "not known").join(" → ")}</b></span></li>`}
      ${lines.map(({ row, text }, index) => html`<li key=${index}><time>${when(row.seen_ms ?? row.market_ms ?? row.filled_ms, at)}</time> ${text}</li>`)}
    </ol>
  </section>`;
}

function Notes({ notes }) {
  const entries = Object.entries(notes);
  if (!entries.length) return null;
  return html`<section>
    <header><h3>Noted</h3></header>
    <ul class="switches">
      ${entries.map(([name, value]) => html`<li key=${name}><span>${word(name)}</span><span class="figure">${typeof value === "number" ? plain(value, 6) : String(value)}</span></li>`)}
    </ul>
  </section>`;
}

const FEATURES = 5;

function Features({ asked }) {
  const [all, setAll] = useState(false);
  const shown = all ? asked.features : asked.features.slice(0, FEATURES);
  const most = Math.max(...asked.features.map((each) => Math.abs(each.added_bp)), 1e-9);
  return html`<ul class="features">
      ${shown.map(
        ({ feature, added_bp }) =>
          html`<li key=${feature}>
            <span title=${feature}>${word(feature)}</span>
            <span class="balance" aria-hidden="true">
              <i style=${{ [added_bp < 0 ? "right" : "left"]: "50%", width: `${(50 * Math.abs(added_bp)) / most}%` }}></i>
            </span>
            <span class="figure">${delta(added_bp)}</span>
          </li>`,
      )}
    </ul>
    ${asked.features.length > FEATURES && html`<button class="plain small" onClick=${() => setAll(!all)}>${all ? "fewer" : `all ${asked.features.length}`}</button>`}`;
}

/** A row of blocks for each head, newest block right; a canvas, since heads × blocks are many. */
function Heads({ heads }) {
  const canvas = useRef();
  const row = 7;
  useEffect(() => {
    const element = canvas.current;
    const ratio = devicePixelRatio || 1;
    const width = element.clientWidth;
    element.width = width * ratio;
    element.height = heads.length * row * ratio;
    const context = element.getContext("2d");
    context.scale(ratio, ratio);
    context.fillStyle = getComputedStyle(element).color;
    heads.forEach(({ weights }, line) => {
      const most = Math.max(...weights, 1e-9);
      const cell = width / weights.length;
      weights.forEach((weight, index) => {
        context.globalAlpha = (weight / most) ** 0.7;
        context.fillRect(width - (index + 1) * cell, line * row, Math.ceil(cell), row - 1);
      });
    });
  }, [heads]);
  return html`<details class="heads">
    <summary>Head by head, ${heads.length}</summary>
    <canvas ref=${canvas} role="img" style=${{ height: `${heads.length * row}px` }} aria-label="Where each head looked, one row a head, the newest block right"></canvas>
    <p class="spread"><span>layer ${heads[0].layer} on top</span><span>newest right</span></p>
  </details>`;
}

/** What the model says when it is asked again: features and heads. */
function Ask({ decision }) {
  const [state, setState] = useState({});
  const abort = useRef(null);
  useEffect(() => {
    setState({});
    return () => abort.current?.abort();
  }, [decision.run_id, decision.sequence]);
  if (!decision.forecast) return null;
  if (source.isRecord)
    return html`<section>
      <header><h3>What each feature added</h3></header>
      <p class="muted">Beside the record, <code>tracepaper explain ${decision.run_id}:${decision.sequence} --full</code> asks the model.</p>
    </section>`;
  const ask = async () => {
    const own = (abort.current = new AbortController());
    setState({ progress: { share: 0, doing: "asking the model" } });
    try {
      const asked = await askDecision(decision.run_id, decision.sequence, (progress) => own.signal.aborted || setState({ progress }), own.signal);
      if (!own.signal.aborted) setState({ asked });
    } catch (error) {
      if (!own.signal.aborted) setState({ error: error.message });
    }
  };
  const cancel = () => {
    abort.current.abort();
    setState({});
  };
  const { progress, asked, error } = state;
  return html`<section>
    <header>
      <h3>What each feature added</h3>
      ${asked && html`<span>bp, ${Math.min(FEATURES, asked.features.length)} of ${asked.features.length}</span>`}
      ${!asked && !progress && html`<button class="plain" onClick=${ask}>ask the model</button>`}
      ${progress && html`<button class="plain" onClick=${cancel}>cancel</button>`}
    </header>
    ${progress && html`<progress max="1" value=${progress.share} aria-label=${progress.doing}></progress><p class="muted" role="status">${progress.doing}</p>`}
    ${error && html`<p class="loss">${error}</p>`}
    ${asked?.features.length > 0 && html`<${Features} asked=${asked} />`}
    ${asked?.heads.length > 0 && html`<${Heads} heads=${asked.heads} />`}
  </section>`;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

/** Seconds since it is shown. */
function Elapsed() {
  const [tenths, setTenths] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setTenths((now) => now + 1), 100);
    return () => clearInterval(timer);
  }, []);
  return html`<span aria-hidden="true">${number(tenths / 10, 1)} s</span>`;
}

function Verify({ decision, verify }) {
  const [state, setState] = useState({});
  useEffect(() => setState({}), [decision.run_id, decision.sequence]);
  const isBusy = state.busy === decision.sequence;
  const run = async () => {
    if (source.isRecord || isBusy) return;
    const { sequence } = decision;
    setState({ busy: sequence, doing: "asking for the record" });
    try {
      const told = ({ doing }) => setState((now) => (now.busy === sequence ? { ...now, doing } : now));
      const derived = await verifyDecision(decision.run_id, sequence, told);
      setState((now) => (now.busy === sequence ? { derived } : now));
    } catch (error) {
      setState((now) => (now.busy === sequence ? { error: error.message } : now));
    }
  };
  verify.current = run;
  const { derived, error } = state;
  return html`<div class="verify">
    <button class="action" onClick=${run} disabled=${source.isRecord} aria-busy=${isBusy}>Verify</button>
    <p role="status" class=${error || (derived && !derived.same) ? "loss" : ""}>
      ${source.isRecord
        ? html`Run <code>tracepaper verify ${decision.run_id}</code> beside the record.`
        : isBusy
          ? html`${sentence(state.doing)}… <${Elapsed} />`
          : error
            ? error
            : !derived
              ? "Derives this decision again from the record, now."
              : derived.same
                ? html`<b class="accent">✓ Same</b> · Derived again from the record in ${seconds(derived.seconds)}: the same decision${derived.tolerance ? `; floats within tolerances, since ${derived.tolerance}` : ", to the last bit"}.`
                : html`<b>✗ Differs</b> first at <i>${derived.field}</i>: stored ${derived.stored}, derived ${derived.derived}. ${derived.culprit}`}
    </p>
  </div>`;
}

function CopyAddress() {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    } catch {
      setCopied(false);
    }
  };
  return html`<button class="plain small" onClick=${copy}><span aria-live="polite">${isCopied ? "copied" : "copy address"}</span></button>`;
}

/**
 * @param {{decision: Object, run: Object, gate: string|null, viewFrom: number, isOld: boolean}} props
 *   isOld: another decision was asked for, and is not here yet
 */
export function Card({ decision, run, gate, toGate, toSequence, viewFrom, isOld, verify, error }) {
  if (error) return html`<aside class="card" aria-label="Why"><div class="body"><p class="loss">${error.message}</p></div></aside>`;
  if (!decision) return html`<aside class="card" aria-label="Why" aria-busy="true"></aside>`;
  const instrument = run.instruments.find((each) => each.id === decision.instrument);
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
      <div class="because">
        ${decision.liquidations.map((each) => html`<p class="liquidated"><b>${each}</b></p>`)}
        <p>${[decision.because, decision.flip].filter(Boolean).join(" ")}</p>
        ${decision.formula && html`<details><summary>In numbers</summary><p>${decision.formula}</p></details>`}
      </div>
      ${decision.orders.map((path) => html`<${OrderPart} key=${path.order.order_id} path=${path} at=${decision.close_time_ms} />`)}
      <${Gates} decision=${decision} run=${run} gate=${gate} toGate=${toGate} />
      <${ForecastPart} decision=${decision} />
      <${LookedPart} decision=${decision} viewFrom=${viewFrom} />
      <${SizePart} decision=${decision} base=${instrument?.base ?? ""} />
      <${Notes} notes=${decision.notes} />
      <${Ask} decision=${decision} />
    </div>
    <footer>
      <${Verify} decision=${decision} verify=${verify} />
      <p class="spread">
        <span>${decision.hashes.digest && html`digest <code title=${decision.hashes.digest}>${decision.hashes.digest.slice(0, 16)}…</code>`}</span>
        <${CopyAddress} />
      </p>
    </footer>
  </aside>`;
}

