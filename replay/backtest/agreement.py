"""Whether two answers agree, where another path, device or thread count rounds otherwise."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from tracepaper.strategies.types import Decision, Forecast, Prediction, PredictionTimeout

TOLERANCE: Final = 1e-4
"""Of a forecast's scale, between paths, devices or thread counts: what may differ."""


def predictions_agree(first: Prediction, second: Prediction) -> bool:
    """Return whether two answers agree to 1e-4 of their scale."""
    if not isinstance(first, Forecast) or not isinstance(second, Forecast):
        return isinstance(first, PredictionTimeout) == isinstance(second, PredictionTimeout) and (
            first is None
        ) == (second is None)
    if first.horizons != second.horizons:
        return False
    return all(
        math.isfinite(a) and math.isfinite(b) and abs(a - b) <= TOLERANCE * max(scale, 1e-12)
        for a, b, scale in _compared(first, second)
    )


def _compared(first: Forecast, second: Forecast) -> Iterator[tuple[float, float, float]]:
    """Yield (first, second, scale) of every number that must agree."""
    scales = first.stdev_return
    for name in ("mean_return", "stdev_return"):
        yield from zip(getattr(first, name), getattr(second, name), scales, strict=True)
    yield from zip(first.volatility, second.volatility, first.volatility, strict=True)
    for name in ("p_down", "p_flat", "p_up"):
        yield from (
            (a, b, 1.0) for a, b in zip(getattr(first, name), getattr(second, name), strict=True)
        )
    one, two = first.explanation, second.explanation
    if one is not None and two is not None:
        yield one.confidence, two.confidence, 1.0
        yield one.recent_mass, two.recent_mass, 1.0
        count = min(len(one.buckets), len(two.buckets)) // 4
        form = f"<{count}f"
        yield from (
            (a, b, 1.0)
            for a, b in zip(
                struct.unpack_from(form, one.buckets),
                struct.unpack_from(form, two.buckets),
                strict=True,
            )
        )


def measures_agree(first: Decision, second: Decision) -> bool:
    """Return whether every gate's measure agrees to 1e-4 of its size."""
    same = first.gate_set.gates == second.gate_set.gates
    return same and numbers_agree(first.measures, second.measures)


def numbers_agree(first: Sequence[float | None], second: Sequence[float | None]) -> bool:
    """Return whether numbers agree pairwise to 1e-4 of their size; None agrees with None alone."""
    for one, two in zip(first, second, strict=True):
        if one is None or two is None:
            if one is not two:
                return False
        elif abs(one - two) > TOLERANCE * max(abs(one), abs(two), 1.0):
            return False
    return True
