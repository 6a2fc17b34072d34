"""The protocols that an exchange implements for a feed, the bounded event queue, and retries.

Another exchange is one folder beside ``daemon.bybit``; its client implements ``MarketDataClient``.
The only ``except Recoverable`` is here.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct, field

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config import values
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
"""The upper bound of the first full-jitter wait; it doubles with every consecutive failure."""
LOG_EVERY_S: Final = 60.0
"""The time between two log lines about failures: a network may fail for hours."""

T = TypeVar("T")
WaitObserver = Callable[[str, float], None]
"""Called with the name and the seconds of each wait."""

log = Logger("bybit")


class RestartBudget:
    """Allows at most *limit* failures in any *window_s* seconds of network time."""

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
    """Return the most severe of *failures*: first bugs, then fatal, then recoverable errors."""
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
        return next((number for number, kind in enumerate(ranks, 1) if isinstance(error, kind)), 0)

    return min(flat, key=rank)


@dataclass
class Failing:
    """What has failed since its last success; times are network time."""

    host: str
    since_s: float
    next_s: float  # of the next attempt


class Cooldown:
    """The waits shared by all requests to one exchange; after a ban none is sent.

    *observer* is called with every wait, including backoffs, so that the watchdog counts it as
    progress. The first failure is logged at once, later ones together once a minute: without a
    network every request fails.
    """

    def __init__(
        self, *, clock: Clock, observer: WaitObserver = lambda _name, _seconds: None
    ) -> None:
        self._clock = clock
        self._observer = observer
        self.ends_s = 0.0  # network time
        self._logged_s = float("-inf")
        self._unlogged: Counter[str] = Counter()
        self._failing: dict[str, Failing] = {}

    def outage(self) -> str | None:
        """Return which host gives no answer, for how long, and when it is asked again, if any."""
        failing = min([*self._failing.values()], key=lambda each: each.since_s, default=None)
        if failing is None:
            return None
        now_s = self._clock.network_s()
        left_s = max(failing.next_s, self.ends_s) - now_s
        following = f"next try in {math.ceil(left_s)} s" if left_s > 0 else "it is tried now"
        return f"no answer from {failing.host} for {now_s - failing.since_s:.0f} s; {following}"

    def succeeded(self, name: str) -> None:
        """Record that *name* works again."""
        self._failing.pop(name, None)

    def start(self, seconds: float, reason: str) -> None:
        """Send nothing for *seconds* from now; a current cooldown is never shortened."""
        self.ends_s = max(self.ends_s, self._clock.network_s() + seconds)
        log.warning("cooldown", seconds=seconds, reason=reason)

    async def pause(self, name: str, seconds: float) -> None:
        """Wait for *seconds* and declare the wait as *name*."""
        self._observer(name, seconds)
        await self._clock.sleep(seconds)

    async def wait(self) -> None:
        """Return when the cooldown is over."""
        while (left_s := self.ends_s - self._clock.network_s()) > 0:
            await self.pause("ban cooldown", left_s)

    async def back_off(self, name: str, error: Exception, wait_s: float) -> None:
        """Log or count the failure *error* of *name*, then wait for *wait_s*."""
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
        host: str,
        ceiling_s: float,
        budget: RestartBudget | None = None,
    ) -> T:
        """Return the result of *attempt*; wait and repeat it after each recoverable error.

        An attempt that lasts, as that of a stream, calls ``succeeded`` once *host* answers. Waits
        are full jitter: uniform between 0 and a bound that doubles up to *ceiling_s*, and is reset
        after an attempt that lasted longer than *ceiling_s*. Without a *budget* it retries
        for ever; otherwise it raises the error that exceeds the budget.
        """
        failures = 0
        while True:
            started_s = self._clock.network_s()
            try:
                result = await attempt()
            except Recoverable as error:
                now_s = self._clock.network_s()
                if budget is not None and not budget.allows(now_s):
                    raise
                failures = 1 if now_s - started_s > ceiling_s else failures + 1
                most_s = min(ceiling_s, FIRST_WAIT_S * 2 ** min(failures - 1, 32))
                wait_s = rng.uniform(0, most_s)
                failing = self._failing.setdefault(name, Failing(host, now_s, now_s))
                failing.next_s = now_s + wait_s
                await self.back_off(name, error, wait_s)
            else:
                self.succeeded(name)
                return result


def host_of(url: str) -> str:
    """Return the host of *url*; empty without one."""
    return urlsplit(url).hostname or ""


def is_loopback(url: str) -> bool:
    """Return whether *url* names this machine; such connections use no proxy."""
    return values.is_loopback(host_of(url))


# ---------------------------------------------------------------- what an exchange implements


class OrderBookSample(Struct, frozen=True):
    """A sampled order book; ``cause`` tells why samples before it are missing, empty if none is."""

    depth: Depth
    cause: str


MarketData = Bar | Quote | Mark | Trade | OrderBookSample


class StreamRequest(Struct, frozen=True):
    """The data that a feed subscribes: candles, quotes, marks and funding times by default.

    ``trades`` adds trades; instruments without marks always have them. A ``depth`` above 0 adds
    samples of so many levels a side every ``depth_every_ms`` of market time.
    """

    instruments: tuple[Instrument, ...]
    interval_ms: int
    trades: bool = False
    depth: int = 0
    depth_every_ms: int = 1_000


class TradedSymbol(NamedTuple):
    """A symbol that trades, with figures of its last 24 hours."""

    symbol: str
    quote: str  # currency
    turnover: Decimal  # in the quote currency
    volatility: Decimal  # (high - low) / last price
    listed_ms: int  # 0 if unknown


class MarketDataListener(Protocol):
    """Receives the data of a stream; implemented by the feed."""

    def on_server_time(self, server_ms: int) -> bool:
        """Check the date of a frame before it is applied; return False to reject the frame."""
        ...

    def on_future_date(self) -> None:
        """Note that data have a future date, so that the exchange's time is read again."""
        ...

    def on_data(self, item: MarketData) -> None:
        """Take in an item of market data."""
        ...

    def on_funding_time(self, instrument: str, next_ms: int) -> None:
        """Take in the time of the next funding settlement of *instrument*."""
        ...

    def on_lost(self, instruments: Iterable[Instrument], cause: GapCause) -> None:
        """Note that the connection of *instruments* was lost."""
        ...


class MarketDataStream(Protocol):
    """One connection, for some of the requested instruments."""

    @property
    def frame_s(self) -> float | None:
        """The network time of the newest frame of any kind; None before the first."""
        ...

    async def run(self) -> None:
        """Listen until cancelled, reconnecting for ever.

        Raises ``ConfigInvalid`` if no retry can succeed.
        """
        ...

    async def subscribed(self, within_s: float) -> bool:
        """Wait until every subscription is answered; return False after *within_s*."""
        ...

    def is_connected(self, instrument: str) -> bool:
        """Return whether this is a connection of *instrument* and it is open."""
        ...


class MarketDataClient(Protocol):
    """The market data of one exchange: requests and streams.

    A call is retried for ever after errors that may pass. A wrong symbol, category or address
    raises ``ConfigInvalid`` until ``prove`` is called. Bars have the source ``REST`` or
    ``STREAM``; their ``seen_ms`` is their close until the feed sets it on delivery.
    """

    counters: Counter[str]  # events of requests and streams, for /metrics
    cooldown: Cooldown

    @property
    def candles_max(self) -> int:
        """Most candles of one request; the client splits longer ranges."""
        ...

    def prove(self) -> None:
        """Note that address, category and symbols are right: later failures are the network's."""
        ...

    async def server_time_ms(self) -> int:
        """Return the exchange's time, UTC milliseconds."""
        ...

    async def instruments(self, category: Category, symbol: str = "") -> list[Instrument]:
        """Return the tradable instruments of *category*, or only the one called *symbol*."""
        ...

    async def instrument(self, category: Category, symbol: str) -> Instrument:
        """Return one instrument.

        If it is not listed, raise ``ConfigInvalid``, or after ``prove`` wait until it is.
        """
        ...

    async def risk_tiers(self, instrument: Instrument) -> tuple[RiskTier, ...]:
        """Return the risk tiers of *instrument*, smallest first; empty if it has none."""
        ...

    async def listed(self, category: Category) -> list[TradedSymbol]:
        """Return the symbols of *category* that trade, each with its last 24 hours."""
        ...

    async def candles(
        self, instrument: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        """Return the final bars that open in [*start_ms*, *end_ms*], oldest first, each once.

        Missing bars may exist nevertheless; the caller asks again.
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
        """Return the connections for *request*, not yet open.

        The feed runs each as a task of its own and may cancel it.
        """
        ...


# ---------------------------------------------------------------- the queue of a feed


class EventQueue(asyncio.Queue[T]):
    """A first-in, first-out queue with a limit for items that may be dropped.

    ``try_put`` rejects an item beyond a share of the limit, so that quotes, which are many and soon
    replaced, never displace bars. ``put_nowait`` always succeeds; it is for items that are few (one
    reminder an instrument, operators' commands).
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def try_put(self, item: T, *, share: float = 1.0) -> bool:
        """Append *item* unless *share* of the limit is used; return whether it was appended."""
        if self.qsize() >= self.limit * share:
            return False
        self.put_nowait(item)
        return True


class FeedStart(Struct, frozen=True):
    """The state of a run at which its feed starts, and the feed's settings.

    - ``last_open_ms``, by instrument id: the newest bar's open time. None or missing means that
      there is none, so warm-up bars are fetched.
    - ``first_ms``, by instrument id: the open time of the first bar that is decided; the period's
      start where it is missing. Bars before it warm up: they have no settlement and no gap.
    - ``takes_over``: the run took over an account, so the bars from there on are caught up, as
      those after the newest bar of a resumed run are.
    - ``known_funding``, by instrument id: the time of the newest settlement.
    - ``recent``, by instrument id: the bars by which the next closes are checked. A close further
      than ``plausible`` usual ranges from the last one is accepted only if REST repeats it.
    - ``first``: events that are delivered before all others.
    - ``started``: makes the event after the warm-up bars, from the instruments that are warmed up
      later. It warms the model up; subscriptions follow it.
    - ``is_served``: this exchange served the run before, so no error is a mistake of the
      configuration.
    - ``gather_ms``, network time: how long the bars of one close wait to be delivered together; 0
      delivers each alone.
    - ``lacking_frames``: returns the ranges of higher-timeframe candles that the warm-up bars,
      once delivered, do not cover.
    - ``urgent``: instruments whose missing bars are requested before the start.
    - ``in_stages``: some instruments may start before the others have their bars.
    - ``depth``, ``depth_every_ms``: the levels a side of sampled order books (0: none), and the
      market time between two samples.
    """

    interval_ms: int
    period_start_ms: int
    warmup_bars: int
    last_open_ms: Mapping[str, int | None] = {}
    first_ms: Mapping[str, int] = {}
    takes_over: bool = False
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


class BackfillPage(Struct, frozen=True):
    """An answer of REST with the bars of an instrument, from its next bar on."""

    instrument: str
    bars: tuple[Bar, ...]
    answered_s: float  # network time


class WarmUpAnswer(Struct, frozen=True):
    """An answer of REST for an instrument that is warmed up after the start.

    ``is_last``: REST has no more. ``taken_in`` is set once the engine has all ``events``.
    """

    instrument: str
    events: Sequence[Event] = ()
    is_last: bool = False
    taken_in: asyncio.Event = field(default_factory=asyncio.Event)


class GapCauseNotice(Struct, frozen=True):
    """From this place in the queue on bars of the instrument may be missing, for ``cause``."""

    instrument: str
    cause: GapCause


class CloseTimeout(Struct, frozen=True):
    """The wait for further bars that opened at ``open_time_ms`` is over."""

    open_time_ms: int


Item = MarketData | BackfillPage | WarmUpAnswer | GapCauseNotice | CloseTimeout | Event
"""An item of the feed's queue. Other events are delivered unchanged."""
