"""The probes of ``lookahead`` and ``recursive``: ways in which a decision can depend on too much.

Each is a row of ``PROBES``; a new one is its function and its row.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import LOOKAHEAD, RECURSIVE, Difference
from tracepaper.replay.checks.judgement import DerivedStep, same_judgement, same_signal
from tracepaper.replay.checks.memory import unlike
from tracepaper.replay.checks.perturbations import (
    HASH_SEEDS,
    PRICE_FACTOR,
    FutureProbe,
    Surroundings,
    first_false_frame,
    link,
    moved_by,
    replaced_covariates,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import WEEK_MS

if TYPE_CHECKING:
    from tracepaper.daemon.config.loading import Config
    from tracepaper.replay.checks.derived import DerivedRun, Setup
    from tracepaper.replay.checks.lookahead import Check
    from tracepaper.strategies.types.market import Instrument

TO_COME: Final = "it depends on bars that are still to come"
ROWS_TO_COME: Final = "it depends on bars, or rows of covariates, that are still to come"
FALSE_FRAME: Final = (
    "a bar of a higher frame was handed on that had not closed, or is not what its bars add up to"
)
ON_ORDER: Final = (
    "it depends on the order of the symbols within a close: what they share changes while they are "
    "decided; let one PortfolioStrategy decide for all"
)
ON_EARLIER_RUNS: Final = "it remembers earlier runs of its process"
SURROUNDED: Final = "the environment, the working folder and the hashes of texts"
ON_HASHES: Final = (
    "it depends on the hash of a text, or on the order of a set of texts, which Python draws anew "
    "in each process; sort them"
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
LOOKS: Final = 4
"""Equal runs, each in a process of its own, before what moved is believed to be no chance."""
LOOKED_BEYOND: Final = 16
"""Steps after the first that moved: one coin may fall alike in all of them, not so many."""
NAMED_MOST: Final = 3
"""Of what differs in memory, the shortest are named."""


@dataclass(frozen=True)
class Limits:
    """How much a check looks at: corrupted or cut futures, and seconds in all."""

    probes: int = 12
    seconds: float = 300.0
    seed: int = 0


class ProbeTrial(NamedTuple):
    """One process that derives a run again, of which no step may differ from those of *mine*."""

    mine: DerivedRun
    subject: Setup | MarketData | None  # its inputs again, other candles, or a later start of it
    because: str  # what moves depends on; {} stands for variables of the environment
    same: Callable[[DerivedStep, DerivedStep], bool] | None = None  # None: every bit
    config: Config | None = None  # of other candles, where it is another
    until_ms: int | None = None  # of other candles: the last open time that is compared
    from_ms: int | None = None  # of a later start: where it begins
    only: Instrument | None = None  # the one instrument that is handed on
    hash_seed: int | None = None
    is_blind: bool = False  # handed its inputs one at a time
    has_past: bool = False  # after the same was derived in that process before


class CheckProbe(NamedTuple):
    """One way in which a decision can depend on what it should not, and how it shows."""

    name: str
    trials: Callable[[Check], Iterator[ProbeTrial | Difference]]
    check: str = LOOKAHEAD
    is_refused: bool = True  # else a difference is only told, as what decisions depend on
    explains: bool = False  # made of a step that another one moved, and says why it did


def _without_later(check: Check) -> Iterator[ProbeTrial]:
    """Hand on the events one at a time, so that no later bar exists before a decision."""
    yield ProbeTrial(check.whole, check.setup(), TO_COME, is_blind=True)


def _reordered(check: Check) -> Iterator[ProbeTrial]:
    """Hand on the bars of each close in the opposite order of their symbols."""
    if len(check.instruments) > 1:  # two have an order
        reverse = replace(check.replayed, candles=check.replayed.candles[::-1])
        yield ProbeTrial(check.whole, reverse, ON_ORDER, same_judgement)


def _again(check: Check) -> Iterator[ProbeTrial]:
    yield ProbeTrial(check.whole, check.setup(), ON_EARLIER_RUNS, has_past=True)


def _surrounded(check: Check) -> Iterator[ProbeTrial]:
    """Repeat under other hash seeds, without environment variables, then in another folder too.

    Only for a user's class: ours read none of these. Where something was opened that is not
    allowed, that is the finding.
    """
    if not check.is_custom or not all(map(check.is_allowed, check.opened)):
        return
    for seed in HASH_SEEDS:
        yield ProbeTrial(check.whole, check.setup(), ON_HASHES, hash_seed=seed)
    with tempfile.TemporaryDirectory(prefix="tracepaper-elsewhere-") as folder:
        link(check.allow, Path(folder))
        for where, because in ((None, ON_ENVIRONMENT), (folder, ON_FOLDER)):
            around = Surroundings(frozenset(check.allow), where)
            yield ProbeTrial(check.whole, check.setup(around=around), because)


def _jumping(check: Check) -> Iterator[ProbeTrial]:
    """Repeat in a process whose clocks jump at each reading."""
    yield ProbeTrial(check.whole, check.setup(jumping=True), ON_CLOCK)


def _alone(check: Check) -> Iterator[ProbeTrial]:
    """Step each of several instruments through by itself; a portfolio decides for all."""
    if len(check.instruments) < 2 or check.is_portfolio:  # two can share
        return
    for item in check.instruments:
        because = (
            f"{item.id} is decided otherwise without the other instruments: its objects share "
            "something; let one PortfolioStrategy decide for all"
        )
        yield ProbeTrial(check.whole, check.setup(), because, same_judgement, only=item)


def _futures(check: Check) -> Iterator[ProbeTrial]:
    """Corrupt or cut off what follows bars that are spread over the whole file."""
    config, data = check.config, check.data
    because = TO_COME if config.model.covariates is None else ROWS_TO_COME
    first_ms, _ = data.bounds
    probes = _spread(check.replayed, check.limits, check.whole.sent.warmup)
    check.finding.planned = len(probes)
    for number, probe in enumerate(probes):
        check.report(f"lookahead: future {number + 1} of {len(probes)}")
        base = check.whole
        if probe.from_ms > first_ms:
            base = check.derived(probe.window(data))
        with probe.changed(config, data) as (changed, future):
            yield ProbeTrial(base, future, because, config=changed, until_ms=probe.at_ms)


def _later(check: Check) -> Iterator[ProbeTrial]:
    """Move the whole series in time; what then differs depends on the date."""
    with replaced_covariates(check.config, moved_by(check.weeks * WEEK_MS)) as config:
        moved = check.replayed.shifted(check.weeks)
        yield ProbeTrial(check.whole, moved, "on the date", same_judgement, config)


def _dearer(check: Check) -> Iterator[ProbeTrial]:
    """Multiply all prices; whose signal then differs depends on the absolute price."""
    moved = check.replayed.scaled(PRICE_FACTOR)
    yield ProbeTrial(check.whole, moved, "on the absolute price", same_signal)


def _frames(check: Check) -> Iterator[Difference]:
    """Compare the bars of higher timeframes with the closed ones of the whole file."""
    compared, difference = first_false_frame(
        check.replayed, check.instruments, check.whole.framed()
    )
    check.finding.compared += compared
    if difference is not None:
        check.finding.because = FALSE_FRAME
        yield difference


def _later_starts(check: Check) -> Iterator[ProbeTrial]:
    """Record the run until a later bar, and go on with it as ``replay --resume`` does."""
    for number, from_ms in enumerate(check.starts):
        check.report(f"recursive: start {number + 1} of {len(check.starts)}")
        yield ProbeTrial(check.whole, None, NOT_WARM, same_judgement, from_ms=from_ms)


def _once_more(check: Check) -> Iterator[ProbeTrial]:
    """Look whether equal runs differ as well, so that what moved is no function of bars."""
    assert check.moved_first is not None
    most = check.moved_first.mine.step.sequence + LOOKED_BEYOND
    first, because = check.again(most), check.finding.because
    if any(check.again(most) != first for _ in range(LOOKS - 1)):
        check.finding.because = f"{because}, or {UNEQUAL}" if because == ON_CLOCK else UNEQUAL
    yield from ()


def _memory(check: Check) -> Iterator[ProbeTrial]:
    """Name what a later start remembers otherwise at the step that moved."""
    assert check.moved_first is not None
    event = check.moved_first.mine.step.event
    assert isinstance(event, Bar)
    until_ms = event.open_time_ms + 1
    runs = check.derived(check.data, until_ms=until_ms), check.resumed(until_ms)
    names = unlike(*(run.sent.memories[event.instrument] for run in runs))
    if names:
        check.finding.undeclared = names
        check.finding.because = REMEMBERED.format(", ".join(names[:NAMED_MOST]))
    yield from ()


PROBES: Final = (
    CheckProbe("bars without a later bar in the process", _without_later),
    CheckProbe("bars of higher frames", _frames),
    CheckProbe("the symbols in another order", _reordered),
    CheckProbe("a second run in one process", _again),
    CheckProbe(SURROUNDED, _surrounded),
    CheckProbe("jumping clocks", _jumping),
    CheckProbe("each instrument alone", _alone),
    CheckProbe("corrupted and cut futures", _futures),
    CheckProbe("the series {weeks} weeks later", _later, is_refused=False),
    CheckProbe(f"prices times {PRICE_FACTOR}", _dearer, is_refused=False),
    CheckProbe("the same once more, nothing withheld", _once_more, explains=True),
    CheckProbe("later starts", _later_starts, RECURSIVE),
    CheckProbe("memory by name", _memory, RECURSIVE, explains=True),
)
"""In the order in which they are made; what the first finds to refuse is explained, and no more."""


def _spread(data: MarketData, limits: Limits, warmup: int) -> list[FutureProbe]:
    """Return a probe in each of as many equal parts of the file; their order is a seeded one."""
    times = data.opens_ms
    if times.size < 3:  # a past, a probe and a future
        raise DataInvalid(f"{times.size} bars have no future to perturb; give more data.")
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
        back = int(times.size)  # so few bars are derived from the first one on
    starts = [max(0, place - back) for place in places]
    probes = [
        FutureProbe(int(times[start]), int(times[place]), cut=turn % 2 == 1)
        for turn, (start, place) in enumerate(zip(starts, places, strict=True))
    ]
    return [probes[turn] for turn in rng.permutation(len(probes))]
