"""The warm-up of a user's class that names none, by what its code reads.

The rule is docs/strategies.md, U7.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Final, NamedTuple

from tracepaper.strategies.api.strategy import PortfolioStrategy, Strategy
from tracepaper.strategies.units import INTERVALS

USUAL_BARS: Final = 256
USUAL_FRAME_BARS: Final = 64
PART: Final = 4
"""A warm-up takes at most one bar in so many of those that are given."""
_READS: Final = frozenset({"history", "columns", "timeframe", "frames", "observe"})
_BASES: Final = frozenset({*Strategy.__mro__, *PortfolioStrategy.__mro__})
_LIBRARIES: Final = sys.stdlib_module_names | {"tracepaper", "numpy", "pandas", "polars", "torch"}
"""Packages whose functions are no part of a strategy."""


class Warmup(NamedTuple):
    """Bars that a class without a warm-up gets, and bars of each of its timeframes."""

    bars: int
    frames: dict[str, int]


def default_warmup(cls: type, interval_ms: int, span_ms: int | None) -> Warmup | None:
    """Return the warm-up of *cls*, or None if the class names one.

    *span_ms* is the length of the data, None for a live run. A class that reads no past bars needs
    the newest alone.
    """
    names = {*_names_of(cls)}
    if "warmup" in names:
        return None
    if names.isdisjoint(_READS):
        return Warmup(1, {})
    frames: tuple[str, ...] = getattr(cls, "frames", ())
    return Warmup(
        _within(USUAL_BARS, interval_ms, span_ms),
        {name: _within(USUAL_FRAME_BARS, INTERVALS.get(name, 1), span_ms) for name in frames},
    )


def names_one(strategy: Strategy | PortfolioStrategy) -> bool:
    """Return whether the class of *strategy*, or its constructor, gave it a warm-up."""
    named = [vars(strategy), *(vars(base) for base in set(type(strategy).__mro__) - _BASES)]
    return any("warmup" in names for names in named)


def _within(usual: int, interval_ms: int, span_ms: int | None) -> int:
    """Return *usual*, or a quarter of the bars in *span_ms* if these are fewer."""
    return usual if span_ms is None else max(min(usual, span_ms // interval_ms // PART), 1)


def _names_of(cls: type) -> Iterator[str]:
    """Yield the names of the attributes of *cls*, and those in the code of what it calls."""
    seen = set[CodeType]()
    for base in set(cls.__mro__) - _BASES:
        for name, value in vars(base).items():
            yield name
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                yield from _names_in(function, function.__code__, seen)


def _names_in(function: FunctionType, code: CodeType, seen: set[CodeType]) -> Iterator[str]:
    """Yield the names in *code*, a part of *function*, and in the functions that it names."""
    if code in seen:
        return
    seen.add(code)
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(function, constant, seen)
    known = function.__globals__
    modules = [value for name in code.co_names if isinstance(value := known.get(name), ModuleType)]
    for names in (known, *map(vars, modules)):
        for name in code.co_names:
            called = names.get(name)
            if isinstance(called, FunctionType) and _is_own(called):
                yield from _names_in(called, called.__code__, seen)


def _is_own(function: FunctionType) -> bool:
    """Return whether *function* is the user's, and of no library."""
    return (function.__module__ or "").partition(".")[0] not in _LIBRARIES
