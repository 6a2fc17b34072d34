"""The search space: axes, samplers, walk-forward spans, objective.

The rules are docs/python.md, Y10 and Y11.

Each random draw depends on the seed and the trial's number alone, so an interrupted sweep draws
the same points when it continues (docs/python.md, Y13).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, NamedTuple, cast

import numpy as np

from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.document.values import Form, written
from tracepaper.replay.report.figures import ACCOUNTS
from tracepaper.replay.run import Run
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.extras import require
from tracepaper.strategies.units import DAY_MS, number, time_of

Point = dict[str, Any]
"""One value for each option."""
POINTS_MOST: Final = 1_000_000
_RANGE: Final = re.compile(
    r"^(?P<low>[^.:]*(?:\.\d[^.:]*)?)\.\.(?P<high>[^:]+?)(?::(?P<step>.+))?$"
)


@dataclass(frozen=True)
class Axis:
    """One option: either its ``values`` in order, or a range from ``low`` to ``high`` inclusive.

    The ``step`` of a range of whole numbers is 1 if it is None; a range of floats without a step is
    continuous and has no points. ``log`` draws uniformly in the logarithm.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        bounds = (self.low, self.high, 1 if self.step is None else self.step)
        return not self.values and all(isinstance(bound, int) for bound in bounds)

    @property
    def count(self) -> int:
        """The number of points; 0 for a continuous range."""
        if self.values:
            return len(self.values)
        if self.is_whole:
            return (int(self.high) - int(self.low)) // int(self.step or 1) + 1
        if self.step is None:
            return 0
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def points(self) -> tuple[Any, ...]:
        """Return the points in order; none for a continuous range."""
        if self.values:
            return self.values
        if self.is_whole:
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        step = self.step or 0.0
        return tuple(float(round(self.low + place * step, 12)) for place in range(self.count))

    def document(self) -> dict[str, Any]:
        """Return the axis as plain values."""
        if self.values:
            return {"values": list(self.values)}
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.log}


def space_of(given: object) -> tuple[Axis, ...]:
    """Return the axes of *given*; raise ``ConfigInvalid`` if it is no valid search space."""
    if not isinstance(given, Mapping):
        raise ConfigInvalid(
            f"The space is {shown(given)}; give a dictionary of options and their values."
        )
    if not given:
        raise ConfigInvalid("The space has no option, so there is no point; name one at least.")
    return tuple(_axis(str(name), values) for name, values in given.items())


def _axis(name: str, given: Any) -> Axis:  # noqa: ANN401 - as users write it
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
    return Axis(name, values)


def _ranged(
    name: str, low: float, high: float, step: float | None = None, *, log: bool = False
) -> Axis:
    bounds = [low, high, *([] if step is None else [step])]
    is_range = all(isinstance(bound, (int, float)) and math.isfinite(bound) for bound in bounds)
    is_step = step is None or (is_range and step > 0 and not log)
    if not is_range or low > high or not is_step or (log and low <= 0):
        raise ConfigInvalid(
            f"The space of {name} is the range {shown((*bounds, *['log'] * log))}; give finite "
            "numbers, the lower first, a positive step, and with log no step and a lower above 0."
        )
    if step is not None and all(isinstance(bound, int) for bound in bounds):
        high = low + (high - low) // step * step  # the last of its points
    return Axis(name, (), low, high, step, bool(log))


def axis_of_text(text: str) -> Axis:
    """Parse an axis of the command line: ``fast=5,10``, ``fast=5..50:5`` or ``x=1..9:log``."""
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
        values = map(_value, texts)
        bounds = [value for value in values if not isinstance(value, (str, bool))]
        if len(bounds) == len(texts):
            return _ranged(name, *bounds, log=step == "log")
    return _axis(name, [_value(part) for part in written.split(",") if part.strip()])


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


DRAWN_BY_DEFAULT: Final = 100
SAMPLERS: Final = ("grid", "random", "tpe")


class GridSampler:
    """Every point of the grid in order, the last axis fastest; rejects a continuous axis."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.count = math.prod(axis.count for axis in axes)
        if not 0 < self.count <= POINTS_MOST:
            counts = ", ".join(f"{axis.name} has {axis.count or 'no'}" for axis in axes)
            raise ConfigInvalid(
                f"A grid has 1 to {POINTS_MOST:,} points, and of these {counts}; give steps or "
                "lists, or draw with the sampler random or tpe."
            )
        points, names = [axis.points() for axis in axes], [axis.name for axis in axes]
        self._points = [dict(zip(names, row, strict=True)) for row in itertools.product(*points)]

    def ask(self, number: int) -> Point:
        """Return the point of trial *number*."""
        return dict(self._points[number])

    def tell(self, number: int, point: Point, value: float | None) -> None:
        """Do nothing: a grid does not learn."""


class OptunaSampler:
    """Points drawn by a sampler of Optuna, which gets a new seed for each trial."""

    def __init__(
        self, name: str, axes: Sequence[Axis], *, count: int, seed: int, maximize: bool
    ) -> None:
        require("optuna", f"The sampler {name}")
        library: Any = import_module("optuna")
        self.count = count
        self._seed = seed
        self._axes = axes
        self._distributions = {axis.name: _distribution(library, axis) for axis in axes}
        self._make: Callable[[int], Any] = (
            (lambda drawn: library.samplers.RandomSampler(seed=drawn))
            if name == "random"
            else (lambda drawn: library.samplers.TPESampler(seed=drawn, constant_liar=True))
        )
        before = library.logging.get_verbosity()
        library.logging.set_verbosity(library.logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._study = library.create_study(
                    sampler=self._make(0), direction="maximize" if maximize else "minimize"
                )
        finally:
            library.logging.set_verbosity(before)
        self._open_trials: dict[int, Any] = {}
        self._library = library

    def ask(self, number: int) -> Point:
        """Draw the point of trial *number*, given the values of earlier trials."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns that constant_liar is experimental
            self._study.sampler = self._make(_trial_seed(self._seed, number))
            trial = self._study.ask(self._distributions)
        self._open_trials[number] = trial
        drawn = trial.params
        return {
            axis.name: axis.values[drawn[axis.name]] if axis.values else drawn[axis.name]
            for axis in self._axes
        }

    def tell(self, number: int, point: Point, value: float | None) -> None:
        """Record the value of a trial, including trials that an earlier process drew."""
        states = self._library.trial.TrialState
        state = states.FAIL if value is None else states.COMPLETE
        trial = self._open_trials.pop(number, None)
        if trial is not None:
            self._study.tell(trial, value, state=state)
            return
        params = {
            axis.name: axis.values.index(point[axis.name]) if axis.values else point[axis.name]
            for axis in self._axes
        }
        self._study.add_trial(
            self._library.trial.create_trial(
                params=params, distributions=self._distributions, value=value, state=state
            )
        )


Sampler = GridSampler | OptunaSampler
"""Chooses the points of one span: ``ask`` once per trial, in order; ``tell`` its value."""


def sampler_of(
    name: str, axes: Sequence[Axis], *, trials: int | None, seed: int, maximize: bool
) -> Sampler:
    """Return the sampler *name*; raise ``ConfigInvalid`` if it does not fit the arguments."""
    if name not in SAMPLERS:
        raise ConfigInvalid(f"The sampler is {name!r}; choose {', '.join(SAMPLERS)}.")
    if trials is not None and (type(trials) is not int or trials < 1):
        raise ConfigInvalid(f"trials is {trials!r}; give a whole number from 1 on.")
    if name == "grid":
        if trials is not None:
            raise ConfigInvalid("A grid has no trials; leave trials out, or choose random or tpe.")
        return GridSampler(axes)
    return OptunaSampler(name, axes, count=trials or DRAWN_BY_DEFAULT, seed=seed, maximize=maximize)


def _trial_seed(seed: int, number: int) -> int:
    """Return the seed of trial *number*, equal on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])


def _distribution(library: Any, axis: Axis) -> Any:  # noqa: ANN401 - one of Optuna's
    kinds = library.distributions
    if axis.values:
        # Optuna draws the index of a value, since the value may be of any type.
        return kinds.CategoricalDistribution(tuple(range(len(axis.values))))
    if axis.is_whole:
        return kinds.IntDistribution(
            int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1)
        )
    return kinds.FloatDistribution(float(axis.low), float(axis.high), log=axis.log, step=axis.step)


class Span(NamedTuple):
    """UTC milliseconds: of the search until *until_ms*, of the test *tested_ms* to *test_ms*.

    The embargo lies between *until_ms* and *tested_ms*. A bound of None is the start or end of the
    data; without a test *test_ms* is None.
    """

    from_ms: int | None
    until_ms: int | None
    tested_ms: int | None = None
    test_ms: int | None = None


def bounds(data: MarketData, start: int | None, end: int | None) -> tuple[int, int]:
    """Return the first open and the end of *data* between *start* and *end*."""
    first, last = data.bounds
    first, last = max(first, first if start is None else start), min(last, end or last)
    if first >= last:
        raise ConfigInvalid("Between start and end the data have no bar; give another period.")
    return first, last


def walk(given: object, first: int, last: int) -> list[Span]:
    """Return the walk-forward windows of *given*, such as ``90d/30d``, from *first* to *last*.

    The tests are contiguous; the last may be shorter, but not under half. A third time, as in
    ``90d/30d/2d``, is an embargo: so long after the training nothing is tested, because positions
    and windows of features reach over its end.
    """
    train, test, embargo = _lengths(given)
    spans, begin = [], first
    while begin + train + embargo + test // 2 <= last:
        until = begin + train
        spans.append(Span(begin, until, until + embargo, min(until + embargo + test, last)))
        begin += test
    if not spans:
        raise ConfigInvalid(
            f"The data have {(last - first) / DAY_MS:.1f} days, too few for one window of "
            f"{train / DAY_MS:g} days to train and {test / DAY_MS:g} to test; give shorter ones."
        )
    return spans


def _lengths(given: object) -> tuple[int, int, int]:
    lengths = [time_of(part) for part in given.split("/")] if isinstance(given, str) else []
    match lengths:
        case [int(train), int(test)] if train and test:
            return train, test, 0
        case [int(train), int(test), int(embargo)] if train and test:
            return train, test, embargo
    raise ConfigInvalid(
        f"The windows are {shown(given)}; give times to train and to test, such as 90d/30d, and "
        "an embargo between them, such as 90d/30d/2d."
    )


Objective = str | Callable[[Run[Any]], float]

FIGURES: Final[dict[str, Form]] = {figure.key: figure.form for figure in ACCOUNTS[1:]}
"""The figures that may be an objective, by their keys in ``tracepaper report --json``."""
OF_A_YEAR: Final = frozenset(
    {"sharpe", "probabilistic_sharpe", "sortino", "cagr", "calmar", "volatility", "turnover"}
)
"""Annualised figures, which no run under thirty days has."""
LESS_IS_BETTER: Final = frozenset(
    {"max_drawdown", "drawdown_bars", "volatility", "volatility_day", "turnover"}
)


def objective_of(given: object, direction: str | None) -> tuple[Objective, bool]:
    """Return the objective and whether a higher value is better; raise ``ConfigInvalid``."""
    if direction not in {None, "maximize", "minimize"}:
        raise ConfigInvalid(f"direction is {shown(direction)}; write maximize or minimize.")
    if callable(given):
        return cast("Callable[[Run[Any]], float]", given), direction != "minimize"
    key = str(given)
    if key not in FIGURES:
        raise ConfigInvalid(
            f"There is no figure {shown(given)}; choose of {', '.join(FIGURES)}, or give a "
            "function of the run."
        )
    return key, (key not in LESS_IS_BETTER if direction is None else direction == "maximize")


def objective_text(value: float | None, objective: str) -> str:
    """Return a value of *objective* formatted as in the report, or with four digits."""
    form = FIGURES.get(objective)
    if form is None or value is None:
        return number(value)
    return f"{written(value, form)} bp" if "bp" in form else written(value, form)
