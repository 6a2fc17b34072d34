"""What an exchange implements for a feed, as protocols; the bounded event queue and retries.

Another exchange is one folder beside ``daemon.bybit``: its client implements ``MarketDataClient``.
The one ``except Recoverable`` stands here.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct, field

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config import values
from tracepaper.daemon.feed.book_follower import LiveBook, ReadFrame
from tracepaper.daemon.log import Logger
from tracepaper.strategies.api.timeframes import FrameRange
from tracepaper.strategies.errors import Fatal, FeedStale, Recoverable
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Depth,
    Event,
    Funding,
    GapCause,
    Instrument,
    Mark,
    Quote,
    RiskTier,
    Trade,
)

FIRST_WAIT_S: Final = 0.5
"""Ceiling of the first full-jitter wait; it doubles with every failure in a row."""
LOG_EVERY_S: Final = 60.0
"""A network that fails for hours is worth one line a minute."""

T = TypeVar("T")
WaitObserver = Callable[[str, float], None]
"""Is called with the name and the seconds of each wait."""

log = Logger("bybit")


class RestartBudget:
    """At most *limit* failures in any *window_s* seconds of network time."""

    def __init__(self, *, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._failures: deque[float] = deque(maxlen=limit + 1)

    def allows(self, now_s: float) -> bool:
        """Count a failure at *now_s*; return whether another attempt is allowed."""
        self._failures.append(now_s)
        recent = sum(now_s - failure < self._window_s for failure in self._failures)
        return recent <= self._limit


def first_cause(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the gravest of *failures*: a bug before a fatal error before a recoverable one."""
    flat: list[BaseException] = []
    stack: list[BaseException] = [failures]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        else:
            flat.append(error)
    ranks = (Fatal, FeedStale, Recoverable)

    def rank(error: BaseException) -> int:
        return next((place for place, kind in enumerate(ranks, 1) if isinstance(error, kind)), 0)

    return min(flat, key=rank)


class Cooldown:
    """The waits of everything that goes to one exchange: after a ban nothing is sent.

    ``observer`` is called with every wait, backoffs too, so that the watchdog counts it as
    progress. Of what is tried again the first failure is logged at once, later ones together once a
    minute: without a network all of it fails.
    """

    def __init__(
        self, *, clock: Clock, observer: WaitObserver = lambda _name, _seconds: None
    ) -> None:
        self._clock = clock
        self._observer = observer
        self.ends_s = 0.0  # network time
        self._logged_s = float("-inf")
        self._unlogged: Counter[str] = Counter()

    def start(self, seconds: float, reason: str) -> None:
        """Send nothing for *seconds* from now; a longer cooldown under way stays."""
        self.ends_s = max(self.ends_s, self._clock.network_s() + seconds)
        log.warning("cooldown", seconds=seconds, reason=reason)

    async def pause(self, name: str, seconds: float) -> None:
        """Wait for *seconds* on purpose."""
        self._observer(name, seconds)
        await self._clock.sleep(seconds)

    async def wait(self) -> None:
        """Return when the cooldown is over."""
        while (left_s := self.ends_s - self._clock.network_s()) > 0:
            await self.pause("ban cooldown", left_s)

    async def back_off(self, name: str, error: Exception, wait_s: float) -> None:
        """Log that *name* failed, or count it for the next line, and wait to try it again."""
        self._unlogged[name] += 1
        now_s = self._clock.network_s()
        fields = {"what": name, "error": str(error), "wait_s": round(wait_s, 3)}
        if now_s - self._logged_s < LOG_EVERY_S:
            log.debug("retrying", **fields)
        else:
            self._logged_s = now_s
            log.warning("retrying", **fields, failures=dict(self._unlogged))
            self._unlogged.clear()
        await self.pause(name, wait_s)

    async def retry(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        rng: random.Random,
        name: str,
        ceiling_s: float,
        budget: RestartBudget | None = None,
    ) -> T:
        """Return the result of *attempt*; while it fails recoverably, wait and try again.

        Waits are full jitter: uniform between 0 and a ceiling that doubles up to *ceiling_s*, and
        begins anew after an attempt that lasted longer than *ceiling_s*. Without a *budget* there
        is no end to it; with one, the last error is raised once the budget is spent.
        """
        failures = 0
        while True:
            started_s = self._clock.network_s()
            try:
                return await attempt()
            except Recoverable as error:
                now_s = self._clock.network_s()
                if budget is not None and not budget.allows(now_s):
                    raise
                failures = 1 if now_s - started_s > ceiling_s else failures + 1
                most_s = min(ceiling_s, FIRST_WAIT_S * 2 ** min(failures - 1, 32))
                await self.back_off(name, error, rng.uniform(0, most_s))


def is_loopback(url: str) -> bool:
    """Return whether *url* names this machine, where no proxy belongs in between."""
    return values.is_loopback(urlsplit(url).hostname or "")


# ---------------------------------------------------------------- what an exchange implements


class OrderBookSample(Struct, frozen=True):
    """A book of the grid, and why it does not go on from the one before; empty where it does."""

    depth: Depth
    cause: str


MarketData = Bar | Quote | Mark | Trade | OrderBookSample


class StreamRequest(Struct, frozen=True):
    """What a feed listens to: closed candles, quotes, marks and funding times of each instrument.

    ``trades`` come as well where they are asked for, and of an instrument without marks; order
    books of ``depth`` levels a side, where it is not 0, each ``depth_every_ms`` of market time.
    Where ``fill_levels`` is not 0, every frame of the trades and of a book of so many levels comes
    by ``on_book``.
    """

    instruments: tuple[Instrument, ...]
    interval_ms: int
    trades: bool = False
    depth: int = 0
    depth_every_ms: int = 1_000
    fill_levels: int = 0


class TradedSymbol(NamedTuple):
    """A symbol that trades, and its last 24 hours."""

    symbol: str
    quote: str  # currency
    turnover: Decimal  # in the quote currency
    volatility: Decimal  # high - low, over the last price
    listed_ms: int  # 0 where it is not known


class MarketDataListener(Protocol):
    """Receives what a stream brings: the feed."""

    def on_server_time(self, server_ms: int) -> bool:
        """Learn the date of a frame before it is applied; False where it is not believed."""
        ...

    def on_future_date(self) -> None:
        """Learn that something is dated ahead: the exchange's time is read anew."""
        ...

    def on_data(self, item: MarketData) -> None:
        """Take what a stream brought."""
        ...

    def on_book(self, instrument: str, frame: ReadFrame) -> bool:
        """Take the next frame of a book that fills orders; False where it was lost."""
        ...

    def on_funding_time(self, instrument: str, next_ms: int) -> None:
        """Learn when the exchange settles the funding of *instrument* next."""
        ...

    def on_lost(self, instruments: Iterable[Instrument], cause: GapCause) -> None:
        """Learn that the connection of *instruments* was lost."""
        ...


class MarketDataStream(Protocol):
    """One connection, which stands for some of the instruments that were asked for."""

    @property
    def frame_s(self) -> float | None:
        """The network time of its newest frame, whatever that held; None before the first."""
        ...

    async def run(self) -> None:
        """Listen until cancelled, connecting again without end.

        Raises ``ConfigInvalid`` where no retry can help.
        """
        ...

    async def subscribed(self, within_s: float) -> bool:
        """Wait until every subscription was answered; False if that took longer."""
        ...

    def is_connected(self, instrument: str) -> bool:
        """Return whether it brings *instrument*, and its connection stands."""
        ...


class MarketDataClient(Protocol):
    """The market data of one exchange: questions and streams.

    Every call is retried without end where its error passes; ``ConfigInvalid`` is what a wrong
    symbol, category or address earns until ``prove`` was called. Bars have the source ``REST``
    or ``STREAM``; ``seen_ms`` is their close until the feed sets it on delivery.
    """

    counters: Counter[str]  # what happened, streams included, for /metrics
    cooldown: Cooldown

    @property
    def candles_max(self) -> int:
        """Candles of one request: the feed fills holes by so many; the client divides the rest."""
        ...

    def prove(self) -> None:
        """Learn that address, category and symbols are right: what fails now is the network."""
        ...

    async def server_time_ms(self) -> int:
        """Return the exchange's time, UTC milliseconds."""
        ...

    async def instruments(self, category: Category, symbol: str = "") -> list[Instrument]:
        """Return *category*'s tradable instruments, or the one called *symbol* (else none)."""
        ...

    async def instrument(self, category: Category, symbol: str) -> Instrument:
        """Return one instrument; one that is not listed is refused, or awaited once proven."""
        ...

    async def risk_tiers(self, instrument: Instrument) -> tuple[RiskTier, ...]:
        """Return the risk tiers of *instrument*, the smallest first; none where there are none."""
        ...

    async def listed(self, category: Category) -> list[TradedSymbol]:
        """Return *category*'s symbols that trade, each with its last 24 hours."""
        ...

    async def candles(
        self, instrument: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        """Return the final bars that open in [*start_ms*, *end_ms*], oldest first, each once.

        What is left out may exist: it is asked for again.
        """
        ...

    async def funding(self, instrument: Instrument, start_ms: int, end_ms: int) -> list[Funding]:
        """Return the settlements in [*start_ms*, *end_ms*], oldest first, each once."""
        ...

    def stream_url(self, category: Category) -> str:
        """Return the address of the stream of *category*."""
        ...

    def streams(
        self, request: StreamRequest, listener: MarketDataListener
    ) -> Sequence[MarketDataStream]:
        """Return the connections that bring what is asked for, not yet open.

        Each is the feed's own task, which it can cancel again, so a client joins none of them.
        """
        ...


# ---------------------------------------------------------------- the queue of a feed


class EventQueue(asyncio.Queue[T]):
    """First in, first out; ``try_put`` takes what may be dropped, ``put_nowait`` what may not.

    ``try_put`` refuses beyond a share of the limit, so that quotes, which are many and soon
    replaced, can never take the place of bars. ``put_nowait`` always succeeds: its callers are few
    by their nature (one reminder an instrument, operators' commands).
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def try_put(self, item: T, *, share: float = 1.0) -> bool:
        """Append *item* unless *share* of the limit is taken; return whether it was."""
        if self.qsize() >= self.limit * share:
            return False
        self.put_nowait(item)
        return True


class FeedStart(Struct, frozen=True):
    """The state of a run at which its feed begins.

    By instrument id, ``last_open_ms`` is the newest bar's open time (None or missing: none, so
    warm-up bars are fetched), ``known_funding`` the newest settlement's time, ``recent`` the bars
    by which closes are judged. ``first`` are delivered before all else, and ``started`` makes the
    event that follows the warm-up bars, given the instruments whose own come in a later turn: a
    model is warm once it is delivered, and only then is anything subscribed. ``is_served`` says
    that this exchange served the run before, so that no error now is a mistake of the
    configuration. A close further than ``plausible`` usual ranges from the last one is accepted
    once REST repeats it. Where ``gather_ms``, network time, is not 0, the bars of one close are
    delivered together. ``lacking_frames`` returns, once the warm-up bars are delivered, the ranges
    of candles of higher timeframes that they do not reach. What the instruments in ``urgent`` lack
    is asked for before the start; ``in_stages``, some begin before the others have their bars.
    Order books of ``depth`` levels a side, where it is not 0, are sampled each ``depth_every_ms``
    of market time. ``book`` follows the one that fills orders.
    """

    interval_ms: int
    period_start_ms: int
    warmup_bars: int
    last_open_ms: Mapping[str, int | None] = {}
    known_funding: Mapping[str, int] = {}
    recent: Mapping[str, Sequence[Bar]] = {}
    first: tuple[Event, ...] = ()
    started: Callable[[Collection[str]], Event] | None = None
    is_served: bool = False
    gather_ms: int = 0
    lacking_frames: Callable[[int], Sequence[FrameRange]] = lambda _market_ms: ()
    urgent: frozenset[str] = frozenset()
    in_stages: bool = True
    plausible: float = 100.0
    depth: int = 0
    depth_every_ms: int = 1_000
    book: LiveBook | None = None


class BackfillPage(Struct, frozen=True):
    """REST's answer with the bars of an instrument from its next one on."""

    instrument: str
    bars: tuple[Bar, ...]
    answered_s: float  # network time


class WarmUpAnswer(Struct, frozen=True):
    """What REST brought of an instrument that is warmed in its turn; ``is_last``: all it has.

    ``taken_in`` is set once the engine has all ``events``.
    """

    instrument: str
    events: Sequence[Event] = ()
    is_last: bool = False
    taken_in: asyncio.Event = field(default_factory=asyncio.Event)


class GapCauseNotice(Struct, frozen=True):
    """Bars of this instrument that come after this place in the queue may be missing, and why."""

    instrument: str
    cause: GapCause


class CloseTimeout(Struct, frozen=True):
    """The wait for the bars that opened at ``open_time_ms`` is over."""

    open_time_ms: int


Item = MarketData | ReadFrame | BackfillPage | WarmUpAnswer | GapCauseNotice | CloseTimeout | Event
"""A frame is of the book that fills orders; an event of another kind is delivered unchanged."""
