"""Background work of a live feed: time, questions to REST, settlements, filters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Final

import structlog
from msgspec import Struct, structs

from tracepaper.daemon.bybit.feed_state import PATIENCE_MAX_S, FeedState
from tracepaper.daemon.bybit.instruments import rescaled
from tracepaper.daemon.bybit.queue import BackfillPage, EventQueue, GapCauseNotice, Item, Submitted
from tracepaper.daemon.bybit.rest import RestClient
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.engine.ports import Clock
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.market import DAY_MS, interval_start
from tracepaper.strategies.types import Funding, Gap, GapCause, InstrumentChange

# ---------------------------------------------------------------- the exchange's time

FAR_S: Final = 60.0
"""A time this far, network time, from the expected one is asked for again."""
ALIKE_S: Final = 5.0
"""Answers agree that differ by no more than this, network time, beside what passed between them."""
ANSWERS: Final = 3
AGAIN_S: Final = 1.0
UNDER_WAY_S_MAX: Final = 10.0
"""An answer was under way no longer than this, however long the retries before it took."""

log = structlog.get_logger("bybit.feed")


class _TimeSample(Struct, frozen=True):
    """One answer: said somewhen between question and answer, network time."""

    server_ms: int
    asked_s: float
    heard_s: float


class ServerTimeReading(Struct, frozen=True):
    """A server's time that is believed; ``is_jump`` where it is far from what was expected."""

    server_ms: int
    is_jump: bool


class ServerTimeReader:
    """Reads the exchange's time; one wrong answer moves nothing.

    All tolerances are network time, so they are multiplied by *time_scale* here.
    """

    def __init__(
        self, rest: RestClient, clock: Clock, *, time_scale: float = 1.0, again_s: float = AGAIN_S
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._scale_ms = 1_000 * time_scale
        self._again_s = again_s

    async def first(self) -> int:
        """Return the time where nothing is expected yet: two answers in a row must agree."""
        said = await self._ask()
        again = await self._ask()
        if not self._agree(said, again):
            return (await self._agreed(again)).server_ms
        return again.server_ms

    async def read(self) -> ServerTimeReading:
        """Return the time; one far from the clock's is believed once three answers agree."""
        said = await self._ask()
        if self._is_near(said):
            return ServerTimeReading(said.server_ms, is_jump=False)
        return await self._agreed(said)

    async def _agreed(self, said: _TimeSample) -> ServerTimeReading:
        """Return what three answers in a row say, or the first that is near the expected time."""
        alike = 1
        log.warning(
            "server time doubted",
            server_ms=said.server_ms,
            expected_ms=self._clock.market_ms(),
        )
        while alike < ANSWERS:
            self._rest.cooldown.waiting("server time", self._again_s)
            await self._clock.sleep(self._again_s)
            again = await self._ask()
            if self._is_near(again):
                return ServerTimeReading(again.server_ms, is_jump=False)
            alike = alike + 1 if self._agree(said, again) else 1
            said = again
        return ServerTimeReading(said.server_ms, is_jump=True)

    async def _ask(self) -> _TimeSample:
        asked_s = self._clock.network_s()
        server_ms = await self._rest.server_time_ms()
        heard_s = self._clock.network_s()
        return _TimeSample(server_ms, max(asked_s, heard_s - UNDER_WAY_S_MAX), heard_s)

    def _is_near(self, said: _TimeSample) -> bool:
        return abs(said.server_ms - self._clock.market_ms()) <= FAR_S * self._scale_ms

    def _agree(self, said: _TimeSample, again: _TimeSample) -> bool:
        """Return whether as much time passed between two answers as lies between their times."""
        passed_s = (again.server_ms - said.server_ms) / self._scale_ms
        shortest_s, longest_s = again.asked_s - said.heard_s, again.heard_s - said.asked_s
        return shortest_s - ALIKE_S <= passed_s <= longest_s + ALIKE_S


LAG_MS: Final = 5_000
"""A frame this far from our market time, either way, has the clock read anew."""
LAG_RESYNC_S: Final = 1.0
RESYNC_S: Final = 30.0
"""Network time between two readings of the exchange's clock."""
POLL_S: Final = 0.1
FILTERS_MS: Final = DAY_MS
"""Market time between two readings of an instrument's filters."""


class FeedMaintenance:
    """Background work of a feed; ``run_*`` never return. It starts once ``is_live`` is set."""

    def __init__(
        self,
        *,
        rest: RestClient,
        clock: Clock,
        exchange: ExchangeSection,
        states: Mapping[str, FeedState],
        queue: EventQueue[Item],
        counters: Counter[str],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self.is_live = False
        self._spawn = spawn
        self._time = ServerTimeReader(rest, clock, time_scale=exchange.time_scale)
        self._rest = rest
        self._clock = clock
        self._exchange = exchange
        self._states = states
        self._queue = queue
        self._counters = counters
        self._lagged = asyncio.Event()
        self._synchronised_s = 0.0
        self._ahead_ms = exchange.ahead_ms * exchange.time_scale
        self._pushed_ms = 0.0  # how far frames have moved the clock since it was read

    def observe(self, server_ms: int) -> bool:
        """Learn the time of a frame; a large difference has the clock read anew.

        False where it lies so far ahead that only the clock itself may say so: one wrong frame
        would have every bar until its time asked for, and every quote before it dropped. Frames
        may move the clock by ``ahead_ms`` in all until it is read again, so that many small lies
        come no further than one.
        """
        ahead_ms = server_ms - self._clock.market_ms()
        if abs(ahead_ms) > LAG_MS:
            self.doubt_time()
        if ahead_ms <= 0:
            return True
        if self._pushed_ms + ahead_ms > self._ahead_ms:
            return False
        self._pushed_ms += ahead_ms
        self._clock.observe(server_ms)
        return True

    def doubt_time(self) -> None:
        """Have the exchange's clock read anew soon."""
        self._lagged.set()

    async def settlements(self, state: FeedState, until_ms: int) -> list[Funding]:
        """Return the new settlements of *market* up to *until_ms*, counted as handed on."""
        found = await self._rest.funding_history(
            state.instrument, state.funding.settled_ms + 1, until_ms
        )
        now_ms = self._clock.market_ms()
        return [structs.replace(one, seen_ms=now_ms) for one in state.funding.settle(found)]

    async def synchronise(self) -> None:
        """Read the exchange's clock."""
        self._lagged.clear()
        asked_s = self._clock.network_s()
        expected_ms = self._clock.market_ms()
        told = await self._time.read()
        server_ms = told.server_ms
        self._synchronised_s = self._clock.network_s()
        answer_s = min(self._synchronised_s - asked_s, UNDER_WAY_S_MAX)
        late_ms = answer_s * 1_000 * self._exchange.time_scale
        # An answer that was on its way for longer than it is behind says nothing against frames.
        if not 0 < self._clock.market_ms() - server_ms <= late_ms:
            self._clock.synchronise(server_ms)
        self._pushed_ms = -late_ms
        for state in self._states.values():
            state.drop_ahead(self._clock.market_ms() + self._ahead_ms)
        self._counters["resyncs"] += 1
        if told.is_jump and self.is_live:
            self._jumped(expected_ms, server_ms)

    def _jumped(self, from_ms: int, until_ms: int) -> None:
        """Say that market time was set, and why bars may be missing from here on."""
        self._counters["jumps"] += 1
        log.warning("market time jumped", from_ms=from_ms, until_ms=until_ms)
        first_ms, last_ms = sorted((from_ms, until_ms))
        for one in self._states:
            gap = Gap(one, first_ms, last_ms, GapCause.JUMPED, "clock", until_ms, until_ms)
            self._queue.put(Submitted(gap))
            self._queue.put(GapCauseNotice(one, GapCause.JUMPED))

    async def run_time(self) -> None:
        """Read the exchange's clock every ``resync_s``, and soon after a frame differs from it."""
        while True:
            await self._clock.sleep(POLL_S)
            age_s = self._clock.network_s() - self._synchronised_s
            if self.is_live and age_s >= (LAG_RESYNC_S if self._lagged.is_set() else RESYNC_S):
                await self.synchronise()

    async def run_questions(self) -> None:
        """Ask REST for each bar whose closing frame is overdue."""
        while True:
            await self._clock.sleep(POLL_S)
            if not self.is_live:
                continue
            for state in self._states.values():
                if state.is_overdue(
                    market_ms=self._clock.market_ms(),
                    network_s=self._clock.network_s(),
                    grace_ms=self._exchange.grace_ms,
                ):
                    self.ask(state)

    def ask(self, state: FeedState) -> None:
        """Ask REST for what *market* lacks, beside the line; the answer comes in line.

        One question at a time: while it is tried again, other instruments go on.
        """
        if not state.is_asking:
            state.is_asking = True
            self._spawn(self._question(state))

    async def _question(self, state: FeedState) -> None:
        sequence = state.sequence
        from_ms = sequence.next_open_ms
        until_ms = interval_start(self._clock.market_ms(), sequence.interval_ms)
        bars = await self._rest.klines(
            state.instrument,
            sequence.interval_ms,
            from_ms,
            max(until_ms, sequence.next_close_ms) - 1,
        )
        self._queue.put(
            BackfillPage(state.instrument.id, from_ms, tuple(bars), self._clock.network_s())
        )

    async def run_settlements(self, state: FeedState) -> None:
        """Hand on settlements whose time has passed as soon as the exchange publishes them."""
        while True:
            await self._clock.sleep(POLL_S)
            if not self.is_live:
                continue
            now_ms, now_s = self._clock.market_ms(), self._clock.network_s()
            if not state.funding.is_overdue(now_ms):
                state.settle_patience_s = 1.0
            elif now_s >= state.settle_at_s:
                state.settle_at_s = now_s + state.settle_patience_s
                state.settle_patience_s = min(2 * state.settle_patience_s, PATIENCE_MAX_S)
                for funding in await self.settlements(state, now_ms):
                    self._queue.put(Submitted(funding))

    async def run_filters(self, state: FeedState) -> None:
        """Read the filters again once a day of market time; hand on those that changed."""
        read_ms: int | None = None
        while True:
            await self._clock.sleep(POLL_S)
            if not self.is_live:
                continue
            now_ms = self._clock.market_ms()
            if read_ms is None or now_ms < read_ms:
                read_ms = now_ms
            if now_ms - read_ms < FILTERS_MS:
                continue
            read_ms = now_ms
            kept = state.instrument
            for fresh in await self._rest.instruments(kept.category, kept.symbol):
                try:
                    changed = rescaled(fresh, kept)
                except ConfigInvalid as error:
                    # Finer prices are refused as they come; nothing is decided on what is not.
                    self._counters["filters_refused"] += 1
                    log.warning("filters kept", error=str(error))
                    continue
                if changed != kept:
                    state.instrument = changed
                    now_ms = self._clock.market_ms()
                    event = InstrumentChange(changed, now_ms, now_ms)
                    self._queue.put(Submitted(event))
