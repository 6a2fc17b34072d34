"""Panels of candles and columns of values for the tests of ``study``."""

from __future__ import annotations

import numpy as np
from exchange_client import candles as made_candles

from tracepaper.replay.archive import Candles
from tracepaper.replay.run_columns import Floats
from tracepaper.strategies.units import HOUR_MS


def panel_candles(symbols: int, bars: int, *, seed: int, told: float = 0.0) -> list[Candles]:
    """Return hours of *symbols* walks; each move repeats the share *told* of the one before."""
    draw = np.random.default_rng(seed)
    parts = []
    for place in range(symbols):
        moves = draw.normal(0.0, 0.006, bars)
        for at in range(1, bars):
            moves[at] += told * moves[at - 1]
        closes = np.round(1e7 * np.exp(np.cumsum(moves))).astype(np.int64)
        opens = np.concatenate(([10_000_000], closes[:-1]))
        volume = draw.integers(1_000, 90_000, bars)
        rows = [
            (int(first), int(max(first, last)), int(min(first, last)), int(last), int(traded))
            for first, last, traded in zip(opens, closes, volume, strict=True)
        ]
        symbol = f"{chr(65 + place) * 3}USDT"
        parts.append(made_candles(rows, symbol=symbol, interval_ms=HOUR_MS))
    return parts


def scrambled(candles: list[Candles], *, seed: int, missing: float = 0.0) -> dict[str, Floats]:
    """Return a column of noise, of which the share *missing* is NaN."""
    draw = np.random.default_rng(seed)
    column = {}
    for part in candles:
        values = draw.normal(size=len(part))
        values[draw.random(len(part)) < missing] = np.nan
        column[part.symbol] = values
    return column
