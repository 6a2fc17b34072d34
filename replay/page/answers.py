"""The types of the HTTP interface's answers.

Times are UTC milliseconds (``…_ms``); returns, log returns and shares are fractions. Numbers for
drawing are floats; ``…_text`` is the exact stored decimal. The columns of an answer have equal
lengths; a null in a column is an unknown value.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from tracepaper.replay.document.charts import ChartRole, LineDash

Number = float | None


class Instrument(Struct, frozen=True):
    """A traded instrument."""

    id: str  # category:SYMBOL
    symbol: str
    base: str
    quote: str
    price_decimals: int


class RunRow(Struct, frozen=True):
    """One run, in a list of runs."""

    run_id: str
    kind: str  # live or replay
    strategy: str
    instruments: list[str]
    interval_ms: int
    started_ms: int
    ended_ms: int | None
    first_ms: int | None  # open of the first decided bar
    last_ms: int | None
    decisions: int | None  # null until a long run is counted; `counted` waits for it
    fills: int
    equity: Number
    total_return: Number
    model_id: str
    database: str  # the file's name, without its folder
    is_served: bool = False  # the run of the daemon that answers
    state: str = ""  # damaged, halted by a gate, or no bar yet


class UnreadableDatabase(Struct, frozen=True):
    """A database that could not be read, with the reason."""

    database: str
    error: str


class SweepRow(Struct, frozen=True):
    """One sweep, in a list of sweeps."""

    sweep_id: str
    strategy: str
    objective: str
    cells: int  # completed runs
    is_whole: bool
    database: str


class Runs(Struct, frozen=True):
    """All runs of all databases, the newest first, and all sweeps."""

    runs: list[RunRow]
    refused: list[UnreadableDatabase] = field(default_factory=list)
    sweeps: list[SweepRow] = field(default_factory=list)


class GateInfo(Struct, frozen=True):
    """A gate of a run, with its last ``threshold``."""

    gate: str
    meaning: str  # of the measure
    unit: str
    threshold: float
    is_switch: bool  # answers yes or no
    is_capped: bool  # once passed, its measure says no more
    refused: int | None  # decisions that it refused first; null until they are counted
    key: str = ""  # of the configuration, by which a what-if may move the threshold
    is_count: bool = False  # whether that takes whole numbers alone


class AccountFigures(Struct, frozen=True):
    """An account of the run."""

    name: str  # "this run" for the run's account
    title: str  # the name to show
    source: str  # its origin, in a few words
    start: float  # its first equity
    equity: float
    total_return: float
    tone: ChartRole = "muted"  # of its line in every chart
    width: float = 1.0
    dash: LineDash = "solid"
    realized: Number = None
    unrealized: Number = None
    fees: Number = None
    funding: Number = None
    fills: int | None = None
    mean_exposure: Number = None


class InstrumentPosition(Struct, frozen=True):
    """The position in one instrument after the newest step."""

    instrument: str
    side: str  # LONG, SHORT or FLAT
    quantity_text: str  # not negative
    average_price_text: str | None
    text: str  # in words, with the orders that protect it: "long 0.096 BTC from 103,634.6, …"
    unrealized: Number
    margin: Number = None
    liquidation_price: Number = None


class LastRefusal(Struct, frozen=True):
    """The newest decision that a gate refused."""

    sequence: int
    instrument: str
    open_time_ms: int
    gate: str
    missed: str  # by how much the gate failed: "short by .0096"; empty for a switch


class LastFill(Struct, frozen=True):
    """The newest fill of the run's account."""

    sequence: int  # of the step
    decision_sequence: int | None
    instrument: str
    side: str
    quantity_text: str
    filled_ms: int
    reason: str


class ParityState(Struct, frozen=True):
    """The newest comparison of the run with its replay."""

    identical: int
    decisions: int
    day: str  # 2025-06-02; empty if the whole run was compared
    at_ms: int
    error: str = ""  # why it could not be compared
    first_difference: str = ""  # with its cause

    @property
    def is_same(self) -> bool:
        """Whether every decision was compared and is the same."""
        return not self.error and self.identical == self.decisions


class NoteSeries(Struct, frozen=True):
    """A series of numbers that the strategy noted."""

    instrument: str
    name: str


class Run(Struct, frozen=True):
    """One run: its summary, configuration and accounts."""

    row: RunRow
    config: dict[str, dict[str, Any]]
    fees: dict[str, float]  # by their keys in [execution], the usual ones where those are unset
    instruments: list[Instrument]
    gates: list[GateInfo]
    accounts: list[AccountFigures]  # the run's first
    holdings: list[InstrumentPosition]
    last_refusal: LastRefusal | None
    last_fill: LastFill | None
    parity: ParityState | None  # None without a comparison
    damage: str  # in a sentence; empty without damage
    halt: str  # the sentence of the report on a halt that lasts until RESUME; else empty
    below_zero: str  # since when nothing of the account was left, and its lowest equity; or empty
    without_fills: str  # why nothing filled so far, and that a longer history decides otherwise
    absent: str  # how long no trade was possible for absent bars, and why; empty if not long
    notes: list[NoteSeries]
    bars_from_ms: int | None  # open of the first bar, those of the warm-up included
    first_sequence: int | None  # of a decision
    last_sequence: int | None
    warm_sequence: int | None  # the first decision after the warm-up
    warming: str  # how many bars it has, and when it may trade; empty once it is warm
    has_model: bool
    has_attention: bool  # whether its newest forecast has an attribution
    has_regime: bool  # whether a decision has one
    gate_horizon: int  # bars


class Candles(Struct, frozen=True):
    """Candles of one instrument with their decisions and notes, as columns.

    For each gate, ``spare`` is the smallest margin ÷ threshold in a cell, and ``failed`` counts the
    decisions that failed it. Other columns are those of the cell's last decision; ``sequence`` is
    null if there was none.
    """

    instrument: str
    interval_ms: int  # length of a cell: the run's interval, or a multiple
    open_time_ms: list[int]
    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]
    volume: list[float]
    sequence: list[int | None]
    action: list[str]
    refused_by: list[str | None]
    regime: list[str]
    confidence_entropy: list[Number]
    held: list[float]  # the position after the bar, signed, in base
    mean_return: list[Number]  # log return at the gate's horizon
    stdev_return: list[Number]
    spare: dict[str, list[Number]]  # by gate
    failed: dict[str, list[int]]  # by gate
    numbers: dict[str, list[Number]]  # noted by the strategy, by name


class Equity(Struct, frozen=True):
    """Equity of every account as columns, at the end of each cell; ``low`` is the lowest in it."""

    interval_ms: int
    time_ms: list[int]
    equity: dict[str, list[float]]  # by account, the run's first
    low: dict[str, list[float]]
    exposure: list[float]  # of the run's account: value of all positions ÷ equity, signed


class FillMark(Struct, frozen=True):
    """A fill on the chart."""

    sequence: int
    decision_sequence: int | None
    order_id: str
    instrument: str
    side: str
    quantity_text: str
    price: float
    filled_ms: int
    reason: str
    role: str  # of its order: SIGNAL, STOP, TARGET, TRAILING, UNTIL, LIST, COMMAND or LIQUIDATION


class OrderLine(Struct, frozen=True):
    """An order that rested at a price; ``until_ms`` is null while it rests."""

    order_id: str
    instrument: str
    role: str
    kind: str
    side: str
    price: float
    quantity_text: str
    from_ms: int
    until_ms: int | None
    status: str


class GapMark(Struct, frozen=True):
    """Bars that are absent, or that were late or repaired."""

    instrument: str
    from_ms: int
    until_ms: int
    cause: str
    repaired_by: str


class Marks(Struct, frozen=True):
    """The marks on the candles of a range."""

    fills: list[FillMark]
    orders: list[OrderLine]
    gaps: list[GapMark]
    is_cut: bool = False  # only the newest are listed


class Forecast(Struct, frozen=True):
    """The model's forecast at the gates' horizon; returns are log returns."""

    horizon: int
    mean_return: float
    stdev_return: Number
    comes_ms: int  # close of the forecast bar
    realised: Number  # the realised return; null before it is known


class Bucket(Struct, frozen=True):
    """A block of bars and its share of the rollout."""

    from_ms: int | None  # null: all older bars
    until_ms: int | None
    weight: float


class Decision(Struct, frozen=True):
    """One decision: its place on the chart, and its document as parts, in reading order."""

    run_id: str
    sequence: int
    instrument: str
    open_time_ms: int
    close_time_ms: int
    close: float
    action: str
    refused_by: str | None
    title: str  # its result: "Kept long 0.058 BTC", "Refused by shifted, over by .00094"
    parts: list[dict[str, Any]]
    forecast: Forecast | None
    attended: list[Bucket]  # the newest first; empty without an attribution
    digest: str  # of its commit
    previous: int | None  # sequences of the neighbouring decisions of the instrument
    following: int | None


class Progress(Struct, frozen=True, tag="progress", tag_field="type"):
    """A progress line of an answer in lines."""

    share: float  # from 0 to 1
    doing: str


class FailedTask(Struct, frozen=True, tag="failed", tag_field="type"):
    """The last line of an answer that failed."""

    error: str


class FinishedTask(Struct, frozen=True, tag="done", tag_field="type"):
    """The last line of an answer that succeeded."""

    result: Any


class Document(Struct, frozen=True):
    """A document as parts, in reading order."""

    title: str
    parts: list[dict[str, Any]]


class Error(Struct, frozen=True):
    """Why a request was rejected, in a sentence that says what to do."""

    error: str
