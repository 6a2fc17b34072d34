from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from bybit_server import ScriptedServer, exchange_section
from exchange_client import FIRST_MS, MINUTE, candles
from fakes import ManualClock
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.replay.archive import read_candles
from tracepaper.replay.archive.candles import Span
from tracepaper.replay.archive.download import FetchRequest, Times, fetch, fetch_symbols, runs
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.months import MONTH_MS, month_start
from tracepaper.strategies.types.market import Bar, Category, Instrument


@given(st.sets(st.integers(0, 80)), st.integers(1, 9))
def test_the_runs_of_times_are_those_times_without_a_hole(places: set[int], most: int) -> None:
    times = 7 * np.array(sorted(places), dtype=np.int64)
    parts = runs(times, 7, most=most)
    assert [time for first, until in parts for time in range(first, until, 7)] == times.tolist()
    assert all(0 < until - first <= 7 * most for first, until in parts)
    whole = runs(times, 7)
    assert all(after > before for (_, before), (after, _) in pairwise(whole))
    assert len(parts) == sum(-((first - until) // (7 * most)) for first, until in whole)


class KeptBars:
    """Keeps bars by open time, and knows what it has."""

    def __init__(self) -> None:
        self.bars: dict[int, Bar] = {}

    def keep(self, page: Sequence[Bar]) -> None:
        for bar in page:
            assert bar.open_time_ms not in self.bars
            self.bars[bar.open_time_ms] = bar

    def lacking(self, times: Times) -> Times:
        return np.setdiff1d(times, np.array([*self.bars], dtype=np.int64))


class BreakingClient(BybitClient):
    """Its connection ends after so many pages."""

    pages_left = 1

    async def candles(
        self, instrument: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        if not self.pages_left:
            raise ConnectionError
        self.pages_left -= 1
        return await super().candles(instrument, interval_ms, start_ms, end_ms)


async def test_a_fetch_that_broke_off_goes_on_where_it_ended() -> None:
    rng = np.random.default_rng(3)
    close = 1_000_000 + np.cumsum(rng.integers(-50, 51, 2_600))
    rows = [(int(c), int(c) + 60, int(c) - 60, int(c) + 7, 5_000) for c in close]
    kept = [i for i in range(2_600) if not 700 <= i < 720]  # the exchange has a hole
    served = candles([rows[i] for i in kept], times_ms=[FIRST_MS + i * MINUTE for i in kept])
    settings = ExchangeSettings(candles=(served,), manual=True, start=2_570)
    wanted = FIRST_MS + MINUTE * np.arange(2_500)
    archive = KeptBars()
    async with (
        EmbeddedExchange(settings) as exchange,
        BreakingClient(
            exchange_section(rest_url=exchange.rest_url), clock=ManualClock(), rng=random.Random(1)
        ) as client,
    ):
        instrument = await client.instrument(served.category, served.symbol)
        with pytest.raises(ConnectionError):
            await fetch(client, instrument, MINUTE, wanted, keep=archive.keep)
        assert len(archive.bars) == 980
        client.pages_left = 3
        settled: list[int] = []
        bars, absent = await fetch(
            client,
            instrument,
            MINUTE,
            archive.lacking(wanted),
            keep=archive.keep,
            progress=settled.append,
        )
    assert (bars, absent.tolist()) == (1_500, wanted[700:720].tolist())
    assert settled == [20, 1_000, 500]
    assert sorted(archive.bars) == [FIRST_MS + i * MINUTE for i in kept if i < 2_500]
    scale = 10 ** (instrument.price_decimals - served.price_decimals)
    assert [archive.bars[t].close for t in sorted(archive.bars)] == [
        value * scale for value in served.close[:2_480].tolist()
    ]


async def test_months_are_fetched_and_a_missing_one_is_named(tmp_path: Path) -> None:
    opens = [month_start(month) for month in range(600, 613)]
    clock = ManualClock()
    async with ScriptedServer() as server:
        server.server_ms = opens[-1] + 5 * 86_400_000  # a month is open
        for at in (*opens[:4], *opens[5:]):
            server.add_candle(at)
        async with BybitClient(
            exchange_section(rest_url=server.rest_url), clock=clock, rng=random.Random(1)
        ) as client:
            wanted = opens[0] - 1, server.server_ms
            order = FetchRequest(tmp_path, Category.LINEAR, ("BTCUSDT",), MONTH_MS, *wanted)
            (outcome,) = await fetch_symbols(client, clock, order, certain_s=30.0, quiet=True)
            (again,) = await fetch_symbols(client, clock, order, certain_s=30.0, quiet=True)
    assert {query["interval"] for query in server.queries("kline")} == {"M"}
    assert (outcome.bars, list(outcome.absent)) == (11, [(opens[4], opens[5])])
    assert again.bars == 0
    kept = read_candles(outcome.file)
    assert kept.interval_ms == MONTH_MS
    assert kept.open_time_ms.tolist() == [*opens[:4], *opens[5:-1]]


UNTIL_MS = FIRST_MS + 100 * MINUTE


class Forgetful(BybitClient):
    """Lacks the candles of ``hidden`` in its first answer about them."""

    hidden: set[int]
    requests: list[Span]

    async def candles(
        self, instrument: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        self.requests.append((start_ms, end_ms))
        page = await super().candles(instrument, interval_ms, start_ms, end_ms)
        kept = [bar for bar in page if bar.open_time_ms not in self.hidden]
        self.hidden -= {bar.open_time_ms for bar in page}
        return kept


@pytest.mark.parametrize(
    ("hidden", "hole", "requests"),
    [
        (range(40, 60), range(80, 85), 3),
        (range(100), range(80, 85), 2),
        (range(0), range(80, 85), 2),
        (range(0), range(0), 1),
    ],
)
async def test_what_an_answer_lacks_is_asked_for_once_more_and_later(
    tmp_path: Path, hidden: range, hole: range, requests: int
) -> None:
    times = [FIRST_MS + i * MINUTE for i in range(120) if i not in hole]
    served = candles([(1_000, 1_010, 990, 1_005, 7)] * len(times), times_ms=times)
    settings = ExchangeSettings(candles=(served,), manual=True, start=110)
    clock = ManualClock()
    order = FetchRequest(tmp_path, served.category, (served.symbol,), MINUTE, FIRST_MS, UNTIL_MS)
    async with (
        EmbeddedExchange(settings) as exchange,
        Forgetful(
            exchange_section(rest_url=exchange.rest_url), clock=clock, rng=random.Random(1)
        ) as client,
    ):
        client.hidden, client.requests = {FIRST_MS + i * MINUTE for i in hidden}, []
        (outcome,) = await fetch_symbols(client, clock, order, certain_s=30.0, quiet=True)
    assert clock.slept == ([30.0] if hole else [])
    absent = [(FIRST_MS + hole.start * MINUTE, FIRST_MS + hole.stop * MINUTE)] if hole else []
    assert (outcome.bars, list(outcome.absent)) == (100 - len(hole), absent)
    assert read_candles(outcome.file).open_time_ms.tolist() == [t for t in times if t < UNTIL_MS]
    assert len(client.requests) == requests
