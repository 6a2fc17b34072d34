"""Warming symbols up in turn loses and repeats no bar, whatever REST and streams do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from builders import instrument
from bybit_feed import BITCOIN, Live, live
from bybit_server import MINUTE, START_MS, ScriptedServer, kline
from held_answers import HeldAnswers
from msgspec import structs
from waiting import pass_time

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed import sequencer
from tracepaper.daemon.feed.client import FeedStart
from tracepaper.daemon.feed.maintenance import FILTERS_AGAIN_S
from tracepaper.strategies.types.market import Bar, Event, Funding, Instrument

PAGE = 10
BEFORE = 25
START = FeedStart(interval_ms=MINUTE, period_start_ms=START_MS, warmup_bars=BEFORE)


def item(name: str) -> Instrument:
    return instrument(name, price_decimals=1, tick_size=1)


ETHER = item("ETHUSDT")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> HeldAnswers:
    return HeldAnswers(monkeypatch, page=PAGE, before=1)  # one symbol


def serve(server: ScriptedServer, *names: str, first: int = -BEFORE, until: int = 0) -> None:
    for name in names:
        for minute in range(first, until):
            server.add_candle(START_MS + minute * MINUTE, symbol=name)


async def test_what_comes_in_turn_does_not_have_the_first_asked_for_again(
    answers: HeldAnswers,
) -> None:
    """The first symbol's newest bars are missing; each answer arrives after one of another."""
    others = [item(f"M{number}USDT") for number in range(12)]
    names = [other.symbol for other in others]
    document, given = answers.questions, answers.given
    events: list[Event] = []

    def holds(name: str, number: int) -> bool:
        if any(isinstance(event, Bar) and event.instrument != BITCOIN.id for event in events):
            return False  # deliver the events of the queue
        if name in names:
            return number == 1 and document["BTCUSDT"] < 5 + names.index(name)
        return 5 <= number < 5 + len(names) and not given[names[number - 5]]

    answers.holds = holds
    async with ScriptedServer() as server:
        serve(server, "BTCUSDT", until=-2)
        serve(server, *names)
        server.server_ms = START_MS + 3_000
        async with live(server, start=START, instruments=(BITCOIN, *others)) as run:
            events = run.events
            await run.expect(lambda: len(run.bars()) == BEFORE - 2 + BEFORE * len(others))
    assert document["BTCUSDT"] < 8


def opens(run: Live, of: Instrument) -> list[int]:
    """Return the open times of the bars of an instrument, in minutes since the start."""
    bars = [bar for bar in run.bars() if bar.instrument == of.id]
    return [(bar.open_time_ms - START_MS) // MINUTE for bar in bars]


async def close(run: Live, minute: int, *names: str) -> None:
    """Let a minute close: REST and the stream have its bar of each symbol."""
    open_ms = START_MS + minute * MINUTE
    run.move_to(open_ms + MINUTE + 300)
    for name in names:
        run.server.add_candle(open_ms, symbol=name)
        await run.server.send(kline(open_ms, symbol=name))
    counted = BEFORE + 1 + minute
    await run.expect(lambda: len(opens(run, BITCOIN)) == counted)


@asynccontextmanager
async def waiting(
    answers: HeldAnswers,
    server: ScriptedServer,
    *,
    closes: int,
    first: int | None = -BEFORE,
    settles: int = 0,
) -> AsyncIterator[Live]:
    """Run a feed of two symbols; the second waits at its first or second request.

    It has bars from minute *first* on, and *closes* minutes of both close meanwhile. Their funding
    is settled every *settles* minutes of the clock.
    """
    both = [structs.replace(item, funding_interval_minutes=settles) for item in (BITCOIN, ETHER)]
    serve(server, "BTCUSDT")
    if first is not None:
        serve(server, "ETHUSDT", first=first)
    server.server_ms = START_MS + 3_000
    number = 1 if first is None else 2
    answers.holds = lambda name, place: name == "ETHUSDT" and place >= number
    async with live(server, start=START, instruments=tuple(both), ban_cooldown_s=1.0) as run:
        await run.expect(lambda: answers.questions["ETHUSDT"] == number)
        for minute in range(closes):
            await close(run, minute, "BTCUSDT", "ETHUSDT")
        yield run


ROW = ["1.0", "1.0", "1.0", "1.0", "1.5", "1.5"]


def page(*minutes: int, symbol: str = "ETHUSDT") -> dict[str, Any]:
    rows = [[str(START_MS + minute * MINUTE), *ROW] for minute in minutes]
    return {"category": "linear", "symbol": symbol, "list": rows}


BAD: dict[str, Callable[[ScriptedServer], web.Response]] = {
    "an error": lambda _: web.Response(status=500),
    "too many requests": lambda server: server.reply({}, code=10006, message="no"),
    "a ban": lambda _: web.Response(status=403),
    "no JSON": lambda _: web.Response(body=b"<html>"),
    "nothing": lambda server: server.reply(page()),
    "one bar": lambda server: server.reply(page(-12)),
    "a bar twice": lambda server: server.reply(page(-12, -12)),
    "the oldest first": lambda server: server.reply(page(-13, -12)),
    "bars of the page before": lambda server: server.reply(page(-17, -18)),
    "a bar of the future": lambda server: server.reply(page(7)),
    "another symbol": lambda server: server.reply(page(-12, symbol="BTCUSDT")),
}


@pytest.mark.parametrize("name", BAD)
async def test_whatever_is_answered_amid_a_turn_nothing_is_lost_or_doubled(
    answers: HeldAnswers, name: str
) -> None:
    async with ScriptedServer() as server, waiting(answers, server, closes=2) as run:
        server.answer_next("kline", BAD[name](server), BAD[name](server))
        answers.limit()
        await run.expect(lambda: len(opens(run, ETHER)) == BEFORE + 2)
        assert not server.answers["kline"]
        await close(run, 2, "BTCUSDT", "ETHUSDT")
        await run.expect(lambda: len(opens(run, ETHER)) == BEFORE + 3)
        assert opens(run, ETHER) == opens(run, BITCOIN) == list(range(-BEFORE, 3))
        assert not run.gaps()
        assert run.feed.warm_at(ETHER.id) is None


async def test_a_stream_that_waits_beyond_the_bound_is_asked_for_again(
    answers: HeldAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer, "PENDING_MAX", 3)
    async with ScriptedServer() as server, waiting(answers, server, closes=8) as run:
        assert run.feed.counters["overflow_bars"] == 5
        assert opens(run, ETHER) == list(range(-BEFORE, -BEFORE + PAGE))
        run.move_to(START_MS + 8 * MINUTE + 3_000)  # the last of them is final for REST
        answers.limit()
        await run.expect(lambda: len(opens(run, ETHER)) == BEFORE + 8)
        assert not run.gaps()  # its turn ends when REST has no more
        await close(run, 8, "BTCUSDT", "ETHUSDT")
        run.move_to(START_MS + 9 * MINUTE + 30_000)  # a frame lost in a reconnection is overdue
        await run.expect(lambda: len(opens(run, ETHER)) == BEFORE + 9)
        assert opens(run, ETHER) == list(range(-BEFORE, 9))


@pytest.mark.parametrize("first", [None, -3, -BEFORE])
async def test_a_connection_that_is_lost_while_a_symbol_waits_makes_no_hole_before_its_listing(
    answers: HeldAnswers, first: int | None
) -> None:
    async with ScriptedServer() as server, waiting(answers, server, closes=2, first=first) as run:
        await server.drop()
        await run.expect(lambda: server.connections == 2)
        answers.limit()
        await close(run, 2, "BTCUSDT", "ETHUSDT")
        since = 0 if first is None else first
        asked_s = run.clock.network_s()
        await run.expect(lambda: opens(run, ETHER)[-1:] == [2])
        assert run.clock.network_s() - asked_s < 10
        assert opens(run, ETHER) == list(range(since, 3))
        assert not [gap for gap in run.gaps() if not gap[-1]]


async def test_a_symbol_that_leaves_the_list_during_a_first_start_delays_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candles, asked = BybitClient.candles, asyncio.Event()

    async def answered(
        client: BybitClient, item: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        if item.id == ETHER.id and start_ms >= START_MS:  # after the bars that warm up
            asked.set()
            await asyncio.Event().wait()
        return await candles(client, item, interval_ms, start_ms, end_ms)

    monkeypatch.setattr(BybitClient, "candles", answered)
    async with ScriptedServer() as server:
        serve(server, "BTCUSDT", "ETHUSDT", until=3)
        server.server_ms = START_MS + 3 * MINUTE + 3_000
        async with live(server, start=START, instruments=(BITCOIN, ETHER)) as run:
            await run.expect(asked.is_set)
            asked_s = run.clock.network_s()
            await run.expect(lambda: run.clock.network_s() > asked_s + 1)  # the other is answered
            pass_time(60.0)
            await run.expect(lambda: run.clock.network_s() > asked_s + 5)
            assert opens(run, BITCOIN) == list(range(-BEFORE, 3))
            assert opens(run, ETHER) == list(range(-BEFORE, 0))


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_settlement_while_a_symbol_waits_is_handed_on_once_and_before_its_bar(
    answers: HeldAnswers, *, is_late: bool
) -> None:
    """The settlement is published while the symbol waits, or as its bars are requested."""
    async with ScriptedServer() as server, waiting(answers, server, closes=0, settles=5) as run:
        rates = [(START_MS + MINUTE, "0.0001")]  # five minutes of the clock
        server.funding = [] if is_late else rates
        for minute in range(3):
            await close(run, minute, "BTCUSDT", "ETHUSDT")
        server.funding = rates
        if not is_late:
            await run.expect(lambda: sum(isinstance(event, Funding) for event in run.events) == 2)
        answers.limit()
        await run.expect(lambda: len(opens(run, ETHER)) == BEFORE + 3)
        await close(run, 3, "BTCUSDT", "ETHUSDT")
        await run.expect(lambda: len(opens(run, ETHER)) == BEFORE + 4)
        of_ether = [event for event in run.events if getattr(event, "instrument", "") == ETHER.id]
        (place,) = [at for at, event in enumerate(of_ether) if isinstance(event, Funding)]
        closed = [bar.close_time_ms for bar in of_ether[:place] if isinstance(bar, Bar)]
        assert max(closed) < START_MS + MINUTE
        await run.expect(lambda: sum(isinstance(event, Funding) for event in run.events) == 2)


async def test_the_filters_of_a_symbol_that_waits_are_not_asked_for_as_if_it_were_silent(
    answers: HeldAnswers,
) -> None:
    """Otherwise two hundred waiting symbols would use up most of their own warm-up requests."""
    async with ScriptedServer() as server, waiting(answers, server, closes=5) as run:
        since_s = run.clock.network_s()
        await run.expect(lambda: run.clock.network_s() > since_s + 3 * FILTERS_AGAIN_S)
        assert not server.queries("instruments-info")
        server.rows["ETHUSDT"].clear()
        answers.limit()
        await run.expect(lambda: run.feed.warm_at(ETHER.id) is None)
        run.move_to(START_MS + 10 * MINUTE)  # by now both are silent
        await run.expect(lambda: len(server.queries("instruments-info")) >= 2)
