"""Two steps or two runs, field by field: what differs first, and by how much."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tracepaper.strategies.types import (
    Answer,
    Decision,
    Explanation,
    Forecast,
    Late,
    Step,
)

TOLERANCE: Final = 1e-4
"""Of a forecast's scale, between paths, devices or thread counts: what may differ."""


@dataclass(frozen=True)
class Difference:
    """One field of one decision that differs."""

    instrument: str
    open_time_ms: int
    field: str
    first: str
    second: str

    def sentence(self) -> str:
        """Say it in one line."""
        return (
            f"{self.instrument} bar {self.open_time_ms}: {self.field} is {self.first} in the "
            f"first and {self.second} in the second"
        )


def step_differences(first: Step, second: Step) -> Iterator[tuple[str, str, str]]:
    """Yield (field, first, second) for every field in which two steps differ, exactly."""
    for name in Step.__struct_fields__:
        one, two = getattr(first, name), getattr(second, name)
        if one == two:
            continue
        if name == "decision" and isinstance(one, Decision) and isinstance(two, Decision):
            yield from decision_differences(one, two)
        elif name == "answer" and isinstance(one, Forecast) and isinstance(two, Forecast):
            yield from forecast_differences(one, two)
        else:
            yield name, shown(one), shown(two)


def decision_differences(first: Decision, second: Decision) -> Iterator[tuple[str, str, str]]:
    """Yield every field in which two decisions differ; gates by their names."""
    for name in ("action", "target_quantity", "reason", "allowed", "refused_by", "regime"):
        one, two = getattr(first, name), getattr(second, name)
        if one != two:
            yield name, shown(one), shown(two)
    if first.gate_set != second.gate_set:
        yield "gate set", shown(first.gate_set), shown(second.gate_set)
        return
    for place, gate in enumerate(first.gate_set.gates):
        one, two = first.measures[place], second.measures[place]
        if one != two:
            yield f"gate {gate.value}", shown(one), shown(two)


def forecast_differences(first: Forecast, second: Forecast) -> Iterator[tuple[str, str, str]]:
    """Yield every field in which two forecasts differ, their explanations included."""
    for name in Forecast.__struct_fields__:
        one, two = getattr(first, name), getattr(second, name)
        if one == two:
            continue
        if isinstance(one, Explanation) and isinstance(two, Explanation):
            for part in Explanation.__struct_fields__:
                a, b = getattr(one, part), getattr(two, part)
                if a != b:
                    yield f"explanation.{part}", shown(a), shown(b)
        else:
            yield name, shown(one), shown(two)


def shown(value: object) -> str:
    """Return *value* as a difference shows it; hashes and blobs by their first digits."""
    if isinstance(value, bytes):
        return value.hex()[:24] + ("…" if len(value) > 12 else "")  # noqa: PLR2004 - 24 digits
    return str(value)


# ---------------------------------------------------------------- within the tolerance


def answers_agree(first: Answer, second: Answer) -> bool:
    """Return whether two answers agree to 1e-4 of their scale."""
    if not isinstance(first, Forecast) or not isinstance(second, Forecast):
        return isinstance(first, Late) == isinstance(second, Late) and (first is None) == (
            second is None
        )
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
