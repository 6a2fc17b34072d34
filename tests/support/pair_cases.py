"""Two symbols that belong together, the pair that trades them, and a replay of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from exchange_client import candles as made_candles

from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles

SYMBOLS = ("AAAUSDT", "BBBUSDT")


def cointegrated(count: int, *, seed: int = 5, interval_ms: int = 60_000) -> list[Candles]:
    """Return two symbols that follow one random walk, each with a spread that comes back."""
    rng = np.random.default_rng(seed)
    common = np.cumsum(rng.normal(0, 0.0005, count))
    spread = np.zeros(count)
    for at in range(1, count):
        spread[at] = 0.98 * spread[at - 1] + rng.normal(0, 0.001)
    pair = []
    for symbol, side in zip(SYMBOLS, (0.5, -0.5), strict=True):
        close = np.rint(100_000 * np.exp(common + side * spread)).astype(np.int64)
        opened = np.concatenate(([100_000], close[:-1]))
        rows = [
            (int(o), int(max(o, c)) + 3, int(min(o, c)) - 3, int(c), 1_000)
            for o, c in zip(opened, close, strict=True)
        ]
        pair.append(made_candles(rows, symbol=symbol, interval_ms=interval_ms))
    return pair


def configured(symbols: Sequence[str] = SYMBOLS, **sections: dict[str, Any]) -> Config:
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": list(symbols)},
        "strategy": {
            "name": "tracepaper.strategies.examples.pair:Pair",
            "options": {"window": 120},
        },
        "sizing": {"mode": "notional", "notional": "1000"},
        "account": {"cash": "1000000"},
    }
    for name, section in sections.items():
        before = {} if "mode" in section else given.get(name, {})  # a size goes with its mode
        given[name] = {**before, **section}
    return load(None, given)
