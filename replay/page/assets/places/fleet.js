/** Fleet: all runs of the server, as in `tracepaper fleet`; an address with a run pulls and opens it. */
import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { pullRun, source } from "../api.js";
import { useAnswer, useTask } from "../hooks.js";
import { Answered } from "./documents.js";

const AGAIN = 2_000; // ms between an answer and the next request

export function FleetView({ address: { pulled }, go }) {
  const answer = useAnswer((signal) => source.get("/fleet", {}, { signal }), [], AGAIN);
  const { progress, error, ask, cancel } = useTask([]);
  const [run, setRun] = useState(""); // the one that is opened or that failed
  const leave = () => go({ place: "fleet" }, true);
  useEffect(() => {
    if (!pulled) return;
    setRun(pulled.run_id);
    const pull = (progressed, signal) =>
      pullRun(pulled, progressed, signal).then(
        () => signal.aborted || go({ run: pulled.run_id }, true),
        (failure) => {
          if (!signal.aborted) leave(); // so that a click on the same row tries again
          throw failure;
        },
      );
    ask(pull, `pulling run ${pulled.run_id}`);
  }, [pulled]);
  return html`<div class="place">
    ${error && html`<p class="banner" role="alert"><b>Run ${run} was not opened:</b> ${error.message} <code>tracepaper db pull --from URL --run ${run} --db FILE</code> copies it into a file.</p>`}
    ${progress &&
    html`<p class="verify"><button class="action" onClick=${() => (cancel(), leave())}>Cancel</button> <span role="status" class="muted">${progress.doing}</span></p>
      <progress max="1" value=${progress.share} aria-label=${`pulling run ${run}`}></progress>`}
    <${Answered} answer=${answer} doing="Asking the fleet's server" />
  </div>`;
}
