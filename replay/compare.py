"""Two steps or two runs, field by field: what differs first, and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tracepaper.strategies.types import (
    Decision,
    Explanation,
    Forecast,
    Step,
)


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
