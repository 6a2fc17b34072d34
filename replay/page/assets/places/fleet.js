/** Fleet: every run of the server as `tracepaper fleet` lists it; a row opens its run. */
import { html, useEffect, useState } from "../vendor/htm-preact.js";
import { pullRun, source } from "../api.js";
import { count, number, stamp, strategyName, zoneName } from "../format.js";
import { useAnswer, useTask, Waiting } from "../hooks.js";
import { Table } from "./table.js";

const AGAIN = 2_000; // ms between an answer and the next question

const held = ({ positions }) => positions.map((one) => `${one.instrument} ${one.quantity}, unrealized ${number(Number(one.unrealized_pnl))}`).join("; ") || "flat";

const COLUMNS = [
  { title: "run", text: true, of: (row) => row.run_id },
  { title: "host", text: true, of: (row) => row.host },
  { title: "file", text: true, of: (row) => row.file },
  { title: "strategy", text: true, of: (row) => `${strategyName(row.strategy)}, ${row.kind}` },
  { title: "health", text: true, of: (row) => row.health },
  { title: "steps", of: (row) => count(row.steps), by: (row) => row.steps },
  { title: "lag", of: (row) => (row.lag_steps ? `${count(row.lag_steps)} in ${number(row.lag_s, 1)} s` : "0"), by: (row) => row.lag_steps },
  { title: "equity", of: (row) => (row.equity == null ? "–" : number(Number(row.equity))), by: (row) => (row.equity == null ? null : Number(row.equity)) },
  { title: "positions", text: true, of: held },
  { title: "last decision", text: true, of: (row) => row.last_decision ?? "" },
  { title: "alarms", text: true, of: (row) => row.alarms.map((alarm, index) => html`<p key=${index} class="loss">alarm: ${alarm}</p>`), by: (row) => -row.alarms.length },
];

/** The run that is being opened, or why it could not be. */
function Opening({ row, progress, error, cancel }) {
  if (error) return html`<p class="banner" role="alert"><b>Run ${row.run_id} was not opened:</b> ${error.message} <code>tracepaper db pull --from URL --run ${row.run_id} --db FILE</code> copies it into a file.</p>`;
  return html`<p class="verify"><button class="action" onClick=${cancel}>Cancel</button> <span role="status" class="muted">${progress.doing}</span></p>
    <progress max="1" value=${progress.share} aria-label=${`pulling run ${row.run_id}`}></progress>`;
}

export function FleetView({ go }) {
  const [turn, setTurn] = useState(0);
  const [opened, setOpened] = useState(null);
  const { progress, error: failure, ask, cancel } = useTask([]);
  const answer = useAnswer((signal) => source.get("/fleet", {}, { signal }), [turn]);
  useEffect(() => {
    if (answer.isLoading) return undefined;
    const timer = setTimeout(() => setTurn((now) => now + 1), AGAIN);
    return () => clearTimeout(timer);
  }, [answer]);
  const open = (row) => {
    setOpened(row);
    ask((told, signal) => pullRun(row, told, signal).then(() => signal.aborted || go({ run: row.run_id })), `pulling run ${row.run_id}`);
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
      <${Table} caption="Fleet" columns=${COLUMNS} rows=${runs} keyOf=${(row) => `${row.database_id} ${row.run_id}`} onRow=${open} empty="The fleet holds no run yet; tracepaper db ship brings the first." />
    </div>
  </div>`;
}
