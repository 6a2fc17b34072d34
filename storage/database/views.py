"""The stable views that other tools may read, with their documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tracepaper.storage.database.view_columns import (
    ANSWERED,
    BAR_MARKET_MS,
    BAR_SEEN_MS,
    INSTRUMENT,
    MARKET_MS,
    SOURCE_NAME,
    UNIT,
    UNREALIZED,
    View,
    ViewColumn,
    at_step,
    caused,
    complete,
    digest,
    exact,
    iso,
    measured,
    moment,
    of_content,
    of_step,
    ordinal,
    real,
    shared_row,
    shown,
    text,
)
from tracepaper.storage.record.columns import (
    BAR_COLUMNS,
    FORECAST_COLUMNS,
    MONEY,
    PRICE,
    QUANTITY,
    TABLES,
)
from tracepaper.storage.record.rows import EVENT_TYPES, HALTED, INDEXED_KINDS, SCHEMA, number_of
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.types.decisions import WEIGHT_UNITS
from tracepaper.strategies.types.market import CommandKind, CommandOrigin, GapCause, Source
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, WEEK_MS, any_of

# ---------------------------------------------------------------- runs, bars, gaps and events

_ENDED_AT: Final = (
    "(SELECT json_extract(e.content, '$.ended_at_ms') FROM events e WHERE e.kind = 'end' "
    "AND e.run_key = r.run_key AND e.sequence = r.step_count - 1)"
)

V_RUNS: Final = View(
    "v_runs",
    "a run",
    complete(
        (
            *shown("r", "runs", "run_id", "kind", "started_at_ms"),
            *moment(
                "ended_ms",
                _ENDED_AT,
                "wall time of the end; null if it is running or was killed",
            ),
            *shown("r", "runs", "parent_run_id", "period_start_ms"),
            ViewColumn(
                "instruments",
                "(SELECT group_concat(instrument_id) FROM (SELECT i.instrument_id "
                "FROM instruments i WHERE i.run_key = r.run_key ORDER BY i.instrument))",
                "ids, separated by commas",
            ),
            ViewColumn(
                "interval",
                f"CASE r.interval_ms WHEN {DAY_MS} THEN 'D' WHEN {WEEK_MS} THEN 'W' "
                f"WHEN {MONTH_MS} THEN 'M' "
                f"ELSE CAST(r.interval_ms / {MINUTE_MS} AS TEXT) END",
                "minutes of a bar, `D` or `W`, as Bybit writes it",
            ),
            *shown("r", "runs", "interval_ms", "strategy", "strategy_sha256"),
            *shown("r", "runs", "model_id", "model_sha256", "config_sha256", "config"),
            *shown("r", "runs", "code_version", "mode", "device", "dtype", "threads", "backend"),
            *shown("r", "runs", "torch_version", "instruction_set", "libraries", "warnings"),
            *shown("r", "runs", "bucket_bars"),
        ),
        ("r", TABLES["runs"]),
    ),
    "FROM runs r",
    key=(),
    grows=False,
)

V_BARS: Final = View(
    "v_bars",
    "a bar as the engine saw it",
    complete(
        (
            *of_step("s"),
            INSTRUMENT,
            *moment("open_time_ms", "s.open_time_ms", "first millisecond of the bar"),
            *shown("s", "steps", "open", "high", "low", "close", "volume", "turnover"),
            ViewColumn("source", SOURCE_NAME, any_of(Source)),
            *moment("market_ms", BAR_MARKET_MS, "market time at which the bar was final"),
            *moment("seen_ms", BAR_SEEN_MS, "market time at which the engine saw it"),
            ViewColumn(
                "accepted",
                "s.ignored IS NULL",
                "0 for a revision, which changed nothing",
                "INTEGER",
                is_flag=True,
            ),
        ),
        ("s", (column for column in TABLES["steps"] if column.name in BAR_COLUMNS)),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND s.instrument IS NOT NULL "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = s.instrument",
)

_LAST_OF_COMMIT: Final = "{0}.run_key = r.run_key AND {0}.sequence = c.last_sequence"
V_COMMITS: Final = View(
    "v_commits",
    "a transaction that added steps to the run, with its digest in the chain",
    (
        ViewColumn("run_id", "r.run_id", "the run"),
        ViewColumn("sequence", "c.first_sequence", "its first step", "INTEGER"),
        ViewColumn("last_sequence", "c.last_sequence", "its last step", "INTEGER"),
        *moment(
            "market_ms",
            f"coalesce((SELECT {BAR_MARKET_MS} FROM steps s WHERE {_LAST_OF_COMMIT.format('s')}), "
            f"(SELECT e.market_ms FROM events e WHERE {_LAST_OF_COMMIT.format('e')}))",
            "market time of its last step",
        ),
        digest("digest", "c.digest", "the digest that `audit head` prints after it"),
    ),
    "FROM runs r JOIN commits c ON c.run_key = r.run_key",
)

V_GAPS: Final = View(
    "v_gaps",
    "a gap, whose bars are absent or were repaired late or in time",
    (
        *of_step("e"),
        INSTRUMENT,
        *moment("from_ms", "json_extract(e.content, '$.from_ms')", "first missing open time"),
        *moment("until_ms", "json_extract(e.content, '$.until_ms')", "first open time after it"),
        of_content("cause", any_of(GapCause)),
        of_content(
            "repaired_by",
            "`rest` if the bars follow; empty if they never do; `clock` if market time itself was "
            "set from the first to the second time",
        ),
        *moment("market_ms", "e.market_ms", "market time at which the gap was found"),
    ),
    f"FROM runs r JOIN events e ON e.run_key = r.run_key AND e.{INDEXED_KINDS} AND e.kind = 'gap' "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = e.instrument",
)

V_COMMANDS: Final = View(
    "v_commands",
    "an operator's command, and who gave it",
    (
        *of_step("e"),
        of_content("kind", any_of(CommandKind)),
        of_content("note", "the operator's reason"),
        of_content("origin", any_of(CommandOrigin)),
        of_content(
            "token",
            "label of the token that was sent; `database` for the token file beside the database",
        ),
        of_content(
            "user",
            "operating-system user that sent it; empty if unknown",
        ),
        *moment("market_ms", "e.market_ms", "market time at which it took effect"),
    ),
    f"FROM runs r JOIN events e ON e.run_key = r.run_key AND e.{INDEXED_KINDS} "
    "AND e.kind = 'command'",
)

_BAR_CONTENT: Final = (
    "json_object('open_time_ms', s.open_time_ms, 'open', s.open, 'high', s.high, 'low', s.low, "
    "'close', s.close, 'volume', s.volume, 'turnover', s.turnover, "
    f"'source', {SOURCE_NAME})"
)
_CLOSE_CONTENT: Final = (
    "json_object('open_time_ms', s.open_time_ms, 'bars', (SELECT count(*) FROM instruments "
    "WHERE instruments.run_key = r.run_key), 'absent', json_array())"
)
_KIND, _CONTENT = (
    f"CASE WHEN s.instrument IS NULL THEN {of_close} ELSE {of_bar} END"
    for of_close, of_bar in (("'closed'", "'bar'"), (_CLOSE_CONTENT, _BAR_CONTENT))
)

_MARKET_MS: Final = f"CAST(coalesce(e.market_ms, {BAR_MARKET_MS}) AS INTEGER)"
_SEEN_MS: Final = f"CAST(coalesce(e.seen_ms, {BAR_SEEN_MS}) AS INTEGER)"
# The casts give both halves the same affinity, without which SQLite sorts the union.
_OF_STEPS: Final = ", ".join(
    (
        "r.run_id",
        "s.sequence",
        f"CAST(coalesce(e.kind, {_KIND}) AS TEXT)",
        "i.instrument_id",
        _MARKET_MS,
        f"CAST({iso(_MARKET_MS)} AS TEXT)",
        _SEEN_MS,
        f"CAST({iso(_SEEN_MS)} AS TEXT)",
        f"CAST(coalesce(e.content, {_CONTENT}) AS TEXT)",
        "CAST(e.price_verdict AS TEXT)",
    )
)
# A halt is a row beside the event that caused it. Such rows are few: they come first, since their
# computed columns cost more to type.
_HALT_FIELDS: Final = (
    "'limit', l.breached, 'measure', l.measure, 'threshold', l.threshold, 'since_ms', l.since_ms"
)
_WITH_EVENTS: Final = f"LEFT JOIN events e ON {at_step('e')} "
V_EVENTS: Final = View(
    "v_events",
    f"an event that the engine consumed, or, as kind `{HALTED}`, a limit that the event breached",
    (
        *of_step("l"),
        ViewColumn("kind", f"'{HALTED}'", any_of((*EVENT_TYPES, HALTED))),
        ViewColumn("instrument", "NULL", "`category:SYMBOL`; null if it has none"),
        *moment("market_ms", _MARKET_MS, "market time of the event"),
        *moment("seen_ms", _SEEN_MS, "market time at which the engine saw it"),
        ViewColumn(
            "content",
            f"json_object({_HALT_FIELDS})",
            "JSON of its other fields, with numbers as stored",
        ),
        ViewColumn(
            "price_verdict",
            "NULL",
            "why a price or rate that jumped was accepted or not, or which settlement was given up",
        ),
    ),
    "FROM runs r JOIN halts l ON l.run_key = r.run_key "
    f"JOIN steps s ON {at_step('s', 'l')} {_WITH_EVENTS}",
    f"UNION ALL SELECT {_OF_STEPS} FROM runs r JOIN steps s ON s.run_key = r.run_key "
    f"{_WITH_EVENTS}LEFT JOIN instruments i "
    "ON i.run_key = r.run_key AND i.instrument = coalesce(s.instrument, e.instrument)",
    key=("sequence", "kind"),
)

# ---------------------------------------------------------------- decisions, gates, explanations

# Only a step that decided names a row of ``outcomes``, so the join leaves out all others.
_DECIDED: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND s.instrument IS NOT NULL "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = s.instrument "
    f"JOIN outcomes o ON {shared_row('o', 's.outcome')} "
)
_MEASURES: Final = (
    *("rollout_entropy", "recent_mass", "event_focus"),
    *("older_mass", "shift", "l1_error"),
)

V_DECISIONS: Final = View(
    "v_decisions",
    "a decision, one for every closed bar of the run's period, including refused ones",
    complete(
        (
            *of_step("s"),
            INSTRUMENT,
            *moment("open_time_ms", "s.open_time_ms", "open time of the decided bar"),
            *shown("o", "outcomes", "action", "allowed", "refused_by"),
            *shown(
                "a", "answers", "horizon", *FORECAST_COLUMNS, "confidence_entropy", "content_free"
            ),
            *shown("o", "outcomes", "regime"),
            *shown("a", "answers", *_MEASURES),
            *shown("s", "steps", "target_quantity"),
            *shown("o", "outcomes", "reason", "unfilled_reason"),
            *shown("a", "answers", "late_deadline_ms"),
        ),
        ("s", (column for column in TABLES["steps"] if column.name not in BAR_COLUMNS)),
        ("o", TABLES["outcomes"]),
        ("a", TABLES["answers"]),
    ),
    _DECIDED + f"LEFT JOIN answers a ON {at_step('a')}",
)

V_GATES: Final = View(
    "v_gates",
    "the verdict of one gate on a decision",
    (
        *of_step("s"),
        ordinal("g", "place of the gate; `refused_by` is the first that fails"),
        *shown("g", "gate_sets", "gate"),
        ViewColumn("measure", measured(), "what the gate measured; null if it could not", "REAL"),
        *shown("g", "gate_sets", "threshold"),
        ViewColumn(
            "passed",
            "o.passed >> g.ordinal & 1",
            "1 if the gate let the decision pass, else 0",
            "INTEGER",
            is_flag=True,
        ),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND s.outcome IS NOT NULL "
    f"JOIN outcomes o ON {shared_row('o', 's.outcome')} "
    "JOIN gate_sets g ON g.run_key = r.run_key AND g.gate_set = o.gate_set "
    f"LEFT JOIN answers a ON {at_step('a')}",
    key=("sequence", "ordinal"),
)
# The buckets of a decision, and one row more for what is older.
_PLACES: Final = "json_each(json_insert(a.buckets, '$[#]', 'older'))"
_BLOCK_MS: Final = "(r.bucket_bars * r.interval_ms)"
_IS_BUCKET: Final = "n.type = 'integer'"
_FROM_MS: Final = (
    f"CASE WHEN {_IS_BUCKET} THEN (s.open_time_ms / {_BLOCK_MS} - n.key) * {_BLOCK_MS} END"
)
_UNTIL_MS: Final = (
    f"CASE WHEN {_IS_BUCKET} AND n.key = 0 THEN s.open_time_ms + r.interval_ms "
    f"ELSE (s.open_time_ms / {_BLOCK_MS} - n.key + 1) * {_BLOCK_MS} END"
)


V_EXPLANATIONS: Final = View(
    "v_explanations",
    "the attention of a decision on one bucket of bars of absolute time",
    (
        *of_step("s"),
        ViewColumn(
            "bucket",
            f"CASE WHEN {_IS_BUCKET} THEN CAST(n.key AS TEXT) ELSE 'older' END",
            "0 is the newest; `older` is everything before the oldest",
        ),
        *moment("from_open_time_ms", _FROM_MS, "its first open time; null for `older`"),
        *moment("until_open_time_ms", _UNTIL_MS, "the first open time after it"),
        ViewColumn(
            "weight",
            f"CASE WHEN {_IS_BUCKET} THEN n.value / {WEIGHT_UNITS}.0 ELSE a.older_mass END",
            "share of the rollout, or signed share of relevance; absolute values sum to 1 within "
            "`l1_error`",
            "REAL",
        ),
        *shown("a", "answers", "confidence_entropy", "rollout_entropy"),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND EXISTS (SELECT 1 FROM answers) "
    "AND s.instrument IS NOT NULL "
    f"JOIN answers a ON {at_step('a')} AND a.buckets IS NOT NULL JOIN {_PLACES} n",
    key=("sequence", "bucket"),
)

V_NOTES: Final = View(
    "v_notes",
    "a number or a text that the strategy noted at a decision",
    (
        *of_step("s"),
        INSTRUMENT,
        *moment("open_time_ms", "s.open_time_ms", "open time of the decided bar"),
        ViewColumn("name", "CAST(n.key AS TEXT)", "name that the strategy gave the number or text"),
        ViewColumn(
            "number",
            "CASE WHEN n.type IN ('real', 'integer') THEN n.value END",
            "the noted number; null for a text, and where it was not finite",
            "REAL",
        ),
        ViewColumn("text", "CASE n.type WHEN 'text' THEN n.value END", "the noted text, or null"),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND EXISTS (SELECT 1 FROM answers) "
    f"AND s.instrument IS NOT NULL JOIN answers a ON {at_step('a')} AND a.note IS NOT NULL "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = s.instrument "
    "JOIN json_each(a.note) n",
    key=("sequence", "name"),
)

_UNREALIZED: Final = {
    "s": "coalesce(s.account_unrealized_pnl, s.unrealized_pnl)",
    "m": f"coalesce(m.account_unrealized_pnl, {UNREALIZED.format('m')})",
}
_SHADOW: Final = (
    "AND EXISTS (SELECT 1 FROM shadow_steps) "
    f"CROSS JOIN shadow_steps m ON {shared_row('m', 's.shadows')} "
    f"JOIN holdings h ON {shared_row('h', 'm.holding')} AND h.account = m.account "
)

# ---------------------------------------------------------------- orders, fills, positions, equity

_STEP_TABLES: Final = (
    f"LEFT JOIN events e ON {at_step('e')} LEFT JOIN instruments i "
    "ON i.run_key = r.run_key AND i.instrument = coalesce(s.instrument, e.instrument)"
)

# An average price is an exact decimal only if the division has no remainder.
_AVERAGE: Final = f"CASE WHEN h.quantity <> 0 THEN {real('h.entry_notional', MONEY)} / "
_AVERAGE_REAL: Final = f"{_AVERAGE}({real('h.quantity', QUANTITY)}) END"
_AVERAGE_TEXT: Final = (
    f"CASE WHEN h.quantity <> 0 AND i.price_decimals + i.quantity_decimals <= {MONEY} "
    f"AND h.entry_notional % {UNIT} = 0 "
    f"THEN {text(f'h.entry_notional / {UNIT}', PRICE)} END"
)

_SIDE_HELD: Final = ViewColumn(
    "side",
    "CASE WHEN h.quantity > 0 THEN 'LONG' WHEN h.quantity < 0 THEN 'SHORT' ELSE 'FLAT' END",
    "`LONG`, `SHORT` or `FLAT`",
)
_LIQUIDATED_AT: Final = (
    "CASE WHEN h.margin IS NOT NULL THEN (SELECT o.trigger FROM orders o "
    "WHERE o.run_key = s.run_key AND o.sequence <= s.sequence AND o.instrument = i.instrument "
    "AND o.role = 'LIQUIDATION' ORDER BY o.sequence DESC, o.ordinal DESC LIMIT 1) END"
)


def _holding_columns(whose: str, unrealized: str, marks: str = "s") -> tuple[ViewColumn, ...]:
    """Return the columns of a position and its account after a step; *whose* describes the sums.

    *marks* is the alias of the row with the unrealized profit.
    """
    prefix = "h.account_" if whose == "account's" else "h."
    sums = (
        ("realized_pnl", f"{prefix}realized_pnl", "realised profit, before fees"),
        ("unrealized_pnl", unrealized, "unrealised profit, at the mark"),
        ("fees_paid", f"{prefix}fees_paid", "fees"),
        ("funding_paid", f"{prefix}funding_paid", "funding, positive if paid"),
    )
    listed = (
        *moment("market_ms", MARKET_MS, "market time of the step's event"),
        ViewColumn("instrument", "i.instrument_id", "the event's instrument; null if it has none"),
        *shown("h", "holdings", "quantity"),
        ViewColumn(
            "average_price", _AVERAGE_REAL, "entry notional ÷ quantity; null when flat", "REAL"
        ),
        ViewColumn(
            "average_price_text",
            _AVERAGE_TEXT,
            "`average_price`, exactly; null if it has no exact decimal",
        ),
        *shown("h", "holdings", "entry_notional"),
        *(
            column
            for name, sql, doc in sums
            for column in exact(name, sql, MONEY, f"the {whose} {doc}")
        ),
        *shown("h", "holdings", "cash"),
        *exact(
            "equity",
            f"coalesce({marks}.equity, h.cash + {_UNREALIZED[marks]})",
            MONEY,
            "cash plus positions, at the mark",
        ),
    )
    return complete(
        listed, ("h", [column for column in TABLES["holdings"] if column.name != "shadow"])
    )


_OWN: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key "
    f"JOIN holdings h ON {shared_row('h', 's.holding')} AND h.account = 0 "
) + _STEP_TABLES

V_POSITIONS: Final = View(
    "v_positions",
    "an instrument's position after a step of that instrument",
    (
        *of_step("s"),
        _SIDE_HELD,
        *_holding_columns("position's", "s.unrealized_pnl"),
        *exact(
            "liquidation_price",
            _LIQUIDATED_AT,
            PRICE,
            "mark price at which it is liquidated; null without isolated margin",
        ),
    ),
    f"{_OWN} WHERE h.quantity IS NOT NULL",
)

V_EQUITY: Final = View(
    "v_equity",
    "the account after a step",
    (*of_step("s"), *_holding_columns("account's", _UNREALIZED["s"])),
    _OWN,
)

V_SHADOW_EQUITY: Final = View(
    "v_shadow_equity",
    "a shadow account after a step",
    (
        *of_step("s"),
        *shown("h", "holdings", "shadow"),
        *_holding_columns("account's", _UNREALIZED["m"], "m"),
    ),
    f"FROM runs r JOIN steps s ON s.run_key = r.run_key {_SHADOW}{_STEP_TABLES}",
    key=("sequence", "shadow"),
)


_FILL_COLUMNS: Final = (
    ordinal("f", "place among the fills of the step"),
    *shown("f", "fills", "order_id"),
    INSTRUMENT,
    *shown("f", "fills", "side", "quantity", "price", "reference_price", "notional", "fee"),
    *shown("f", "fills", "fee_base", "liquidity", "model", "reason", "filled_ms"),
)
_FILLED: Final = (
    "FROM runs r JOIN fills f ON f.run_key = r.run_key AND f.account {} 0 "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = f.instrument"
)

V_FILLS: Final = View(
    "v_fills",
    "a fill of the run's account",
    complete(
        (
            *of_step("f"),
            *_FILL_COLUMNS,
            ViewColumn("status", "o.status", "of its order after the step"),
            caused("f", "fills"),
        ),
        ("f", TABLES["fills"]),
    ),
    f"{_FILLED.format('=')} LEFT JOIN orders o ON {at_step('o', 'f')} AND o.order_id = f.order_id",
    key=("sequence", "ordinal"),
)

V_SHADOW_FILLS: Final = View(
    "v_shadow_fills",
    "a fill of a shadow account",
    complete(
        (
            *of_step("f"),
            ViewColumn("shadow", "f.shadow", "its name, such as `ungated`"),
            *_FILL_COLUMNS,
        ),
        ("f", TABLES["fills"]),
    ),
    _FILLED.format(">"),
    key=("sequence", "shadow", "ordinal"),
)


_CASH: Final = "(t.exit_notional - t.entry_notional) * CASE f.side WHEN 'SELL' THEN 1 ELSE -1 END"
_COSTS: Final = f"t.gross + t.fees - {_CASH}"
_PROFIT: Final = f"{_CASH} - t.fees"


def _of_entry(field: str, sql: str) -> str:
    """Return the SQL of a *field* of a trade's entry: of the fill, or of an earlier run's trade."""
    carried = "json_extract(r.account, '$.open_trades[' || (-1 - t.opened_sequence) || ']"
    return f"CASE WHEN t.opened_sequence < 0 THEN {carried}.{field}') ELSE {sql} END"


# Each run that takes an order over puts "0-" before its id, "STEP-ORDINAL".
_DECIDED_BY: Final = (
    "CASE WHEN e.order_id LIKE '0-0-%-%' THEN NULL "
    "WHEN e.order_id LIKE '0-%-%' THEN r.parent_run_id ELSE r.run_id END"
)
_DECIDED_AT: Final = (
    "CASE WHEN e.order_id LIKE '0-0-%-%' THEN NULL "
    "WHEN e.order_id LIKE '0-%-%' THEN CAST(substr(e.order_id, 3) AS INTEGER) ELSE e.birth END"
)
# A run that takes an account over warms up on bars that the run before has decided.
_BARS_HELD: Final = (
    "((SELECT count(*) FROM steps s "
    "WHERE s.run_key = t.run_key AND s.sequence >= t.opened_sequence AND s.sequence < t.sequence "
    "AND s.instrument = f.instrument AND s.ignored IS NULL "
    "AND (t.opened_sequence >= 0 OR s.outcome IS NOT NULL)) "
    f"+ {_of_entry('bars_held', '0')})"
)


def _mean_price(way: str) -> str:
    """Return the SQL of the mean price of a trade's ``entry`` or ``exit`` fills."""
    worth = f"t.{way}_notional * CAST('1e' || {QUANTITY} AS REAL)"
    return f"{worth} / t.{way}_quantity / CAST('1e' || {MONEY} AS REAL)"


_TRADES: Final = (
    "FROM runs r JOIN trades t ON t.run_key = r.run_key AND t.account {} 0 "
    f"JOIN fills f ON {at_step('f', 't')} AND f.account = t.account AND f.ordinal = t.ordinal "
    "LEFT JOIN fills e ON e.run_key = t.run_key AND e.sequence = t.opened_sequence "
    "AND e.account = t.account AND e.ordinal = t.opened_ordinal "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = f.instrument "
    # Of an order that was taken over from another run the birth is that run's.
    "LEFT JOIN answers d ON d.run_key = e.run_key AND d.sequence = e.birth AND EXISTS "
    f"(SELECT 1 FROM orders y WHERE y.order_id = e.order_id AND {at_step('y', 'd')})"
)
V_TRADES: Final = View(
    "v_trades",
    "a closed round trip of the run's account; an earlier run may have opened it",
    complete(
        (
            *of_step("t"),
            ordinal("t", "place among the fills of the step that closed it"),
            INSTRUMENT,
            ViewColumn(
                "side",
                "CASE f.side WHEN 'SELL' THEN 'LONG' ELSE 'SHORT' END",
                "`LONG` or `SHORT`",
            ),
            *shown("t", "trades", "quantity"),
            *moment(
                "opened_ms",
                _of_entry("opened_ms", "e.filled_ms"),
                "market time of the fill that opened it",
            ),
            *moment("closed_ms", "f.filled_ms", "market time of the fill that closed it"),
            ViewColumn(
                "entry_price", _mean_price("entry"), "mean price of the entry fills", "REAL"
            ),
            ViewColumn("exit_price", _mean_price("exit"), "mean price of the exit fills", "REAL"),
            *shown("t", "trades", "gross"),
            *exact(
                "costs",
                _COSTS,
                MONEY,
                "fees, spread, slippage and liquidation of its fills",
            ),
            *shown("t", "trades", "fees", "funding"),
            *exact("profit", _PROFIT, MONEY, "gross minus costs"),
            *exact("net", f"{_PROFIT} - t.funding", MONEY, "profit minus funding"),
            ViewColumn(
                "bars_held",
                _BARS_HELD,
                "closes at which it was held",
                "INTEGER",
            ),
            ViewColumn("entry_reason", _of_entry("entry_reason", "e.reason"), "why it was opened"),
            ViewColumn("exit_reason", "f.reason", "why it was closed"),
            ViewColumn("exit_model", "f.model", "what the closing fill was filled against"),
            ViewColumn(
                "entry_run_id",
                _of_entry("run_id", _DECIDED_BY),
                "the run that decided it; null if its order is older than two runs",
            ),
            ViewColumn(
                "entry_sequence",
                _of_entry("entry_sequence", _DECIDED_AT),
                "the step of that run that created the opening order",
                "INTEGER",
            ),
            ViewColumn(
                "exit_sequence", "f.birth", "the step that created the closing order", "INTEGER"
            ),
            *(
                ViewColumn(
                    name,
                    _of_entry(name, f"d.{name}"),
                    f"{doc}; null without a model's forecast",
                    kind,
                )
                for name, doc, kind in (
                    ("mean_return", "log return expected at the decision that opened it", "REAL"),
                    ("stdev_return", "its standard deviation", "REAL"),
                    ("volatility", "volatility of the return expected then", "REAL"),
                    ("horizon", "horizon of these three, in bars", "INTEGER"),
                )
            ),
        ),
        ("t", TABLES["trades"]),
    ),
    _TRADES.format("="),
    key=("sequence", "ordinal"),
)
SHADOW_TRADES: Final = (
    f"{V_TRADES._replace(source=_TRADES.format('>')).question} WHERE f.shadow = ?"
)
"""SELECT of the trades of a shadow account."""


def _of_fills(sql: str) -> str:
    """Return *sql*, an aggregate of the fills of order ``o`` in its run.

    The plus makes SQLite use the index by order instead of reading all fills of the run.
    """
    of_order = "f.order_id = o.order_id AND +f.run_key = o.run_key AND +f.account = 0"
    return f"(SELECT {sql} FROM fills f WHERE {of_order})"


_MEAN_PRICE: Final = _of_fills("sum(CAST(f.price AS REAL) * f.quantity) / sum(f.quantity)")
_ONE_PRICE: Final = _of_fills("CASE WHEN min(f.price) = max(f.price) THEN min(f.price) END")
_LATEST: Final = (
    "NOT EXISTS (SELECT 1 FROM orders n WHERE n.order_id = o.order_id "
    "AND n.run_key = o.run_key AND n.sequence > o.sequence)"
)

V_ORDERS: Final = View(
    "v_orders",
    "the last state of an order",
    complete(
        (
            *of_step("o"),
            *shown("o", "orders", "order_id"),
            INSTRUMENT,
            *shown("o", "orders", "side", "quantity", "filled"),
            ViewColumn(
                "price",
                f"{_MEAN_PRICE} / CAST('1e' || {PRICE} AS REAL)",
                "mean price of its fills; null without any",
                "REAL",
            ),
            ViewColumn(
                "price_text",
                text(_ONE_PRICE, PRICE),
                "`price`, exactly; null if its fills have several prices",
            ),
            *exact("fee", _of_fills("sum(f.fee)"), MONEY, "fees of its fills in quote currency"),
            ViewColumn(
                "liquidity", _of_fills("max(f.liquidity)"), "`TAKER` if any fill was; else `MAKER`"
            ),
            *shown("o", "orders", "reason", "status", "created_ms", "eligible_ms"),
            caused("o", "orders"),
        ),
        ("o", TABLES["orders"]),
    ),
    f"FROM runs r JOIN orders o ON o.run_key = r.run_key AND {_LATEST} "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = o.instrument",
    key=("order_id",),
    grows=False,
)

V_LEDGER: Final = View(
    "v_ledger",
    "a movement of the account's cash; its rows add up to the cash at every step",
    complete(
        (
            *of_step("l"),
            ordinal("l", "place among the movements of the step"),
            *shown("l", "ledger", "market_ms"),
            ViewColumn("instrument", "i.instrument_id", "`category:SYMBOL`; null if it has none"),
            *shown("l", "ledger", "kind", "amount", "balance", "order_id"),
        ),
        ("l", TABLES["ledger"]),
    ),
    "FROM runs r JOIN ledger l ON l.run_key = r.run_key "
    "LEFT JOIN instruments i ON i.run_key = r.run_key AND i.instrument = l.instrument",
    key=("sequence", "ordinal"),
)

V_CHECKS: Final = View(
    "v_checks",
    "the result of comparing the run with its replay, or with decisions by a longer history; not "
    "part of the chain",
    (
        ViewColumn("run_id", "r.run_id", "the run"),
        ViewColumn("sequence", "c.sequence", "its last step when the check began", "INTEGER"),
        *moment("checked_ms", "c.checked_ms", "wall time at which the check ended"),
        ViewColumn("kind", "c.kind", "the command, `verify` or `parity`; or `warmup` (U7)"),
        *shown("c", "checks", "result", "compared", "identical", "content", "head"),
        ViewColumn(
            "is_current",
            "c.head = r.head_digest",
            "1 if no step was added since",
            "INTEGER",
            is_flag=True,
        ),
    ),
    "FROM runs r JOIN checks c ON c.run_key = r.run_key",
    key=("sequence", "checked_ms", "kind"),
    grows=False,
)

VIEWS: Final[tuple[View, ...]] = (
    *(V_RUNS, V_COMMITS, V_BARS, V_GAPS, V_COMMANDS, V_EVENTS),
    *(V_DECISIONS, V_GATES, V_EXPLANATIONS, V_NOTES),
    *(
        V_ORDERS,
        V_FILLS,
        V_TRADES,
        V_LEDGER,
        V_POSITIONS,
        V_EQUITY,
        V_SHADOW_FILLS,
        V_SHADOW_EQUITY,
    ),
    V_CHECKS,
)
"""Every view; ``view.row`` describes a row, ``view.columns`` each column."""


def file_number(views: Sequence[View] = VIEWS) -> int:
    """Return a number computed from the record's and from *views*, without users' gates."""
    return number_of((SCHEMA, [view.sql.replace(ANSWERED, "") for view in views]))


FILE_SCHEMA: Final = file_number()
"""``PRAGMA user_version`` of a file; one with another number is rejected, as its views differ."""
