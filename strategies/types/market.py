"""Instruments, and the events that the engine processes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from msgspec import Struct

from tracepaper.strategies.months import MONTH_MS, interval_end

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]


class Category(StrEnum):
    """A Bybit product category, or stock; symbols are unique only within one."""

    LINEAR = "linear"
    SPOT = "spot"
    STOCK = "stock"  # shares, from candle files alone

    @property
    def is_cash(self) -> bool:
        """Whether purchases are paid in full and owned, so that short selling is impossible."""
        return self is not Category.LINEAR


EXCHANGE_CATEGORIES: Final = (Category.LINEAR, Category.SPOT)
"""The categories that Bybit serves and that the daemon can trade."""


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
    """The kind of a run."""

    LIVE = "live"
    REPLAY = "replay"


LEVERAGE_DECIMALS: Final = 2


class RiskTier(Struct, frozen=True, gc=False):
    """The margin terms of positions up to a limit; larger positions allow less leverage."""

    limit: int  # money: notional of the position; 0 without a limit
    maintenance: int  # maintenance margin, 10⁻¹⁰ of the notional
    max_leverage: int  # 10⁻²
    deduction: int  # money, subtracted from the maintenance margin


class Instrument(Struct, frozen=True, gc=False):
    """A tradable symbol with its scales and its trading rules, as the exchange publishes them."""

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
    min_quantity: int  # 10^-quantity_decimals; 0 without a limit
    max_quantity: int  # of one market order; 0 without a limit
    min_notional: int  # money; 0 without a limit
    funding_interval_minutes: int = 0  # 0 without funding
    status: str = "Trading"
    max_leverage: int = 0  # 10⁻²; 0 if unknown
    risk_tiers: tuple[RiskTier, ...] = ()  # smallest first; empty if unknown

    @property
    def id(self) -> str:
        """The instrument's unique key, such as ``linear:BTCUSDT``."""
        return f"{self.category.value}:{self.symbol}"


# ---------------------------------------------------------------- events


class Bar(Struct, frozen=True, gc=False):
    """A closed candle. ``turnover`` is None if the archive lacks it."""

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
    seen_ms: int  # market time at which the feed emitted it; the bar's close in an archive
    source: Source

    @property
    def close_time_ms(self) -> int:
        """The first millisecond after the bar."""
        if self.interval_ms == MONTH_MS:
            return interval_end(self.open_time_ms, MONTH_MS)
        return self.open_time_ms + self.interval_ms

    @property
    def closed_ms(self) -> int:
        """When the bar closed; the last bar of a session may be shorter than its interval."""
        return min(self.close_time_ms, self.market_ms)


class BarColumns(NamedTuple):
    """Bars of one instrument from an archive, [bar] each, oldest first; fields as in ``Bar``."""

    open_time_ms: Integers
    open: Integers
    high: Integers
    low: Integers
    close: Integers
    volume: Integers
    turnover: Integers | None

    def between(self, start: int, stop: int) -> BarColumns:
        """Return the bars from the index *start* to *stop*, exclusive."""
        return BarColumns(*[column if column is None else column[start:stop] for column in self])  # type: ignore[arg-type]


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
    """The best levels of an order book at one time.

    ``bids`` and ``asks`` hold little-endian int64 pairs of price and size, from the touch outwards:
    10^-price_decimals and 10^-quantity_decimals of the instrument.
    """

    instrument: str
    bids: bytes
    asks: bytes
    market_ms: int  # of the newest frame applied
    seen_ms: int  # the time of this snapshot


class Depths(Struct, frozen=True, gc=False):
    """Consecutive order books of one instrument, one per ``every_ms`` of market time, oldest first.

    ``books`` is packed by ``strategies/order_book.py``. The books continue the previous ones,
    unless ``cause`` names a gap. ``market_ms`` is that of the newest book.
    """

    instrument: str
    cause: str  # of a gap before these books; empty without one
    first_ms: int
    every_ms: int
    count: int
    levels: int  # per side
    books: bytes
    market_ms: int
    seen_ms: int

    @property
    def next_ms(self) -> int:
        """The time of the next book if there is no gap."""
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

    The ticker's other prices decide whether a price jump is believed.
    """

    instrument: str
    price: int
    market_ms: int
    seen_ms: int
    index: int | None = None
    last: int | None = None


class Funding(Struct, frozen=True, gc=False):
    """A funding settlement; ``rate`` is an integer of 10⁻¹⁰. Longs pay a positive rate."""

    instrument: str
    rate: int
    market_ms: int
    seen_ms: int


class InstrumentChange(Struct, frozen=True, gc=False):
    """The exchange's rules for an instrument, at the start of a run and whenever they change."""

    instrument: Instrument
    market_ms: int
    seen_ms: int


class ModelChange(Struct, frozen=True, gc=False):
    """The process (re)started and warmed its model with bars of the run.

    A replay of the recorded run warms its model at the same place with the same bars: ``warm_from``
    has the first bar of each instrument, as (instrument, open_time_ms).
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


class ParityOutcome(StrEnum):
    """The outcome of replaying a span of a run from its record."""

    IDENTICAL = "identical"  # all decisions and other stored values agree
    DIFFERENT = "different"  # the check names the first difference and its culprit
    FAILED = "failed"  # the replay failed for the given reason


class ParityCheck(Struct, frozen=True, gc=False):
    """A span of the run was replayed from its record, and the decisions were compared.

    ``differs_at`` and the fields after it name the first difference; they are empty if nothing
    differs. The rules are docs/operations.md, O21 to O24.
    """

    outcome: ParityOutcome
    reason: str  # the result as one sentence, without its full stop
    from_ms: int  # open times of the span [from_ms, until_ms)
    until_ms: int
    compared: int  # decisions
    identical: int  # bit-identical decisions
    within_tolerance: int  # decisions equal up to floating-point rounding
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
    MISSED = "missed"  # connected, but the closing frame never arrived
    DOWN = "down"  # the daemon was not running
    OVERFLOW = "overflow"  # the queue was full
    ARCHIVE = "archive"  # a hole in the data
    STALE = "stale"  # the stream went silent
    IMPLAUSIBLE = "implausible"  # a close too far from the last one, checked by REST
    JUMPED = "jumped"  # the exchange's time jumped, or this machine slept
    FUNDING = "funding"  # not a bar: a funding settlement never arrived


BY_REST: Final = "rest"
"""``Gap.repaired_by`` if the missing bars follow."""


class Gap(Struct, frozen=True, gc=False):
    """Bars are missing from ``from_ms`` (first open time) until ``until_ms`` (exclusive).

    A missing funding settlement was due at ``from_ms``, the next one is at ``until_ms``.

    ``repaired_by`` is ``rest`` if the bars follow, and empty if they never will. It is ``clock`` if
    market time itself was moved from one of the two times to the other.
    """

    instrument: str
    from_ms: int
    until_ms: int
    cause: GapCause
    repaired_by: str
    market_ms: int
    seen_ms: int

    def word(self, interval_ms: int) -> GapWord | None:
        """Return what its bars are: see ``gap_word``."""
        times = {"from_ms": self.from_ms, "market_ms": self.market_ms}
        return gap_word(self.cause, self.repaired_by, **times, interval_ms=interval_ms)


GapWord = Literal["absent", "late", "repaired"]
GAP_WORDS: Final[tuple[GapWord, ...]] = get_args(GapWord)


def gap_word(
    cause: str, repaired_by: str, *, from_ms: int, market_ms: int, interval_ms: int
) -> GapWord | None:
    """Return what the bars of a gap are; None if it is about no bars.

    They are ``absent`` if they never came, ``late`` if REST gave the first more than one interval
    after its close, and else ``repaired``.
    """
    if cause == GapCause.FUNDING or repaired_by not in {"", BY_REST}:
        return None
    if not repaired_by:
        return "absent"
    return "late" if market_ms - from_ms > 2 * interval_ms else "repaired"


class CommandKind(StrEnum):
    """The kind of an operator's command."""

    HALT = "HALT"
    RESUME = "RESUME"
    FLATTEN = "FLATTEN"


class CommandOrigin(StrEnum):
    """The client that sent an operator's command: the web page, the command line or plain HTTP."""

    PAGE = "page"
    COMMAND = "command"
    HTTP = "http"


class Command(Struct, frozen=True, gc=False):
    """An operator's command: HALT stops trading, RESUME restarts it, FLATTEN halts and closes.

    ``origin`` is the client's own claim. ``token`` is the label of the access token, never its
    text. ``user`` is the system user of the sending process; empty if unknown.
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
        """The sender as text, such as ``by root, on the page, with the token anna``."""
        by = f"by {self.user}, " if self.user else ""
        means = {
            CommandOrigin.PAGE: "on the page",
            CommandOrigin.COMMAND: "on the command line",
            CommandOrigin.HTTP: "over HTTP",
        }[self.origin]
        return f"{by}{means}" + (f", with the token {self.token}" if self.token else "")


class CloseStart(Struct, frozen=True, gc=False):
    """Announces the bars of one close of several instruments, which are processed together.

    The next ``bars`` events are those bars, in the order of the run's instruments. The engine
    fills, marks and observes all of them before the first decision. ``market_ms`` and ``seen_ms``
    are when the last bar arrived, or when the wait for the ``absent`` ones ended.
    """

    open_time_ms: int
    bars: int
    absent: tuple[str, ...]  # instruments of the run without a bar in this close
    market_ms: int
    seen_ms: int


class FrameBar(Struct, frozen=True, gc=False):
    """A closed candle of a higher timeframe, from before the run's own bars.

    It is rejected if it contradicts them; ``market_ms`` is its close.
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
    """The run ended cleanly; ``market_ms`` is that of its last event."""

    ended_at_ms: int  # wall time
    market_ms: int
    seen_ms: int


class CovariateRow(Struct, frozen=True, array_like=True, gc=False):
    """A row of a file of covariates."""

    symbol: str  # empty: for all symbols
    time_ms: int  # when the values become known, according to the file
    values: tuple[float, ...]


class CovariatesRead(Struct, frozen=True):
    """New rows of the covariates file, which count from a close on, or its fault."""

    from_ms: int  # the first close at which they count
    fault: str  # why the file cannot be used; empty if it can
    rows: tuple[CovariateRow, ...]
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
    | CloseStart
    | FrameBar
    | RunEnd
    | CovariatesRead
    | ParityCheck
)


class Close(NamedTuple):
    """The bars of one close and the event that announced them: one prediction, one commit."""

    closed: CloseStart
    bars: Sequence[Bar]


Unit = Event | Close
"""The input of one call of the engine."""
