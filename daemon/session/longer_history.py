"""Finds that a user's class decides otherwise with a longer history, and how long one settles.

An index, a slice or a rolling mean beyond the history gives an error, NaN or a shorter part, and an
infinite smoothing depends on where it begins. Fresh objects of the class decide some bars with the
class's own history and with longer ones. The rule is docs/strategies.md, U7.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from math import inf
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.default_warmup import CodeOf
from tracepaper.daemon.session.user_class import Guard, guard_of
from tracepaper.daemon.session.user_code import ADVICE
from tracepaper.daemon.session.user_error import SHORT_HISTORY
from tracepaper.strategies import indicators
from tracepaper.strategies.api.context import Orders
from tracepaper.strategies.api.strategy import Strategy, portfolio_of
from tracepaper.strategies.api.timeframes import frames_reach
from tracepaper.strategies.errors import StrategyFailed, TracepaperError
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import count_of
from tracepaper.strategies.without_value import IndicatorCall, warmup_of

BARS_TRIED: Final = 500
"""Most bars that are decided again with each history."""
_SHORTEST, _LONGEST = 256, 4_096
_PER_NUMBER: Final = 16
"""The longest history is so many times a number in the code: a smoothing settles after eight."""
_WINDOWS: Final = frozenset({"rolling", "rolling_mean", "ewm", "ewm_mean", "shift", "pct_change"})
"""Methods of pandas and polars that look back."""
_FEW, _SHARE = 3, 0.001
"""Decisions, and a share of all, that change with any longer history: they hung by a hair."""


class Lookback(NamedTuple):
    """Bars of history, and of each higher timeframe."""

    bars: int
    frames: tuple[tuple[str, int], ...] = ()

    def of(self, frame: str) -> int:
        """Return the bars of *frame*, or of the history if it is empty."""
        return dict(self.frames)[frame] if frame else self.bars

    def changed(self, frame: str, bars: int) -> Lookback:
        """Return this with *bars* of *frame*, or of history."""
        if not frame:
            return self._replace(bars=bars)
        return self._replace(frames=tuple((dict(self.frames) | {frame: bars}).items()))

    def reach(self, interval_ms: int) -> int:
        """Return the bars of *interval_ms* that it reaches back."""
        return max(self.bars, frames_reach(dict(self.frames), interval_ms))


class Answers:
    """What fresh objects decided with one history."""

    def __init__(self) -> None:
        self.actions: dict[tuple[int, str], str] = {}
        """By open time (UTC ms) and instrument."""
        self.calls: tuple[IndicatorCall, ...] = ()
        self.error: TracepaperError | None = None
        self.draws = False  # random numbers

    @contextmanager
    def taken(self, strategies: Mapping[str, Strategy]) -> Iterator[None]:
        """Watch *strategies* while the caller feeds them; what they print is not shown."""
        guards = {getattr(each, "portfolio", each) for each in strategies.values()}
        watches = [each.watch for each in guards if isinstance(each, Guard)]
        drawn, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - users draw from it
        try:
            with redirect_stdout(io.StringIO()):
                yield
        except TracepaperError as error:
            self.error = error
        finally:
            now = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
            self.draws = now != (drawn, repr(legacy))
            random.setstate(drawn)
            np.random.set_state(legacy)  # noqa: NPY002
        self.calls = tuple(call for watch in watches for call in watch.kept.values())

    def add(self, step: Step, engine: Engine) -> None:
        """Add the decision of *step*, if it has one."""
        bar, decision = step.event, step.decision
        if type(bar) is not Bar or decision is None or decision.refused_by == warm.name:
            return
        signal, key = engine.deciders[bar.instrument].signal, (bar.open_time_ms, bar.instrument)
        if isinstance(signal, Orders):
            self.actions[key] = str([getattr(each, "side", "") for each in signal.requests])
        elif signal is not None:
            self.actions[key] = signal.action.value


Decide = Callable[[Lookback, int], Answers]
"""Lets fresh objects decide the first bars with a history; returns what they answered."""


class ShortHistory(NamedTuple):
    """A history that is too short, and one with which no decision changes any more."""

    lookback: Lookback  # the class's own
    frame: str  # empty for ``warmup``
    settled: int  # bars
    changed: int  # decisions
    compared: int
    call: str  # of an indicator that is not settled; empty without one
    has_failed: bool  # with its own history

    @property
    def remedy(self) -> str:
        """What the class had, and what to set, without a full stop."""
        own, frames = self.lookback.of(self.frame), dict(self.lookback.frames)
        had = f"{count_of(own, 'bar')} of {f'frame {self.frame}' if self.frame else 'history'}"
        return f"it had {had}; set {warmup_of(self.settled, self.frame, frames)} or more"

    @property
    def sentence(self) -> str:
        """How many decisions change with more, and what to set, without a full stop."""
        differ = f"{self.changed:,} of {count_of(self.compared, 'decision')} tried"
        why = f", since {self.call} settles with {self.settled:,} bars" * bool(self.call)
        return f"With a longer history the class answers otherwise at {differ}{why}: {self.remedy}"


@contextmanager
def remedied(find: Callable[[], ShortHistory | None]) -> Iterator[None]:
    """Add to the error of a class the ``warmup`` with which it decides, as *find* returns it."""
    try:
        yield
    except StrategyFailed as error:
        if not isinstance(error.__cause__, LookupError | ValueError | TypeError):
            raise
        if (found := find()) is None or not found.has_failed:
            raise
        text = str(error).removesuffix(ADVICE).removesuffix(SHORT_HISTORY)
        raise StrategyFailed(f"{text}; {found.remedy}.") from error.__cause__


def is_tried(strategies: Mapping[str, Strategy]) -> bool:
    """Return whether *strategies* are of a user's class that decides by its history alone."""
    guard = guard_of(strategies)
    return guard is not None and guard.decides_by_history and CodeOf(type(guard.guarded)).reads_bars


def may_be_short(strategies: Mapping[str, Strategy], *, asks: bool) -> bool:
    """Return whether their class seems to read past its history; *asks* for positions it does.

    An indicator of its first decisions was not settled, or its columns use some; or a number in its
    code exceeds its history, and it is an offset, may be one, or the class never asks. Decisions
    are not repeated otherwise: they may have effects, such as a list of values that a user keeps.
    """
    guard = guard_of(strategies)
    if guard is None or not is_tried(strategies):
        return False
    lookback, code = lookback_of(guard), CodeOf(type(guard.guarded))
    lengths = {lookback.bars, *(bars for _, bars in lookback.frames)}
    has_columns = "columns" in vars(type(guard.guarded))
    offsets = {0, *code.offsets}
    if code.negates or not asks or not code.names.isdisjoint(_WINDOWS):
        offsets.add(max(_numbers(guard)))
    return (
        any(call.is_short and call.rows in lengths for call in guard.watch.kept.values())
        or (has_columns and not code.names.isdisjoint(indicators.__all__))
        or max(offsets) > min(lengths)
    )


def lookback_of(guard: Guard[Any]) -> Lookback:
    """Return the bars that the class of *guard* declares."""
    return Lookback(
        guard.warmup,
        tuple((name, guard.frames_warmup.get(name, guard.warmup)) for name in guard.frames),
    )


def lengthen(strategies: Mapping[str, Strategy], lookback: Lookback) -> None:
    """Give *strategies* the bars of *lookback*; their own attributes stay."""
    for strategy in (*strategies.values(), portfolio_of(strategies.values())):
        if strategy is not None:
            strategy.warmup, strategy.frames_warmup = lookback.bars, dict(lookback.frames)


def short_history(
    decide: Decide, guard: Guard[Any], *, interval_ms: int, given: int, tried: int = BARS_TRIED
) -> ShortHistory | None:
    """Return the history of a class that is too short.

    None if longer ones decide alike, or the decisions depend on all of any. *given* is the number
    of bars of *interval_ms* that can be decided.
    """
    own, numbers = lookback_of(guard), _numbers(guard)
    most = _PER_NUMBER * max(numbers)
    for frame in ("", *(name for name, _ in own.frames)):
        longest = max(4 * own.of(frame), min(max(most, _SHORTEST), _LONGEST))
        while 3 * own.changed(frame, longest).reach(interval_ms) > 2 * given and longest > 1:
            longest = longest * 3 // 4
        bars = min(given, own.changed(frame, longest).reach(interval_ms) + tried)
        of_frame = _Histories(decide, own, frame, longest, bars)
        if (found := of_frame.too_short(numbers)) is not None:
            return found
    return None


def doubled(
    decide: Decide, guard: Guard[Any], *, interval_ms: int, given: int, tried: int = BARS_TRIED
) -> tuple[int, int]:
    """Return how many decisions differ with twice the history, and how many were compared."""
    own = lookback_of(guard)
    twice = Lookback(2 * own.bars, tuple((name, 2 * bars) for name, bars in own.frames))
    bars = min(given, twice.reach(interval_ms) + tried)
    return _differing(decide(own, bars), decide(twice, bars))


class _Histories:
    """What a class decides over the same bars with the lengths of one history."""

    def __init__(self, decide: Decide, own: Lookback, frame: str, longest: int, bars: int) -> None:
        self._lookback, self._frame = own, frame
        self._own, self._longest = own.of(frame), longest

        def decided(rows: int) -> Answers:
            return decide(own.changed(frame, rows), bars)

        self._decided, self._at = decided, lru_cache(maxsize=None)(decided)

    def too_short(self, numbers: set[int]) -> ShortHistory | None:
        """Return the own history with the shortest that decides as the longest, if it does not.

        A number of the code that is a little larger is probably the one that is meant.
        """
        first, last = self._at(self._own), self._at(self._longest)
        changed, compared = _differing(first, last)
        has_failed, half = first.error is not None, self._longest // 2
        if last.error is not None or last.draws or half <= self._own:
            return None
        by_chance = _FEW + int(_SHARE * compared)
        is_same = changed <= by_chance or self._decided(self._own).actions != first.actions
        if is_same and not has_failed:
            return None
        left = self._left(half)
        if has_failed and left > by_chance:
            left = by_chance = len(last.actions)  # any that does not fail
        if left > by_chance:
            return None
        calls = [each for each in last.calls if each.rows == self._longest]
        slowest = max(calls, key=lambda call: call.needed, default=None)
        if (
            slowest
            and self._own < slowest.needed <= half
            and self._left(slowest.needed) <= max(left, by_chance)
        ):
            settled, call = slowest.needed, slowest.call
        else:
            settled, call = self._shortest(half, left), ""
            near = range(settled, min(settled + settled // 20 + 2, half + 1))
            settled = min(numbers & {*near}, default=settled)
        return ShortHistory(
            self._lookback, self._frame, settled, changed, compared, call, has_failed
        )

    def _left(self, rows: int) -> float:
        """Return how many decisions differ between *rows* and the longest history."""
        answers = self._at(rows)
        return inf if answers.error else _differing(answers, self._at(self._longest))[0]

    def _shortest(self, high: int, left: float) -> int:
        """Return the fewest rows up to *high* with which at most *left* decisions differ."""
        low = self._own
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._left(middle) <= left else (middle, high)
        return high


def _differing(first: Answers, second: Answers) -> tuple[int, int]:
    """Return how many decisions of both differ, and how many both made."""
    common = first.actions.keys() & second.actions.keys()
    return sum(first.actions[key] != second.actions[key] for key in common), len(common)


def _numbers(guard: Guard[Any]) -> set[int]:
    """Return the whole numbers in the code of a class and in the attributes of its object."""
    held = {abs(value) for value in vars(guard.guarded).values() if type(value) is int}
    return {1, *CodeOf(type(guard.guarded)).numbers, *held}
