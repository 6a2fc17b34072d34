"""The real daemon on cross margin: a crash of one symbol takes the other away, live as replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exchange_client import FIRST_MS, candles, walk_rows
from records import check_record, run_again
from several_live import MINUTE, Live, trading

from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action, Fill, FillModel
from tracepaper.strategies.types.market import Bar, Mark, Quote

SYMBOLS = ("BTCUSDT", "ETHUSDT")
QUICK = 60.0
WARM = 100
CRASH = WARM + 4


class Long(Strategy):
    """Says LONG at every bar."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal:
        del context
        return Signal(Action.LONG, "now")


def crashing() -> list[tuple[int, int, int, int, int]]:
    """Return a walk whose price falls by 30 % within a minute, and stays."""
    rows = walk_rows(200)
    price = rows[CRASH][0]
    low = 7 * price // 10
    rows[CRASH] = (price, price + 10, low, low, 50_000)
    rows[CRASH + 1 :] = [(low, low + 200, low - 200, low, 5_000)] * (199 - CRASH)
    return rows


def fills(live: Live) -> list[Fill]:
    return [fill for step in live.steps for fill in step.fills]


def is_taken(live: Live) -> bool:
    return any(fill.model is FillModel.LIQUIDATION for fill in fills(live))


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_crash_of_one_symbol_liquidates_both(tmp_path: Path, restarts: bool) -> None:
    path = tmp_path / "live.db"
    data = (
        candles(crashing(), symbol="BTCUSDT"),
        candles(walk_rows(200, seed=2), symbol="ETHUSDT"),
    )
    served = ExchangeSettings(candles=data, manual=True, start=WARM, speed=QUICK)
    given: dict[str, Any] = {
        "exchange": {"time_scale": QUICK, "backoff_max_s": 0.1},
        "market": {"symbols": list(SYMBOLS)},
        "strategy": {"name": f"{__name__}:Long"},
        "account": {"cash": "10000", "margin": "cross", "leverage": "10"},
        "sizing": {"mode": "notional", "notional": "40000"},
    }
    both = set(SYMBOLS)
    async with EmbeddedExchange(served) as exchange:
        if restarts:
            async with trading(exchange, path, **given) as live:
                await live.listening(6)
                for _ in range(2):
                    await live.close_bar(both)
        async with trading(exchange, path, **given) as live:
            await live.listening(6)
            while exchange.clock.now_ms() < FIRST_MS + CRASH * MINUTE:
                await live.close_bar(both)
            for _ in range(2):
                if not is_taken(live):
                    await live.close_bar(both)
            taken = [
                (step.event, fill)
                for step in live.steps
                for fill in step.fills
                if fill.model is FillModel.LIQUIDATION
            ]
            assert {fill.instrument for _, fill in taken} == {f"linear:{one}" for one in SYMBOLS}
            assert len({id(event) for event, _ in taken}) == 1, "one event takes both"
            event = taken[0][0]
            assert isinstance(event, Mark | Quote), "a mark, or what confirms it, before the close"
            assert live.steps[-1].account.equity >= 0
            await live.close_bar(both)
            assert any(isinstance(step.event, Bar) for step in live.steps)
    check_record(path)
    again = tmp_path / "again.db"
    found = run_again(path, again)
    assert found.differences == []
    assert found.compared == found.identical > 0
