/** Operator commands: HALT, RESUME, FLATTEN, with a note, a token and a second click. */
import { html, useState } from "./vendor/htm-preact.js";
import { source } from "./api.js";
import { useTask } from "./hooks.js";
import { Dialog } from "./keys.js";

const TOKEN = "tracepaper.token";
const NOTE_MOST = 500; // characters, the daemon's limit

const WORDS = {
  HALT: "No new orders until RESUME. Positions stay.",
  RESUME: "Orders are sent again from the next decision on.",
  FLATTEN: "Closes every position at the market, and halts.",
};

/** The sentence for a refused command; 401 may also be a token from an earlier start. */
const refusal = (error, file) => (error.status === 401 ? `The daemon does not know this token: enter that of ${file}, which each start rewrites, or one of [http] tokens.` : error.message);

/** A dialog that sends an operator command to the daemon. */
export function Operator({ run, close }) {
  const [name, setName] = useState(run.halt ? "RESUME" : "HALT");
  const [note, setNote] = useState("");
  const [token, setToken] = useState(sessionStorage.getItem(TOKEN) ?? "");
  const [isArmed, setArmed] = useState(false);
  const { progress, result, error, ask } = useTask([name]);
  const file = `${run.row.database}.token`;
  const choose = (other) => {
    setName(other);
    setArmed(false);
  };
  const give = async () => {
    const answer = await source.command(name, note, token.trim()).catch((error) => {
      if (error.status === 401) sessionStorage.removeItem(TOKEN);
      throw error;
    });
    sessionStorage.setItem(TOKEN, token.trim());
    return `${name} is step ${answer.sequence} of the record.`;
  };
  const send = (event) => {
    event.preventDefault();
    if (progress) return;
    setArmed(!isArmed);
    if (isArmed) ask(give);
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
        <button class="action danger" disabled=${progress != null || !token.trim()}>
          ${isArmed ? `Click again: ${name}` : progress ? "Sending…" : name}
        </button>
        <button type="button" class="plain" onClick=${close}>close</button>
      </p>
      <p role="status" class=${error ? "loss" : ""}>${isArmed ? "" : error ? refusal(error, file) : result}</p>
    </form>
  <//>`;
}
