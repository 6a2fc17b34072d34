"""The vocabulary, top to bottom in flow order; read this file first.

Numbers. Prices, quantities, volume and turnover are integers of 10⁻ᵏ with k kept per
instrument (``Instrument.price_decimals`` and so on); money (cash, fees, funding, notional,
profit) is an integer of 10⁻¹⁰ (``MONEY_DECIMALS``). Forecasts and features are floats. Every
time is an ``int`` of UTC milliseconds of *market time*.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

from tracepaper.strategies.fitted import FittedConfidence, GateCoverage, RegimeCells

MONEY_DECIMALS: Final = 10
MONEY_SCALE: Final = 10**MONEY_DECIMALS
MONEY_LIMIT: Final = 2**63 - 1
BLOCK_BARS: Final = 64
"""Bars in one absolute block of time: the unit of window hashes and of rollout buckets."""


class Category(StrEnum):
    """A Bybit product category, or stock; symbols are unique only within one."""

    LINEAR = "linear"
    SPOT = "spot"
    STOCK = "stock"  # shares, from candle files alone

    @property
    def is_cash(self) -> bool:
        """Whether what is bought is paid in full and owned, so that nothing is sold short."""
        return self is not Category.LINEAR


EXCHANGE_CATEGORIES: Final = (Category.LINEAR, Category.SPOT)
"""The categories that Bybit serves, and that a daemon can trade."""


class Source(StrEnum):
    """Where a bar came from."""

    STREAM = "stream"
    REST = "rest"
    ARCHIVE = "archive"


class Side(StrEnum):
    """The side of a trade, an order or a fill."""

    BUY = "BUY"
    SELL = "SELL"


class RunKind(StrEnum):
    """What drove a run."""

    LIVE = "live"
    DEMO = "demo"
    REPLAY = "replay"


LEVERAGE_DECIMALS: Final = 2


class RiskTier(Struct, frozen=True, gc=False):
    """What the exchange asks of a position up to a size: the larger, the less leverage."""

    limit: int  # money: notional of the position; 0 where there is no limit
    maintenance: int  # maintenance margin, 10⁻¹⁰ of the notional
    max_leverage: int  # 10⁻²
    deduction: int  # money, off the maintenance margin


class Instrument(Struct, frozen=True, gc=False):
    """One tradable symbol: its scales and its filters, as the exchange publishes them."""

    category: Category
    symbol: str
    base_coin: str
    quote_coin: str
    price_decimals: int
    quantity_decimals: int
    volume_decimals: int
    turnover_decimals: int
    tick_size: int  # 10^-price_decimals
    quantity_step: int  # 10^-quantity_decimals
    min_quantity: int  # 10^-quantity_decimals; 0 where there is no limit
    max_quantity: int  # of one market order; 0 where there is no limit
    min_notional: int  # money; 0 where there is no limit
    funding_interval_minutes: int = 0  # 0 where there is no funding
    status: str = "Trading"
    max_leverage: int = 0  # 10⁻²; 0 where it is not known
    risk_tiers: tuple[RiskTier, ...] = ()  # smallest first; empty where they are not known

    @property
    def id(self) -> str:
        """The key of this instrument everywhere: ``linear:BTCUSDT``."""
        return f"{self.category.value}:{self.symbol}"


# ---------------------------------------------------------------- events


class Bar(Struct, frozen=True, gc=False):
    """A closed candle. ``turnover`` is None where the archive lacks it."""

    instrument: str
    open_time_ms: int
    interval_ms: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    turnover: int | None
    market_ms: int  # ``ts`` of the closing frame; the bar's close for REST and archive
    seen_ms: int  # market time at which the feed handed it on; the bar's close in an archive
    source: Source

    @property
    def close_time_ms(self) -> int:
        """The first millisecond after the bar."""
        return self.open_time_ms + self.interval_ms


class Quote(Struct, frozen=True, gc=False):
    """Best bid and ask with their sizes."""

    instrument: str
    bid: int
    bid_size: int  # 10^-quantity_decimals
    ask: int
    ask_size: int
    market_ms: int
    seen_ms: int


class Depth(Struct, frozen=True, gc=False):
    """The best levels of an order book as they stood at one time.

    ``bids`` and ``asks`` hold little-endian int64 pairs of price and size, from the touch outwards:
    10^-price_decimals and 10^-quantity_decimals of the instrument.
    """

    instrument: str
    bids: bytes
    asks: bytes
    market_ms: int  # of the newest frame that it is made of
    seen_ms: int  # when it stood so


class Depths(Struct, frozen=True, gc=False):
    """Order books of one instrument in a row, one each ``every_ms`` of market time, oldest first.

    ``books`` holds them as ``strategies/books.py`` packs them. They go on from those before unless
    ``cause`` says why not. Market time is that of the newest book.
    """

    instrument: str
    cause: str  # of the gap before them; empty where there is none
    first_ms: int
    every_ms: int
    count: int
    levels: int  # a side
    books: bytes
    market_ms: int
    seen_ms: int

    @property
    def next_ms(self) -> int:
        """The time of the book that would go on from these."""
        return self.first_ms + self.count * self.every_ms


class Trade(Struct, frozen=True, gc=False):
    """A public trade; ``side`` is the taker's."""

    instrument: str
    trade_id: str
    side: Side
    price: int
    quantity: int
    market_ms: int
    seen_ms: int


class Mark(Struct, frozen=True, gc=False, omit_defaults=True):
    """A mark price, used to value positions where the exchange sends one.

    What its ticker shows beside it says whether a price is believed that jumps: the index price,
    the last trade, and the announced funding rate (10⁻¹⁰) where that is beyond all that is usual.
    """

    instrument: str
    price: int
    market_ms: int
    seen_ms: int
    index: int | None = None
    last: int | None = None
    funding_rate: int | None = None


class Funding(Struct, frozen=True, gc=False):
    """A funding settlement; ``rate`` is an integer of 10⁻¹⁰, paid by longs where positive."""

    instrument: str
    rate: int
    market_ms: int
    seen_ms: int


class InstrumentChange(Struct, frozen=True, gc=False):
    """The exchange's filters for an instrument, at the start of a run and when they change."""

    instrument: Instrument
    market_ms: int
    seen_ms: int


class ModelChange(Struct, frozen=True, gc=False):
    """The process (re)started, and its model was warmed with bars that the run already holds.

    A replay of the recorded run warms its own model at the same place with the same bars.
    ``warm_from`` names the first bar per instrument; (instrument, open_time_ms) pairs. With another
    model and no such bar it is a promotion: that model was warmed aside, from the ``Retrained``
    event on.
    """

    model_id: str
    model_sha256: str
    code_version: str
    mode: str  # "step", "batched" or "scan"
    device: str
    dtype: str
    threads: int
    warm_from: tuple[tuple[str, int], ...]
    market_ms: int
    seen_ms: int
    backend: str = ""
    torch_version: str = ""
    instruction_set: str = ""
    libraries: str = ""


class RetrainOutcome(StrEnum):
    """What became of a retraining."""

    PROMOTED = "promoted"  # judged, and credibly better: it decides from the next change on
    REFUSED = "refused"  # judged, and not credibly better
    SKIPPED = "skipped"  # nothing was judged: too few bars, or a model that cannot stand in
    FAILED = "failed"  # the training, or what a promotion needs, broke off


class Retrained(Struct, frozen=True, gc=False):
    """A model was trained in service and judged beside the running one, or could not be.

    The slice is that of the bars on which both were judged. Where none was, its times and ``test``
    are 0 and the figures None. The rules are docs/operations.md, O11 to O19.
    """

    outcome: RetrainOutcome
    reason: str
    configured_sha256: str  # of the model that ``[model] checkpoint`` names
    running_sha256: str
    candidate_sha256: str  # empty where none was made
    recipe: str  # the hash of all that was chosen for it; empty where none was made
    began_ms: int
    from_ms: int
    until_ms: int
    horizon: int  # bars
    bars: int
    days: int
    difference: float | None  # mean QLIKE of the candidate less that of the running model
    error: float | None  # of it, over days
    p: float | None  # that chance alone makes the candidate so much better
    test: int  # which judgement of the market in this database it was, from 1 on
    level: float | None  # the share of retrain.alpha that this test could spend
    market_ms: int
    seen_ms: int


class GapCause(StrEnum):
    """Why bars are missing."""

    DISCONNECTED = "disconnected"
    MISSED = "missed"  # connected, but the closing frame never came
    DOWN = "down"  # the daemon was not running
    OVERFLOW = "overflow"  # the queue was full
    ARCHIVE = "archive"  # a hole in the data
    STALE = "stale"  # silent stream
    IMPLAUSIBLE = "implausible"  # a close too far from the last one, which REST was asked about
    JUMPED = "jumped"  # the exchange's time jumped, or this machine slept
    FUNDING = "funding"  # no bar: a settlement of funding that never came


BY_REST: Final = "rest"
"""How a gap is repaired whose bars follow it."""


class Gap(Struct, frozen=True, gc=False):
    """A hole ``from_ms`` (first missing open time) until ``until_ms`` (exclusive), and its repair.

    A settlement that is missing was due at ``from_ms``, the next one at ``until_ms``.

    ``repaired_by`` is ``rest`` where the bars follow, and empty where they never will. It is
    ``clock`` where market time itself was set from one of the two times to the other.
    """

    instrument: str
    from_ms: int
    until_ms: int
    cause: GapCause
    repaired_by: str
    market_ms: int
    seen_ms: int


class CommandKind(StrEnum):
    """The operator's word."""

    HALT = "HALT"
    RESUME = "RESUME"
    FLATTEN = "FLATTEN"


class Command(Struct, frozen=True, gc=False):
    """An operator's command: HALT holds everything, RESUME lifts it, FLATTEN halts and closes."""

    kind: CommandKind
    note: str
    market_ms: int
    seen_ms: int


class Timer(Struct, frozen=True, gc=False):
    """Market time moved on without any other event (an order may expire, a day may end)."""

    market_ms: int
    seen_ms: int


class Closed(Struct, frozen=True, gc=False):
    """Some instruments' bars of one close follow at once, and are dealt with together.

    The next ``bars`` events are those bars, in the order of the run's instruments. All of them are
    filled, marked and observed before the first is decided. Market and seen time are those at
    which the last of them had come, or the wait for the ``absent`` was over.
    """

    open_time_ms: int  # of each of the bars
    bars: int
    absent: tuple[str, ...]  # the run's other instruments
    market_ms: int
    seen_ms: int


class FrameBar(Struct, frozen=True, gc=False):
    """A closed candle of a higher time frame, from where the run's own bars do not reach.

    It is accepted where they say nothing of it, or the same; market time is its close.
    """

    instrument: str
    open_time_ms: int
    interval_ms: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    source: Source
    market_ms: int
    seen_ms: int


class RunEnd(Struct, frozen=True, gc=False):
    """The run ended in good order; market time is that of its last event."""

    ended_at_ms: int  # wall time
    market_ms: int
    seen_ms: int


class Prune(Struct, frozen=True, gc=False):
    """Old rows of the run were dropped; the hashes are hexadecimal text."""

    until_sequence: int  # the last step whose rows were dropped
    pruned_at_ms: int  # wall time
    digest: str  # of that step
    kept_sha256: str  # of the rows up to there that were kept
    state_sha256: str  # of the engine's carried state there; "" where there is none
    market_ms: int
    seen_ms: int


class Reading(Struct, frozen=True, gc=False):
    """A user's class opened something beside its arguments: a decision may depend on it."""

    what: str  # "file", "address" or "program"
    name: str
    market_ms: int
    seen_ms: int


Event = (
    Bar
    | Quote
    | Depths
    | Trade
    | Mark
    | Funding
    | InstrumentChange
    | ModelChange
    | Gap
    | Command
    | Timer
    | Closed
    | FrameBar
    | RunEnd
    | Prune
    | Reading
    | Retrained
)

# ---------------------------------------------------------------- what the model says


class Explanation(Struct, frozen=True, gc=False):
    """Where one decision looked.

    ``buckets`` is the rollout row summed over absolute 64-bar blocks of time, newest first, as
    little-endian float32; bucket i covers block ``open_time_ms // (64 * interval_ms) - i``.
    ``older_mass`` is everything before the oldest bucket; all of it sums to 1 within
    ``l1_error``. ``entropy`` holds the confidence of each layer and head (layer-major,
    little-endian float32). Where the attention went, not why the price will move.

    A model of a user's own fills in the measures that it gives; the others are None, and empty.
    """

    confidence: float | None
    content_free: float | None
    recent_mass: float | None
    older_mass: float | None
    shift: float | None  # Jensen–Shannon distance from the last bar's row, by age
    l1_error: float | None
    entropy: bytes
    buckets: bytes


class Forecast(Struct, frozen=True, gc=False):
    """What the model expects, one entry per horizon (in bars); returns are log returns.

    A column that a model of a user's own does not give is empty.
    """

    horizons: tuple[int, ...]
    mean_return: tuple[float, ...]  # raw; the card's slope calibrates it at the gate
    stdev_return: tuple[float, ...]
    p_down: tuple[float, ...]
    p_flat: tuple[float, ...]
    p_up: tuple[float, ...]
    volatility: tuple[float, ...]  # expected standard deviation of the return to the horizon
    model_id: str
    explanation: Explanation | None = None
    further: bytes = b""
    """What only some models say, little-endian. Of an ensemble mean return and volatility at each
    horizon of the network, and then of the row model (float32); of a network over several symbols
    what ``strategies.together.SymbolAnswer`` holds (float64); of others nothing."""


class PredictionTimeout(Struct, frozen=True, gc=False):
    """The forecaster did not answer within its deadline; an input, stored and replayed."""

    deadline_ms: int


Prediction = Forecast | PredictionTimeout | None


class Calibration(Struct, frozen=True):
    """What a model's card says of its calibration slice."""

    quantiles: dict[str, tuple[float, ...]]  # measure -> its 1 % … 99 % quantiles (99 values)
    slope: dict[int, float]  # horizon -> realised on predicted mean
    content_free: float
    confidence: FittedConfidence | None = None
    cells: RegimeCells | None = None
    coverage: tuple[GateCoverage, ...] = ()  # of all judgement gates together


# ---------------------------------------------------------------- judgement


class Regime(StrEnum):
    """Where the attention lies: recent (MOMENTUM), distant (MEAN_REVERSION) or neither.

    The names are the literature's; they predicted no momentum in returns in our trials.
    """

    MOMENTUM = "MOMENTUM"
    MEAN_REVERSION = "MEAN_REVERSION"
    MIXED = "MIXED"
    UNKNOWN = "UNKNOWN"


class GateSet(Struct, frozen=True):
    """The gates a strategy declared, in order, with their thresholds; interned by the log."""

    gates: tuple[str, ...]  # names, as ``gates.py`` declares them
    thresholds: tuple[float, ...]


class Action(StrEnum):
    """What a decision asks for."""

    LONG = "LONG"
    SHORT = "SHORT"
    FLAT = "FLAT"
    HOLD = "HOLD"
    ORDERS = "ORDERS"  # a list of orders of the strategy's own, without a target


class DecisionOutcome(Struct, frozen=True, gc=False):
    """What decisions that were judged alike have in common; the log stores it once.

    Bit i of ``passed`` belongs to gate i of ``gate_set``. ``unfilled_reason`` says why the target
    is neither reached nor ordered; the account explains it, so parity does not compare it.
    """

    action: Action
    reason: str
    allowed: bool
    refused_by: str | None  # the name of the first gate that failed
    gate_set: GateSet
    passed: int
    regime: Regime
    unfilled_reason: str | None = None
    regime_cell: int | None = None  # of the card's own regimes, from 1; None where it has none
    size_factor: float | None = None  # by confidence in the volatility; None where not asked for


class Decision(Struct, frozen=True, gc=False, omit_defaults=True):
    """What was decided at a bar's close, and why.

    ``measures[i]`` belongs to gate i of the outcome's gate set; a null measure is one that should
    exist and could not be computed. Decisions in a row that were judged alike share one outcome:
    whoever encodes them need not look at it again.
    """

    outcome: DecisionOutcome
    target_quantity: int | None  # signed, 10^-quantity_decimals; None for a list of orders
    measures: tuple[float | None, ...]
    note: dict[str, float | str | None] | None = None  # the strategy's; null: it was not finite

    @property
    def action(self) -> Action:
        """What it asks for."""
        return self.outcome.action

    @property
    def reason(self) -> str:
        """Why it asks for that."""
        return self.outcome.reason

    @property
    def allowed(self) -> bool:
        """Whether every gate passed."""
        return self.outcome.allowed

    @property
    def refused_by(self) -> str | None:
        """The name of the first gate that failed."""
        return self.outcome.refused_by

    @property
    def gate_set(self) -> GateSet:
        """The gates that judged it, with their thresholds."""
        return self.outcome.gate_set

    @property
    def passed(self) -> int:
        """A mask whose bit i says that gate i passed."""
        return self.outcome.passed

    @property
    def regime(self) -> Regime:
        """Where the model's attention lay."""
        return self.outcome.regime

    @property
    def unfilled_reason(self) -> str | None:
        """Why the target is neither reached nor ordered, if so."""
        return self.outcome.unfilled_reason


# ---------------------------------------------------------------- orders and money


class OrderStatus(StrEnum):
    """The life of an order; the transitions are in ``daemon/engine/orders.py``."""

    NEW = "NEW"
    ACCEPTED = "ACCEPTED"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"


class OrderKind(StrEnum):
    """How an order is to be filled."""

    MARKET = "MARKET"
    LIMIT = "LIMIT"
    STOP = "STOP"  # a market order once its trigger is touched
    STOP_LIMIT = "STOP_LIMIT"  # a limit order once its trigger is touched


class OrderRole(StrEnum):
    """What an order is for."""

    SIGNAL = "SIGNAL"
    LIST = "LIST"
    STOP = "STOP"
    TARGET = "TARGET"
    TRAILING = "TRAILING"
    UNTIL = "UNTIL"
    COMMAND = "COMMAND"
    LIQUIDATION = "LIQUIDATION"


class Liquidity(StrEnum):
    """Who waited: paper market orders always take."""

    MAKER = "MAKER"
    TAKER = "TAKER"


class FillModel(StrEnum):
    """What an order was filled against."""

    QUOTE = "quote"
    NEXT_OPEN = "next_open"
    BAR_PATH = "bar_path"
    LIQUIDATION = "liquidation"


class Order(Struct, frozen=True, gc=False, omit_defaults=True):
    """An order as it stands after a step. Its id is ``sequence-ordinal`` of its birth.

    What has a default is that of a market order by signal, which stores none of it.
    """

    order_id: str
    instrument: str
    side: Side
    quantity: int
    filled: int
    status: OrderStatus
    reason: str
    created_ms: int
    eligible_ms: int  # market time from which a quote may fill it
    kind: OrderKind = OrderKind.MARKET
    role: OrderRole = OrderRole.SIGNAL
    price: int | None = None  # of LIMIT and STOP_LIMIT
    trigger: int | None = None  # of STOP and STOP_LIMIT
    post_only: bool = False
    reduce_only: bool = False
    until_ms: int | None = None  # good till that market time; None: until it is canceled
    tag: str = ""
    triggered: bool = False  # its trigger was touched


class Fill(Struct, frozen=True, gc=False, omit_defaults=True):
    """An execution. ``reference_price`` is the mid or the bar's open before spread and slippage."""

    order_id: str
    instrument: str
    side: Side
    quantity: int
    price: int
    reference_price: int
    notional: int  # money
    fee: int  # money, in quote currency
    fee_base: int  # 10^-quantity_decimals of base: a spot buy pays there, and then ``fee`` is 0
    liquidity: Liquidity
    model: FillModel
    reason: str
    filled_ms: int
    while_down: bool = False  # inside a bar whose quotes nobody heard


class Position(Struct, frozen=True, gc=False):
    """One instrument of one account. The entry notional is exact; an average price is derived."""

    quantity: int = 0
    entry_notional: int = 0  # money, same sign as quantity
    realized_pnl: int = 0
    unrealized_pnl: int = 0
    fees_paid: int = 0
    funding_paid: int = 0
    margin: int = 0  # what an isolated position binds, and can lose; 0 without margin


class Account(Struct, frozen=True, gc=False):
    """One account after a step: sums over all its instruments, in money."""

    cash: int
    equity: int
    realized_pnl: int
    unrealized_pnl: int
    fees_paid: int
    funding_paid: int


class LedgerKind(StrEnum):
    """Why cash moved."""

    OPENED = "opened"  # the account's first cash
    TAKEN_OVER = "taken_over"  # the cash of the run whose account it took over
    REALIZED = "realized"  # profit of what was closed, before fees
    FEE = "fee"
    LIQUIDATION_FEE = "liquidation_fee"
    FUNDING = "funding"
    BOUGHT = "bought"  # on spot, and of shares
    SOLD = "sold"  # on spot, and of shares


class LedgerEntry(Struct, frozen=True, gc=False):
    """One movement of the account's cash; all of them add up to it at every step."""

    kind: LedgerKind
    amount: int  # money, positive where cash grows
    balance: int  # cash after it
    instrument: str | None = None
    order_id: str | None = None


class Confirmation(Struct, frozen=True, gc=False):
    """A bar confirmed an account's position for another horizon; ``twin`` None is the run's own."""

    twin: str | None
    instrument: str
    open_time_ms: int


class SinceDecided(Struct, frozen=True, gc=False):
    """What a start must know of an instrument besides the carried state."""

    verdict: DecisionOutcome | None  # what became of its last decision; None before the first
    fills: tuple[Fill, ...]  # of the run's own account, after the step of that decision


class TwinStep(Struct, frozen=True, gc=False):
    """A shadow account after a step: the same forecasts without the judgement gates, say."""

    twin: str
    position: Position
    account: Account
    fills: tuple[Fill, ...]
    confirmed: bool = False  # the step's bar confirmed its position for another horizon


class Step(Struct, frozen=True, gc=False):
    """Everything that one event caused; the unit of audit.

    The chain's ``digest`` is added by the log when it stores the step (DECISIONS 5).
    """

    sequence: int
    event: Event
    accepted: bool  # False for a revision of a bar, or a settlement twice: evidence, no change
    decision: Decision | None
    prediction: Prediction
    orders: tuple[Order, ...]  # orders born or changed in this step, as they stand after it
    fills: tuple[Fill, ...]
    position: Position | None  # of the event's instrument; None where the event has none
    account: Account
    twins: tuple[TwinStep, ...]
    window_sha256: bytes | None
    decision_sha256: bytes | None
    state: bytes | None  # the engine's carried state (msgpack), None when unchanged
    ledger: tuple[LedgerEntry, ...] = ()  # what moved the account's cash since the step before
    belief: str | None = None  # on what a price that jumped was believed, or why it was not


ACTING_ONLY: Final = (
    "only steps that traded and the last bars of each day are kept, so this run cannot be "
    "re-derived"
)
"""The warning on a run whose log was asked to be small."""


class Run(Struct, frozen=True):
    """A run as it was opened: everything that never changes while it goes on."""

    run_id: str
    kind: RunKind
    started_at_ms: int  # wall time
    parent_run_id: str | None
    period_start_ms: int  # market time: bars that open earlier are warm-up and have no decision
    instruments: tuple[Instrument, ...]
    interval_ms: int
    config: str  # canonical JSON of the whole configuration
    config_sha256: str
    code_version: str
    strategy: str
    strategy_sha256: str  # of a user's class and what it imports from its own folder; else ""
    model_id: str  # "" without a model
    model_sha256: str
    mode: str  # "step", "batched" or "scan"
    device: str
    dtype: str
    threads: int
    backend: str = ""  # what attends: "tiles" for a stream; "" without a model
    warnings: tuple[str, ...] = ()
    torch_version: str = ""  # "" without a model, as the next
    instruction_set: str = ""
    libraries: str = ""  # JSON: the version of everything else that computes
    gate_horizon: int | None = None  # bars; of a forecast's horizons the one that gates judge by
    calendar: str | None = None  # whose sessions are traded; None where every interval is
    calendar_version: str | None = None  # of what computed the sessions, once
    calendar_sha256: str | None = None  # of the sessions
    sessions: bytes | None = None  # the sessions themselves: see ``strategies/calendar.py``
    sees_account: bool = False  # its decisions depend on its fills
    rules: int = 0  # how many of the counted changes of the rules it knows: docs/identity.md, I18

    @property
    def keeps_every_step(self) -> bool:
        """Whether every step is in the record, not only those that traded and the ends of days."""
        return ACTING_ONLY not in self.warnings
