"""Several symbols and higher timeframes are decided live, stored, and resumed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from records import check_record, rows
from several_live import AFTER_MS, MINUTE, SPEED, check_parity, trading

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed import maintenance, warming
from tracepaper.daemon.http.client import ask
from tracepaper.replay.archive import Candles
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar, Category, FrameBar, Instrument, InstrumentChange

SEEN: dict[int, tuple[list[int], list[float]]] = {}
"""By decision time: the close times and closes of the quarter-hour bars that it saw."""


class Quarters(Strategy):
    """Goes long above the mean of the last quarter-hour closes."""

    warmup = 3
    frames = ("15",)
    frames_warmup = {"15": 6}  # noqa: RUF012 - as a user writes it

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal:
        seen = context.timeframe(self.frames[0])
        SEEN[context.time] = seen.time.tolist(), seen.close.tolist()
        return Signal(
            Action.LONG if context.close > seen.close.mean() else Action.FLAT, "as they say"
        )


class Pairs(Quarters):
    """Looks further back on its timeframe than the days that the test keeps."""

    frames = ("120",)
    frames_warmup = {"120": 20}  # noqa: RUF012 - as a user writes it


def check_seen(data: Candles, size: int, frames: int, decided: int) -> None:
    """Check that each decision saw the newest closed *frames* of *size* bars."""
    every = data.open_time_ms[size - 1 :: size] + data.interval_ms
    closes = data.close[size - 1 :: size] / 10
    assert len(SEEN) == decided
    for at, (times, values) in SEEN.items():
        newest = int(np.searchsorted(every, at, side="right"))
        assert times == every[newest - frames : newest].tolist()
        assert values == closes[newest - frames : newest].tolist()


def walk(seed: int, symbol: str, count: int = 400) -> Candles:
    return made_candles(walk_rows(count, seed=seed), symbol=symbol)


async def test_frames_are_warmed_from_the_exchange_and_are_the_same_after_a_restart(
    tmp_path: Path,
) -> None:
    data = walk(1, "BTCUSDT")
    served = ExchangeSettings(candles=(data,), manual=True, start=200, speed=SPEED)
    strategy = {"name": f"{__name__}:Quarters"}
    sections: Mapping[str, Any] = {"strategy": strategy, "market": {"symbols": ["BTCUSDT"]}}
    path = tmp_path / "frames.db"
    SEEN.clear()
    async with EmbeddedExchange(served) as exchange:
        for bars in (5, 12):
            async with trading(exchange, path, **sections) as live:
                await live.listening(3)
                for _ in range(bars):
                    await live.close_bar({"BTCUSDT"})
        frame_bars = [step.event for step in live.steps if isinstance(step.event, FrameBar)]
    assert frame_bars == []  # the run's record had them
    stored = rows(path, "SELECT count(*) FROM v_events WHERE kind = 'frame_bar'")
    assert stored == [(6,)]
    assert check_record(path) == 17
    check_seen(data, 15, 6, 17)


HOUR = 60 * MINUTE


FIFTY = tuple(f"S{number:02}USDT" for number in range(50))
STALLED, HALTED, GONE = "S07USDT", "S08USDT", "S09USDT"
OTHERS = set(FIFTY) - {STALLED, HALTED, GONE}


def silence(exchange: EmbeddedExchange, *symbols: str) -> None:
    """Send no more candles of *symbols*."""
    for symbol in symbols:
        for _ in range(200):
            exchange.arm("delivery", form="drop", topic=f"kline.1.{symbol}")


def delist(exchange: EmbeddedExchange, symbol: str) -> None:
    """Answer no more requests about *symbol*."""
    del exchange.venue.markets[Category.LINEAR, symbol]


async def test_of_fifty_symbols_one_that_stalls_halts_or_is_gone_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public reports: freqtrade#378, #3769, #6104 and #6539, ccxt#15136, ptmagic#162."""
    monkeypatch.setattr(maintenance, "FILTERS_AGAIN_S", 0.05)
    monkeypatch.setattr(maintenance, "SILENT_BARS", 1)
    data = tuple(walk(seed, symbol, 80) for seed, symbol in enumerate(FIFTY))
    served = ExchangeSettings(candles=data, manual=True, start=61, speed=SPEED)
    sections: Mapping[str, Any] = {
        "strategy": {"name": "persistence"},
        "market": {"symbols": FIFTY},
        "exchange": {"certain_s": 0.1, "connect_timeout_s": 2.0},
    }
    path = tmp_path / "fifty.db"
    async with EmbeddedExchange(served) as exchange:
        async with trading(exchange, path, **sections) as live:
            await live.listening(3 * len(FIFTY))
            for _ in range(2):
                await live.close_bar(set(FIFTY))
            silence(exchange, STALLED, GONE)
            delist(exchange, GONE)
            exchange.venue.markets[Category.LINEAR, HALTED].listing.item["status"] = "Closed"
            silence(exchange, HALTED)
            for _ in range(4):
                last = await live.close_bar(OTHERS)
            changes = [
                step.event for step in live.steps if isinstance(step.event, InstrumentChange)
            ]
            await live.until(
                lambda: (
                    {HALTED, GONE}
                    <= {
                        step.event.instrument.symbol
                        for step in live.steps
                        if isinstance(step.event, InstrumentChange)
                        and step.event.instrument.status == "Closed"
                    }
                )
            )
            assert len(changes) >= len(FIFTY)
            # Otherwise market time, which the test moves, stays within the wait for a frame.
            # After it the restart requests only the bars of the delisted symbol.
            await exchange.advance(2 * AFTER_MS)
            await live.until(lambda: live.decided(last) == set(FIFTY) - {GONE})
        async with trading(exchange, path, **sections) as live:  # a restart requests each of them
            await live.listening(3 * len(OTHERS))
            for _ in range(2):
                await live.close_bar(OTHERS)
    check_record(path)
    others = f"substr(instrument, 8) NOT IN ('{STALLED}', '{HALTED}', '{GONE}')"
    decided = rows(
        path,
        f"SELECT count(*), count(DISTINCT open_time_ms), "
        f"count(*) FILTER (WHERE refused_by = 'late'), "
        f"count(*) FILTER (WHERE refused_by = 'gap') FROM v_decisions WHERE {others}",
    )
    assert decided == [(len(OTHERS) * 8, 8, 0, 0)]


async def test_what_is_warm_trades_first_and_the_others_say_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Higher-timeframe candles of the third symbol arrive after the first decisions."""
    monkeypatch.setattr(warming, "BEFORE_START", 4)
    names = ["AAAUSDT", "BBBUSDT", "CCCUSDT"]
    data = tuple(walk(seed, name) for seed, name in enumerate(names))
    served = ExchangeSettings(candles=data, manual=True, start=200, speed=SPEED)
    strategy = {"name": f"{__name__}:Quarters"}
    sections: Mapping[str, Any] = {
        "strategy": strategy, "market": {"symbols": names, "gather_ms": 10_000},
    }  # fmt: skip
    path = tmp_path / "turn.db"
    answered, candles = asyncio.Event(), BybitClient.candles

    async def held(
        client: BybitClient, item: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        if interval_ms == 15 * MINUTE and item.symbol == "CCCUSDT":
            await answered.wait()
        return await candles(client, item, interval_ms, start_ms, end_ms)

    monkeypatch.setattr(BybitClient, "candles", held)
    async with EmbeddedExchange(served) as exchange:
        async with trading(exchange, path, **sections) as live:
            await live.listening(9)
            first = await live.close_bar(set(names))
            status = await asyncio.to_thread(ask, path, "/status")
            waits = str(status["not_ready"])
            assert waits.startswith("['linear:CCCUSDT is warming up until ")
            answered.set()
            await live.until(
                lambda: sum(isinstance(step.event, FrameBar) for step in live.steps) == 18
            )
            later = await live.close_bar(set(names))
            assert (await asyncio.to_thread(ask, path, "/status"))["not_ready"] == []
        async with trading(exchange, path, **sections) as again:
            await again.listening(9)
            await again.close_bar(set(names))
        assert not any(isinstance(step.event, FrameBar) for step in again.steps)
    refused = dict(
        rows(
            path,
            "SELECT instrument || open_time_ms, refused_by FROM v_decisions "
            f"WHERE open_time_ms IN ({first}, {later})",
        )
    )
    held_back = f"linear:CCCUSDT{first}"
    assert {key for key, gate in refused.items() if gate == "warm"} == {held_back}
    assert len(refused) == 6
    check_parity(path, tmp_path)
