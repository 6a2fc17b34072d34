/** Account: equity beside every twin, drawdown, exposure; positions, orders, trades, ledger. */
import { html, useMemo, useState } from "../vendor/htm-preact.js";
import { accountRows, accountStyles, dwarfing, isHedged } from "../accounts.js";
import { getColumns } from "../api.js";
import { accountName, count, number, percent, plain, quantity, startsOf } from "../format.js";
import { useAnswer, Waiting } from "../hooks.js";
import { Lines } from "./lines.js";
import { Table, ViewTable } from "./table.js";

const POINTS = 1500;
const inPercent = (values) => values.map((value) => (value == null ? null : value * 100));

const TABLES = {
  trades: { words: "Trades", columns: ["sequence", "instrument", "side", "quantity", "opened_ms", "closed_ms", "entry_price", "exit_price", "gross", "costs", "funding", "net", "bars_held", "entry_reason", "exit_reason"] },
  orders: { words: "Orders", sided: "side", columns: ["sequence", "instrument", "created_ms", "side", "quantity", "filled", "kind", "role", "limit_price", "trigger_price", "price", "fee", "status", "reason"] },
  fills: { words: "Fills", sided: "side", columns: ["sequence", "instrument", "filled_ms", "side", "quantity", "price", "fee", "liquidity", "reason"] },
  shortfall: { words: "Own fills", sided: "side", columns: ["sequence", "decided_ms", "instrument", "side", "paper_quantity", "account_quantity", "shortfall", "price", "fee", "size", "delay", "missed", "cause"] },
  ledger: { words: "Ledger", sided: "kind", columns: ["sequence", "market_ms", "instrument", "kind", "amount", "balance", "order_id"] },
};

/** The columns of a table: the symbol where there are several, and the side in hedge mode. */
const columnsOf = (table, run) =>
  TABLES[table].columns
    .filter((name) => name !== "instrument" || run.instruments.length > 1)
    .flatMap((name) => (isHedged(run) && name === TABLES[table].sided ? [name, "position_side"] : [name]));

/** Share lost since the highest equity before; `low` where a cell's least is known. */
export function drawdown(equity, low = equity) {
  let peak = -Infinity;
  return equity.map((value, index) => {
    const least = Math.min(low[index] ?? value, value);
    const lost = peak > 0 ? Math.min(0, least / peak - 1) : 0;
    peak = Math.max(peak, value);
    return lost * 100;
  });
}

function Curves({ run }) {
  const { value: equity, error } = useAnswer((signal) => getColumns(run.row.run_id, "equity", { points: POINTS }, { signal }), [run.row.run_id, run.last_sequence]);
  const drawn = useMemo(() => {
    if (!equity) return null;
    const names = Object.keys(equity.equity);
    const [own] = names;
    const began = startsOf(run);
    const accounts = new Map(run.accounts.map((each) => [each.name, each]));
    const styles = accountStyles(run);
    const returns = names.map((name) => ({ name: accountName(accounts.get(name) ?? { name }), ...styles.get(name), values: equity.equity[name].map((value) => (value == null ? null : (value / (began.get(name) ?? began.get(own)) - 1) * 100)) }));
    const further = dwarfing(returns);
    return {
      returns: returns.filter((line) => !further.includes(line)),
      further,
      down: [{ name: "drawdown", tone: "loss", values: drawdown(equity.equity[own], equity.low[own]) }],
      exposure: [
        { name: equity.net_exposure ? "gross exposure, both sides ÷ equity" : "exposure, held value ÷ equity", tone: "ink", values: inPercent(equity.exposure) },
        ...(equity.net_exposure ? [{ name: "net exposure, long less short", tone: "shadow-1", dash: "dashed", width: 1, values: inPercent(equity.net_exposure) }] : []),
      ],
    };
  }, [equity]);
  if (error) return html`<p class="loss">${error.message}</p>`;
  if (!drawn) return html`<${Waiting} />`;
  if (!equity.time_ms.length) return html`<p class="muted">No bar yet.</p>`;
  const share = (value) => `${number(value, 2)} %`;
  return html`<${Lines} label="Equity of every account, as return" times=${equity.time_ms} lines=${drawn.returns} format=${share} height=${230} />
    ${drawn.further.length > 0 && html`<${Lines} label="Equity of accounts that went further, as return" times=${equity.time_ms} lines=${drawn.further} format=${share} height=${110} />`}
    <${Lines} label="Drawdown" times=${equity.time_ms} lines=${drawn.down} format=${share} height=${110} />
    <${Lines} label="Exposure" times=${equity.time_ms} lines=${drawn.exposure} format=${share} height=${110} />`;
}

export function AccountView({ run, go, refreshed }) {
  const [table, setTable] = useState("trades");
  const id = run.row.run_id;
  const decimals = new Map(run.instruments.map((each) => [each.id, each.price_decimals]));
  return html`<div class="place">
    <h1>Account</h1>
    <${Table} caption="Accounts" empty="No account." rows=${accountRows(run)} columns=${[
      { title: "account", text: true, of: (row) => html`<span title=${row.source}>${accountName(row)}</span>`, by: (row) => row.name },
      { title: "equity", of: (row) => number(row.equity), by: (row) => row.equity },
      { title: "return", of: (row) => percent(row.total_return, { sign: true }), by: (row) => row.total_return },
      { title: "realized", of: (row) => number(row.realized), by: (row) => row.realized },
      { title: "unrealized", of: (row) => number(row.unrealized), by: (row) => row.unrealized },
      { title: "fees", of: (row) => number(row.fees), by: (row) => row.fees },
      { title: "funding", of: (row) => number(row.funding), by: (row) => row.funding },
      { title: "fills", of: (row) => count(row.fills), by: (row) => row.fills },
      { title: "mean exposure", of: (row) => percent(row.mean_exposure), by: (row) => row.mean_exposure },
    ]} />
    <${Curves} run=${run} />
    <h2>Positions</h2>
    <${Table} caption="Positions" empty="Flat: nothing is held." rows=${run.holdings.filter((each) => each.side !== "FLAT")} columns=${[
      { title: "symbol", text: true, of: (row) => row.instrument },
      { title: "side", text: true, of: (row) => row.side.toLowerCase() },
      { title: "quantity", of: (row) => quantity(row.quantity_text), by: (row) => Number(row.quantity_text) },
      { title: "average price", of: (row) => (row.average_price_text == null ? "–" : number(Number(row.average_price_text), decimals.get(row.instrument))) },
      { title: "unrealized", of: (row) => number(row.unrealized), by: (row) => row.unrealized },
      { title: "margin", of: (row) => number(row.margin), by: (row) => row.margin },
      { title: "liquidation at", of: (row) => plain(row.liquidation_price, 8), by: (row) => row.liquidation_price },
    ]} />
    <div class="choice" role="group" aria-label="Table">
      ${Object.entries(TABLES).map(([name, { words }]) => html`<button key=${name} aria-pressed=${name === table} onClick=${() => setTable(name)}>${words}</button>`)}
    </div>
    <${ViewTable} key=${table} run=${id} view=${table} caption=${TABLES[table].words} columns=${columnsOf(table, run)} instruments=${run.instruments} refreshed=${refreshed} onSequence=${(sequence) => go({ run: id, sequence })} />
  </div>`;
}
