"""The SQLAlchemy Core tables; nothing else declares a column.

Keys. A step is one integer everywhere: ``run_key * 2**28 + sequence`` (``step_key``). It is the
rowid, so a bar costs no second key and a run is one contiguous range of every table.

Interning. What rarely changes is stored once, by the step that first used it, and named by that
step's sequence: ``outcomes`` (action, reason, refusals, passed gates) and ``holdings`` (position
and cash between two fills). ``gate_sets`` keeps names and thresholds.

Virtual columns. The run and the sequence that a key names are generated columns: nothing is
stored, the chain does not cover them, ``stored_columns`` leaves them out, and a view passes their
index on. They follow the stored columns of their table.

Numbers are the vocabulary's: prices, quantities, volume and turnover are integers of 10⁻ᵏ with k
in ``instruments``, money is an integer of 10⁻¹⁰, times are UTC milliseconds. Enumerations whose
text would cost bytes on every bar are stored as their place in the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    REAL,
    Column,
    Computed,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy import text as text_clause

from tracepaper.storage.rows import (
    ANSWER_GATES,
    KEPT_EVENTS,
    SEQUENCE_BITS,
    SEQUENCE_LIMIT,
    STEP_GATES,
)

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.types import TypeEngine

SCHEMA_REVISION: Final = "0002"
UPGRADABLE: Final[frozenset[str]] = frozenset()
"""Older revisions from which ``db upgrade`` knows a way."""

metadata: Final = MetaData()


def _key(name: str, target: str | None = None) -> Column[int]:
    """Return an integer primary key column, with a foreign key where *target* is given."""
    keys = () if target is None else (ForeignKey(target),)
    return Column(name, Integer, *keys, primary_key=True, autoincrement=False)


def _whole(name: str, *, null: bool = False) -> Column[int]:
    return Column(name, Integer, nullable=null)


def _real(name: str) -> Column[float]:
    return Column(name, REAL, nullable=True)


def _text(name: str, *, null: bool = False) -> Column[str]:
    return Column(name, Text, nullable=null)


def _blob(name: str, *, null: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=null)


def _measure(gate: str) -> Column[float]:
    """Return the column of one gate's measure: ``measure_risk_notional``."""
    return _real(f"measure_{gate.replace('.', '_')}")


def _virtual(name: str, type_: type[TypeEngine[Any]], sql: str) -> Column[Any]:
    """Return a generated column, worked out at each read."""
    return Column(name, type_, Computed(sql, persisted=False))


def _place(*, born: bool = False) -> tuple[Column[Any], ...]:
    """Return the virtual columns of a step's key: its run, its sequence, and its order's birth."""
    birth = _virtual("birth", Integer, "CAST(order_id AS INTEGER)")
    return (
        _virtual("run_key", Integer, f"step >> {SEQUENCE_BITS}"),
        _virtual("sequence", Integer, f"step & {SEQUENCE_LIMIT - 1}"),
        *((birth,) if born else ()),
    )


def stored_columns(table: str) -> tuple[str, ...]:
    """Return the names of the columns of *table* that hold something, in their order."""
    return tuple(c.name for c in metadata.tables[table].columns if c.computed is None)


def _newest_first(table: Table, where: TextClause | None = None) -> None:
    """Index the steps of *table* by their sequence, in their run and over all runs.

    People ask for the newest rows and join the views by run and sequence: without these, two views
    of 12,000 bars take half a minute to join.
    """
    name, of = table.name, table.c
    Index(f"{name}_run_sequence", of.run_key, of.sequence, sqlite_where=where)
    Index(f"{name}_sequence", of.sequence, sqlite_where=where)


def _keyed_table(name: str, *columns: Column[Any]) -> Table:
    """Return a table stored in the order of its compound key, without a rowid."""
    return Table(name, metadata, *columns, sqlite_strict=True, sqlite_with_rowid=False)


runs: Final = Table(
    "runs",
    metadata,
    _key("run_key"),
    Column("run_id", Text, nullable=False, unique=True),
    _text("kind"),
    _whole("started_at_ms"),
    _text("parent_run_id", null=True),
    _whole("period_start_ms"),
    _whole("interval_ms"),
    _text("config"),
    _text("config_sha256"),
    _text("code_version"),
    _text("strategy"),
    _text("strategy_sha256"),  # empty where it is one of ours
    _text("model_id"),
    _text("model_sha256"),  # of weights and card: its row in ``models``
    _text("path"),
    _text("device"),
    _text("dtype"),
    _whole("threads"),
    _text("backend"),
    _text("torch_version"),
    _text("instruction_set"),
    _text("libraries"),  # JSON: the version of everything else that computes
    _text("warnings"),  # JSON array of sentences
    _text("previous_run_id", null=True),  # the run opened before it in this database
    _whole("previous_step_count", null=True),  # of that run, at this moment
    _blob("previous_head", null=True),
    _whole("opened_gate_sets"),  # how many gate sets were known then
    _blob("opened_digest"),  # the chain's first link: the row so far, instruments, gate sets
    _whole("step_count"),
    _blob("head_digest"),  # of the last step; the first link where there is none
    sqlite_strict=True,
)

models: Final = Table(
    "models",
    metadata,
    Column("model_sha256", Text, primary_key=True),  # of the weights' hash and the card's text
    _text("weights_sha256"),
    _text("card"),  # JSON with sorted keys, without the ids that follow from it
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

instruments: Final = _keyed_table(
    "instruments",
    _key("run_key", "runs.run_key"),
    _key("instrument"),  # place in the run
    _text("instrument_id"),
    _text("category"),
    _text("symbol"),
    _text("base_coin"),
    _text("quote_coin"),
    _whole("price_decimals"),
    _whole("quantity_decimals"),
    _whole("volume_decimals"),
    _whole("turnover_decimals"),
    _whole("tick_size"),
    _whole("quantity_step"),
    _whole("min_quantity"),
    _whole("max_quantity"),
    _whole("min_notional"),
    _whole("funding_interval_minutes"),
    _text("status"),
)

gate_sets: Final = _keyed_table(
    "gate_sets",
    _key("run_key", "runs.run_key"),
    _key("gate_set"),
    _key("ordinal"),  # place in the set; the bit of ``outcomes.passed``
    _text("gate"),
    Column("threshold", REAL, nullable=False),
)

steps: Final = Table(
    "steps",
    metadata,
    _key("step"),
    Column("shape", Integer, nullable=False, server_default="1"),  # see rows.Shape
    _blob("window_sha256", null=True),
    _blob("decision_sha256", null=True),
    _whole("outcome", null=True),  # sequence of its row in ``outcomes``; null: no decision
    _whole("target_quantity", null=True),
    *(_measure(gate) for gate in STEP_GATES),
    _whole("holding"),  # sequence of its row in ``holdings``
    _whole("unrealized_pnl", null=True),  # the position's
    _whole("account_unrealized_pnl", null=True),  # null where it is the position's
    _whole("equity", null=True),  # null where it is cash + the account's unrealized_pnl
    _blob("state", null=True),
    _blob("kept_sha256", null=True),  # running hash of what a prune keeps, where it changed
    _blob("digest"),
    *_place(),
    sqlite_strict=True,
)
_newest_first(steps)

bars: Final = Table(
    "bars",
    metadata,
    _key("step", "steps.step"),
    _whole("instrument"),
    _whole("open_time_ms"),
    _whole("open"),
    _whole("high"),
    _whole("low"),
    _whole("close"),
    _whole("volume"),
    _whole("turnover", null=True),
    _whole("market_delay_ms"),  # market_ms less the bar's close
    _whole("seen_delay_ms"),  # seen_ms less market_ms
    _whole("source"),  # place in types.Source
    _virtual("run_key", Integer, f"step >> {SEQUENCE_BITS}"),
    sqlite_strict=True,
)
# So that the decision at a time is found without reading those before it: 17 bytes a bar.
Index("bars_time", bars.c.open_time_ms, bars.c.run_key)


KEPT_KINDS: Final = f"kind IN ({', '.join(repr(kind) for kind in KEPT_EVENTS)})"

events: Final = Table(
    "events",
    metadata,
    _key("step"),
    _text("kind"),
    _whole("instrument", null=True),
    _whole("market_ms"),
    _whole("seen_ms"),
    _text("content"),  # JSON of the event's remaining fields
    *_place(),
    sqlite_strict=True,
)
_newest_first(events, text_clause(KEPT_KINDS))
# So that a run's row finds what its strategy opened among millions of quotes.
Index("events_reading", events.c.step, sqlite_where=events.c.kind == "reading")

answers: Final = Table(
    "answers",
    metadata,
    _key("step", "steps.step"),
    _whole("late_deadline_ms", null=True),  # the forecaster did not answer in time
    _text("model_id", null=True),  # null where it is the run's
    _whole("horizon", null=True),  # bars; the horizon of the columns below
    _real("mean_return"),
    _real("stdev_return"),
    _real("p_down"),
    _real("p_flat"),
    _real("p_up"),
    _real("volatility"),
    _blob("horizons", null=True),  # msgpack: all horizons, and the columns at the other ones
    _real("confidence"),
    _real("content_free"),
    _real("recent_mass"),
    _real("older_mass"),
    _real("shift"),
    _real("l1_error"),
    _blob("entropy", null=True),  # little-endian float32, layer-major
    _blob("buckets", null=True),  # little-endian float32, newest first
    *(_measure(gate) for gate in ANSWER_GATES),
    sqlite_strict=True,
)

outcomes: Final = Table(
    "outcomes",
    metadata,
    _key("step"),
    _text("action"),
    _text("reason"),
    _whole("allowed"),
    _text("refused_by", null=True),
    _whole("gate_set"),
    _blob("gate_set_sha256"),
    _whole("passed"),  # bit i: gate i of the set
    _text("regime"),
    _text("unfilled_reason", null=True),  # why the target is neither reached nor ordered
    sqlite_strict=True,
)

holdings: Final = _keyed_table(
    "holdings",
    _key("step"),
    _key("book"),  # 0: the run's account; i: twin i of the step
    _text("twin", null=True),
    _whole("instrument", null=True),
    _whole("quantity", null=True),
    _whole("entry_notional", null=True),
    _whole("realized_pnl", null=True),
    _whole("fees_paid", null=True),
    _whole("funding_paid", null=True),
    _whole("cash"),
    _whole("account_realized_pnl"),
    _whole("account_fees_paid"),
    _whole("account_funding_paid"),
)

orders: Final = _keyed_table(
    "orders",
    _key("step"),
    _key("ordinal"),
    _text("order_id"),
    _whole("instrument"),
    _text("side"),
    _whole("quantity"),
    _whole("filled"),
    _text("status"),
    _text("reason"),
    _whole("created_ms"),
    _whole("eligible_ms"),
    *_place(born=True),
)
_newest_first(orders)
Index("orders_order", orders.c.order_id, orders.c.run_key)


def _fill_columns() -> tuple[Column[Any], ...]:
    return (
        _text("order_id"),
        _whole("instrument"),
        _text("side"),
        _whole("quantity"),
        _whole("price"),
        _whole("reference_price"),
        _whole("notional"),
        _whole("fee"),
        _whole("fee_base"),
        _text("liquidity"),
        _text("model"),
        _text("reason"),
        _whole("filled_ms"),
        *_place(born=True),
    )


fills: Final = _keyed_table("fills", _key("step"), _key("ordinal"), *_fill_columns())
_newest_first(fills)
Index("fills_order", fills.c.order_id, fills.c.run_key)

twin_steps: Final = _keyed_table(
    "twin_steps",
    _key("step", "steps.step"),
    _key("book"),  # 1 for the first twin of the step
    _whole("holding"),  # sequence of its row in ``holdings``, same book
    _whole("unrealized_pnl", null=True),
    _whole("account_unrealized_pnl", null=True),
    _whole("equity", null=True),
    _whole("confirmed"),  # 1 where the step's bar confirmed the position for another horizon
)

twin_fills: Final = _keyed_table(
    "twin_fills", _key("step"), _key("book"), _key("ordinal"), _text("twin"), *_fill_columns()
)
_newest_first(twin_fills)

prunes: Final = _keyed_table(
    "prunes",
    _key("run_key", "runs.run_key"),
    _whole("until_sequence"),  # the last step whose rows were dropped
    _whole("pruned_at_ms"),
    _blob("digest"),  # of that step: the chain goes on from here
    _blob("kept_sha256"),  # the running hash there, of the rows that were kept
    _blob("state", null=True),  # the engine's carried state there
)

archive_series: Final = Table(
    "archive_series",
    metadata,
    _key("series"),
    _text("instrument_id"),
    _whole("interval_ms"),
    _text("instrument"),  # JSON of types.Instrument, with the decimals of the rows below
    sqlite_strict=True,
)

archive_bars: Final = _keyed_table(
    "archive_bars",
    _key("series", "archive_series.series"),
    _key("open_time_ms"),
    _whole("open"),
    _whole("high"),
    _whole("low"),
    _whole("close"),
    _whole("volume"),
    _whole("turnover", null=True),
)

RUN_TABLES: Final = (
    steps,
    bars,
    events,
    answers,
    outcomes,
    holdings,
    orders,
    fills,
    twin_steps,
    twin_fills,
)
"""The tables keyed by step, in the order in which a step's rows are written."""
OF_A_RUN: Final = (instruments, gate_sets, prunes)
"""The other tables of which every row belongs to a run."""
