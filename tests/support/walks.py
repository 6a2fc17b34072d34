"""A seeded walk of prices for the tests of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracepaper.strategies.types.market import Bar, Source

MINUTE_MS = 60_000
START_MS = 1_746_400_320_000


def walk(
    count: int, *, seed: int = 0, decimals: int = 2, flat: float = 0.1, interval_ms: int = MINUTE_MS
) -> list[Bar]:
    """Return a heavy-tailed walk; *flat* of its bars neither move nor trade."""
    rng = np.random.default_rng(seed)
    moves = rng.standard_t(3, count) * 5e-4 * (rng.random(count) > flat)
    close = np.round(65_000 * 100 * np.exp(np.cumsum(moves))).astype(int)
    scale = 10 ** (decimals - 2)
    bars = []
    for i in range(count):
        before = int(close[max(i - 1, 0)])
        now, moved = int(close[i]), moves[i] != 0
        wick = int(rng.integers(0, 500)) if moved else 0
        bars.append(
            Bar(
                instrument="linear:BTCUSDT",
                open_time_ms=START_MS + i * interval_ms,
                interval_ms=interval_ms,
                open=before * scale,
                high=(max(before, now) + wick) * scale,
                low=(min(before, now) - wick) * scale,
                close=now * scale,
                volume=int(rng.integers(1, 10**7)) if moved else 0,
                turnover=None,
                market_ms=0,
                seen_ms=0,
                source=Source.ARCHIVE,
            )
        )
    return bars


def straight(start_ms: int, closes: Sequence[float]) -> dict[str, list[float]]:
    """Return minutes that open where the one before closed, and touch nothing else."""
    opens = [closes[0], *closes[:-1]]
    return {
        "open_time": [start_ms + MINUTE_MS * at for at in range(len(closes))],
        "open": opens,
        "high": list(map(max, opens, closes)),
        "low": list(map(min, opens, closes)),
        "close": list(closes),
        "volume": [1_000.0] * len(closes),
    }
