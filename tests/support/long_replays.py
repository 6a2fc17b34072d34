"""Long replays for benchmarks and for the tests of the page: the bundled candles end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.archive.columns import IntArray
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.samples import DEMO_CANDLES


def tiled(bars: int) -> Candles:
    """Return *bars* candles: the bundled ones, repeated end to end."""
    once = read_candles(DEMO_CANDLES)
    times = -(-bars // len(once))
    span_ms = len(once) * once.interval_ms

    def repeated(values: IntArray) -> IntArray:
        return np.tile(values, times)[:bars]

    opened = np.concatenate([once.open_time_ms + turn * span_ms for turn in range(times)])[:bars]
    return replace(
        once,
        open_time_ms=opened,
        open=repeated(once.open),
        high=repeated(once.high),
        low=repeated(once.low),
        close=repeated(once.close),
        volume=repeated(once.volume),
        turnover=None if once.turnover is None else repeated(once.turnover),
    )


def replay_of(parts: Sequence[Candles], strategy: str, *, checkpoint: Path | None = None) -> Replay:
    """Return a replay of *parts* by *strategy*, with enough cash for every trade.

    *checkpoint* is the folder of the model, by default the bundled one.
    """
    symbols = [part.symbol for part in parts]
    sections: dict[str, dict[str, Any]] = {
        "market": {"category": "linear", "symbols": symbols, "interval": "1"},
        "strategy": {"name": strategy},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "1000000"},
        "model": {} if checkpoint is None else {"checkpoint": str(checkpoint)},
    }
    return build(load(None, sections), MarketData(parts), started_at_ms=0)
