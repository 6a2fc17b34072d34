"""One category's connection: its topics, its reader, and what it tells the feed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog

from tracepaper.daemon.bybit.intervals import interval_name
from tracepaper.daemon.bybit.silence import Silence
from tracepaper.daemon.bybit.stream import FeedSettings, Stream, StreamHandler
from tracepaper.daemon.bybit.wire import Book, Candles, Received, Refused, Ticker, Trades, Wire
from tracepaper.daemon.ports import Clock
from tracepaper.strategies.errors import FeedStale, MessageMalformed, Recoverable
from tracepaper.strategies.types import Bar, Category, GapCause, Instrument, Mark, Quote

log = structlog.get_logger("bybit.stream")


class Owner(Protocol):
    """What a connection tells of: the feed."""

    counters: Counter[str]

    def observe(self, server_ms: int) -> bool:
        """Learn the time of a frame; False where it cannot be believed."""
        ...

    def doubt_time(self) -> None:
        """Learn that something is dated ahead: the exchange's time is read anew."""
        ...

    def enqueue(self, item: Bar | Quote | Mark) -> None:
        """Take what a stream brought."""
        ...

    def announce_funding(self, instrument: str, next_ms: int) -> None:
        """Learn a ticker's next funding time."""
        ...

    def lost(self, instruments: Iterable[Instrument], cause: GapCause) -> None:
        """Learn that the connection of *instruments* was lost."""
        ...


def topics(category: Category, symbol: str, *, interval: str, trades: bool) -> list[str]:
    """Return what one symbol needs: closed candles first, then quotes, marks and trades.

    Spot has no mark and no funding, so its ticker has nothing that is used.
    """
    wanted = [f"kline.{interval}.{symbol}", f"orderbook.1.{symbol}"]
    if category is Category.LINEAR:
        wanted.append(f"tickers.{symbol}")
    if trades:
        wanted.append(f"publicTrade.{symbol}")
    return wanted


class Connection:
    """Joins a ``Stream`` with a fresh ``Wire`` for each connection it makes."""

    def __init__(
        self,
        *,
        category: Category,
        instruments: Sequence[Instrument],
        settings: FeedSettings,
        owner: Owner,
        clock: Clock,
        rng: random.Random,
        silence: Silence,
    ) -> None:
        self.category = category
        self._instruments = tuple(instruments)
        self._interval_ms = settings.interval_ms
        self._owner = owner
        self._logged: set[str] = set()
        self._wire = self._new_wire()
        name = interval_name(settings.interval_ms)
        self.stream = Stream(
            category=category,
            topics=[
                topic
                for one in instruments
                for topic in topics(category, one.symbol, interval=name, trades=settings.trades)
            ],
            settings=settings.stream,
            handler=StreamHandler(self._receive, self._connected, self._lost),
            clock=clock,
            rng=rng,
            silence=silence,
        )

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands."""
        return self.stream.is_connected

    async def answered(self, within_s: float) -> bool:
        """Wait until every topic was acknowledged or refused; False if that took too long."""
        try:
            async with asyncio.timeout(within_s):
                await self.stream.answered.wait()
        except TimeoutError:
            return False
        return True

    def _new_wire(self) -> Wire:
        """Return a reader without memory: merged state dies with its connection."""
        return Wire(
            category=self.category,
            instruments=self._instruments,
            interval_ms=self._interval_ms,
            counters=self._owner.counters,
            observe=self._owner.observe,
            refused=self._refused,
        )

    def _connected(self) -> None:
        """Begin a new connection."""
        self._wire = self._new_wire()
        self._owner.counters["connects"] += 1
        log.info("connected", category=self.category.value)

    def _lost(self, cause: Recoverable) -> None:
        """Say why bars may be missing from now on."""
        is_stale = isinstance(cause, FeedStale)
        self._owner.counters["stale" if is_stale else "disconnects"] += 1
        self._owner.lost(self._instruments, GapCause.STALE if is_stale else GapCause.DISCONNECTED)

    def _receive(self, frame: bytes) -> Received | None:
        """Read one frame and hand on what it holds; None where it was refused."""
        try:
            received = self._wire.receive(frame)
        except MessageMalformed:
            received = None
        if self._wire.renewals:
            self.stream.renew(self._wire.renewals)
            self._wire.renewals.clear()
        if received is None or isinstance(received, Refused):
            return None
        self._owner.counters["frames"] += 1
        self._hand_on(received)
        return received

    def _hand_on(self, received: Received) -> None:
        """Give the feed what a message holds."""
        owner = self._owner
        match received:
            case Candles():
                for bar in received.bars:
                    owner.enqueue(bar)
            case Book():
                if received.quote is not None:
                    owner.enqueue(received.quote)
            case Ticker():
                if received.mark is not None:
                    owner.enqueue(received.mark)
                if received.next_funding_ms is not None:
                    owner.announce_funding(received.instrument, received.next_funding_ms)
            case Trades():
                owner.counters["trades"] += len(received.trades)
            case _:
                pass  # an acknowledgement, a pong or a stranger carries no market time

    def _refused(self, kind: str, sentence: str) -> None:
        """Log the first refusal of each kind; the counters have the rest."""
        if kind.startswith("ahead."):
            self._owner.doubt_time()
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("refused", kind=kind, category=self.category.value, reason=sentence)
