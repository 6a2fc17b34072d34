"""Which point of the space comes next: the grid's in order, or those that Optuna draws.

What is drawn at random depends on the seed and the number of the trial alone, so that a sweep
that was interrupted draws the same points when it goes on (docs/python.md, Y13).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from tracepaper.replay.sweep.space import Axis, Point, grid
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import missing_sentence

DRAWN_BY_DEFAULT: Final = 100
SAMPLERS: Final = ("grid", "random", "tpe")


class Sampler(Protocol):
    """Names the points of one span's trials, in order."""

    count: int

    def ask(self, number: int) -> Point:
        """Return the point of trial *number*; asked once for each, in order."""
        ...

    def tell(self, number: int, point: Point, value: float | None) -> None:
        """Take in what trial *number* came to; None where it failed."""
        ...


class GridSampler:
    """Every point of the grid, in order."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self._points = grid(axes)
        self.count = len(self._points)

    def ask(self, number: int) -> Point:
        """Return the grid's point of this number."""
        return dict(self._points[number])

    def tell(self, number: int, point: Point, value: float | None) -> None:
        """Learn nothing."""


class OptunaSampler:
    """Points that one of Optuna's samplers draws, seeded anew for each trial."""

    def __init__(
        self, name: str, axes: Sequence[Axis], *, count: int, seed: int, maximize: bool
    ) -> None:
        library = _optuna(name)
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
        self._asked: dict[int, Any] = {}
        self._library = library

    def ask(self, number: int) -> Point:
        """Return the point that is drawn for this number, knowing what was told."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar is said to be experimental
            self._study.sampler = self._make(_drawn_by(self._seed, number))
            trial = self._study.ask(self._distributions)
        self._asked[number] = trial
        return {axis.name: _plain(axis, trial.params[axis.name]) for axis in self._axes}

    def tell(self, number: int, point: Point, value: float | None) -> None:
        """Take in the value of a trial, also of one that an earlier process asked for."""
        failed = self._library.trial.TrialState.FAIL
        trial = self._asked.pop(number, None)
        if trial is not None:
            if value is None:
                self._study.tell(trial, state=failed)
            else:
                self._study.tell(trial, value)
            return
        params = {axis.name: _stored(axis, point[axis.name]) for axis in self._axes}
        self._study.add_trial(
            self._library.trial.create_trial(
                params=params,
                distributions=self._distributions,
                value=value,
                state=failed if value is None else None,
            )
            if value is None
            else self._library.trial.create_trial(
                params=params, distributions=self._distributions, value=value
            )
        )


def sampler_of(
    name: str, axes: Sequence[Axis], *, trials: int | None, seed: int, maximize: bool
) -> Sampler:
    """Return the sampler *name*; raise ``ConfigInvalid`` where it cannot serve."""
    if name not in SAMPLERS:
        raise ConfigInvalid(f"The sampler is {name!r}; choose {', '.join(SAMPLERS)}.")
    if trials is not None and (type(trials) is not int or trials < 1):
        raise ConfigInvalid(f"trials is {trials!r}; give a whole number from 1 on.")
    if name == "grid":
        if trials is not None:
            raise ConfigInvalid("A grid is tried whole; leave trials out, or choose random or tpe.")
        return GridSampler(axes)
    return OptunaSampler(name, axes, count=trials or DRAWN_BY_DEFAULT, seed=seed, maximize=maximize)


def _drawn_by(seed: int, number: int) -> int:
    """Return the seed of one trial's draw: a function of both, equal on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4])


def _distribution(library: Any, axis: Axis) -> Any:  # noqa: ANN401 - one of Optuna's
    kinds = library.distributions
    if axis.values:
        # Any value is drawn by its place, so that it need not be a number or a text.
        return kinds.CategoricalDistribution(tuple(range(len(axis.values))))
    if axis.is_whole:
        return kinds.IntDistribution(
            int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1)
        )
    return kinds.FloatDistribution(float(axis.low), float(axis.high), log=axis.log, step=axis.step)


def _plain(axis: Axis, drawn: Any) -> Any:  # noqa: ANN401 - a value of the axis
    return axis.values[drawn] if axis.values else drawn


def _stored(axis: Axis, value: Any) -> Any:  # noqa: ANN401 - a value of the axis
    return axis.values.index(value) if axis.values else value


def _optuna(name: str) -> Any:  # noqa: ANN401 - the library
    try:
        import optuna
    except ImportError as error:
        raise ConfigInvalid(
            f"{missing_sentence('optuna', f'The sampler {name}')[:-1]}, or take the sampler grid."
        ) from error
    return optuna
