/** The operator's words: HALT, RESUME, FLATTEN, with a note, a token and a second click. */
import { html, useState } from "./vendor/htm-preact.js";
import { source } from "./api.js";
import { Dialog } from "./keys.js";

const TOKEN = "tracepaper.token";
const NOTE_MOST = 500; // characters, as the daemon takes them

const WORDS = {
  HALT: "No new orders until RESUME. Positions stay.",
  RESUME: "Orders are sent again from the next decision on.",
  FLATTEN: "Closes every position at the market, and halts.",
};

/** A sentence for what the daemon answered; 401 is also that of a token of an earlier start. */
const refusal = (error, file) => (error.status === 401 ? `The daemon does not know this token; each start writes a new one to ${file}.` : error.message);

/** Send one of the operator's words to the daemon. */
export function Operator({ run, close }) {
  const [name, setName] = useState(run.halt ? "RESUME" : "HALT");
  const [note, setNote] = useState("");
  const [token, setToken] = useState(sessionStorage.getItem(TOKEN) ?? "");
  const [state, setState] = useState({ step: "idle" });
  const file = `${run.row.database}.token`;
  const choose = (other) => {
    setName(other);
    setState({ step: "idle" });
  };
  const send = async (event) => {
    event.preventDefault();
    if (state.step === "busy") return;
    if (state.step !== "armed") {
      setState({ step: "armed" });
      return;
    }
    setState({ step: "busy" });
    try {
      const answer = await source.command(name, note, token.trim());
      sessionStorage.setItem(TOKEN, token.trim());
      setState({ step: "done", text: `${name} is step ${answer.sequence} of the record.` });
    } catch (error) {
      if (error.status === 401) sessionStorage.removeItem(TOKEN);
      setState({ step: "failed", text: refusal(error, file) });
    }
  };
  return html`<${Dialog} label="Operator" close=${close} class="operator">
    <h2>Operator</h2>
    <form onSubmit=${send}>
      <div class="choice" role="radiogroup" aria-label="Word">
        ${Object.keys(WORDS).map((each) => html`<button key=${each} type="button" role="radio" aria-checked=${each === name} onClick=${() => choose(each)}>${each}</button>`)}
      </div>
      <p class="muted">${WORDS[name]}</p>
      <label>Note <input value=${note} maxlength=${NOTE_MOST} onInput=${(event) => setNote(event.target.value)} placeholder="why, for the record" /></label>
      <label>Token <input type="password" autocomplete="off" required value=${token} onInput=${(event) => setToken(event.target.value)} placeholder=${`lies in ${file}`} /></label>
      <p class="spread">
        <button class="action danger" disabled=${state.step === "busy" || !token.trim()}>
          ${state.step === "armed" ? `Click again: ${name}` : state.step === "busy" ? "Sending…" : name}
        </button>
        <button type="button" class="plain" onClick=${close}>close</button>
      </p>
      <p role="status" class=${state.step === "failed" ? "loss" : ""}>${state.text ?? ""}</p>
    </form>
  <//>`;
}
