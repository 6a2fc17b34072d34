"""Counts what a reader passes who follows one bar through the engine: `make ledger` prints it.

Followed are the calls between modules of the product. A call into another module enters it; the
first is ``Engine.step``. One that enters a module again comes back to it. Each function is a name.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NamedTuple

from builders import bars, instrument
from programs import ROOT

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine
from tracepaper.strategies.types.decisions import FillModel, Step
from tracepaper.strategies.types.market import Bar


class BarPath(NamedTuple):
    """What one bar passes."""

    entries: int
    returns: int
    names: int


class Follower:
    """A profile function that keeps the modules and functions that are called."""

    def __init__(self, root: str) -> None:
        self._root = f"{root}/"
        self._stack: list[str] = []  # modules of the calls under way; empty text outside the root
        self._entered: list[str] = []
        self._names: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _value: Any) -> None:
        """Take in a call or a return, as ``sys.setprofile`` hands them on."""
        if event == "return" and self._stack:
            self._stack.pop()
        if event != "call":
            return
        path = frame.f_code.co_filename
        module = path if path.startswith(self._root) and "/tests/" not in path else ""
        if module and module not in self._stack[-1:]:
            self._entered.append(module)
        if module:
            self._names.add((module, frame.f_code.co_qualname))
        self._stack.append(module)

    @property
    def path(self) -> BarPath:
        """What was followed so far."""
        entries = len(self._entered)
        return BarPath(entries, entries - len(set(self._entered)), len(self._names))


def followed(engine: Engine, bar: Bar) -> tuple[Step, BarPath]:
    """Step *bar* through *engine*; return the step, and what the bar passed."""
    follower = Follower(str(ROOT))
    sys.setprofile(follower)
    try:
        step = engine.step(bar, None)
    finally:
        sys.setprofile(None)
    return step, follower.path


def paths() -> dict[str, BarPath]:
    """Return what the longest of fifty bars passes, of those that trade and of those that do not.

    The strategy crosses moving averages, bars fill its orders.
    """
    config = load(
        None,
        {
            "strategy": {"name": "sma_cross", "fast": 3, "slow": 7},
            "sizing": {"mode": "fixed", "quantity": "1"},
            "account": {"cash": "1000000"},
        },
    )
    engine = build_engine(
        config, [instrument()], execution=FillModel.NEXT_OPEN, period_start_ms=0, forecaster=None
    )
    known = bars(60, seed=11)
    for bar in known[:10]:
        engine.step(bar, None)
    longest = {"that changes nothing": BarPath(0, 0, 0), "that fills and orders": BarPath(0, 0, 0)}
    for bar in known[10:]:
        step, path = followed(engine, bar)
        if bool(step.fills) == bool(step.orders):
            kind = "that fills and orders" if step.fills else "that changes nothing"
            longest[kind] = max(longest[kind], path)
    return longest
