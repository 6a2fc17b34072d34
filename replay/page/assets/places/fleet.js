/** Fleet: every run of the server as `tracepaper fleet` lists it; a row opens its run. */
import { html, useState } from "../vendor/htm-preact.js";
import { pullRun, source } from "../api.js";
import { count, number, stamp, strategyName, zoneName } from "../format.js";
import { useAnswer, useTask, Waiting } from "../hooks.js";
import { Listed } from "./table.js";

const AGAIN = 2_000; // ms between an answer and the next question

const held = ({ positions }) => positions.map((position) => `${position.instrument} ${position.quantity}, unrealized ${number(Number(position.unrealized_pnl))}`).join("; ") || "flat";

const COLUMNS = [
  ["run", (row) => row.run_id],
  ["host", (row) => row.host],
  ["file", (row) => row.file],
  ["strategy", (row) => `${strategyName(row.strategy)}, ${row.kind}`],
  ["health", (row) => row.health],
  ["steps", (row) => count(row.steps), null, true],
  ["lag", (row) => (row.lag_steps ? `${count(row.lag_steps)} in ${number(row.lag_s, 1)} s` : "0"), null, true],
  ["equity", (row) => number(row.equity && Number(row.equity)), null, true],
  ["positions", held],
  ["last decision", (row) => row.last_decision ?? ""],
  ["alarms", (row) => ({ text: row.alarms.map((alarm) => `alarm: ${alarm}`).join(" "), tone: "loss" }), (row) => row.alarms.length],
];

/** The run that is being opened, or why it could not be. */
function Opening({ row, progress, error, cancel }) {
  if (error) return html`<p class="banner" role="alert"><b>Run ${row.run_id} was not opened:</b> ${error.message} <code>tracepaper db pull --from URL --run ${row.run_id} --db FILE</code> copies it into a file.</p>`;
  return html`<p class="verify"><button class="action" onClick=${cancel}>Cancel</button> <span role="status" class="muted">${progress.doing}</span></p>
    <progress max="1" value=${progress.share} aria-label=${`pulling run ${row.run_id}`}></progress>`;
}

export function FleetView({ go }) {
  const [opened, setOpened] = useState(null);
  const { progress, error: failure, ask, cancel } = useTask([]);
  const answer = useAnswer((signal) => source.get("/fleet", {}, { signal }), [], AGAIN);
  const open = (row) => {
    setOpened(row);
    ask((progressed, signal) => pullRun(row, progressed, signal).then(() => signal.aborted || go({ run: row.run_id })), `pulling run ${row.run_id}`);
  };
  if (answer.error) return html`<div class="place"><h1>Fleet</h1><p class="banner" role="alert">${answer.error.message}</p></div>`;
  if (!answer.value) return html`<div class="place"><h1>Fleet</h1><${Waiting} doing="Asking the fleet's server" /></div>`;
  const { server, as_of_ms: asOf, runs, error } = answer.value;
  const away = answer.lost?.message ?? error;
  const alarmed = runs.filter((row) => row.alarms.length).length;
  const time = `${stamp(asOf)} ${zoneName()}`;
  return html`<div class="place">
    <h1>Fleet</h1>
    ${away && html`<p class="banner" role="alert"><b>${away}</b> ${asOf != null && `The rows are as of ${time}; they go on by themselves.`}</p>`}
    <p class="spread">
      <span>${count(runs.length)} ${runs.length === 1 ? "run" : "runs"}, ${alarmed ? html`<b class="loss">${count(alarmed)} with an alarm</b>` : "no alarm"}</span>
      <span class="muted">${server}, ${asOf == null ? "never read" : `as of ${time}`}</span>
    </p>
    ${(progress || failure) && html`<${Opening} row=${opened} progress=${progress} error=${failure} cancel=${cancel} />`}
    <div class=${away ? "muted" : ""}>
      <${Listed} name="Fleet" columns=${COLUMNS} rows=${runs} open=${open} empty="The fleet holds no run yet; tracepaper db ship brings the first." />
    </div>
  </div>`;
}
