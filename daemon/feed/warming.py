"""The order in which a start requests the past bars of its instruments from the exchange.

The rules are docs/universe.md, V4 to V7.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Final

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.feed.client import (
    EventQueue,
    FeedStart,
    Item,
    MarketDataClient,
    WarmUpAnswer,
)
from tracepaper.daemon.feed.sequencer import BarSequencer
from tracepaper.daemon.feed.state import FeedState
from tracepaper.daemon.log import Logger
from tracepaper.strategies.api.timeframes import FrameRange, frame_bar_of
from tracepaper.strategies.types.market import FrameBar
from tracepaper.strategies.units import interval_start

BEFORE_START: Final = 50
"""Requests before the first decision; at the default rate they take ten seconds."""

log = Logger("bybit.feed")


def pages(lack: FrameRange, candles_max: int) -> int:
    """Return the number of requests, of *candles_max* candles each, that *lack* takes."""
    candles = (lack.until_ms - lack.from_ms) // lack.interval_ms
    return -(-candles // candles_max)


def divided(
    requests: Mapping[str, int], urgent: Collection[str]
) -> tuple[list[str], dict[str, int]]:
    """Divide instruments into those warmed up before the start and those warmed up after it.

    *requests* are the requests of each instrument; the result has them for the later ones.
    Instruments in *urgent*, with a position or orders, come first; the others keep their order. All
    urgent ones, those within ``BEFORE_START`` requests, and at least one are before the start.
    """
    order = sorted(requests, key=lambda key: key not in urgent)  # a stable sort
    totals = accumulate(requests[key] for key in order)
    within = sum(total <= BEFORE_START for total in totals)
    # A position is valued by its bars: until all have arrived the account would be wrong.
    first = order[: max(within, len(urgent), 1)]
    return first, {key: requests[key] for key in order[len(first) :]}


class WarmUpTurns:
    """Warms instruments up: the first ones before the start, the others after it, in turns.

    While an instrument waits for its turn, *sequencer* holds its stream and the others continue. If
    ``start.in_stages`` is False, later turns only fetch candles of higher timeframes. Each answer
    is one item of *queue*; the next request follows once the engine has taken it in.
    """

    def __init__(
        self,
        *,
        client: MarketDataClient,
        clock: Clock,
        exchange: ExchangeSection,
        sequencer: BarSequencer,
        states: Mapping[str, FeedState],
        queue: EventQueue[Item],
        spawn: Callable[[Coroutine[None, None, None]], None],
        start: FeedStart,
    ) -> None:
        self._client = client
        self._clock = clock
        self._exchange = exchange
        self._sequencer = sequencer
        self._states = states
        self._queue = queue
        self._spawn = spawn
        self._start = start
        self.first: list[str] = []  # instruments that are warmed up before the start
        self._requests: dict[str, int] = {}
        self._later: dict[str, int] = {}  # remaining requests, in the order of turns

    def plan(self) -> None:
        """Divide the instruments into those before the start and those after it."""
        lacks = Counter[str]()
        for first_ms in {state.first_ms for state in self._states.values()}:
            for lack in self._start.lacking_frames(first_ms):
                if self._states[lack.instrument].first_ms == first_ms:
                    lacks[lack.instrument] += pages(lack, self._client.candles_max)
        of_bars = {key: self._pages_of_bars(state) for key, state in self._states.items()}
        if total := lacks.total() + sum(of_bars.values()):
            minutes = total / self._exchange.requests_per_s / 60
            log.info("warm-up", symbols=len(of_bars), requests=total, minutes=round(minutes, 1))
        if self._start.in_stages:
            lacks.update(of_bars)
        self._requests = {key: lacks[key] for key in self._states}
        self.first, self._later = divided(self._requests, self._start.urgent)
        if self._start.in_stages:
            for key in self._later:
                self._sequencer.hold(key)

    def postpone(self, unanswered: Iterable[str]) -> None:
        """Move *unanswered* behind all others: the start no longer waits for them."""
        for key in unanswered:
            self.first.remove(key)
            self._later[key] = self._requests[key]
            self._sequencer.hold(key)

    def _pages_of_bars(self, state: FeedState) -> int:
        sequence = state.sequence
        begun_ms = max(self._start.period_start_ms, self._clock.market_ms())
        lacking_ms = interval_start(begun_ms, sequence.interval_ms) - sequence.next_open_ms
        return max(0, -(-lacking_ms // sequence.interval_ms // self._client.candles_max))

    async def frames_of(self, instrument: str) -> list[FrameBar]:
        """Fetch the closed candles of higher timeframes that the delivered bars do not cover."""
        bars: list[FrameBar] = []
        for lack in self._start.lacking_frames(self._states[instrument].first_ms):
            if lack.instrument == instrument:
                bars += await self._fetched(lack)
        return bars

    async def _fetched(self, lack: FrameRange) -> list[FrameBar]:
        """Fetch the candles of *lack*; an answer without the newest one counts if REST repeats it.

        REST holds a candle some seconds after its close, so both answers come ``certain_s`` later.
        """
        newest_ms, wait_s = (
            lack.until_ms - lack.interval_ms,
            self._states[lack.instrument].listing.wait_s,
        )
        certain_ms = lack.until_ms + self._clock.scaled_ms(self._exchange.certain_s)
        is_repeated = False
        while True:
            bars = await self._client.candles(
                self._states[lack.instrument].instrument,
                lack.interval_ms,
                lack.from_ms,
                lack.until_ms - 1,
            )
            now_ms = self._clock.market_ms()
            if is_repeated or (bars and bars[-1].open_time_ms >= newest_ms):
                break
            is_repeated = now_ms >= certain_ms
            await self._client.cooldown.pause("a candle of a higher timeframe", wait_s)
        self._client.counters["frame_bars"] += len(bars)
        return [frame_bar_of(bar, seen_ms=now_ms) for bar in bars]

    async def run(self) -> None:
        """Warm the later instruments up, one after the other.

        The next one starts when the time for this one's requests is over, even if it is not
        finished: an instrument without answers never delays the others.
        """
        for key, requests in list(self._later.items()):
            is_warm = asyncio.Event()
            self._spawn(self._warm(key, is_warm))
            with suppress(TimeoutError):
                async with asyncio.timeout(requests / self._exchange.requests_per_s):
                    await is_warm.wait()

    async def _warm(self, key: str, is_warm: asyncio.Event) -> None:
        state, sequence = self._states[key], self._states[key].sequence
        while key in self._sequencer.held:
            until_ms = interval_start(self._clock.market_ms(), sequence.interval_ms)
            before_ms = sequence.next_open_ms
            async for events in self._sequencer.answers(state, until_ms):
                await self._taken_in(WarmUpAnswer(key, events))
                self._later[key] = max(self._later[key] - 1, 1)  # 1 until it is finished
            if sequence.next_open_ms == before_ms:
                await self._taken_in(WarmUpAnswer(key, is_last=True))
        for frame_bar in await self.frames_of(key):
            self._queue.put_nowait(frame_bar)
        del self._later[key]
        is_warm.set()

    async def _taken_in(self, answer: WarmUpAnswer) -> None:
        self._queue.put_nowait(answer)
        await answer.taken_in.wait()

    def at_ms(self, instrument: str) -> int | None:
        """Return the expected market time at which *instrument* is warm; None if it is."""
        if instrument not in self._later:
            return None
        order = list(self._later)
        ahead = order[: order.index(instrument) + 1]
        wait_s = sum(map(self._later.__getitem__, ahead)) / self._exchange.requests_per_s
        return self._clock.market_ms() + int(1_000 * wait_s * self._exchange.time_scale)
