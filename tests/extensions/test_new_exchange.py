"""A second exchange is a client with its streams: a market in memory, and no edit elsewhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from builders import START_MS, bar, instrument
from bybit_feed import gaps_in
from bybit_server import MINUTE, SteppedClock, exchange_section
from msgspec import structs
from waiting import deadline

from tracepaper.daemon.feed.client import (
    Cooldown,
    FeedStart,
    MarketData,
    MarketDataListener,
    OrderBookSample,
    StreamRequest,
    TradedSymbol,
)
from tracepaper.daemon.feed.feed import LiveFeed
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Depth,
    Depths,
    Event,
    Funding,
    GapCause,
    Instrument,
    Mark,
    Quote,
    RiskTier,
    Source,
)

PAGE = 2
COIN = structs.replace(instrument("COIN"), funding_interval_minutes=5)
FIRST_SETTLEMENT_MS = START_MS + MINUTE  # a multiple of five minutes


def candle(index: int) -> Bar:
    return bar(10_100 + 10 * (index % 3), index=index, instrument_id=COIN.id)


class MemoryStream:
    """Brings what the market says, for as long as it runs."""

    def __init__(self, request: StreamRequest, listener: MarketDataListener) -> None:
        self.request = request
        self.listener = listener
        self.frame_s: float | None = None
        self._is_up = asyncio.Event()

    async def run(self) -> None:
        self._is_up.set()
        await asyncio.Event().wait()

    async def subscribed(self, within_s: float) -> bool:
        async with deadline(within_s):
            return await self._is_up.wait()

    def is_connected(self, instrument: str) -> bool:
        return self._is_up.is_set() and instrument in {coin.id for coin in self.request.instruments}


class MemoryMarket:
    """An exchange in memory: implements ``MarketDataClient``."""

    candles_max = PAGE

    def __init__(self, clock: SteppedClock) -> None:
        self.counters: Counter[str] = Counter()
        self.cooldown = Cooldown(clock=clock)
        self.bars: dict[int, Bar] = {}
        self.settlements: list[Funding] = []
        self.opened: list[MemoryStream] = []
        self.requested: list[int] = []  # the bars of each request
        self._clock = clock

    def prove(self) -> None:
        pass

    async def server_time_ms(self) -> int:
        return self._clock.market_ms()

    async def instruments(self, category: Category, symbol: str = "") -> list[Instrument]:
        return [COIN] if category is COIN.category and symbol in ("", COIN.symbol) else []

    async def instrument(self, category: Category, symbol: str) -> Instrument:
        for coin in await self.instruments(category, symbol):
            return coin
        raise ConfigInvalid(f"The market in memory has no {symbol}; ask for {COIN.symbol}.")

    async def risk_tiers(self, instrument: Instrument) -> tuple[RiskTier, ...]:
        return instrument.risk_tiers

    async def candles(
        self, instrument: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        self.requested.append(len(range(start_ms, end_ms + 1, interval_ms)))
        return [
            structs.replace(self.bars[open_ms], source=Source.REST)
            for open_ms in range(start_ms, end_ms + 1, interval_ms)
            if (instrument.id, interval_ms) == (COIN.id, MINUTE) and open_ms in self.bars
        ]

    async def funding(self, instrument: Instrument, start_ms: int, end_ms: int) -> list[Funding]:
        return [
            settlement
            for settlement in self.settlements
            if instrument.id == COIN.id and start_ms <= settlement.market_ms <= end_ms
        ]

    def stream_url(self, category: Category) -> str:
        return f"memory:{category.value}"

    async def listed(self, category: Category) -> list[TradedSymbol]:
        del category
        return []

    def streams(
        self, request: StreamRequest, listener: MarketDataListener
    ) -> Sequence[MemoryStream]:
        self.opened = [MemoryStream(request, listener)]
        return self.opened


class MemoryFeedRun:
    """A feed of the market in memory, and what it handed on."""

    def __init__(self, clock: SteppedClock, market: MemoryMarket, feed: LiveFeed) -> None:
        self.clock = clock
        self.market = market
        self.feed = feed
        self.events: list[Event] = []

    @property
    def stream(self) -> MemoryStream:
        return self.market.opened[0]

    async def consume(self) -> None:
        async for event in self.feed:
            if event is not None:
                self.events.append(event)

    def say(self, *items: MarketData) -> None:
        """Stream *items*, dated now."""
        self.stream.frame_s = self.clock.network_s()
        for item in items:
            if self.stream.listener.on_server_time(self.clock.market_ms()):
                self.stream.listener.on_data(item)

    def close(self, index: int, *, stream: bool = True) -> None:
        """Let minute *index* close; the market keeps its bar, and *stream*s it or not."""
        closed = candle(index)
        self.clock.synchronise(closed.close_time_ms + 300)
        self.market.bars[closed.open_time_ms] = closed
        if stream:
            self.say(closed)

    def bars(self) -> list[tuple[int, Source]]:
        return [
            ((event.open_time_ms - START_MS) // MINUTE, event.source)
            for event in self.events
            if isinstance(event, Bar)
        ]

    def gaps(self) -> list[tuple[int, int, GapCause, str]]:
        return gaps_in(self.events)

    def settled(self) -> list[int]:
        return [event.market_ms for event in self.events if isinstance(event, Funding)]

    async def has_bars(self, *indexes: int) -> None:
        """Let network time pass until these are the last bars."""
        await self.clock.run(
            lambda: [index for index, _ in self.bars()][-len(indexes) :] == [*indexes]
        )


@asynccontextmanager
async def running(start: FeedStart) -> AsyncIterator[MemoryFeedRun]:
    """Run a feed of the market in memory, which has the bars before minute 0."""
    clock = SteppedClock(START_MS + 2_000)
    market = MemoryMarket(clock)
    market.bars = {candle(index).open_time_ms: candle(index) for index in range(-10, 0)}
    async with LiveFeed(
        client=market,
        clock=clock,
        instruments=[await market.instrument(Category.LINEAR, "COIN")],
        exchange=exchange_section(),
        start=start,
        quote_from_ms=lambda _: START_MS,
    ) as feed:
        run = MemoryFeedRun(clock, market, feed)
        task = asyncio.create_task(run.consume())
        try:
            await clock.run(lambda: feed.counters["resyncs"])
            yield run
        finally:
            task.cancel()
            await asyncio.wait([task])


START = FeedStart(interval_ms=MINUTE, period_start_ms=START_MS, warmup_bars=5)


async def test_a_feed_runs_under_a_second_exchange() -> None:
    async with running(START) as run:
        await run.has_bars(-5, -4, -3, -2, -1)
        assert run.market.requested[:3] == [2, 2, 1]  # its own page, not Bybit's
        for index in (0, 1):
            run.close(index)
        await run.has_bars(0, 1)
        assert run.bars() == [(index, Source.REST) for index in range(-5, 0)] + [
            (0, Source.STREAM),
            (1, Source.STREAM),
        ]
        assert not run.gaps()
        assert run.feed.frame_s() == run.stream.frame_s is not None


async def test_a_hole_of_the_stream_is_filled_by_candles_with_its_cause() -> None:
    async with running(START) as run:
        run.close(0)
        await run.has_bars(0)
        run.stream.listener.on_lost([COIN], GapCause.DISCONNECTED)
        for index in (1, 2, 3):
            run.close(index, stream=index == 3)
        await run.has_bars(0, 1, 2, 3)
        assert run.bars()[-3:] == [(1, Source.REST), (2, Source.REST), (3, Source.STREAM)]
        assert run.gaps() == [(1, 3, GapCause.DISCONNECTED, "rest")]
        run.close(4, stream=False)  # nothing follows it: the feed asks by itself
        run.clock.synchronise(run.clock.market_ms() + 5_000)
        await run.has_bars(3, 4)


async def test_funding_is_settled_by_the_announced_and_the_regular_times() -> None:
    async with running(START) as run:
        first = Funding(COIN.id, 1_000_000, FIRST_SETTLEMENT_MS, FIRST_SETTLEMENT_MS)
        early = structs.replace(first, market_ms=first.market_ms + 2 * MINUTE)
        run.market.settlements.append(first)
        run.close(0)
        await run.has_bars(0)
        await run.clock.run(lambda: run.settled() == [first.market_ms])
        run.stream.listener.on_funding_time(COIN.id, early.market_ms)
        run.market.settlements.append(early)
        for index in (1, 2):
            run.close(index)
        await run.clock.run(lambda: run.settled() == [first.market_ms, early.market_ms])


async def test_prices_and_order_books_come_through() -> None:
    async with running(structs.replace(START, depth=1, depth_every_ms=1_000)) as run:
        assert (run.stream.request.depth, run.stream.request.depth_every_ms) == (1, 1_000)
        now_ms = run.clock.market_ms()
        level = (10_100).to_bytes(8, "little") + (5).to_bytes(8, "little")
        run.say(
            OrderBookSample(Depth(COIN.id, level, level, now_ms, now_ms), "started"),
            Mark(COIN.id, 10_105, now_ms, now_ms),
            Quote(COIN.id, 10_100, 5, 10_110, 5, now_ms, now_ms),
        )
        run.close(0)
        await run.has_bars(0)
        kinds = [type(event) for event in run.events[-4:]]
        assert kinds == [Quote, Mark, Depths, Bar]
