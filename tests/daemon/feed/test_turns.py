"""Symbols that are warmed in turn: nothing is lost or doubled, whatever REST and streams do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from bybit_feed import BITCOIN, Live, live
from builders import instrument
from bybit_server import MINUTE, START_MS, ScriptedServer, kline

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed import warming
from tracepaper.daemon.feed.client import FeedStart
from tracepaper.strategies.types.market import Bar, Event, Instrument

PAGE = 10
BEFORE = 25
START = FeedStart(interval_ms=MINUTE, period_start_ms=START_MS, warmup_bars=BEFORE)


def item(name: str) -> Instrument:
    return instrument(name, price_decimals=1, tick_size=1)


ETHER = item("ETHUSDT")


class Answers:
    """The answers about candles: each waits while *holds* of its symbol and number is true."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: Counter[str] = Counter()
        self.given: Counter[str] = Counter()
        self.holds: Callable[[str, int], bool] = lambda _name, _number: False
        answered, self_ = BybitClient.candles, self

        async def candles(
            client: BybitClient, item: Instrument, interval_ms: int, start_ms: int, end_ms: int
        ) -> list[Bar]:
            self_.asked[item.symbol] += 1
            number = self_.asked[item.symbol]
            while self_.holds(item.symbol, number):
                await asyncio.sleep(0)
            found = await answered(client, item, interval_ms, start_ms, end_ms)
            self_.given[item.symbol] += 1
            return found

        monkeypatch.setattr(BybitClient, "candles", candles)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    monkeypatch.setattr(BybitClient, "candles_max", PAGE)
    monkeypatch.setattr(warming, "BEFORE_START", 1)  # one symbol
    return Answers(monkeypatch)


def known(server: ScriptedServer, *names: str, first: int = -BEFORE, until: int = 0) -> None:
    for name in names:
        for minute in range(first, until):
            server.add_candle(START_MS + minute * MINUTE, symbol=name)


async def test_what_comes_in_turn_does_not_have_the_first_asked_for_again(answers: Answers) -> None:
    """The newest bars of the first are missing, and each answer comes behind one of another."""
    others = [item(f"M{number}USDT") for number in range(12)]
    names = [one.symbol for one in others]
    asked, given = answers.asked, answers.given
    events: list[Event] = []

    def holds(name: str, number: int) -> bool:
        if any(isinstance(one, Bar) and one.instrument != BITCOIN.id for one in events):
            return False  # the events of the queue are delivered
        if name in names:
            return number == 1 and asked["BTCUSDT"] < 5 + names.index(name)
        return 5 <= number < 5 + len(names) and not given[names[number - 5]]

    answers.holds = holds
    async with ScriptedServer() as server:
        known(server, "BTCUSDT", until=-2)
        known(server, *names)
        server.server_ms = START_MS + 3_000
        async with live(server, start=START, instruments=(BITCOIN, *others)) as run:
            events = run.events
            await run.expect(lambda: len(run.bars()) == BEFORE - 2 + BEFORE * len(others))
    assert asked["BTCUSDT"] < 8
