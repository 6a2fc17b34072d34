"""The probes of ``lookahead`` and ``recursive``, each for one forbidden dependence of decisions.

A new probe is a function and a row of ``PROBES``.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import LOOKAHEAD, RECURSIVE, Difference
from tracepaper.replay.checks.judgement import DerivedStep, same_judgement, same_signal
from tracepaper.replay.checks.memory import differing_names
from tracepaper.replay.checks.perturbations import (
    HASH_SEEDS,
    PRICE_FACTOR,
    FutureProbe,
    Surroundings,
    first_false_frame,
    link,
    replaced_covariates,
    shift_rows,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import WEEK_MS, count_of

if TYPE_CHECKING:
    from tracepaper.daemon.config.loading import Config
    from tracepaper.replay.checks.derived import DerivedRun, Setup
    from tracepaper.replay.checks.lookahead import Check
    from tracepaper.strategies.types.market import Instrument

TO_COME: Final = "it depends on bars that are still to come"
ROWS_TO_COME: Final = "it depends on bars, or rows of covariates, that are still to come"
FALSE_FRAME: Final = (
    "a bar of a higher frame was passed on before its close, or is not the aggregate of its bars"
)
ON_EARLIER_RUNS: Final = "it remembers earlier runs of its process"
SURROUNDINGS: Final = "the environment, the working folder and the hashes of texts"
ON_HASHES: Final = (
    "it depends on the hash of a text, or on the order of a set of texts, which Python "
    "changes in each process; sort them"
)
ON_ENVIRONMENT: Final = (
    "it depends on the environment{}; pass what cannot tell with --allow-reading"
)
ON_FOLDER: Final = "it depends on the working folder"
ON_CLOCK: Final = "it depends on the machine's clock"
UNEQUAL: Final = (
    "it cannot be repeated, two equal runs differ: it draws at random, or by its process, or what "
    "it reads changes"
)
NOT_WARM: Final = "its warm-up bars do not suffice"
REMEMBERED: Final = (
    "it keeps what its warm-up bars do not rebuild and its State does not declare, {}"
)
EQUAL_RUNS: Final = 4
"""Equal runs, each in its own process, that must agree before a difference is not random."""
EQUAL_STEPS_AFTER: Final = 16
"""Steps compared after the first that differs: one random choice may repeat, not so many."""
NAMES_SHOWN: Final = 3
"""Names of differing memory that a finding lists, the shortest first."""


@dataclass(frozen=True)
class Limits:
    """Limits of a check: the number of corrupted or cut futures, and the total seconds."""

    probes: int = 12
    seconds: float = 300.0
    seed: int = 0


class ProbeTrial(NamedTuple):
    """One process that derives a run again; its steps must equal those of *base*."""

    base: DerivedRun
    subject: Setup | MarketData | None  # its inputs again, other candles, or None: a later start
    cause: str  # what a difference depends on; {} stands for environment variables
    same: Callable[[DerivedStep, DerivedStep], bool] | None = None  # None: every bit
    config: Config | None = None  # for other candles, if it changes
    until_ms: int | None = None  # for other candles: the last compared open time
    from_ms: int | None = None  # for a later start: its time
    only: Instrument | None = None  # the only instrument that gets inputs
    hash_seed: int | None = None
    one_by_one: bool = False  # inputs arrive one at a time
    runs_twice: bool = False  # the run is derived twice in the process


class CheckProbe(NamedTuple):
    """One forbidden dependence of decisions, and the trials that reveal it."""

    name: str
    trials: Callable[[Check], Iterator[ProbeTrial | Difference]]
    check: str = LOOKAHEAD
    is_refused: bool = True  # else a difference is only reported as a dependence
    explains: bool = False  # runs after another probe's finding, and explains it


def _without_later(check: Check) -> Iterator[ProbeTrial]:
    """Pass the events one at a time, so that no later bar exists before a decision."""
    yield ProbeTrial(check.replay, check.setup(), TO_COME, one_by_one=True)


def _second_run(check: Check) -> Iterator[ProbeTrial]:
    yield ProbeTrial(check.replay, check.setup(), ON_EARLIER_RUNS, runs_twice=True)


def _changed_surroundings(check: Check) -> Iterator[ProbeTrial]:
    """Repeat under other hash seeds, without environment variables, then in another folder too.

    Only for a user's class: built-in ones read none of these. Skipped where something opened is not
    allowed, which is then the finding.
    """
    if not check.is_custom or not all(map(check.is_allowed, check.opened)):
        return
    for seed in HASH_SEEDS:
        yield ProbeTrial(check.replay, check.setup(), ON_HASHES, hash_seed=seed)
    with tempfile.TemporaryDirectory(prefix="tracepaper-elsewhere-") as folder:
        link(check.allow, Path(folder))
        for where, cause in ((None, ON_ENVIRONMENT), (folder, ON_FOLDER)):
            surroundings = Surroundings(frozenset(check.allow), where)
            yield ProbeTrial(check.replay, check.setup(surroundings=surroundings), cause)


def _jumping_clocks(check: Check) -> Iterator[ProbeTrial]:
    """Repeat in a process whose clocks jump at each reading."""
    yield ProbeTrial(check.replay, check.setup(jumping=True), ON_CLOCK)


def _separate_instruments(check: Check) -> Iterator[ProbeTrial]:
    """Derive each of several instruments alone; a portfolio decides for all, so it is skipped."""
    if len(check.instruments) < 2 or check.is_portfolio:  # one has nothing to share
        return
    for item in check.instruments:
        cause = (
            f"{item.id} is decided otherwise without the other instruments: its objects share "
            "something; let one PortfolioStrategy decide for all"
        )
        yield ProbeTrial(check.replay, check.setup(), cause, same_judgement, only=item)


def _futures(check: Check) -> Iterator[ProbeTrial]:
    """Corrupt or cut off the future after bars spread over the whole file."""
    config, data = check.config, check.data
    cause = TO_COME if config.model.covariates is None else ROWS_TO_COME
    first_ms, _ = data.bounds
    probes = _spread(check.replayed_data, check.limits, check.replay.message.warmup)
    check.finding.planned = len(probes)
    for number, probe in enumerate(probes):
        check.report(f"lookahead: future {number + 1} of {len(probes)}")
        base = check.replay
        if probe.from_ms > first_ms:
            base = check.derived(probe.window(data))
        with probe.changed(config, data) as (changed, future):
            yield ProbeTrial(base, future, cause, config=changed, until_ms=probe.at_ms)


def _shifted_series(check: Check) -> Iterator[ProbeTrial]:
    """Shift the whole series in time; a decision that differs depends on the date."""
    with replaced_covariates(check.config, shift_rows(check.weeks * WEEK_MS)) as config:
        moved = check.replayed_data.shifted(check.weeks)
        yield ProbeTrial(check.replay, moved, "on the date", same_judgement, config)


def _multiplied_prices(check: Check) -> Iterator[ProbeTrial]:
    """Multiply all prices; a signal that differs depends on the absolute price."""
    moved = check.replayed_data.scaled(PRICE_FACTOR)
    yield ProbeTrial(check.replay, moved, "on the absolute price", same_signal)


def _frames(check: Check) -> Iterator[Difference]:
    """Compare the bars of higher timeframes with the closed ones of the whole file."""
    compared, difference = first_false_frame(
        check.replayed_data, check.instruments, check.replay.framed()
    )
    check.finding.compared += compared
    if difference is not None:
        check.finding.because = FALSE_FRAME
        yield difference


def _later_starts(check: Check) -> Iterator[ProbeTrial]:
    """Record the run until a later bar, and resume it as ``replay --resume`` does."""
    for number, from_ms in enumerate(check.starts):
        check.report(f"recursive: start {number + 1} of {len(check.starts)}")
        yield ProbeTrial(check.replay, None, NOT_WARM, same_judgement, from_ms=from_ms)


def _equal_runs(check: Check) -> Iterator[ProbeTrial]:
    """Check whether equal runs differ too; the decisions are then no function of the bars."""
    assert check.moved_step is not None
    most = check.moved_step.base.step.sequence + EQUAL_STEPS_AFTER
    first, cause = check.again(most), check.finding.because
    if any(check.again(most) != first for _ in range(EQUAL_RUNS - 1)):
        check.finding.because = f"{cause}, or {UNEQUAL}" if cause == ON_CLOCK else UNEQUAL
    yield from ()


def _remembered_names(check: Check) -> Iterator[ProbeTrial]:
    """Name what a later start remembers differently at the step that differs."""
    assert check.moved_step is not None
    event = check.moved_step.base.step.event
    assert isinstance(event, Bar)
    until_ms = event.open_time_ms + 1
    runs = check.derived(check.data, until_ms=until_ms), check.resumed(until_ms)
    names = differing_names(*(run.message.memories[event.instrument] for run in runs))
    if names:
        check.finding.undeclared = names
        check.finding.because = REMEMBERED.format(", ".join(names[:NAMES_SHOWN]))
    yield from ()


PROBES: Final = (
    CheckProbe("bars without a later bar in the process", _without_later),
    CheckProbe("bars of higher frames", _frames),
    CheckProbe("a second run in one process", _second_run),
    CheckProbe(SURROUNDINGS, _changed_surroundings),
    CheckProbe("jumping clocks", _jumping_clocks),
    CheckProbe("each instrument alone", _separate_instruments),
    CheckProbe("corrupted and cut futures", _futures),
    CheckProbe("the series {weeks} weeks later", _shifted_series, is_refused=False),
    CheckProbe(f"prices times {PRICE_FACTOR}", _multiplied_prices, is_refused=False),
    CheckProbe("the same once more, nothing withheld", _equal_runs, explains=True),
    CheckProbe("later starts", _later_starts, RECURSIVE),
    CheckProbe("memory by name", _remembered_names, RECURSIVE, explains=True),
)
"""In the order of execution; after the first finding only the probes that explain it run."""


def _spread(data: MarketData, limits: Limits, warmup: int) -> list[FutureProbe]:
    """Return one probe per equal part of the file, in a seeded random order."""
    times = data.opens_ms
    if times.size < 3:  # one each of past, probe and future
        raise DataInvalid(
            f"With {count_of(times.size, 'bar')} there is no future to perturb; give more data."
        )
    rng = np.random.default_rng(limits.seed)
    first = min(warmup, times.size // 4)
    edges = np.linspace(first, times.size - 1, limits.probes + 1)
    drawn = (
        rng.integers(int(low), max(int(low) + 1, int(high)))
        for low, high in itertools.pairwise(edges)
    )
    places = sorted({int(place) for place in drawn})
    back = max(2_000, 2 * warmup)
    if times.size <= 4 * back:
        back = int(times.size)  # few bars: derive all from the first one
    starts = [max(0, place - back) for place in places]
    probes = [
        FutureProbe(int(times[start]), int(times[place]), cut=turn % 2 == 1)
        for turn, (start, place) in enumerate(zip(starts, places, strict=True))
    ]
    return [probes[turn] for turn in rng.permutation(len(probes))]
