"""Every column: its type, scale and meaning; pure.

``TABLES`` defines the tables of ``schema``, the rows of ``rows``, ``encode`` and ``decode``, what
the chain covers, and the columns of ``views`` with their documentation.

Keys. A step is ``(run_key, sequence)`` in every table, so a run is one contiguous range of each.

Interning. Values that rarely change are stored once, in a row of the step that first used them.
Later steps refer to that step's sequence. Interned are ``outcomes`` (action, reason, refusals,
passed gates), ``holdings`` (position and cash between two fills) and, within a commit,
``shadow_steps``. ``gate_sets`` stores names and thresholds.

Prices, quantities, volume and turnover are integers of 10⁻ᵏ with k in ``instruments``, money is an
integer of 10⁻⁸, times are UTC milliseconds. A bar's source is stored as a number to save bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

from msgspec import Struct, json

from tracepaper.strategies.gates.gate import GATES, Gate, GateKind, gate_order
from tracepaper.strategies.types.decisions import (
    Action,
    FillModel,
    LedgerKind,
    Liquidity,
    OrderKind,
    OrderRole,
    OrderStatus,
    Regime,
)
from tracepaper.strategies.types.market import Category, RunKind, Side, Source
from tracepaper.strategies.units import MONEY_DECIMALS, any_of

Value = int | float | str | bytes | bytearray | None
Row = tuple[Value, ...]

SEQUENCE_LIMIT: Final = 2**28
"""Steps that one run can hold: 268 million."""

INTEGER: Final = "INTEGER"
REAL: Final = "REAL"
TEXT: Final = "TEXT"
BLOB: Final = "BLOB"

# The scale of an integer, and how a column is shown: see ``view_columns.shown``.
MONEY: Final = str(MONEY_DECIMALS)
PRICE: Final = "i.price_decimals"
QUANTITY: Final = "i.quantity_decimals"
VOLUME: Final = "i.volume_decimals"
TURNOVER: Final = "i.turnover_decimals"
TIME: Final = "time"
HASH: Final = "hash"
FLAG: Final = "flag"
"""A boolean: 1 or 0."""

SOURCE_CODES: Final = {Source.ARCHIVE: None, Source.STREAM: 1, Source.REST: 2}
"""The stored value of each source of a bar."""


class Column(Struct, frozen=True, kw_only=True):
    """A column of a table."""

    name: str
    kind: str = INTEGER  # what SQLite stores
    doc: str = ""  # its documentation; empty if no view shows it
    scale: str = ""
    enum: type[StrEnum] | None = None  # the enumeration whose values it stores
    null: bool = False
    is_key: bool = False
    refers: str = ""  # ``table.column`` of a foreign key, which SQLite checks
    read: Callable[[Any], Value] | None = None  # gets it from a record; else attribute ``name``
    shown: str = ""  # its name in views, if different
    sql: str = ""  # a view's expression for it, with {t} for the table; else the column

    def value(self, stored: object) -> Value:
        """Return the value that this column stores of the record *stored*."""
        if self.read is not None:
            return self.read(stored)
        value: Value = getattr(stored, self.name)
        return value.value if isinstance(value, StrEnum) else value


def _key(name: str, refers: str = "", kind: str = INTEGER) -> Column:
    return Column(name=name, is_key=True, refers=refers, kind=kind)


def _whole(name: str, doc: str = "", scale: str = "", *, null: bool = False) -> Column:
    return Column(name=name, doc=doc, scale=scale, null=null)


def _real(name: str, doc: str = "", *, null: bool = True) -> Column:
    return Column(name=name, kind=REAL, doc=doc, null=null)


def _text(
    name: str, doc: str = "", enum: type[StrEnum] | None = None, *, null: bool = False
) -> Column:
    return Column(name=name, kind=TEXT, doc=doc, enum=enum, null=null)


def _text_or_default(name: str, doc: str, default: StrEnum) -> Column:
    """Return a text column in which null stands for *default*."""

    def read(stored: object) -> Value:
        value: StrEnum = getattr(stored, name)
        return None if value is default else value.value

    return Column(
        name=name,
        kind=TEXT,
        doc=doc,
        enum=type(default),
        null=True,
        read=read,
        sql=f"coalesce({{t}}.{name}, '{default.value}')",
    )


def _flag(name: str, doc: str) -> Column:
    """Return a boolean column that stores null for false."""
    return Column(
        name=name,
        doc=doc,
        scale=FLAG,
        null=True,
        read=lambda stored: 1 if getattr(stored, name) else None,
        sql=f"coalesce({{t}}.{name}, 0)",
    )


def _blob(name: str, doc: str = "", scale: str = "", *, null: bool = False) -> Column:
    return Column(name=name, kind=BLOB, doc=doc, scale=scale, null=null)


def _is_usual(gate: Gate) -> bool:
    """Return whether nearly every decision measures *gate*: it tests no forecast and no risk."""
    return not gate.of_prediction and gate.kind is not GateKind.RISK


PLAUSIBLE: Final = "plausible"
"""The gate whose measure changes with every bar; it has its own column in ``steps``."""
STEADY_GATES: Final = ("operator", "warm", "late", "gap", "tradable")
"""Gates whose measure nearly always equals their ``usual_measure``."""
STEP_GATES: Final = tuple(
    name for name in gate_order() if _is_usual(GATES[name]) and name != PLAUSIBLE
)
"""Gates whose measures are stored in ``steps.measures``."""
ANSWER_GATES: Final = tuple(name for name in gate_order() if not _is_usual(GATES[name]))
"""Gates whose measures are stored in ``answers``; a decision without them needs no row there."""


def usual_measure(gate: str, threshold: float) -> float:
    """Return the measure of one of ``STEADY_GATES`` that ``steps.measures`` leaves out."""
    return 0.0 if gate == "late" else threshold


def measure_name(gate: str) -> str:
    """Return the name of the column with the measure of *gate*, e.g. ``measure_risk_notional``."""
    return f"measure_{gate.replace('.', '_')}"


def _measures(gates: tuple[str, ...]) -> tuple[Column, ...]:
    return tuple(_real(measure_name(gate)) for gate in gates)


_RUNS = (
    _key("run_key"),
    _text("run_id", "the run"),
    _text("kind", any_of(RunKind), RunKind),
    Column(name="started_at_ms", doc="wall time of the start", scale=TIME, shown="started_ms"),
    _text("parent_run_id", "the run whose account it took over", null=True),
    _whole("period_start_ms", "first open time with a decision", TIME),
    _whole("interval_ms", "milliseconds of a bar"),
    _text("config", "the whole configuration as JSON"),
    _text("config_sha256", "SHA-256 of the settings that affect decisions"),
    _text("code_version", "version of tracepaper, its commit and a hash of its sources"),
    _text("strategy", "the strategy's name"),
    _text(
        "strategy_sha256",
        "SHA-256 of a user's class and of what it imports from its own folder; else empty",
    ),
    _text("model_id", "the model at the start; empty without one"),
    _text("model_sha256", "SHA-256 of its weights and its card"),  # its row in ``models``
    _text("mode", "`step`, `batched` or `scan`"),
    _text("device", "where the model ran"),
    _text("dtype", "the model's number type"),
    _whole("threads", "threads of the model"),
    _text("backend", "the attention backend; empty without a model"),
    _text("torch_version", "version of torch; empty without a model"),
    _text("instruction_set", "instruction set of torch, and the processor; empty without a model"),
    _text("libraries", "JSON: versions of the other numeric libraries"),
    _text("warnings", "JSON array of sentences"),
    _whole("gate_horizon", "the forecast horizon that gates use, in bars", null=True),
    _whole(
        "bucket_bars",
        "bars of a bucket of `v_explanations`: 1 if the model sees at most 64, else 64",
    ),
    _blob("sessions", null=True),  # see ``strategies/sessions.py``
    Column(
        name="sees_account",
        doc="1 if decisions depend on the run's fills",
        null=True,
        read=lambda run: 1 if run.sees_account else None,
    ),
    _text("account", "JSON: the account that it took over", null=True),
    _text("previous_run_id", null=True),  # the run opened before it in this database
    _whole("previous_step_count", null=True),  # its steps when this run was opened
    _blob("previous_head", null=True),
    _whole("opened_gate_sets"),  # how many gate sets were known when the run was opened
    _blob("opened_digest"),  # chain's first link: the columns above, instruments, gate sets
    _whole("step_count", "steps stored"),
    _blob("head_digest", "digest of the last commit; keep a copy elsewhere", HASH),
)
OPENED_UNTIL: Final = "opened_digest"
"""The first column of ``runs`` that is no part of the row hashed at the opening."""

_MODELS = (
    _key("model_sha256", kind=TEXT),  # SHA-256 over the weights' hash and the card's text
    _text("weights_sha256"),
    _text("card"),  # JSON with sorted keys, without the ids computed from it
)

_INSTRUMENTS = (
    _key("run_key", "runs.run_key"),
    _key("instrument"),  # index in the run
    Column(name="instrument_id", kind=TEXT, read=lambda instrument: instrument.id),
    _text("category", enum=Category),
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
    Column(name="max_leverage", null=True, read=lambda instrument: instrument.max_leverage or None),
    Column(
        name="risk_tiers",
        kind=TEXT,
        null=True,
        read=lambda instrument: (
            json.encode(instrument.risk_tiers).decode() if instrument.risk_tiers else None
        ),
    ),
)

_STEP: Final = (_key("run_key"), _key("sequence"))
_GATE_SETS = (
    _key("run_key", "runs.run_key"),
    _key("gate_set"),
    _key("ordinal"),  # index in the set; the bit in ``outcomes.passed``
    _text("gate", "name of the gate"),
    _real("threshold", "what the measure was compared with", null=False),
    # The step that first used it; null: known when the run was opened.
    _whole("sequence", null=True),
)

_COMMITS = (
    _key("run_key", "runs.run_key"),
    _key("first_sequence"),
    _whole("last_sequence"),
    _blob("digest"),  # link of the chain
    _text("contents"),  # JSON: per table the number of rows and the first digits of their hash
)

# One row holds a step and its bar, since the event of nearly every step is a bar.
_BAR_FIELDS = (
    _whole("open_time_ms", null=True),  # with no instrument: a close with all instruments' bars
    Column(name="open", doc="first price", scale=PRICE, null=True),
    Column(name="high", doc="highest price", scale=PRICE, null=True),
    Column(name="low", doc="lowest price", scale=PRICE, null=True),
    Column(name="close", doc="last price", scale=PRICE, null=True),
    Column(name="volume", doc="volume in base", scale=VOLUME, null=True),
)
_TURNOVER: Final = Column(
    name="turnover", doc="volume in quote currency; null if unknown", scale=TURNOVER, null=True
)
_BAR = (_whole("instrument", null=True), *_BAR_FIELDS)  # the instrument's index in the run
_SEEN = (
    _whole("market_delay_ms", null=True),  # market_ms minus the bar's close time; null: 0
    _whole("seen_delay_ms", null=True),  # seen_ms minus market_ms; null: 0
    _whole("source", null=True),  # a value of ``SOURCE_CODES``
)
# Columns that are rarely null come first, because a row is stored without the nulls at its end.
_STEPS = (
    *_STEP,
    _whole("holding"),  # sequence of its row in ``holdings``
    *_BAR,
    _whole("unrealized_pnl", null=True),  # of the position
    _whole("outcome", null=True),  # sequence of its row in ``outcomes``; null: no decision
    _whole("target_quantity", "position wanted, signed", QUANTITY, null=True),
    *_measures((PLAUSIBLE,)),
    _TURNOVER,
    _whole("shadows", null=True),  # sequence of its rows in ``shadow_steps``; null: none
    _whole("account_unrealized_pnl", null=True),  # null if equal to the position's
    _whole("equity", null=True),  # null if equal to cash + the account's unrealized_pnl
    *_SEEN,
    # JSON object by gate: the measures of ``STEP_GATES`` that differ from ``usual_measure``.
    Column(name="measures", kind=TEXT, null=True),
    _whole("ignored", null=True),  # 1: a revision of a bar, or a repeated settlement
)
BAR_COLUMNS: Final = tuple(column.name for column in (*_BAR, _TURNOVER, *_SEEN))
BAR_FIELDS: Final = (*(column.name for column in _BAR_FIELDS), _TURNOVER.name)
"""The columns of a bar that store its field unchanged."""

_STATES = (*_STEP, _blob("state"))  # the engine's state, at the steps that changed it

_EVENTS = (
    *_STEP,
    _text("kind"),
    _whole("instrument", null=True),
    _whole("market_ms", "market time of the event", TIME),
    _whole("seen_ms", "market time at which the engine saw it", TIME),
    _text("content", "JSON of its other fields, with numbers as stored"),
    _blob("books", null=True),  # packed books of a ``depth`` event
    _text(
        "price_verdict",
        "why a price or rate that jumped was accepted or not, or which settlement was given up",
        null=True,
    ),
)

# Columns that are rarely null come first here too.
_ANSWERS = (
    *_STEP,
    # JSON of the strategy's named numbers and texts. It is here, not in ``steps``, so that a
    # decision without a note stores nothing for it.
    Column(name="note", kind=TEXT, null=True),
    _whole("horizon", "horizon of the next six columns, in bars", null=True),
    _real("mean_return", "the model's expected log return"),
    _real("stdev_return", "its standard deviation"),
    _real("p_down", "probability of a fall"),
    _real("p_flat", "probability of neither"),
    _real("p_up", "probability of a rise"),
    _real("volatility", "expected volatility of the return"),
    _blob("horizons", null=True),  # packed as ``HORIZONS``
    _blob("members", null=True),  # packed as ``Forecast.auxiliary``
    _real("confidence_entropy", "1 minus the mean normalised entropy of attention"),
    _real("rollout_entropy", "entropy of the rollout by age, as a share of the maximum"),
    _real("content_free", "confidence that mask and encoding alone would give"),
    _real("recent_mass", "share of the rollout on the newest quarter of the context"),
    _real("event_focus", "share of the rollout on its event bars, before that quarter"),
    _real("older_mass", "share of the rollout before the oldest bucket"),
    _real("shift", "Jensen-Shannon distance from the last bar's rollout"),
    _real("l1_error", "bound on the difference of the weights' sum from 1"),
    _blob("entropy", null=True),  # little-endian float32, layer-major
    Column(name="buckets", kind=TEXT, null=True),  # JSON of ``Explanation.buckets``, newest first
    *_measures(ANSWER_GATES),
    _blob("heads", null=True),  # msgpack of ``HeadForecasts``
    _real(
        "expected_shortfall_long",
        "mean loss of a long in the worst 2.5 % of cases, as a fraction of its notional",
    ),
    _real("expected_shortfall_short", "the same of a short, as a fraction of its notional"),
    _real("expected_drawdown", "median of the largest fall until the horizon, as a fraction"),
    _whole("learned_regime", "the network's most probable regime, from 1, the calmest", null=True),
    _real("learned_allocation", "position from -1 to 1 that the network would hold"),
    _real("dropout_spread", "standard deviation of mean_return over passes with dropout"),
    _whole(
        "late_deadline_ms",
        "the deadline in ms that the forecaster missed; null if it did not",
        null=True,
    ),
)
HEAD_COLUMNS: Final = (
    "heads",
    "expected_shortfall_long",
    "expected_shortfall_short",
    "expected_drawdown",
    "learned_regime",
    "learned_allocation",
    "dropout_spread",
)
"""Columns that auxiliary heads fill."""
FORECAST_COLUMNS: Final = (
    "mean_return",
    "stdev_return",
    "p_down",
    "p_flat",
    "p_up",
    "volatility",
)
"""Columns with one number per horizon of a forecast, in the order of ``answers.horizons``."""
HORIZONS: Final = "<B{horizons}I{numbers}d"
"""Format of ``answers.horizons``: a byte of ``GIVEN_BITS``, all horizons, then for each given
column the numbers at all horizons but ``answers.horizon``. NaN stands for a non-finite number."""
GIVEN_BITS: Final = tuple(1 << place for place in range(len(FORECAST_COLUMNS)))
"""The bit of each forecast column; it is set in ``answers.horizons`` if the model gives it."""
EXPLANATION_COLUMNS: Final = (
    "confidence_entropy",
    "rollout_entropy",
    "content_free",
    "recent_mass",
    "event_focus",
    "older_mass",
    "shift",
    "l1_error",
    "entropy",
    "buckets",
)

_ACCOUNT: Final = _key("account")  # 0: the run's account; i: shadow i of the step

_OUTCOMES = (
    *_STEP,
    _text("action", any_of(Action), Action),
    _text("reason", "the strategy's reason"),
    _whole("allowed", "1 if no gate refused it", FLAG),
    _text("refused_by", "the first gate that failed; null if none did", null=True),
    _whole("gate_set"),
    _whole("passed"),  # bit i is set if gate i of the set passed
    _text("regime", any_of(Regime), Regime),
    _text(
        "unfilled_reason",
        "why the target is neither reached nor ordered; null if it is",
        null=True,
    ),
    _whole(
        "regime_cell",
        "regime of the card's own regimes, from 1; null if the card has none",
        null=True,
    ),
    _real("size_factor", "factor on the size, by confidence in the volatility; null if not used"),
)

_HOLDINGS = (
    *_STEP,
    _ACCOUNT,
    _text("shadow", "its name, such as `ungated`", null=True),
    _whole("instrument", null=True),
    _whole("quantity", "the instrument's position, signed", QUANTITY, null=True),
    _whole("entry_notional", "the cost of the position, signed", MONEY, null=True),
    _whole("realized_pnl", null=True),
    _whole("fees_paid", null=True),
    _whole("funding_paid", null=True),
    _whole("cash", "cash of the account", MONEY),
    _whole("account_realized_pnl"),
    _whole("account_fees_paid"),
    _whole("account_funding_paid"),
    _whole(
        "margin",
        "margin that the position ties up; null without margin",
        MONEY,
        null=True,
    ),
)

_ORDERS = (
    *_STEP,
    _key("ordinal"),
    _text("order_id", "sequence and ordinal of its creation"),
    _whole("instrument"),
    _text("side", "`BUY` or `SELL`", Side),
    _whole("quantity", "quantity ordered", QUANTITY),
    _whole("filled", "quantity filled so far", QUANTITY),
    _text("status", "status of the order", OrderStatus),
    _text("reason", "why the order was placed"),
    _whole("created_ms", "market time of its creation", TIME),
    _whole("eligible_ms", "market time from which a quote may fill it", TIME),
    # The columns from here on are null for a market order that follows the signal.
    _text_or_default("kind", any_of(OrderKind), OrderKind.MARKET),
    _text_or_default("role", f"what it is for: {any_of(OrderRole)}", OrderRole.SIGNAL),
    Column(
        name="price",
        doc="price of a limit; null without one",
        scale=PRICE,
        null=True,
        shown="limit_price",
    ),
    Column(
        name="trigger",
        doc="price that triggers a stop; null without one",
        scale=PRICE,
        null=True,
        shown="trigger_price",
    ),
    _flag("post_only", "1 if it may only add liquidity"),
    _flag("reduce_only", "1 if it may only close, never open or reverse"),
    _whole(
        "until_ms",
        "market time at which it expires; null: it rests until it is canceled",
        TIME,
        null=True,
    ),
    Column(
        name="tag",
        kind=TEXT,
        doc="the strategy's name for it; empty without one",
        null=True,
        read=lambda order: order.tag or None,
        sql="coalesce({t}.tag, '')",
    ),
    _flag("triggered", "1 once its trigger price was touched"),
)

_FILLS = (
    *_STEP,
    _ACCOUNT,
    _key("ordinal"),
    _text("order_id", "the order: sequence and ordinal of its creation"),
    _whole("instrument"),
    _text("side", "`BUY` or `SELL`", Side),
    _whole("quantity", "quantity filled", QUANTITY),
    _whole("price", "price, including spread and slippage", PRICE),
    _whole("reference_price", "mid or open before spread and slippage", PRICE),
    _whole("notional", "price times quantity", MONEY),
    _whole("fee", "fee in quote currency", MONEY),
    _whole("fee_base", "fee in base currency, as spot buys pay it", QUANTITY),
    _text("liquidity", "`TAKER`, or `MAKER` if the order had rested", Liquidity),
    _text("model", f"what it was filled against: {any_of(FillModel)}", FillModel),
    _text("reason", "why the order was placed"),
    _whole("filled_ms", "market time of the fill", TIME),
    _flag(
        "while_down", "1 if the fill is inside a bar during which the daemon was down or cut off"
    ),
    _text("shadow", null=True),  # its name, such as ``ungated``
)

_TRADES = (
    *_STEP,  # step, account and ordinal are those of the fill that closed it
    _ACCOUNT,
    _key("ordinal"),
    _whole("opened_sequence"),  # the fill that opened it, of the same account
    _whole("opened_ordinal"),
    _whole("quantity", "largest quantity held, not negative", QUANTITY),
    _whole("entry_quantity", scale=QUANTITY),
    _whole("entry_notional", scale=MONEY),  # price times quantity of the entry fills
    _whole("exit_quantity", scale=QUANTITY),
    _whole("exit_notional", scale=MONEY),
    _whole(
        "gross",
        "profit at the reference prices of its fills, before costs and funding, after fees paid in "
        "base currency",
        MONEY,
    ),
    _whole("fees", "fees of its fills in quote currency, a part of `costs`", MONEY),
    _whole("funding", "funding while it was held, positive if paid", MONEY),
    _whole("stake", "cost of the largest quantity held, at the mean entry price", MONEY),
)

_LEDGER = (
    *_STEP,
    _key("ordinal"),
    _text("kind", any_of(LedgerKind), LedgerKind),
    _whole("instrument", null=True),
    _whole("amount", "the change of cash", MONEY),
    _whole("balance", "cash after it", MONEY),
    _text("order_id", "the order that caused it; null if none did", null=True),
    _whole("market_ms", "market time of the step's event", TIME),
)

_HALTS = (
    *_STEP,
    _text("breached"),  # the gate of the breached limit
    _real("measure", null=False),
    _real("threshold", null=False),
    _whole("since_ms"),
)

_SHADOW_STEPS = (
    *_STEP,
    _ACCOUNT,
    _whole("holding"),  # sequence of its row in ``holdings``, same account
    _whole("confirmed"),  # 1 if the step's bar confirmed the position for another horizon
    # Null if the account's worth is its position at the step's close. Only rows with these nulls
    # can be shared with later steps.
    _whole("unrealized_pnl", null=True),
    _whole("account_unrealized_pnl", null=True),
    _whole("equity", null=True),
)

_CHECKS = (
    _key("run_key", "runs.run_key"),
    _key("sequence"),
    _key("checked_ms"),
    _key("kind", kind=TEXT),
    _blob("head", "digest of its commit; the row is current while that is the run's last", HASH),
    _text("result", "`identical`, `different` or `failed`"),
    _whole("compared", "decisions that were compared"),
    _whole("identical", "decisions that were equal, bit for bit or within tolerance"),
    _text("content", "JSON: the period, the first difference, or why it failed"),
)

APPLICATION_ID: Final = 0x74706170
"""The file's ``PRAGMA application_id``: "tpap" in ASCII."""

_BEGINS = (_text("account", "JSON: the account that the first live run of the file takes over"),)

TABLES: Final[dict[str, tuple[Column, ...]]] = {
    "begins": _BEGINS,
    "runs": _RUNS,
    "models": _MODELS,
    "instruments": _INSTRUMENTS,
    "gate_sets": _GATE_SETS,
    "commits": _COMMITS,
    "steps": _STEPS,
    "events": _EVENTS,
    "states": _STATES,
    "answers": _ANSWERS,
    "outcomes": _OUTCOMES,
    "holdings": _HOLDINGS,
    "orders": _ORDERS,
    "fills": _FILLS,
    "trades": _TRADES,
    "shadow_steps": _SHADOW_STEPS,
    "ledger": _LEDGER,
    "halts": _HALTS,
    "checks": _CHECKS,
}
"""The columns of every table, in their stored order."""


def stored_columns(table: str) -> tuple[str, ...]:
    """Return the names of the columns of *table*, in their stored order."""
    return tuple(column.name for column in TABLES[table])


def row_reader(columns: Sequence[Column], *given: str) -> Callable[..., list[Value]]:
    """Return the function of a record that reads *columns*, each as :meth:`Column.value` does.

    The values of the columns *given* are its other arguments.
    """
    # Python 3.11 takes five times longer for the ``value`` of an enumeration than for this.
    read_all = attrgetter(
        *[
            f"{column.name}._value_" if column.enum and not column.null else column.name
            for column in columns
            if column.name not in given
        ]
    )
    places = [at for at, column in enumerate(columns) if column.name in given]
    others = [(at, read) for at, column in enumerate(columns) if (read := column.read) is not None]

    def values_of(stored: object, *values_given: Value) -> list[Value]:
        values: list[Value] = [*read_all(stored)]
        for at, value in zip(places, values_given):  # noqa: B905 - of one length, at every row
            values.insert(at, value)
        for at, read in others:
            values[at] = read(stored)
        return values

    return values_of


def place(table: str, name: str) -> int:
    """Return the index of the column *name* in a row of *table*."""
    return stored_columns(table).index(name)
