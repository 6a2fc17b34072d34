"""What a live feed does beside its line: time, questions to REST, settlements, filters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Final

import structlog
from msgspec import structs

from tracepaper.daemon.bybit.feed_types import Blame, Item, Page, Submitted
from tracepaper.daemon.bybit.instruments import rescaled
from tracepaper.daemon.bybit.intervals import floor_open_ms
from tracepaper.daemon.bybit.line import Line
from tracepaper.daemon.bybit.market import PATIENCE_MAX_S, Market
from tracepaper.daemon.bybit.rest import Rest
from tracepaper.daemon.bybit.server_time import UNDER_WAY_S_MAX, ServerTime
from tracepaper.daemon.bybit.stream import FeedSettings
from tracepaper.daemon.ports import Clock
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import Funding, Gap, GapCause, InstrumentChange

log = structlog.get_logger("bybit.feed")

LAG_MS: Final = 5_000
"""A frame this far from our market time, either way, has the clock read anew."""
LAG_RESYNC_S: Final = 1.0


class Upkeep:
    """Background work of a feed; ``run_*`` never return. It starts once ``is_live`` is set."""

    def __init__(
        self,
        *,
        rest: Rest,
        clock: Clock,
        settings: FeedSettings,
        markets: Mapping[str, Market],
        line: Line[Item],
        counters: Counter[str],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self.is_live = False
        self._spawn = spawn
        self._time = ServerTime(rest, clock, time_scale=settings.time_scale)
        self._rest = rest
        self._clock = clock
        self._settings = settings
        self._markets = markets
        self._line = line
        self._counters = counters
        self._lagged = asyncio.Event()
        self._synchronised_s = 0.0
        self._ahead_ms = settings.ahead_ms * settings.time_scale
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

    async def settlements(self, market: Market, until_ms: int) -> list[Funding]:
        """Return the new settlements of *market* up to *until_ms*, counted as handed on."""
        found = await self._rest.funding_history(
            market.instrument, market.funding.settled_ms + 1, until_ms
        )
        now_ms = self._clock.market_ms()
        return [structs.replace(one, seen_ms=now_ms) for one in market.funding.settle(found)]

    async def synchronise(self) -> None:
        """Read the exchange's clock."""
        self._lagged.clear()
        asked_s = self._clock.network_s()
        expected_ms = self._clock.market_ms()
        told = await self._time.read()
        server_ms = told.server_ms
        self._synchronised_s = self._clock.network_s()
        answer_s = min(self._synchronised_s - asked_s, UNDER_WAY_S_MAX)
        late_ms = answer_s * 1_000 * self._settings.time_scale
        # An answer that was on its way for longer than it is behind says nothing against frames.
        if not 0 < self._clock.market_ms() - server_ms <= late_ms:
            self._clock.synchronise(server_ms)
        self._pushed_ms = -late_ms
        for market in self._markets.values():
            market.forget_ahead(self._clock.market_ms() + self._ahead_ms)
        self._counters["resyncs"] += 1
        if told.is_jump and self.is_live:
            self._jumped(expected_ms, server_ms)

    def _jumped(self, from_ms: int, until_ms: int) -> None:
        """Say that market time was set, and why bars may be missing from here on."""
        self._counters["jumps"] += 1
        log.warning("market time jumped", from_ms=from_ms, until_ms=until_ms)
        first_ms, last_ms = sorted((from_ms, until_ms))
        for one in self._markets:
            gap = Gap(one, first_ms, last_ms, GapCause.JUMPED, "clock", until_ms, until_ms)
            self._line.insist(Submitted(gap))
            self._line.insist(Blame(one, GapCause.JUMPED))

    async def run_time(self) -> None:
        """Read the exchange's clock every ``resync_s``, and soon after a frame differs from it."""
        while True:
            await self._clock.sleep(self._settings.poll_s)
            age_s = self._clock.network_s() - self._synchronised_s
            if self.is_live and age_s >= (
                LAG_RESYNC_S if self._lagged.is_set() else self._settings.resync_s
            ):
                await self.synchronise()

    async def run_questions(self) -> None:
        """Ask REST for each bar whose closing frame is overdue."""
        while True:
            await self._clock.sleep(self._settings.poll_s)
            if not self.is_live:
                continue
            for market in self._markets.values():
                if market.is_overdue(
                    market_ms=self._clock.market_ms(),
                    network_s=self._clock.network_s(),
                    grace_ms=self._settings.grace_ms,
                ):
                    self.ask(market)

    def ask(self, market: Market) -> None:
        """Ask REST for what *market* lacks, beside the line; the answer comes in line.

        One question at a time: while it is tried again, other instruments go on.
        """
        if not market.is_asking:
            market.is_asking = True
            self._spawn(self._question(market))

    async def _question(self, market: Market) -> None:
        sequence = market.sequence
        from_ms = sequence.next_open_ms
        until_ms = floor_open_ms(self._clock.market_ms(), sequence.interval_ms)
        bars = await self._rest.klines(
            market.instrument,
            sequence.interval_ms,
            from_ms,
            max(until_ms, sequence.next_close_ms) - 1,
        )
        self._line.insist(Page(market.instrument.id, from_ms, tuple(bars), self._clock.network_s()))

    async def run_settlements(self, market: Market) -> None:
        """Hand on settlements whose time has passed as soon as the exchange publishes them."""
        while True:
            await self._clock.sleep(self._settings.poll_s)
            if not self.is_live:
                continue
            now_ms, now_s = self._clock.market_ms(), self._clock.network_s()
            if not market.funding.is_overdue(now_ms):
                market.settle_patience_s = 1.0
            elif now_s >= market.settle_at_s:
                market.settle_at_s = now_s + market.settle_patience_s
                market.settle_patience_s = min(2 * market.settle_patience_s, PATIENCE_MAX_S)
                for funding in await self.settlements(market, now_ms):
                    self._line.insist(Submitted(funding))

    async def run_filters(self, market: Market) -> None:
        """Read the filters again once a day of market time; hand on those that changed."""
        read_ms: int | None = None
        while True:
            await self._clock.sleep(self._settings.poll_s)
            if not self.is_live:
                continue
            now_ms = self._clock.market_ms()
            if read_ms is None or now_ms < read_ms:
                read_ms = now_ms
            if now_ms - read_ms < self._settings.instruments_ms:
                continue
            read_ms = now_ms
            kept = market.instrument
            for fresh in await self._rest.instruments(kept.category, kept.symbol):
                try:
                    changed = rescaled(fresh, kept)
                except ConfigInvalid as error:
                    # Finer prices are refused as they come; nothing is decided on what is not.
                    self._counters["filters_refused"] += 1
                    log.warning("filters kept", error=str(error))
                    continue
                if changed != kept:
                    market.instrument = changed
                    now_ms = self._clock.market_ms()
                    event = InstrumentChange(changed, now_ms, now_ms)
                    self._line.insist(Submitted(event))
