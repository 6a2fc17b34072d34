"""Two hundred symbols in one run use several connections, share a close, and replay equally."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import instrument
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from records import rows
from several_live import SPEED, check_parity, trading
from waiting import deadline

from tracepaper.daemon.bybit import websocket
from tracepaper.daemon.feed.client import StreamRequest
from tracepaper.daemon.http.client import ask
from tracepaper.replay.archive import Candles
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.types.market import Category, CloseStart

CROSSES = {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False}


def names(count: int) -> list[str]:
    return [f"M{number:03d}USDT" for number in range(count)]


def walks(symbols: Sequence[str], bars: int) -> tuple[Candles, ...]:
    return tuple(
        made_candles(walk_rows(bars, seed=seed), symbol=symbol)
        for seed, symbol in enumerate(symbols)
    )


# ---------------------------------------------------------------- connections


def request_of(count: int, *, depth: int = 0, trades: bool = False) -> StreamRequest:
    items = tuple(instrument(f"{number:03d}USDT") for number in range(count))
    return StreamRequest(items, 60_000, trades=trades, depth=depth)


@pytest.mark.parametrize("count", [1, 50, 51, 199, 200])
def test_every_symbol_is_on_one_connection_and_none_is_too_large(count: int) -> None:
    request = request_of(count, depth=50, trades=True)
    shares = websocket.connections(Category.LINEAR, request)
    assert tuple(item for share in shares for item in share.instruments) == request.instruments
    sizes = [len(share.instruments) for share in shares]
    assert max(sizes) <= websocket.SYMBOLS_PER_CONNECTION
    assert len(shares) == -(-count // websocket.SYMBOLS_PER_CONNECTION)
    assert max(sizes) - min(sizes) <= 1
    assert {(request.depth, request.trades) for request in shares} == {(50, True)}


# ---------------------------------------------------------------- a run


async def trade(path: Path, symbols: list[str], *, bars: int, closes: int, shares: int) -> None:
    """Let *symbols* close *closes* times before and after a restart, over *shares* connections."""
    served = ExchangeSettings(candles=walks(symbols, bars), manual=True, start=20, speed=SPEED)
    market = {"symbols": symbols, "gather_ms": 10_000}
    async with EmbeddedExchange(served) as exchange:
        for count in (closes, closes):
            async with trading(exchange, path, market=market, strategy=CROSSES) as live:
                await live.listening(3 * len(symbols))
                assert len(exchange.hub.connections) == shares
                async with deadline():  # those after the first fifty are warmed in turn
                    while "warming up until" in str(await asyncio.to_thread(ask, path, "/status")):
                        pass
                for _ in range(count):
                    await live.close_bar(set(symbols))
                together = [step.event for step in live.steps if isinstance(step.event, CloseStart)]
            # REST may have brought the first while the feed caught up.
            assert [event.bars for event in together[1 - count :]] == [len(symbols)] * (count - 1)


async def test_a_run_of_several_connections_closes_as_one_and_is_the_same_in_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "SYMBOLS_PER_CONNECTION", 5)
    path = tmp_path / "many.db"
    await trade(path, names(12), bars=40, closes=4, shares=3)
    assert rows(path, "SELECT count(DISTINCT instrument) FROM v_decisions") == [(12,)]
    check_parity(path, tmp_path)
