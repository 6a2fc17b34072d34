"""Candles and the books beside them, whose deeper levels lean as the coming minutes will move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from depth_cases import header, packed
from learning import MINUTE_MS, START_MS, minutes_of

from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.recordings import DepthWriter
from tracepaper.strategies.types.market import Depth
from tracepaper.strategies.units import iso

SYMBOL = "AAAUSDT"
LEVELS = 6
EVERY_MS = 20_000
COUNT = 2_600
"""Bars that are enough for a fit of two steps."""
ENDS = (1_500, 1_800, 2_200)
"""The bars at which its parts of time end."""
RECIPE = """
[model]
kind = "trading"
[architecture]
dim = 8
layers = 2
heads = 2
window = 17
horizons = [5, 30]
[training]
steps = 2
length = 128
batch = 2
explained_bars = 500
threads = 1
[calibration]
horizon = 30
"""
SPLIT = "[split]\nembargo_bars = 30\n" + "\n".join(
    f'{name}_until = "{iso(START_MS + MINUTE_MS * end)}"'
    for name, end in zip(("train", "validation", "calibration"), ENDS, strict=True)
)


def leans(count: int, *, seed: int = 3) -> np.ndarray[Any, Any]:
    """Return how the book of each bar's close leans, between -1 and 1: new every ten minutes."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.uniform(-1, 1, -(-count // 10)), 10)[:count]


def candles(count: int, *, seed: int = 3) -> Candles:
    """Return minutes whose volatility follows the lean at the close before, and nothing else."""
    rng = np.random.default_rng(seed + 1)
    scale = 5e-4 * np.exp(1.2 * np.concatenate([[0.0], leans(count, seed=seed)[:-1]]))
    return minutes_of(rng.normal(size=count) * scale, rng)


def book(at_ms: int, mid: int, lean: float, rng: np.random.Generator) -> Depth:
    """Return a book around *mid* whose levels from the second on lean; the others are noise."""
    sizes = rng.integers(500, 1_500, (2, LEVELS))
    sizes[:, 1:5] = np.round(4_000 * np.array([1 + 0.9 * lean, 1 - 0.9 * lean]))[:, None]
    sizes[:, 1:5] += rng.integers(0, 200, (2, 4))
    sides = [
        [(mid + sign * (1 + level), int(size)) for level, size in enumerate(side)]
        for sign, side in ((-1, sizes[0]), (1, sizes[1]))
    ]
    return Depth(f"linear:{SYMBOL}", packed(sides[0]), packed(sides[1]), at_ms - 5, at_ms)


def write_books(
    path: Path,
    count: int,
    *,
    seed: int = 3,
    gaps: tuple[tuple[int, int], ...] = (),
    other_from_ms: int | None = None,
    **keys: Any,
) -> Path:
    """Write the books beside ``candles``, without those of the bars in *gaps*; return the path.

    From *other_from_ms* on they are other ones.
    """
    of = {"levels": LEVELS, "every_ms": EVERY_MS, "of": f"linear:{SYMBOL}", **keys}
    file_header = header(**of, price_decimals=2)
    minutes, lean = candles(count, seed=seed), leans(count, seed=seed)
    rng = np.random.default_rng(seed + 2)
    cause = ""
    with DepthWriter(path, file_header) as writer:
        for bar in range(count):
            if any(first <= bar < last for first, last in gaps):
                cause = "disconnected"
                continue
            close_ms = START_MS + MINUTE_MS * (bar + 1)
            for at_ms in range(
                close_ms - MINUTE_MS + file_header.every_ms, close_ms + 1, file_header.every_ms
            ):
                is_last = at_ms == close_ms
                leaning = float(lean[bar]) if is_last else 0.0
                if other_from_ms is not None and at_ms >= other_from_ms:
                    leaning = -0.5 if leaning > 0 else 0.5
                depth = book(at_ms, int(minutes.close[bar]), leaning, rng)
                writer.add(depth, cause)
                cause = ""
    return path
