"""Hand bars on exactly once and in order, each after what belongs before it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, assert_never

from msgspec import structs

from tracepaper.daemon.bybit.backfill import Hole, fill
from tracepaper.daemon.bybit.market import Market
from tracepaper.daemon.bybit.rest import Rest
from tracepaper.daemon.bybit.sequence import Place
from tracepaper.daemon.bybit.upkeep import Upkeep
from tracepaper.daemon.ports import Clock
from tracepaper.strategies.types import Bar, Event, Funding, GapCause, Mark, Quote

FUNDING_WAIT_S: Final = 0.5
"""How long, network time, a bar of the stream waits for a settlement that belongs before it."""


class HandOn:
    """The order of events around bars: settlements, newest quote and mark, then the bar.

    ``bar`` takes what a stream brought, ``fill`` what REST has of given holes.
    """

    def __init__(
        self,
        *,
        rest: Rest,
        clock: Clock,
        markets: Mapping[str, Market],
        upkeep: Upkeep,
        counters: Counter[str],
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._markets = markets
        self._upkeep = upkeep
        self._counters = counters

    async def bar(self, bar: Bar) -> AsyncIterator[Event]:
        """Hand on a bar of the stream, exactly once and in its place."""
        market = self._markets[bar.instrument]
        match place := market.sequence.place(bar):
            case Place.REPEATED | Place.OLD:
                self._counters[f"{place.value}_bars"] += 1
                return
            case Place.REVISED:
                self._counters["revised_bars"] += 1
                market.sequence.accept(bar)
                yield structs.replace(bar, seen_ms=self._clock.market_ms())
                return
            case Place.AHEAD:
                hole = Hole(market, bar.open_time_ms, is_certain=True, cause=market.cause)
                async for event in self.fill([hole]):
                    yield event
            case Place.NEXT:
                pass
            case _:
                assert_never(place)
        market.cause = GapCause.MISSED
        async for event in self._before(market, bar.close_time_ms, FUNDING_WAIT_S):
            yield event
        for event in self._quotes(market):
            yield event
        market.sequence.accept(bar)
        self._counters["bars"] += 1
        yield structs.replace(bar, seen_ms=self._clock.market_ms())

    async def fill(self, holes: Sequence[Hole]) -> AsyncIterator[Event]:
        """Fill *holes* from REST, each bar preceded by the settlements that belong before it."""
        ends_ms = {one.market.instrument.id: one.until_ms for one in holes}
        async for event in fill(holes, rest=self._rest, clock=self._clock):
            if isinstance(event, Bar):
                market = self._markets[event.instrument]
                async for before in self._before(market, event.close_time_ms, None):
                    yield before
                if self._upkeep.is_live and event.close_time_ms >= ends_ms[event.instrument]:
                    for quote_or_mark in self._quotes(market):
                        yield quote_or_mark
                self._counters["rest_bars"] += 1
            else:
                self._counters["repairs" if event.repaired_by else "holes"] += 1
            yield event

    async def _before(
        self, market: Market, close_ms: int, patience_s: float | None
    ) -> AsyncIterator[Funding]:
        """Yield the settlements that belong before a bar that closed at *close_ms*."""
        if not market.funding.is_due_by(close_ms):
            return
        market.funding.asked(close_ms)
        try:
            async with asyncio.timeout(patience_s):
                settled = await self._upkeep.settlements(market, close_ms)
        except TimeoutError:
            return  # asked again in the background
        for funding in settled:
            yield funding

    def _quotes(self, market: Market) -> list[Quote | Mark]:
        """Return the newest quote and mark that were not handed on, as of now."""
        now_ms = self._clock.market_ms()
        return [structs.replace(event, seen_ms=now_ms) for event in market.unhanded()]
