"""Instruments, and every event that can enter the engine."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from msgspec import Struct

from tracepaper.strategies.months import MONTH_MS, interval_end


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
    REPLAY = "replay"


LEVERAGE_DECIMALS: Final = 2


class RiskTier(Struct, frozen=True, gc=False):
    """The margin terms of positions up to a size: the larger, the less leverage."""

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
        if self.interval_ms == MONTH_MS:
            return interval_end(self.open_time_ms, MONTH_MS)
        return self.open_time_ms + self.interval_ms

    @property
    def closed_ms(self) -> int:
        """When it closed: the last of a session may be shorter than its interval."""
        return min(self.close_time_ms, self.market_ms)


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

    ``books`` holds them as ``strategies/order_book.py`` packs them. They continue the ones before,
    unless ``cause`` names a gap. Market time is that of the newest book.
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
        """The time of the next book if there is no gap."""
        return self.first_ms + self.count * self.every_ms


class BookUpdate(Struct, frozen=True, gc=False):
    """What happened to an order book that can change a resting order, or its place in a queue.

    ``books`` holds, as ``daemon/broker/book_fills.py`` packs them, what happened at the prices of
    resting limits since the update before, and the book as it stood at ``market_ms``. ``cause``
    names a gap before it. The rules are docs/money.md, M61 to M77.
    """

    instrument: str
    cause: str  # of the gap before it; empty where there is none
    frame: int  # so many frames of its source were read until then
    is_sampled: bool  # the book alone, now and then: nothing is known of what happened between
    books: bytes
    market_ms: int
    seen_ms: int


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

    The ticker's other figures decide whether a jump of the price is believed: the index price, the
    last trade, and the announced funding rate (10⁻¹⁰) where it is unusually high.
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


class CorporateActionKind(StrEnum):
    """What a company does to its shares."""

    SPLIT = "split"
    DIVIDEND = "dividend"


class CorporateAction(Struct, frozen=True, gc=False):
    """A split or a dividend of a share: it comes after the last bar before its ex-date.

    Market time is the open of the bar that follows. The rules are docs/stocks.md, K16 to K25.
    """

    instrument: str
    kind: CorporateActionKind
    new: int  # so many new shares for ``old`` ones; 1 of a dividend
    old: int
    amount: int  # money a share, gross; 0 of a split
    close: int  # of the last bar before
    market_ms: int
    seen_ms: int

    @property
    def is_split(self) -> bool:
        """Whether the number of shares changes."""
        return self.kind is CorporateActionKind.SPLIT


class InstrumentChange(Struct, frozen=True, gc=False):
    """The exchange's filters for an instrument, at the start of a run and when they change."""

    instrument: Instrument
    market_ms: int
    seen_ms: int


class ModelChange(Struct, frozen=True, gc=False):
    """The process (re)started, and its model was warmed with bars that the run already holds.

    A replay of the recorded run warms its own model at the same place with the same bars.
    ``warm_from`` has the first bar of each instrument, as (instrument, open_time_ms). Where it is
    empty and the model is another one, this is a promotion: that model was warmed beside the
    running one since the ``RetrainingEnd`` event.
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
    """The outcome of a retraining."""

    PROMOTED = "promoted"  # judged, and credibly better: decides from the next ModelChange on
    REFUSED = "refused"  # judged, and not credibly better
    SKIPPED = "skipped"  # nothing was judged: too few bars, or a model that cannot stand in
    FAILED = "failed"  # the training, or what a promotion needs, broke off


class RetrainingEnd(Struct, frozen=True, gc=False):
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
    alpha: float | None = None  # retrain.alpha then; None where nothing was judged

    @property
    def takes_over(self) -> bool:
        """Whether its candidate decides from the next ``ModelChange`` on."""
        return self.outcome is RetrainOutcome.PROMOTED


class ParityOutcome(StrEnum):
    """The outcome of replaying a span of a run from its own record."""

    IDENTICAL = "identical"  # every decision and every other stored value follows
    DIFFERENT = "different"  # the first difference is named, with its culprit
    FAILED = "failed"  # it could not be replayed, for the reason given


class ParityCheck(Struct, frozen=True, gc=False):
    """A span of the run was replayed from its record and compared, decision by decision.

    ``differs_at`` and the fields after it name the first difference; they are empty where nothing
    differs. The rules are docs/operations.md, O21 to O24.
    """

    outcome: ParityOutcome
    reason: str  # the whole result as one sentence, without its full stop
    from_ms: int  # open times of the span, the end exclusive
    until_ms: int
    compared: int  # decisions
    identical: int  # of them equal in every bit
    within_tolerance: int  # of them equal but for floats that other arithmetic rounds
    differs_at: str = ""  # instrument and open time of the bar
    field: str = ""
    stored: str = ""
    replayed: str = ""
    culprit: str = ""  # code, configuration, model, strategy, environment or record
    market_ms: int = 0
    seen_ms: int = 0


class GapCause(StrEnum):
    """Why bars are missing."""

    DISCONNECTED = "disconnected"
    MISSED = "missed"  # connected, but the closing frame never came
    DOWN = "down"  # the daemon was not running
    OVERFLOW = "overflow"  # the queue was full
    ARCHIVE = "archive"  # a hole in the data
    STALE = "stale"  # silent stream
    IMPLAUSIBLE = "implausible"  # a close too far from the last one, checked over REST
    JUMPED = "jumped"  # the exchange's time jumped, or this machine slept
    FUNDING = "funding"  # no bar: a settlement of funding that never came


BY_REST: Final = "rest"
"""The ``repaired_by`` of a gap whose bars follow it."""


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
    """The kind of an operator's command."""

    HALT = "HALT"
    RESUME = "RESUME"
    FLATTEN = "FLATTEN"


class CommandOrigin(StrEnum):
    """What an operator gave a command by: the page, the command line, or HTTP alone."""

    PAGE = "page"
    COMMAND = "command"
    HTTP = "http"


class Command(Struct, frozen=True, gc=False):
    """An operator's command: HALT holds everything, RESUME lifts it, FLATTEN halts and closes.

    ``origin`` is what the client calls itself. ``token`` is the label of the token that it sent,
    never its text; ``user`` the system's user of the process that sent it, empty where the system
    does not tell.
    """

    kind: CommandKind
    note: str
    market_ms: int
    seen_ms: int
    origin: CommandOrigin = CommandOrigin.HTTP
    token: str = ""
    user: str = ""

    @property
    def giver(self) -> str:
        """Who gave it and by what, in words: ``by root, on the page, with the token anna``."""
        by = f"by {self.user}, " if self.user else ""
        means = {
            CommandOrigin.PAGE: "on the page",
            CommandOrigin.COMMAND: "on the command line",
            CommandOrigin.HTTP: "over HTTP",
        }[self.origin]
        return f"{by}{means}" + (f", with the token {self.token}" if self.token else "")


class CloseStart(Struct, frozen=True, gc=False):
    """The bars of one close of several instruments follow, and are processed together.

    The next ``bars`` events are those bars, in the order of the run's instruments. All of them are
    filled, marked and observed before the first is decided. Market and seen time are those at
    which the last of them arrived, or the wait for the ``absent`` ended.
    """

    open_time_ms: int  # of each of the bars
    bars: int
    absent: tuple[str, ...]  # the run's other instruments
    market_ms: int
    seen_ms: int


class UniverseChange(Struct, frozen=True, gc=False):
    """From here on only the ``chosen`` instruments may open positions; the best ones first.

    ``candidates`` are what it was chosen from: each one's id, turnover of 24 hours in quote
    currency, high - low over the last price, and days since its listing, -1 where that is not
    known. ``reason`` is the choice as one sentence, without its full stop. The rules are
    docs/universe.md.
    """

    chosen: tuple[str, ...]
    reason: str
    candidates: tuple[tuple[str, str, str, int], ...]
    market_ms: int
    seen_ms: int


class FrameBar(Struct, frozen=True, gc=False):
    """A closed candle of a higher timeframe, of a time before the run's own bars.

    It is refused where it contradicts them; market time is its close.
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


class CovariateRow(Struct, frozen=True, array_like=True, gc=False):
    """A row of a file of covariates."""

    symbol: str  # empty: everyone's
    time_ms: int  # from when on the file says that it is known
    values: tuple[float, ...]


class CovariatesRead(Struct, frozen=True):
    """New rows of the file of covariates, and whether it is of use, from a close on."""

    from_ms: int  # the first close at which they count
    fault: str  # why the file is no use; empty: it is
    rows: tuple[CovariateRow, ...]
    market_ms: int
    seen_ms: int


Event = (
    Bar
    | Quote
    | Depths
    | BookUpdate
    | Trade
    | Mark
    | Funding
    | CorporateAction
    | InstrumentChange
    | ModelChange
    | Gap
    | Command
    | CloseStart
    | FrameBar
    | RunEnd
    | Prune
    | CovariatesRead
    | RetrainingEnd
    | ParityCheck
    | UniverseChange
)


class Close(NamedTuple):
    """The bars of one close behind the event that announced them: one prediction, one commit."""

    closed: CloseStart
    bars: Sequence[Bar]


Unit = Event | Close
"""The input of one call of the engine."""
