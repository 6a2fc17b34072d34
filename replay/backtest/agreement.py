"""When two numbers agree, where another mode, device or thread count rounds otherwise.

``verify`` of a run made elsewhere, ``parity``, ``recursive``, ``lookahead`` and the probes of a
scan all go by these bounds. All else is equal everywhere, or differs.
"""

from __future__ import annotations

import math
import struct
from typing import Final, NamedTuple

from tracepaper.strategies.types import (
    Decision,
    Explanation,
    Forecast,
    ModelChange,
    Prediction,
    Run,
)


class Environment(NamedTuple):
    """All on which the last bits of a forecast depend."""

    mode: str
    device: str
    dtype: str
    threads: int
    backend: str
    torch_version: str
    instruction_set: str
    libraries: str

    @classmethod
    def recorded(cls, at: Run | ModelChange) -> Environment:
        """Return where a run, or one of its starts, says that it was."""
        return cls(
            at.mode,
            at.device,
            at.dtype,
            at.threads,
            at.backend,
            at.torch_version,
            at.instruction_set,
            at.libraries,
        )

    def differs(self, here: Environment) -> str:
        """Say what is another *here*; empty where nothing is, and every bit must be equal."""
        return ", ".join(
            f"{name} was {was} and is {now} here"
            for name, was, now in zip(self._fields, self, here, strict=True)
            if was != now
        )


RETURNS: Final = 1e-4
"""Of the forecast's standard deviation at that horizon."""
SHARES: Final = 1e-4
"""Of 1: probabilities, masses, confidences, strengths."""
MEASURES: Final = 1e-4
"""Of the measure or its threshold, or of 1 where that is smaller."""

RETURN_FIELDS: Final = ("mean_return", "stdev_return", "volatility")
"""Fields of a forecast that are held to ``RETURNS``."""
SHARE_FIELDS: Final = ("p_down", "p_flat", "p_up")
"""Fields of a forecast that are held to ``SHARES``."""
EXPLANATION_FIELDS: Final = (
    *("confidence", "content_free", "recent_mass", "older_mass", "shift", "l1_error"),
    *("entropy", "buckets"),
)
"""Fields of an explanation that are held to ``SHARES``; the last two are arrays of float32."""


def near(first: float | None, second: float | None, bound: float) -> bool:
    """Return whether two numbers differ by *bound* at most; None agrees with None alone.

    So does NaN with NaN: a bar of which both times nothing could be said.
    """
    if first is None or second is None:
        return first is second
    if math.isnan(first) or math.isnan(second):
        return math.isnan(first) and math.isnan(second)
    return math.isfinite(first) and math.isfinite(second) and abs(first - second) <= bound


def near_measure(first: float | None, second: float | None) -> bool:
    """Return whether two measures, or a measure and its threshold, agree."""
    size = 0.0 if first is None or second is None else max(abs(first), abs(second))
    return near(first, second, MEASURES * max(size, 1.0))


def near_arrays(first: bytes, second: bytes) -> bool:
    """Return whether two arrays of shares (float32) agree as far as both reach."""
    count = min(len(first), len(second)) // 4
    pairs = zip(
        struct.unpack_from(f"<{count}f", first),
        struct.unpack_from(f"<{count}f", second),
        strict=True,
    )
    return all(near(one, two, SHARES) for one, two in pairs)


def measures_agree(first: Decision, second: Decision) -> bool:
    """Return whether every gate's measure agrees."""
    same = first.gate_set.gates == second.gate_set.gates
    return same and all(map(near_measure, first.measures, second.measures))


def predictions_agree(first: Prediction, second: Prediction) -> bool:
    """Return whether two answers of a model agree in every field, within the tolerances."""
    if not isinstance(first, Forecast) or not isinstance(second, Forecast):
        return type(first) is type(second)
    if first.horizons != second.horizons:
        return False
    for name in (*RETURN_FIELDS, *SHARE_FIELDS):
        one, two = getattr(first, name), getattr(second, name)
        if len(one) != len(two):
            return False
        bounds = [SHARES] * len(one)
        if name in RETURN_FIELDS:
            # A model that gives no deviation is held to its own numbers.
            bounds = [RETURNS * size for size in first.stdev_return or map(abs, one)]
        if not all(map(near, one, two, bounds)):
            return False
    explained, other = first.explanation, second.explanation
    return explained is None or other is None or _explanations_agree(explained, other)


def _explanations_agree(first: Explanation, second: Explanation) -> bool:
    for name in EXPLANATION_FIELDS:
        one, two = getattr(first, name), getattr(second, name)
        agree = near_arrays(one, two) if isinstance(one, bytes) else near(one, two, SHARES)
        if not agree:
            return False
    return True
