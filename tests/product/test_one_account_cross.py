"""Several strategies on cross margin, live and as replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exchange_client import FIRST_MS, candles, walk_rows
from several_live import MINUTE, check_parity, trading
from several_strategies import SCRIPTED

from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.types.decisions import FillModel

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")


async def test_a_crash_takes_the_parts_of_both_symbols_live_as_replayed(tmp_path: Path) -> None:
    path, both, warm = tmp_path / "live.db", set(SYMBOLS[:2]), 100
    crash = walk_rows(200)
    price = crash[warm + 4][0]
    low = 7 * price // 10
    crash[warm + 4] = (price, price + 10, low, low, 50_000)
    crash[warm + 5 :] = [(low, low + 200, low - 200, low, 5_000)] * (195 - warm)
    served = ExchangeSettings(
        candles=(
            candles(crash, symbol="BTCUSDT"),
            candles(walk_rows(200, seed=2), symbol="ETHUSDT"),
        ),
        manual=True, start=warm, speed=60.0,
    )  # fmt: skip
    long = {"says": {str(at): ["LONG", None] for at in range(9)}}
    given: dict[str, Any] = {
        "exchange": {"time_scale": 60.0, "backoff_max_s": 0.1},
        "market": {"symbols": list(SYMBOLS[:2])},
        "strategies": {
            "long": {"name": SCRIPTED, "share": "0.5", "options": long},
            "more": {"name": SCRIPTED, "share": "0.4", "options": long},
        },
        "account": {"cash": "10000", "margin": "cross", "leverage": "10"},
        "sizing": {"mode": "notional", "notional": "20000"},
    }
    async with EmbeddedExchange(served) as exchange, trading(exchange, path, **given) as live:
        await live.listening(6)
        while exchange.clock.now_ms() < FIRST_MS + (warm + 5) * MINUTE:
            await live.close_bar(both)
        liquidations = [
            fill
            for step in live.steps
            for twin in step.twins
            for fill in twin.fills
            if fill.model is FillModel.LIQUIDATION
        ]
        assert any(step.fills for step in live.steps)
        assert len(liquidations) >= 4, "of two symbols the parts of two strategies"
        assert live.steps[-1].account.equity >= 0
        await live.close_bar(both)
    check_parity(path, tmp_path)
