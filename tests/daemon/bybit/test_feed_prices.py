"""A feed with a real engine delivers false prices only when needed, and not too often."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bybit_feed import BITCOIN, Live, live
from bybit_server import ScriptedServer, book, ticker
from engines import engine_of
from msgspec.structs import replace
from waiting import until

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.feed.client import FeedStart
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import CORE_GATES, Strategy
from tracepaper.strategies.types.decisions import Action, Fill, FillModel
from tracepaper.strategies.types.market import Bar, Event, Mark, Quote, Source
from tracepaper.strategies.units import DAY_MS

DAYS = 20
TODAY_MS = 19_676 * DAY_MS
PRICE = 10_000  # 1,000.0
UP, DOWN = 1_300.0, 700.0
EACH_MS = 100
"""The time between two tickers."""


class Says(Strategy):
    """Signals *action* with a stop at every bar."""

    gates = CORE_GATES

    def __init__(self, action: Action) -> None:
        self._signal = Signal(action, "now", stop=Percent(25))

    def decide(self, context: BarContext) -> Signal:
        del context
        return self._signal


def held(action: Action, leverage: str = "5") -> Engine:
    """Return an engine that has held *action* on margin since the last of some daily bars."""
    engine = engine_of(
        {
            "market": {"interval": "D"},
            "strategy": {"name": "sma_cross"},
            "sizing": {"mode": "fixed", "quantity": "1"},
            "account": {"cash": "5000", "margin": "isolated", "leverage": leverage},
        },
        [BITCOIN],
        execution=FillModel.QUOTE,
        strategy=Says(action),
    )
    for index in range(-DAYS, 0):
        open_ms = TODAY_MS + index * DAY_MS
        edges = (PRICE, PRICE + 20, PRICE - 20, PRICE)
        close_ms, at = open_ms + DAY_MS, open_ms + 1_000
        engine.step(Quote(BITCOIN.id, PRICE - 1, 9_000, PRICE + 1, 9_000, at, at), None)
        day = Bar(
            BITCOIN.id, open_ms, DAY_MS, *edges, 1_000, None, close_ms, close_ms, Source.STREAM
        )
        engine.step(day, None)
    assert engine.broker.liquidates(
        Mark(BITCOIN.id, 1 if action is Action.LONG else 9 * PRICE, 0, 0)
    )
    return engine


@asynccontextmanager
async def fed(
    engine: Engine, from_ms: int = TODAY_MS + 5_000
) -> AsyncIterator[tuple[Stream, Live, list[Fill]]]:
    """Run a feed of daily bars whose events *engine* takes; yield its fills too."""
    async with ScriptedServer() as server:
        server.server_ms = from_ms
        start = FeedStart(interval_ms=DAY_MS, period_start_ms=TODAY_MS, warmup_bars=0)
        async with live(
            server,
            start=start,
            instruments=(replace(BITCOIN, funding_interval_minutes=480),),
            accepted_prices=engine.accepted_prices,
            liquidates=engine.broker.liquidates,
            data_watchdog_s=3_600.0,
        ) as running:
            fills: list[Fill] = []

            def take(event: Event) -> None:
                fills.extend(engine.step(event, None).fills)

            running.take = take
            running.quote_from_ms = engine.broker.quote_from_ms
            await until(lambda: len(server.subscribed()) == 3)
            yield Stream(server, running), running, fills


def prices(run: Live) -> list[tuple[type, int]]:
    """Return the delivered prices: kind, and tenths of a second since the first frame."""
    events = [event for event in run.events if isinstance(event, Quote | Mark)]
    return [(type(price), (price.market_ms - TODAY_MS - 6_000) // EACH_MS) for price in events]


class Stream:
    """Sends frames a tenth of a second apart, and waits until each is processed."""

    def __init__(self, server: ScriptedServer, run: Live) -> None:
        self.server = server
        self._run = run

    async def send(self, tenths: int, frame: dict[str, Any]) -> None:
        at = TODAY_MS + 6_000 + tenths * EACH_MS
        self._run.move_to(at)
        frames = self._run.feed.counters["frames"]
        dated = {name: at for name in ("ts", "cts") if name in frame}
        await self.server.send(frame | dated)
        await until(lambda: self._run.feed.counters["frames"] > frames and self._run.is_idle())


def mark(price: float, **others: float) -> dict[str, Any]:
    frame = ticker(0, f"{price:.1f}")
    names = {"index": "indexPrice", "last": "lastPrice"}
    frame["data"] |= {names[name]: f"{value:.1f}" for name, value in others.items()}
    return frame


def quoted(price: float) -> dict[str, Any]:
    return book(0, f"{price:.1f}", f"{price + 0.1:.1f}", "9000")


def fluttering(price: float, tenths: int) -> float:
    """Return *price*, slightly different each time."""
    return price + tenths % 3 / 10


EVERY = [0, 51, 102, 153]
"""Tenths of a second, each more than five seconds after the last."""


FALSE: dict[str, Callable[[float, int], dict[str, Any]]] = {
    "a mark": lambda price, tenths: mark(fluttering(price, tenths)),
    # A mark's index and last price are known with it, and are no evidence for it.
    "a ticker": lambda price, tenths: mark(price, index=fluttering(price, tenths), last=price),
    "a book": lambda price, tenths: quoted(fluttering(price, tenths)),
}


@pytest.mark.parametrize("kind", FALSE)
@pytest.mark.parametrize(("action", "price"), [(Action.SHORT, UP), (Action.LONG, DOWN)])
async def test_a_false_price_that_lasts_is_an_event_once_in_five_seconds(
    kind: str, action: Action, price: float
) -> None:
    """It would liquidate, or fill a stop that no true book reaches, before the day ends."""
    is_book = kind == "a book"
    async with fed(held(action)) as (stream, run, fills):
        if is_book:
            await stream.send(0, quoted(1_000.0))
        for tenths in range(200):
            await stream.send(tenths, FALSE[kind](price, tenths))
        assert prices(run) == [(Quote if is_book else Mark, tenths) for tenths in EVERY]
        assert fills == []


@pytest.mark.parametrize("shows", [quoted(UP + 1), mark(1_000.0, index=UP), mark(UP + 1, last=UP)])
async def test_what_shows_a_mark_that_lasts_is_an_event_at_once(shows: dict[str, Any]) -> None:
    """It follows the newest mark if it is evidence for that; else the next mark is believed."""
    async with fed(held(Action.SHORT)) as (stream, run, fills):
        for tenths in range(20):
            await stream.send(tenths, mark(fluttering(UP, tenths)))
        await stream.send(20, shows)
        await stream.send(21, mark(UP + 2))
        (fill,) = fills
        assert fill.model is FillModel.LIQUIDATION
        if "orderbook" in shows["topic"]:
            assert prices(run) == [(Mark, 0), (Mark, 19), (Quote, 20)]
        else:
            assert prices(run) == [(Mark, 0), (Mark, 20), (Mark, 21)]


@pytest.mark.parametrize("shows", [mark(DOWN - 2), mark(1_000.0, last=DOWN - 2)])
async def test_what_shows_a_book_that_lasts_fills_at_its_newest_price(
    shows: dict[str, Any],
) -> None:
    async with fed(held(Action.LONG, leverage="1")) as (stream, run, fills):
        for tenths in range(20):
            await stream.send(tenths, quoted(DOWN - tenths / 10))
        await stream.send(20, shows)
        (fill,) = fills
        assert fill.price == round(10 * (DOWN - 1.9))
        assert prices(run) == [(Quote, 0), (Quote, 19), (Mark, 20)]


async def test_a_false_price_that_goes_elsewhere_is_an_event_at_once() -> None:
    async with fed(held(Action.SHORT)) as (stream, run, fills):
        for tenths, price in enumerate((UP, UP + 1, UP + 400, UP + 401, 1_000.0)):
            await stream.send(tenths, mark(price))
        assert prices(run) == [(Mark, 0), (Mark, 2)]
        assert fills == []


@pytest.mark.parametrize("together", [True, False])
async def test_a_mark_that_liquidates_comes_behind_the_newest_of_the_others(together: bool) -> None:
    """On cross margin alone: only there do the marks of all instruments count."""
    other = replace(BITCOIN, symbol="ETHUSDT", base_coin="ETH")

    def of_other(frame: dict[str, Any]) -> dict[str, Any]:
        return frame | {"topic": "tickers.ETHUSDT", "data": frame["data"] | {"symbol": "ETHUSDT"}}

    async with ScriptedServer() as server:
        server.server_ms = TODAY_MS + 5_000
        start = FeedStart(interval_ms=DAY_MS, period_start_ms=TODAY_MS, warmup_bars=0)
        async with live(
            server,
            start=start,
            instruments=(BITCOIN, other),
            liquidates=lambda item: item.instrument == BITCOIN.id and item.price < PRICE,
            marks_together=together,
            data_watchdog_s=3_600.0,
        ) as running:
            running.take = lambda _: None
            running.quote_from_ms = lambda _: None
            await until(lambda: len(server.subscribed()) == 6)
            stream = Stream(server, running)
            await stream.send(0, of_other(mark(900.0)))
            await stream.send(1, of_other(mark(901.0)))
            await stream.send(2, mark(1_000.0))
            await stream.send(3, mark(999.0))
            await stream.send(4, mark(998.0))
            marks = [(row.instrument, row.price) for row in running.events if isinstance(row, Mark)]
    of_btc = [(BITCOIN.id, 9_990), (BITCOIN.id, 9_980)]
    assert marks == [(other.id, 9_010), *of_btc] if together else marks == of_btc
