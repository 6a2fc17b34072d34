"""The warm-up of a user's class that names none, by what its code reads.

The rule is docs/strategies.md, U7.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dis import get_instructions
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Final, NamedTuple

from tracepaper.daemon.session.user_error import INSTALLED
from tracepaper.strategies.api.strategy import PortfolioStrategy, Strategy
from tracepaper.strategies.units import INTERVALS

USUAL_BARS: Final = 256
USUAL_FRAME_BARS: Final = 64
PART: Final = 4
"""A warm-up takes at most one bar in so many of those that are given."""
_READS: Final = frozenset({"history", "columns", "timeframe", "frames", "observe"})
_BASES: Final = frozenset({*Strategy.__mro__, *PortfolioStrategy.__mro__})
_LIBRARIES: Final = sys.stdlib_module_names | {"tracepaper"}
"""Packages that are not installed as others are, whose functions are no part of a strategy."""


class Warmup(NamedTuple):
    """Bars that a class without a warm-up gets, and bars of each of its timeframes."""

    bars: int
    frames: dict[str, int]


def default_warmup(cls: type, interval_ms: int, span_ms: int | None) -> Warmup | None:
    """Return the warm-up of *cls*, or None if the class names one.

    *span_ms* is the length of the data, None for a live run. A class that reads no past bars needs
    the newest alone.
    """
    code = CodeOf(cls)
    if "warmup" in code.names:
        return None
    if not code.reads_bars:
        return Warmup(1, {})
    declared = getattr(cls, "frames", ())  # of any type: it is checked with the object
    frames = [name for name in declared if name in INTERVALS] if type(declared) is tuple else []
    return Warmup(
        _within(USUAL_BARS, interval_ms, span_ms),
        {name: _within(USUAL_FRAME_BARS, INTERVALS[name], span_ms) for name in frames},
    )


def names_one(strategy: Strategy | PortfolioStrategy) -> bool:
    """Return whether the class of *strategy*, or its constructor, gave it a warm-up."""
    named = [vars(strategy), *(vars(base) for base in set(type(strategy).__mro__) - _BASES)]
    return any("warmup" in names for names in named)


def _within(usual: int, interval_ms: int, span_ms: int | None) -> int:
    """Return *usual*, or a quarter of the bars in *span_ms* if these are fewer."""
    return usual if span_ms is None else max(min(usual, span_ms // interval_ms // PART), 1)


class CodeOf:
    """What the code of a user's class, and of the functions that it calls, names.

    ``numbers`` are the whole numbers in it, without their signs, and ``offsets`` those that are
    written with a minus. ``negates`` tells whether it changes a sign, as ``[-self.bars :]`` does.
    """

    def __init__(self, cls: type) -> None:
        self.names, self.numbers, self.offsets = set[str](), set[int](), set[int]()
        self.negates = False
        self._seen = set[CodeType | type]()
        self._add_class(cls)

    @property
    def reads_bars(self) -> bool:
        """Whether it reads bars before the newest."""
        return not self.names.isdisjoint(_READS)

    def _add(self, value: object) -> None:
        """Add a number, or a function or a class of the user."""
        if type(value) is int:
            self.numbers.add(abs(value))
            if value < 0:
                self.offsets.add(-value)
        elif isinstance(value, slice | tuple):
            parts = value if isinstance(value, tuple) else (value.start, value.stop)
            for part in parts:
                self._add(part)
        elif isinstance(value, FunctionType) and _is_own(value):
            self._add_code(value, value.__code__)
        elif isinstance(value, type) and _is_own(value) and value not in self._seen:
            self._add_class(value)

    def _add_class(self, cls: type) -> None:
        self._seen.add(cls)
        for base in set(cls.__mro__) - _BASES:
            self.names.update(vars(base))
            for value in vars(base).values():
                method = getattr(value, "fget", None) or getattr(value, "__func__", value)
                if isinstance(method, FunctionType):
                    self._add_code(method, method.__code__)
                else:
                    self._add(method)

    def _add_code(self, function: FunctionType, code: CodeType) -> None:
        """Add *code*, a part of *function*, and the values that it refers to."""
        if code in self._seen:
            return
        self._seen.add(code)
        self.names.update(code.co_names)
        self.negates |= any(step.opname == "UNARY_NEGATIVE" for step in get_instructions(code))
        for value in code.co_consts:
            if isinstance(value, CodeType):
                self._add_code(function, value)
            self._add(value)
        known = function.__globals__
        modules = (known.get(name) for name in code.co_names)
        for names in (known, *(vars(each) for each in modules if isinstance(each, ModuleType))):
            for name in code.co_names:
                self._add(names.get(name))
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._add(value)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # it has no content yet
                self._add(cell.cell_contents)


def _is_own(value: FunctionType | type) -> bool:
    """Return whether *value* is the user's, and of no library."""
    package = (value.__module__ or "").partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package not in _LIBRARIES and INSTALLED.isdisjoint(Path(file).parts)
