"""What a sweep tries: an axis for each option, their points, and the grid of all points.

The rules are docs/python.md, Y10 and Y11.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tracepaper.strategies.errors import ConfigInvalid, shown

Point = dict[str, Any]
"""One value for each option."""
POINTS_MOST: Final = 1_000_000
_RANGE: Final = re.compile(
    r"^(?P<low>[^.:]*(?:\.\d[^.:]*)?)\.\.(?P<high>[^:]+?)(?::(?P<step>.+))?$"
)


@dataclass(frozen=True)
class Axis:
    """One option: either its ``values`` in order, or a range from ``low`` to ``high``, both in.

    A range of whole numbers has a ``step`` (1 where it is None); one of other numbers has points
    only where it has one. ``log`` draws evenly in the logarithm.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    @property
    def is_range(self) -> bool:
        """Whether it is a range rather than a list of values."""
        return not self.values

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        bounds = (self.low, self.high, 1 if self.step is None else self.step)
        return self.is_range and all(isinstance(bound, int) for bound in bounds)

    @property
    def count(self) -> int:
        """How many points it has; none for a range of numbers without a step."""
        if self.values:
            return len(self.values)
        if self.is_whole:
            return (int(self.high) - int(self.low)) // int(self.step or 1) + 1
        if self.step is None:
            return 0
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def points(self) -> tuple[Any, ...]:
        """Return its points; none for a range of numbers without a step."""
        if self.values:
            return self.values
        if self.is_whole:
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        step = self.step or 0.0
        return tuple(float(round(self.low + place * step, 12)) for place in range(self.count))

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        if self.values:
            return {"values": list(self.values)}
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.log}


def space_of(given: object) -> tuple[Axis, ...]:
    """Return the axes of *given*; raise ``ConfigInvalid`` where a point cannot be taken of it."""
    if not isinstance(given, Mapping):
        raise ConfigInvalid(
            f"The space is {shown(given)}; give a dictionary of options and their values."
        )
    if not given:
        raise ConfigInvalid("The space has no option, so there is no point; name one at least.")
    axes = tuple(_axis(str(name), values) for name, values in given.items())
    for axis in axes:
        if axis.count > POINTS_MOST:
            raise ConfigInvalid(
                f"The space of {axis.name} has {axis.count:,} points; give a wider step, so that "
                f"it has at most {POINTS_MOST:,}."
            )
    return axes


def _axis(name: str, given: Any) -> Axis:  # noqa: ANN401 - whatever a user calls values
    if isinstance(given, Axis):
        return given
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, Mapping):
        if not {"low", "high"} <= given.keys() <= {"low", "high", "step", "log"}:
            raise ConfigInvalid(
                f"The space of {name} is {shown(given)}; give low and high, and step or log."
            )
        return _ranged(name, **given)
    if (
        isinstance(given, tuple)
        and 2 <= len(given) <= 3
        and all(isinstance(bound, (int, float)) and type(bound) is not bool for bound in given)
    ):
        return _ranged(name, *given)
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        return Axis(name, (given,))
    values = tuple(value.item() if isinstance(value, np.generic) else value for value in given)
    if not values:
        raise ConfigInvalid(f"The space of {name} has no point; give one value at least.")
    if any(value in values[:place] for place, value in enumerate(values)):
        raise ConfigInvalid(f"The space of {name} has a value twice; give each once.")
    return Axis(name, values)


def _ranged(
    name: str, low: float, high: float, step: float | None = None, *, log: bool = False
) -> Axis:
    bounds = [low, high, *([] if step is None else [step])]
    if not all(isinstance(bound, (int, float)) and math.isfinite(bound) for bound in bounds):
        raise ConfigInvalid(f"The space of {name} has a bound that is no finite number; mend it.")
    if low > high:
        raise ConfigInvalid(
            f"The space of {name} from {low:g} to {high:g} has no point; give the lower first."
        )
    if step is not None and (step <= 0 or log):
        raise ConfigInvalid(
            f"The space of {name} has the step {step:g}; give a positive one, and none with log."
        )
    if log and low <= 0:
        raise ConfigInvalid(f"The space of {name} starts at {low:g}; a logarithm needs it above 0.")
    if step is not None and all(isinstance(bound, int) for bound in bounds):
        high = low + (high - low) // step * step  # the last of its points
    return Axis(name, (), low, high, step, bool(log))


def axis_of_text(text: str) -> Axis:
    """Return the axis of a command line: ``fast=5,10``, ``fast=5..50:5`` or ``x=1..9:log``."""
    name, mark, written = text.partition("=")
    if not mark or not name.strip() or not written.strip():
        raise ConfigInvalid(
            f"--space is {text!r}; write OPTION=VALUE,VALUE or OPTION=LOW..HIGH, with :STEP or "
            ":log."
        )
    name = name.strip()
    if (ranged := _RANGE.match(written.strip())) is not None:
        step = ranged["step"]
        texts = [ranged["low"], ranged["high"], *([] if step in {None, "log"} else [step])]
        bounds = [bound for bound in map(_value, texts) if type(bound) in {int, float}]
        if len(bounds) == len(texts):
            return _ranged(name, *map(_bound, bounds), log=step == "log")
    return _axis(name, [_value(part) for part in written.split(",") if part.strip()])


def _bound(value: float | str) -> float:
    assert not isinstance(value, str)
    return value


def _value(text: str) -> int | float | bool | str:
    plain = text.strip()
    if plain in {"true", "false"}:
        return plain == "true"
    for kind in (int, float):
        try:
            return kind(plain)
        except ValueError:
            continue
    return plain


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Return every point of *axes*, the last axis fastest; refuse one without points."""
    for axis in axes:
        if not axis.points():
            raise ConfigInvalid(
                f"The space of {axis.name} has no points for a grid; give a step or a list, or "
                "draw with the sampler random or tpe."
            )
    count = math.prod(len(axis.points()) for axis in axes)
    if count > POINTS_MOST:
        raise ConfigInvalid(
            f"The grid has {count:,} points; give at most {POINTS_MOST:,}, or draw of them with "
            "the sampler random."
        )
    names = [axis.name for axis in axes]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(axis.points() for axis in axes))
    ]
