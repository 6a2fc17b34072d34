/**
 * The answers of `/api/v1`, from a server or from the record that an exported file holds.
 *
 * Both sources have one method, `get(path, parameters)`; a view does not know which it reads.
 */
import { isHedged } from "./accounts.js";
import { cut } from "./cells.js";
import { recorded } from "./record.js";

const ROOT = "/api/v1";
const BLOCKS = 4; // blocks of whole decisions that are kept open

/** An answer that was refused; its message is a sentence for the reader. */
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

  /** Lines of an answer that takes long; `told` hears the progress. Resolves to the result. */
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
      if (done) throw new ApiError("The answer broke off; ask again.", 500);
    }
  }

  async find(run, view, parameters) {
    const { parts } = await this.get(runPath(run, `/views/${view}`), parameters);
    const { columns, rows } = parts[0];
    const at = columns.findLastIndex(({ key }) => /^(decision_)?sequence$/.test(key));
    return rows[0]?.[at].step ?? null;
  }

  /** Send one of the operator's words. */
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
      throw new ApiError("The server does not answer; start it again, this page goes on by itself.", 0);
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
    this.#answers = recorded(element).then(named);
    this.#blocks = [...document.querySelectorAll("script[data-first]")];
  }

  async get(path, parameters = {}) {
    // Marks are held for all symbols and times together.
    const answer = await this.#held(path.endsWith("/marks") ? path : path + queryOf({ instrument: parameters.instrument }));
    return Array.isArray(answer) ? cut(answer, parameters) : answer;
  }

  async #held(path) {
    const answers = await this.#answers;
    const key = plainKey(`${ROOT}${path}`);
    const answer = answers.get(key) ?? (await this.#ofBlock(key));
    if (answer === undefined)
      throw new ApiError('This file does not hold that; "tracepaper ui" serves the whole record.', 404);
    return answer;
  }

  /** A decision of a file that holds all: blocks are opened as they are asked for, the last few kept. */
  async #ofBlock(key) {
    const sequence = Number(/\/decisions\/(\d+)$/.exec(key)?.[1] ?? NaN);
    const block = this.#blocks.find(({ dataset }) => sequence >= dataset.first && sequence <= dataset.last);
    if (!block) return undefined;
    if (!this.#opened.has(block)) {
      this.#opened.set(block, recorded(block).then(named));
      if (this.#opened.size > BLOCKS) this.#opened.delete(this.#opened.keys().next().value);
    }
    return (await this.#opened.get(block)).get(key);
  }

  /** A decision of a range as the columns have it. */
  async find(run, view, { instrument, refused_by: gate, from_ms = 0, until_ms = Infinity, descending }) {
    let found = null;
    let before = Infinity; // what finer columns say is not said again
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

  /** What columns say of a decision that the file does not hold whole. */
  async partial(run, sequence) {
    const { row, gate_horizon: horizon, instruments, config } = await this.#held(`/runs/${run}`);
    for (const { id, base } of instruments) {
      const every = await this.#candles(`/runs/${run}`, id);
      const candles = every.find((each) => each.sequence.includes(sequence));
      if (!candles) continue;
      const at = candles.sequence.indexOf(sequence);
      const isDecided = (each) => each != null;
      // A cell of several bars holds its last decision, and no close within it to say what was realised.
      const isBar = candles.interval_ms === row.interval_ms;
      const time = candles.open_time_ms[at] + candles.interval_ms - row.interval_ms;
      const ahead = isBar ? candles.open_time_ms.indexOf(time + horizon * row.interval_ms) : -1;
      const realised = ahead < 0 ? null : Math.log(candles.close[ahead] / candles.close[at]);
      const refused = candles.refused_by[at];
      const held = candles.held[at];
      const [mean, stdev] = [candles.mean_return[at], candles.stdev_return[at]];
      const size = held ? `${held > 0 ? "long" : "short"} ${Math.abs(held)} ${base}` : "flat";
      const stands = isHedged({ config }) ? `Net ${size}` : held ? `Holds ${size}` : "Flat"; // columns have the sum of both sides
      return {
        run_id: run,
        sequence,
        instrument: id,
        open_time_ms: time,
        close_time_ms: time + row.interval_ms,
        close: candles.close[at],
        action: candles.action[at],
        refused_by: refused,
        title: refused ? `Refused by ${refused}` : stands,
        parts: [
          { kind: "paragraph", style: "plain", text: `This file holds chosen decisions whole, and of this one only what the chart shows; "tracepaper explain ${run}:${sequence}" beside the record says the rest.` },
        ],
        forecast: mean == null ? null : { horizon, mean_return: mean, stdev_return: stdev, comes_ms: time + (horizon + 1) * row.interval_ms, realised },
        attended: [],
        digest: "",
        previous: candles.sequence.slice(0, at).findLast(isDecided) ?? every.at(-1).sequence.findLast((each) => isDecided(each) && each < sequence) ?? null,
        following: candles.sequence.slice(at + 1).find(isDecided) ?? null,
      };
    }
    throw new ApiError(`This file holds no decision ${sequence}; "tracepaper explain ${run}:${sequence}" beside the record looks for it.`, 404);
  }
}

const plainKey = (key) => decodeURIComponent(key.replaceAll("+", " "));

const named = (answers) => new Map(Object.entries(answers).map(([key, answer]) => [plainKey(key), answer]));

const element = document.getElementById("record");

/** Where answers come from. */
export const source = element ? new Embedded(element) : new Server();

const runPath = (run, rest = "") => `/runs/${encodeURIComponent(run)}${rest}`;

/** @returns {Promise<Object>} Run; `{counted: true}` waits for counts that a long run has not yet */
export const getRun = (run, parameters) => source.get(runPath(run), parameters);

/** The first decision of those that a documented view lists of a range, or the last; null of none. */
export const findDecision = (run, view, isLast, wanted) => source.find(run, view, { ...wanted, sort: "sequence", descending: isLast || null, limit: 1 });

/** Another answer of a run: candles, equity, marks, account, health, report, compare/OTHER. */
export const getOf = (run, rest, options, parameters) => source.get(runPath(run, `/${rest}`), parameters, options);

export const verifyDecision = (run, sequence, progressed, signal) => source.ask(runPath(run, `/decisions/${sequence}/verify`), progressed, signal);
export const askDecision = (run, sequence, progressed, signal) => source.ask(runPath(run, `/decisions/${sequence}/ask`), progressed, signal);

/** Derive the whole run again; what was found is its parity from then on. */
export async function verifyRun(run, progressed, signal) {
  const parity = await source.ask(runPath(run, "/verify"), progressed, signal);
  dispatchEvent(new Event("verified"));
  return parity;
}

/** Pull a run of the fleet; what was read of a run of that id before is read anew. */
export async function pullRun(pulled, progressed, signal) {
  await source.ask(`/fleet/pull?${new URLSearchParams(pulled)}`, progressed, signal);
  decisions.clear();
  dispatchEvent(new Event("pulled"));
}

const KEPT = 400;
const decisions = new Map();
const awaited = new Map(); // decisions that are on their way

/** A decision that is here already, or undefined. */
export const knownDecision = (run, sequence) => decisions.get(`${run}/${sequence}`);

/** One decision, whole; asked for once, and kept, since it never changes but for the realised return of its forecast. */
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
  // What is still to come, and the decision that follows, are asked again next time.
  if (decision.following != null && (!decision.forecast || decision.forecast.realised != null || source.isRecord))
    decisions.set(key, decision);
  if (decisions.size > KEPT) decisions.delete(decisions.keys().next().value);
  return decision;
}
