/** Account: the document of all accounts; then rows of trades, orders, fills and the ledger. */
import { html, useState } from "../vendor/htm-preact.js";
import { isHedged } from "../accounts.js";
import { OfRun } from "./documents.js";
import { ViewTable } from "./table.js";

const TABLES = {
  trades: { words: "Trades", columns: ["sequence", "instrument", "side", "quantity", "opened_ms", "closed_ms", "entry_price", "exit_price", "gross", "costs", "funding", "net", "bars_held", "entry_reason", "exit_reason"] },
  orders: { words: "Orders", sided: "side", columns: ["sequence", "instrument", "created_ms", "side", "quantity", "filled", "kind", "role", "limit_price", "trigger_price", "price", "fee", "status", "reason"] },
  fills: { words: "Fills", sided: "side", columns: ["sequence", "instrument", "filled_ms", "side", "quantity", "price", "fee", "liquidity", "reason"] },
  ledger: { words: "Ledger", sided: "kind", columns: ["sequence", "market_ms", "instrument", "kind", "amount", "balance", "order_id"] },
};

const TIGHT = "(min-width: 760px) and (max-width: 1180px)"; // no room for reasons, which the card has

/** The columns of a table: the symbol where there are several, and the side in hedge mode. */
const columnsOf = (table, run) =>
  TABLES[table].columns
    .filter((name) => !name.endsWith("reason") || !matchMedia(TIGHT).matches)
    .filter((name) => name !== "instrument" || run.instruments.length > 1)
    .flatMap((name) => (isHedged(run) && name === TABLES[table].sided ? [name, "position_side"] : [name]));

export function AccountView({ run, go, refreshed }) {
  const [table, setTable] = useState("trades");
  const id = run.row.run_id;
  const onStep = (sequence) => go({ run: id, sequence });
  return html`<${OfRun} name="account" run=${run} version=${run.last_sequence} doing="reading the accounts" onStep=${onStep} />
    <div class="place">
      <div class="choice" role="group" aria-label="Table">
        ${Object.entries(TABLES).map(([name, { words }]) => html`<button key=${name} aria-pressed=${name === table} onClick=${() => setTable(name)}>${words}</button>`)}
      </div>
      <${ViewTable} key=${table} run=${id} view=${table} name=${TABLES[table].words} columns=${columnsOf(table, run)} instruments=${run.instruments} refreshed=${refreshed} onSequence=${onStep} />
    </div>`;
}
