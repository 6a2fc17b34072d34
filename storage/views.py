"""The stable views that other tools may read, documented column by column as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracepaper.storage.columns import (
    INSTRUMENT,
    MARKET_MS,
    MONEY,
    PRICE,
    QUANTITY,
    TURNOVER,
    VOLUME,
    Column,
    View,
    caused,
    digest,
    exact,
    iso,
    moment,
    of_step,
    power_of_ten,
    real,
    shared_row,
    source_name,
    text,
)
from tracepaper.storage.rows import ANSWER_GATES, SEQUENCE_BITS, STEP_GATES
from tracepaper.storage.schema import KEPT_KINDS
from tracepaper.strategies.market import DAY_MS, MINUTE_MS, WEEK_MS
from tracepaper.strategies.types import BLOCK_BARS

if TYPE_CHECKING:
    from sqlalchemy import Connection

# ---------------------------------------------------------------- runs, bars, gaps and events

_LAST_BUT_PRUNES: Final = (
    "SELECT s.step FROM steps s WHERE s.step BETWEEN r.run_key << 28 AND "
    "(r.run_key + 1 << 28) - 1 AND NOT EXISTS (SELECT 1 FROM events p WHERE p.step = s.step "
    "AND p.kind = 'prune') ORDER BY s.step DESC LIMIT 1"
)


_ENDED_AT: Final = (
    "(SELECT json_extract(e.content, '$.ended_at_ms') FROM events e WHERE e.kind = 'end' "
    f"AND e.step = ({_LAST_BUT_PRUNES}))"
)

_IN_RUN: Final = (
    f"e.step BETWEEN r.run_key << {SEQUENCE_BITS} AND ((r.run_key + 1) << {SEQUENCE_BITS}) - 1"
)

V_RUNS: Final = View(
    "v_runs",
    "a run",
    (
        Column("run_id", "r.run_id", "the run"),
        Column("kind", "r.kind", "`live`, `demo` or `replay`"),
        *moment("started_at", "r.started_at_ms", "wall time of the start"),
        *moment(
            "ended_at",
            _ENDED_AT,
            "wall time of the end; null where it went on or was killed",
        ),
        Column("parent_run_id", "r.parent_run_id", "the run whose account it took over"),
        *moment(
            "period_start_ms",
            "r.period_start_ms",
            "first open time with a decision",
        ),
        Column(
            "instruments",
            "(SELECT group_concat(instrument_id) FROM (SELECT i.instrument_id FROM instruments i "
            "WHERE i.run_key = r.run_key ORDER BY i.instrument))",
            "ids, separated by commas",
        ),
        Column(
            "interval",
            f"CASE r.interval_ms WHEN {DAY_MS} THEN 'D' WHEN {WEEK_MS} THEN 'W' "
            f"ELSE CAST(r.interval_ms / {MINUTE_MS} AS TEXT) END",
            "minutes of a bar, `D` or `W`, as Bybit writes it",
        ),
        Column("interval_ms", "r.interval_ms", "milliseconds of a bar", "INTEGER"),
        Column("strategy", "r.strategy", "the strategy's name"),
        Column(
            "strategy_sha256",
            "r.strategy_sha256",
            "SHA-256 of a user's class and what it imports from its own folder; else empty",
        ),
        Column("model_id", "r.model_id", "the model at the start; empty without one"),
        Column("model_sha256", "r.model_sha256", "SHA-256 of its weights and its card"),
        Column("config_sha256", "r.config_sha256", "SHA-256 of what decides a run"),
        Column("config", "r.config", "the whole configuration as JSON"),
        Column("code_version", "r.code_version", "version of tracepaper"),
        Column("path", "r.path", "`step` or `scan`"),
        Column("device", "r.device", "where the model ran"),
        Column("dtype", "r.dtype", "the model's number type"),
        Column("threads", "r.threads", "threads of the model", "INTEGER"),
        Column("backend", "r.backend", "what attended; empty without a model"),
        Column("torch_version", "r.torch_version", "version of torch; empty without a model"),
        Column("instruction_set", "r.instruction_set", "what torch computes with; else empty"),
        Column("libraries", "r.libraries", "JSON: versions of what else computes"),
        Column("warnings", "r.warnings", "JSON array of sentences"),
        Column(
            "opened",
            "(SELECT json_group_array(json_extract(e.content, '$.name')) FROM events e "
            f"WHERE e.kind = 'reading' AND {_IN_RUN})",
            "JSON array: files, addresses and programs that a user's class opened",
        ),
        Column("step_count", "r.step_count", "steps stored", "INTEGER"),
        digest("head_digest", "r.head_digest", "digest of the last step; keep a copy elsewhere"),
    ),
    "FROM runs r",
)

V_BARS: Final = View(
    "v_bars",
    "a bar as the engine saw it",
    (
        *of_step("s"),
        INSTRUMENT,
        *moment("open_time_ms", "b.open_time_ms", "first millisecond of the bar"),
        *exact("open", "b.open", PRICE, "first price"),
        *exact("high", "b.high", PRICE, "highest price"),
        *exact("low", "b.low", PRICE, "lowest price"),
        *exact("close", "b.close", PRICE, "last price"),
        *exact("volume", "b.volume", VOLUME, "volume in base"),
        *exact("turnover", "b.turnover", TURNOVER, "volume in quote; null where not known"),
        Column("source", source_name("b.source"), "`stream`, `rest` or `archive`"),
        *moment(
            "market_ms",
            "b.open_time_ms + r.interval_ms + b.market_delay_ms",
            "market time at which it was final",
        ),
        *moment(
            "seen_ms",
            "b.open_time_ms + r.interval_ms + b.market_delay_ms + b.seen_delay_ms",
            "market time at which the engine saw it",
        ),
        Column("accepted", "s.shape & 1", "0 for a revision, which changed nothing", "INTEGER"),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key JOIN bars b ON b.step = s.step "
    "AND b.run_key = r.run_key "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = b.instrument",
)

V_GAPS: Final = View(
    "v_gaps",
    "a hole in the data, and its repair",
    (
        *of_step("e"),
        INSTRUMENT,
        *moment("from_ms", "json_extract(e.content, '$.from_ms')", "first missing open time"),
        *moment("until_ms", "json_extract(e.content, '$.until_ms')", "first open time after it"),
        Column(
            "cause",
            "json_extract(e.content, '$.cause')",
            "`disconnected`, `missed`, `down`, `overflow`, `archive`, `stale`, `jumped` or "
            "`implausible`",
        ),
        Column(
            "repaired_by",
            "json_extract(e.content, '$.repaired_by')",
            "`rest` where the bars follow; empty where they never will; `clock` where market time "
            "itself was set from one of the two times to the other",
        ),
        *moment("market_ms", "e.market_ms", "market time at which it was found"),
    ),
    f"FROM runs r JOIN events e ON e.run_key = r.run_key AND e.{KEPT_KINDS} AND e.kind = 'gap' "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = e.instrument",
)

_BAR_CONTENT: Final = (
    "json_object('open_time_ms', b.open_time_ms, 'open', b.open, 'high', b.high, 'low', b.low, "
    "'close', b.close, 'volume', b.volume, 'turnover', b.turnover, "
    f"'source', {source_name('b.source')})"
)

_BAR_MARKET_MS: Final = "b.open_time_ms + r.interval_ms + b.market_delay_ms"
_MARKET_MS: Final = f"CAST(coalesce(e.market_ms, {_BAR_MARKET_MS}) AS INTEGER)"
_SEEN_MS: Final = f"CAST(coalesce(e.seen_ms, {_BAR_MARKET_MS} + b.seen_delay_ms) AS INTEGER)"
# The casts give both halves the same affinity, without which SQLite sorts the union.
_OF_STEPS: Final = ", ".join(
    (
        "r.run_id",
        "s.sequence",
        "CAST(coalesce(e.kind, 'bar') AS TEXT)",
        "i.instrument_id",
        _MARKET_MS,
        f"CAST({iso(_MARKET_MS)} AS TEXT)",
        _SEEN_MS,
        f"CAST({iso(_SEEN_MS)} AS TEXT)",
        f"CAST(coalesce(e.content, {_BAR_CONTENT}) AS TEXT)",
    )
)

V_EVENTS: Final = View(
    "v_events",
    "an event that the engine consumed",
    (
        *of_step("e"),
        Column(
            "kind",
            "e.kind",
            "`bar`, `quote`, `trade`, `mark`, `funding`, `instrument_change`, `model_change`, "
            "`gap`, `command`, `timer`, `end`, `prune` or `reading`",
        ),
        Column("instrument", "i.instrument_id", "`category:SYMBOL`; null where it has none"),
        *moment("market_ms", "e.market_ms", "market time of the event"),
        *moment("seen_ms", "e.seen_ms", "market time at which the engine saw it"),
        Column("content", "e.content", "JSON of its other fields, numbers as they are stored"),
    ),
    # What a prune has kept has no step any more; all else is found by its step.
    f"FROM runs r JOIN events e ON e.run_key = r.run_key AND e.{KEPT_KINDS} "
    "AND NOT EXISTS (SELECT 1 FROM steps s WHERE s.step = e.step) "
    "LEFT JOIN instruments i ON i.run_key = r.run_key AND i.instrument = e.instrument",
    f" UNION ALL SELECT {_OF_STEPS} FROM runs r JOIN steps s ON s.run_key = r.run_key "
    "LEFT JOIN bars b ON b.step = s.step LEFT JOIN events e ON e.step = s.step "
    "LEFT JOIN instruments i "
    "ON i.run_key = r.run_key AND i.instrument = coalesce(b.instrument, e.instrument)",
)

RUN_VIEWS: Final = (V_RUNS, V_BARS, V_GAPS, V_EVENTS)

# ---------------------------------------------------------------- decisions, gates, explanations

# Only a step that decided names a row of ``outcomes``, so the join leaves out all others.
_DECIDED: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key "
    "JOIN bars b ON b.step = s.step AND b.run_key = r.run_key "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = b.instrument "
    f"JOIN outcomes o ON o.step = {shared_row('s.outcome')} "
)

V_DECISIONS: Final = View(
    "v_decisions",
    "a decision: one for every closed bar of the run's period, refusals too",
    (
        *of_step("s"),
        INSTRUMENT,
        *moment("open_time_ms", "b.open_time_ms", "the bar that was decided"),
        Column("action", "o.action", "`LONG`, `SHORT`, `FLAT` or `HOLD`"),
        Column("allowed", "o.allowed", "1 if every gate passed", "INTEGER"),
        Column("refused_by", "o.refused_by", "the first gate that failed; null if none"),
        Column("horizon", "a.horizon", "bars; the horizon of the next six columns", "INTEGER"),
        Column("mean_return", "a.mean_return", "expected log return, as the model gave it", "REAL"),
        Column("stdev_return", "a.stdev_return", "its standard deviation", "REAL"),
        Column("p_down", "a.p_down", "probability of a fall", "REAL"),
        Column("p_flat", "a.p_flat", "probability of neither", "REAL"),
        Column("p_up", "a.p_up", "probability of a rise", "REAL"),
        Column("volatility", "a.volatility", "expected volatility of the return", "REAL"),
        Column(
            "confidence", "a.confidence", "1 less the mean normalised entropy of attention", "REAL"
        ),
        Column("content_free", "a.content_free", "what mask and encoding alone would give", "REAL"),
        Column("regime", "o.regime", "`MOMENTUM`, `MEAN_REVERSION`, `MIXED` or `UNKNOWN`"),
        Column(
            "recent_mass", "a.recent_mass", "rollout on the newest quarter of the context", "REAL"
        ),
        Column("older_mass", "a.older_mass", "rollout before the oldest bucket", "REAL"),
        Column("shift", "a.shift", "Jensen-Shannon distance from the last bar's rollout", "REAL"),
        Column("l1_error", "a.l1_error", "bound on what the weights miss of 1", "REAL"),
        *exact("target_quantity", "s.target_quantity", QUANTITY, "position wanted, signed"),
        Column("reason", "o.reason", "the strategy's reason"),
        Column(
            "unfilled_reason",
            "o.unfilled_reason",
            "why the target is neither reached nor ordered; null where it is",
        ),
        Column(
            "late_deadline_ms",
            "a.late_deadline_ms",
            "the deadline the forecaster missed",
            "INTEGER",
        ),
        Column("model_id", "coalesce(a.model_id, r.model_id)", "the model that decided"),
        digest("window_sha256", "s.window_sha256", "hash of the bars it saw"),
        digest("decision_sha256", "s.decision_sha256", "what parity compares"),
        digest("digest", "s.digest", "link of the chain"),
    ),
    _DECIDED + "LEFT JOIN answers a ON a.step = s.step",
)

_MEASURES: Final = " ".join(
    f"WHEN '{gate}' THEN {table}.measure_{gate.replace('.', '_')}"
    for table, gates in (("s", STEP_GATES), ("a", ANSWER_GATES))
    for gate in gates
)

V_GATES: Final = View(
    "v_gates",
    "one gate's verdict on a decision",
    (
        *of_step("s"),
        Column(
            "ordinal", "g.ordinal", "place of the gate; the first that fails refuses", "INTEGER"
        ),
        Column("gate", "g.gate", "its name"),
        Column(
            "measure", f"CASE g.gate {_MEASURES} END", "null where it could not be computed", "REAL"
        ),
        Column("threshold", "g.threshold", "what the measure was held against", "REAL"),
        Column("passed", "o.passed >> g.ordinal & 1", "1 or 0", "INTEGER"),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND s.outcome IS NOT NULL "
    f"JOIN outcomes o ON o.step = {shared_row('s.outcome')} "
    "JOIN gate_sets g ON g.run_key = r.run_key AND g.gate_set = o.gate_set "
    "LEFT JOIN answers a ON a.step = s.step",
)


def _byte(place: int) -> str:
    """Return byte *place* of bucket ``n`` as a number."""
    byte = f"hex(substr(a.buckets, n.key * 4 + {place + 1}, 1))"
    high, low = (f"instr('123456789ABCDEF', substr({byte}, {at}, 1))" for at in (1, 2))
    return f"({high} * 16 + {low})"


# A little-endian float32, read with integers alone: mantissa / 2^shift. Weights are not negative.
# SQLite gives <<, >>, & and | one precedence, so every pair has its parentheses.
_EXPONENT: Final = f"((({_byte(3)} & 127) << 1) | ({_byte(2)} >> 7))"
_MANTISSA: Final = f"((({_byte(2)} & 127) << 16) | ({_byte(1)} << 8) | {_byte(0)})"
_SHIFT: Final = f"(150 - max({_EXPONENT}, 1))"
_WEIGHT: Final = (
    f"({_MANTISSA} + CASE WHEN {_EXPONENT} > 0 THEN 8388608 ELSE 0 END) * 1.0 "
    f"/ (1 << min({_SHIFT}, 60)) / (1 << max(min({_SHIFT} - 60, 60), 0)) "
    f"/ (1 << max({_SHIFT} - 120, 0))"
)
# One row more than there are buckets: '00' x n becomes the JSON array '[0,0,…]'.
_PLACES: Final = (
    "json_each('[' || substr(replace(hex(zeroblob(length(a.buckets) / 4 + 1)), '00', ',0'), 2) "
    "|| ']')"
)
_BLOCK_MS: Final = f"({BLOCK_BARS} * r.interval_ms)"
_IS_BUCKET: Final = "n.key < length(a.buckets) / 4"
_FROM_MS: Final = (
    f"CASE WHEN {_IS_BUCKET} THEN (b.open_time_ms / {_BLOCK_MS} - n.key) * {_BLOCK_MS} END"
)
_UNTIL_MS: Final = (
    f"CASE WHEN {_IS_BUCKET} AND n.key = 0 THEN b.open_time_ms + r.interval_ms "
    f"ELSE (b.open_time_ms / {_BLOCK_MS} - n.key + 1) * {_BLOCK_MS} END"
)

V_EXPLANATIONS: Final = View(
    "v_explanations",
    "where a decision looked: one bucket of 64 bars of absolute time",
    (
        *of_step("s"),
        Column(
            "bucket",
            f"CASE WHEN {_IS_BUCKET} THEN CAST(n.key AS TEXT) ELSE 'older' END",
            "0 is the newest; `older` is everything before the oldest",
        ),
        *moment("from_open_time_ms", _FROM_MS, "its first open time; null for `older`"),
        *moment("until_open_time_ms", _UNTIL_MS, "the first open time after it"),
        Column(
            "weight",
            f"CASE WHEN {_IS_BUCKET} THEN {_WEIGHT} ELSE a.older_mass END",
            "share of the rollout; a decision's weights sum to 1 within `l1_error`",
            "REAL",
        ),
    ),
    "FROM runs r JOIN steps s ON s.run_key = r.run_key AND EXISTS (SELECT 1 FROM answers) "
    "JOIN answers a ON a.step = s.step AND a.buckets IS NOT NULL "
    f"JOIN bars b ON b.step = a.step JOIN {_PLACES} n",
)

DECISION_VIEWS: Final = (V_DECISIONS, V_GATES, V_EXPLANATIONS)

# ---------------------------------------------------------------- orders, fills, positions, equity

_STEP_TABLES: Final = (
    "LEFT JOIN bars b ON b.step = s.step LEFT JOIN events e ON e.step = s.step "
    "LEFT JOIN instruments i "
    "ON i.run_key = r.run_key AND i.instrument = coalesce(b.instrument, e.instrument)"
)

# An average price is a decimal only where the division leaves no rest.
_UNIT: Final = f"(h.quantity * {power_of_ten(f'10 - {PRICE} - {QUANTITY}')})"
_AVERAGE: Final = f"CASE WHEN h.quantity <> 0 THEN {real('h.entry_notional', MONEY)} / "
_AVERAGE_REAL: Final = f"{_AVERAGE}({real('h.quantity', QUANTITY)}) END"
_AVERAGE_TEXT: Final = (
    "CASE WHEN h.quantity <> 0 AND i.price_decimals + i.quantity_decimals <= 10 "
    f"AND h.entry_notional % {_UNIT} = 0 "
    f"THEN {text(f'h.entry_notional / {_UNIT}', PRICE)} END"
)

_UNREALIZED: Final = "coalesce(m.account_unrealized_pnl, m.unrealized_pnl)"
_EQUITY: Final = f"coalesce(m.equity, h.cash + {_UNREALIZED})"

_POSITION_SUMS: Final = (
    ("realized_pnl", "h.realized_pnl", "profit of what was closed, before fees"),
    ("unrealized_pnl", "m.unrealized_pnl", "profit of what is open, at the mark"),
    ("fees_paid", "h.fees_paid", "fees"),
    ("funding_paid", "h.funding_paid", "funding, positive where paid"),
)
_ACCOUNT_SUMS: Final = (
    ("realized_pnl", "h.account_realized_pnl", "profit of what was closed, before fees"),
    ("unrealized_pnl", _UNREALIZED, "profit of what is open, at the mark"),
    ("fees_paid", "h.account_fees_paid", "fees"),
    ("funding_paid", "h.account_funding_paid", "funding, positive where paid"),
)


def _holding_columns(sums: tuple[tuple[str, str, str], ...], whose: str) -> tuple[Column, ...]:
    """Return the columns of a position and its account after a step; *sums* are *whose*."""
    return (
        *moment("market_ms", MARKET_MS, "market time of the step's event"),
        Column("instrument", "i.instrument_id", "the event's; null where it has none"),
        *exact("quantity", "h.quantity", QUANTITY, "the instrument's position, signed"),
        Column(
            "average_price", _AVERAGE_REAL, "entry notional by quantity; null when flat", "REAL"
        ),
        Column(
            "average_price_text", _AVERAGE_TEXT, "exactly; null where it is no decimal of a price"
        ),
        *exact("entry_notional", "h.entry_notional", MONEY, "what the position cost, signed"),
        *(
            column
            for name, sql, doc in sums
            for column in exact(name, sql, MONEY, f"{doc}; the {whose}")
        ),
        *exact("cash", "h.cash", MONEY, "cash of the account"),
        *exact("equity", _EQUITY, MONEY, "cash and what is held, at the mark"),
    )


_OWN: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key JOIN steps m ON m.step = s.step "
    f"JOIN holdings h ON h.step = {shared_row('s.holding')} AND h.book = 0 "
) + _STEP_TABLES
_TWIN: Final = (
    "FROM runs r JOIN steps s ON s.run_key = r.run_key "
    "AND EXISTS (SELECT 1 FROM twin_steps) JOIN twin_steps m ON m.step = s.step "
    f"JOIN holdings h ON h.step = {shared_row('m.holding')} AND h.book = m.book "
) + _STEP_TABLES

V_POSITIONS: Final = View(
    "v_positions",
    "an instrument's position after a step that named it",
    (*of_step("s"), *_holding_columns(_POSITION_SUMS, "position's")),
    f"{_OWN} WHERE h.quantity IS NOT NULL",
)

V_EQUITY: Final = View(
    "v_equity",
    "the account after a step",
    (*of_step("s"), *_holding_columns(_ACCOUNT_SUMS, "account's")),
    _OWN,
)

V_TWIN_EQUITY: Final = View(
    "v_twin_equity",
    "a shadow account after a step",
    (
        *of_step("s"),
        Column("twin", "h.twin", "its name, such as `ungated`"),
        *_holding_columns(_ACCOUNT_SUMS, "account's"),
    ),
    _TWIN,
)


def _fill_columns() -> tuple[Column, ...]:
    return (
        Column("ordinal", "f.ordinal", "place among the fills of the step", "INTEGER"),
        Column("order_id", "f.order_id", "the order: sequence and ordinal of its birth"),
        INSTRUMENT,
        Column("side", "f.side", "`BUY` or `SELL`"),
        *exact("quantity", "f.quantity", QUANTITY, "quantity filled"),
        *exact("price", "f.price", PRICE, "price, with spread and slippage"),
        *exact("reference_price", "f.reference_price", PRICE, "mid or open before them"),
        *exact("notional", "f.notional", MONEY, "price times quantity"),
        *exact("fee", "f.fee", MONEY, "fee in quote currency"),
        *exact("fee_base", "f.fee_base", QUANTITY, "fee in base: a spot buy pays there"),
        Column("liquidity", "f.liquidity", "`TAKER`: paper market orders always take"),
        Column("model", "f.model", "filled against: `quote` or `next_open`"),
        Column("reason", "f.reason", "why it was wanted"),
        *moment("filled_ms", "f.filled_ms", "market time of the fill"),
    )


_FILLED_BY: Final = "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = f.instrument"

V_FILLS: Final = View(
    "v_fills",
    "a fill of the run's account",
    (
        *of_step("f"),
        *_fill_columns(),
        Column("status", "o.status", "of its order after the step"),
        caused("f", "fills"),
    ),
    f"FROM runs r JOIN fills f ON f.run_key = r.run_key {_FILLED_BY} "
    "LEFT JOIN orders o ON o.step = f.step AND o.order_id = f.order_id",
)

V_TWIN_FILLS: Final = View(
    "v_twin_fills",
    "a fill of a shadow account",
    (*of_step("f"), Column("twin", "f.twin", "its name, such as `ungated`"), *_fill_columns()),
    f"FROM runs r JOIN twin_fills f ON f.run_key = r.run_key {_FILLED_BY}",
)


def _of_fills(sql: str) -> str:
    """Return *sql*, an aggregate of the fills of order ``o`` in its run."""
    return f"(SELECT {sql} FROM fills f WHERE f.order_id = o.order_id AND f.run_key = o.run_key)"


_MEAN_PRICE: Final = _of_fills("sum(CAST(f.price AS REAL) * f.quantity) / sum(f.quantity)")
_ONE_PRICE: Final = _of_fills("CASE WHEN min(f.price) = max(f.price) THEN min(f.price) END")
_LATEST: Final = (
    "NOT EXISTS (SELECT 1 FROM orders n WHERE n.order_id = o.order_id "
    "AND n.run_key = o.run_key AND n.step > o.step)"
)

V_ORDERS: Final = View(
    "v_orders",
    "an order as it stood last",
    (
        *of_step("o"),
        Column("order_id", "o.order_id", "sequence and ordinal of its birth"),
        INSTRUMENT,
        Column("side", "o.side", "`BUY` or `SELL`"),
        *exact("quantity", "o.quantity", QUANTITY, "quantity ordered"),
        *exact("filled", "o.filled", QUANTITY, "quantity filled so far"),
        Column(
            "price",
            f"{_MEAN_PRICE} / CAST('1e' || {PRICE} AS REAL)",
            "mean price of its fills; null where it has none",
            "REAL",
        ),
        Column(
            "price_text",
            text(_ONE_PRICE, PRICE),
            "exactly; null where its fills have several prices",
        ),
        *exact("fee", _of_fills("sum(f.fee)"), MONEY, "fees of its fills in quote currency"),
        Column("liquidity", _of_fills("max(f.liquidity)"), "of its fills"),
        Column("reason", "o.reason", "why it was wanted"),
        Column("status", "o.status", "where its life stands"),
        *moment("created_ms", "o.created_ms", "market time of its birth"),
        *moment(
            "eligible_ms",
            "o.eligible_ms",
            "market time from which a quote may fill it",
        ),
        caused("o", "orders"),
    ),
    f"FROM runs r JOIN orders o ON o.run_key = r.run_key AND {_LATEST} "
    "JOIN instruments i ON i.run_key = r.run_key AND i.instrument = o.instrument",
)

ACCOUNT_VIEWS: Final = (
    V_ORDERS,
    V_FILLS,
    V_POSITIONS,
    V_EQUITY,
    V_TWIN_FILLS,
    V_TWIN_EQUITY,
)

VIEWS: Final[tuple[View, ...]] = (*RUN_VIEWS, *DECISION_VIEWS, *ACCOUNT_VIEWS)
"""Every view; ``view.row`` says what a row is, ``view.columns`` what each column means."""


def create_views(connection: Connection) -> None:
    """Make every view anew; views are code, so they follow the version and need no migration."""
    for view in VIEWS:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {view.name}")
        connection.exec_driver_sql(view.sql)


_TYPES: Final = """\
Every column declares the type of its values, so SQLAlchemy reflects it, and pandas and connectorx
(`polars.read_database_uri`) read it right. A Python cursor knows no declared types: with one,
`polars.read_database(query, connection, infer_schema_length=None)` looks at every row.
"""


def documentation() -> str:
    """Return the views as a Markdown document, a table each."""
    parts = [_TYPES]
    for view in VIEWS:
        parts.append(
            f"### `{view.name}`\n\nOne row is {view.row}.\n\n"
            "| column | type | meaning |\n|---|---|---|"
        )
        parts.extend(
            f"| `{column.name}` | {column.kind} | {column.doc} |" for column in view.columns
        )
        parts.append("")
    return "\n".join(parts)
