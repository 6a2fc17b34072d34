/**
 * The answers of `/api/v1`, from a server or from the record in an exported file.
 *
 * Both sources have the method `get(path, parameters)`; views do not know which one they use.
 */
import { cut } from "./cells.js";
import { recorded } from "./record.js";

const ROOT = "/api/v1";
const BLOCKS = 4; // blocks of complete decisions that stay unpacked

/** A refused request; its message is a sentence for the reader. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const queryOf = (parameters) => {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) if (value != null) query.set(name, value);
  const text = query.toString();
  return text ? `?${text}` : "";
};

class Server {
  isRecord = false;

  async get(path, parameters = {}, { signal } = {}) {
    const response = await this.#fetch(path, parameters, { signal });
    return response.json();
  }

  /** Read the lines of a long answer; call `progressed` with each progress. Resolves to the result. */
  async ask(path, progressed, signal) {
    const response = await this.#fetch(path, {}, { signal });
    let rest = "";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      const lines = (rest + (value ?? "")).split("\n");
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (!line.trim()) continue;
        const message = JSON.parse(line);
        if (message.type === "progress") progressed(message);
        else if (message.type === "failed") throw new ApiError(message.error, 500);
        else if (message.type === "done") return message.result;
      }
      if (done) throw new ApiError("The answer was cut off; try again.", 500);
    }
  }

  async find(run, view, parameters) {
    const { parts } = await this.get(runPath(run, `/views/${view}`), parameters);
    const { columns, rows } = parts[0];
    const at = columns.findLastIndex(({ key }) => /^(decision_)?sequence$/.test(key));
    return rows[0]?.[at].step ?? null;
  }

  /** Send an operator command. */
  async command(word, note, token) {
    const response = await this.#send("/command", {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
      body: JSON.stringify({ kind: word, note, origin: "page" }),
    });
    return response.json();
  }

  #fetch(path, parameters, options) {
    return this.#send(`${ROOT}${path}${queryOf(parameters)}`, options);
  }

  async #send(address, options) {
    let response;
    try {
      response = await fetch(address, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not answer; start it again, and this page continues by itself.", 0);
    }
    if (response.ok) return response;
    const text = await response.text();
    const sentence = text.startsWith("{") ? JSON.parse(text).error : text;
    throw new ApiError(sentence || `The server answered ${response.status}.`, response.status);
  }
}

class Embedded {
  isRecord = true;
  #answers;
  #blocks;
  #opened = new Map();

  constructor(element) {
    this.#answers = recorded(element).then(byPlainKey);
    this.#blocks = [...document.querySelectorAll("script[data-first]")];
  }

  async get(path, parameters = {}) {
    // The file has one answer with the marks of all symbols and times.
    const answer = await this.#held(path.endsWith("/marks") ? path : path + queryOf({ instrument: parameters.instrument }));
    return Array.isArray(answer) ? cut(answer, parameters) : answer;
  }

  async #held(path) {
    const answers = await this.#answers;
    const key = plainKey(`${ROOT}${path}`);
    const answer = answers.get(key) ?? (await this.#ofBlock(key));
    if (answer === undefined)
      throw new ApiError('This file does not have that; "tracepaper ui" serves the full record.', 404);
    return answer;
  }

  /** A decision of a full file: blocks are unpacked on request, and the last few are kept. */
  async #ofBlock(key) {
    const sequence = Number(/\/decisions\/(\d+)$/.exec(key)?.[1] ?? NaN);
    const block = this.#blocks.find(({ dataset }) => sequence >= dataset.first && sequence <= dataset.last);
    if (!block) return undefined;
    if (!this.#opened.has(block)) {
      this.#opened.set(block, recorded(block).then(byPlainKey));
      if (this.#opened.size > BLOCKS) this.#opened.delete(this.#opened.keys().next().value);
    }
    return (await this.#opened.get(block)).get(key);
  }

  /** Find a decision of a range in the columns. */
  async find(run, view, { instrument, refused_by: gate, from_ms = 0, until_ms = Infinity, descending }) {
    let found = null;
    let before = Infinity; // ignore coarse cells that finer ones cover
    for (const { sequence, open_time_ms: times, refused_by: refused } of await this.#candles(runPath(run), instrument)) {
      const fits = (at, place) => at != null && at < before && times[place] >= from_ms && times[place] < until_ms && (gate == null || refused[place] === gate);
      const at = descending ? sequence.findLast(fits) : sequence.find(fits);
      if (descending && at != null) return at;
      found = at ?? found;
      before = sequence.find((each) => each != null) ?? before;
    }
    return found;
  }

  /** Columns of an instrument, in ever longer cells. */
  #candles(run, instrument) {
    return this.#held(`${run}/candles${queryOf({ instrument })}`);
  }

  /** A decision from the columns, if the file does not have it complete. */
  async partial(run, sequence) {
    const { row, gate_horizon: horizon, instruments } = await this.#held(`/runs/${run}`);
    for (const { id, base } of instruments) {
      const every = await this.#candles(`/runs/${run}`, id);
      const candles = every.find((each) => each.sequence.includes(sequence));
      if (!candles) continue;
      const at = candles.sequence.indexOf(sequence);
      const isDecided = (each) => each != null;
      // A cell of several bars has only its last decision, and no closes within it for the realised return.
      const isBar = candles.interval_ms === row.interval_ms;
      const time = candles.open_time_ms[at] + candles.interval_ms - row.interval_ms;
      const ahead = isBar ? candles.open_time_ms.indexOf(time + horizon * row.interval_ms) : -1;
      const realised = ahead < 0 ? null : Math.log(candles.close[ahead] / candles.close[at]);
      const refused = candles.refused_by[at];
      const held = candles.held[at];
      const [mean, stdev] = [candles.mean_return[at], candles.stdev_return[at]];
      const size = held ? `${held > 0 ? "long" : "short"} ${Math.abs(held)} ${base}` : "flat";
      const position = held ? `Holds ${size}` : "Flat";
      return {
        run_id: run,
        sequence,
        instrument: id,
        open_time_ms: time,
        close_time_ms: time + row.interval_ms,
        close: candles.close[at],
        action: candles.action[at],
        refused_by: refused,
        title: refused ? `Refused by ${refused}` : position,
        parts: [
          { kind: "paragraph", style: "plain", text: `This file has only selected decisions complete, and for this one what the chart shows; for the rest, run "tracepaper explain ${run}:${sequence}" beside the record.` },
        ],
        forecast: mean == null ? null : { horizon, mean_return: mean, stdev_return: stdev, comes_ms: time + (horizon + 1) * row.interval_ms, realised },
        attended: [],
        digest: "",
        previous: candles.sequence.slice(0, at).findLast(isDecided) ?? every.at(-1).sequence.findLast((each) => isDecided(each) && each < sequence) ?? null,
        following: candles.sequence.slice(at + 1).find(isDecided) ?? null,
      };
    }
    throw new ApiError(`This file has no decision ${sequence}; run "tracepaper explain ${run}:${sequence}" beside the record.`, 404);
  }
}

const plainKey = (key) => decodeURIComponent(key.replaceAll("+", " "));

const byPlainKey = (answers) => new Map(Object.entries(answers).map(([key, answer]) => [plainKey(key), answer]));

const element = document.getElementById("record");

/** The source of all answers. */
export const source = element ? new Embedded(element) : new Server();

const runPath = (run, rest = "") => `/runs/${encodeURIComponent(run)}${rest}`;

/** @returns {Promise<Object>} Run; `{counted: true}` waits for the counts of a long run */
export const getRun = (run, parameters) => source.get(runPath(run), parameters);

/** Return the first (or last) decision in a range of a documented view, or null. */
export const findDecision = (run, view, isLast, wanted) => source.find(run, view, { ...wanted, sort: "sequence", descending: isLast || null, limit: 1 });

/** Another answer of a run: candles, equity, marks, account, health, report, compare/OTHER. */
export const getOf = (run, rest, options, parameters) => source.get(runPath(run, `/${rest}`), parameters, options);

export const verifyDecision = (run, sequence, progressed, signal) => source.ask(runPath(run, `/decisions/${sequence}/verify`), progressed, signal);
/** What would have traded at a decision that did not: a document of sentences. */
export const getNearest = (run, sequence, options) => source.get(runPath(run, `/decisions/${sequence}/nearest`), {}, options);
export const askDecision = (run, sequence, progressed, signal) => source.ask(runPath(run, `/decisions/${sequence}/ask`), progressed, signal);

/** Derive the whole run again; the result becomes its parity. */
export async function verifyRun(run, progressed, signal) {
  const parity = await source.ask(runPath(run, "/verify"), progressed, signal);
  dispatchEvent(new Event("verified"));
  return parity;
}

const KEPT = 400;
const decisions = new Map();
const awaited = new Map(); // requests of decisions without an answer yet

/** A cached decision, or undefined. */
export const knownDecision = (run, sequence) => decisions.get(`${run}/${sequence}`);

/** One complete decision. It is cached, since only the realised return of its forecast may still change. */
export function getDecision(run, sequence) {
  const key = `${run}/${sequence}`;
  const kept = decisions.get(key);
  if (kept) return Promise.resolve(kept);
  if (!awaited.has(key)) awaited.set(key, readDecision(run, sequence, key).finally(() => awaited.delete(key)));
  return awaited.get(key);
}

async function readDecision(run, sequence, key) {
  const decision = await source.get(runPath(run, `/decisions/${sequence}`)).catch((error) => {
    if (source.isRecord) return source.partial(run, sequence);
    throw error;
  });
  // Do not cache a decision without its realised return or its following decision.
  if (decision.following != null && (!decision.forecast || decision.forecast.realised != null || source.isRecord))
    decisions.set(key, decision);
  if (decisions.size > KEPT) decisions.delete(decisions.keys().next().value);
  return decision;
}
