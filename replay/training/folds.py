"""Folds of the calendar: walk-forward, and combinatorial with purging, for all files at once.

A fold says which spans of time are learnt from, which stop the fit, and which are tested. Labels
look forward: one that reaches into a held-out span would carry its outcome into the training, and
features of the bars after it look back into it. So a training label ends before each held-out span
begins, or its bar opens an embargo after that span's end.

Source: López de Prado, Advances in Financial Machine Learning, chapters 7 and 12.
The rule is docs/models.md, L44.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.training.series import (
    Part,
    Segment,
)
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.units import DAY_MS

Span = tuple[int, int]
"""From, inclusive, and until, exclusive: UTC milliseconds."""
FIRST_SHARE: Final = 0.5
"""Of the time before the first test of a walk."""
STOP_SHARE: Final = 0.1
"""Of the time that is learnt from: it stops the fit, or calibrates, and is its end."""


@dataclass(frozen=True)
class Fold:
    """Spans of time that are learnt from, that stop the fit, and that are tested.

    Where nothing is set aside for ``calibration``, what stops the fit is.
    """

    train: tuple[Span, ...]
    validation: tuple[Span, ...]
    test: tuple[Span, ...]
    embargo_ms: int
    calibration: tuple[Span, ...] = ()

    def labelled(self, segment: Segment, horizons: Sequence[int], part: Part) -> NDArray[np.bool_]:
        """Return [time, horizon]: bar and label lie in *part*, clear of what is held out.

        Each part keeps clear of those after it: training, validation, calibration, test. False as
        well where the features lack their lookback or the label its future.
        """
        later = (*self.calibration, *self.test)
        inside, held = {
            Part.TRAIN: (self.train, (*self.validation, *later)),
            Part.VALIDATION: (self.validation, later),
            Part.CALIBRATION: (self.calibration or self.validation, self.test),
            Part.TEST: (self.test, ()),
        }[part]
        opens, closes = segment.open_time_ms, segment.close_time_ms
        mask = np.zeros((len(segment), len(horizons)), dtype=np.bool_)
        for column, horizon in enumerate(horizons):
            rows = slice(segment.first, max(len(segment) - horizon, segment.first))
            begins, ends = opens[rows], closes[segment.first + horizon :][: rows.stop - rows.start]
            within = np.zeros(len(begins), dtype=np.bool_)
            for start, stop in inside:
                within |= (begins >= start) & (ends <= stop)
            for start, stop in held:
                within &= (ends <= start) | (begins >= stop + self.embargo_ms)
            mask[rows, column] = within
        return mask


def with_calibration(fold: Fold) -> Fold:
    """Return *fold* whose last time before the test calibrates, and the time before stops the fit.

    Each is ``STOP_SHARE`` of what is left to learn from.
    """
    train, validation = _stopped(fold.train)
    return replace(fold, train=train, validation=validation, calibration=fold.validation)


def walk_forward(
    span: Span, count: int, *, embargo_ms: int, is_rolling: bool = False
) -> list[Fold]:
    """Return *count* folds whose tests follow one another over the second half of *span*.

    Each learns from all of *span* before its test, or with *is_rolling* from as long a time as the
    first. Cut at midnights; raises ``ConfigInvalid`` where a test would have no day.
    """
    first, last = _days(span)
    begin = first + round((last - first) * FIRST_SHARE)
    cuts = np.linspace(begin, last, count + 1).astype(np.int64).tolist()
    if count < 1 or min(np.diff([first, *cuts])) < 1:
        raise ConfigInvalid(
            f"The candles hold {last - first} days before the untouched time, too few for {count} "
            "folds that walk; give longer candles or fewer folds."
        )
    folds = []
    for start, stop in itertools.pairwise(cuts):
        known = ((start - (begin - first) if is_rolling else first) * DAY_MS, start * DAY_MS)
        train, validation = _stopped((known,))
        folds.append(Fold(train, validation, ((start * DAY_MS, stop * DAY_MS),), embargo_ms))
    return folds


def combinatorial(span: Span, groups: int, tests: int, *, embargo_ms: int) -> list[Fold]:
    """Return a fold for each choice of *tests* of *groups* equal parts of *span*, in order.

    The other parts are learnt from. Cut at midnights; raises ``ConfigInvalid`` where a group would
    have no day, or where nothing is left to learn from.
    """
    first, last = _days(span)
    if not 1 <= tests < groups or last - first < groups:
        raise ConfigInvalid(
            f"{groups} groups of which {tests} are tested cannot be cut of {last - first} days; "
            "give fewer groups, and fewer tests than groups."
        )
    cuts = (np.linspace(first, last, groups + 1).astype(np.int64) * DAY_MS).tolist()
    parts = list(itertools.pairwise(cuts))
    folds = []
    for chosen in itertools.combinations(range(groups), tests):
        rest = _merged([part for at, part in enumerate(parts) if at not in chosen])
        train, validation = _stopped(rest)
        tested = tuple(parts[at] for at in chosen)
        folds.append(Fold(train, validation, tested, embargo_ms))
    return folds


def paths(groups: int, tests: int) -> list[list[int]]:
    """Return the paths of combinatorial folds: for each, the fold that answers every group.

    A group is tested in several folds; the j-th path takes the j-th of them, so that each path
    covers the whole time once: C(groups - 1, tests - 1) of them.
    """
    every = list(itertools.combinations(range(groups), tests))
    by_group = [
        [at for at, chosen in enumerate(every) if group in chosen] for group in range(groups)
    ]
    return [list(path) for path in zip(*by_group, strict=True)]


def read_folds(text: str, span: Span, *, embargo_ms: int) -> list[Fold]:
    """Return the folds that *text* names: ``walk:3``, ``rolling:3`` or ``combinatorial:6/2``.

    Raises ``ConfigInvalid`` for anything else.
    """
    kind, numbers = asked(text)
    if kind == COMBINATORIAL:
        return combinatorial(span, *numbers, embargo_ms=embargo_ms)
    return walk_forward(span, numbers[0], embargo_ms=embargo_ms, is_rolling=kind == ROLLING)


WALK, ROLLING, COMBINATORIAL = "walk", "rolling", "combinatorial"


def asked(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the kind of folds and its numbers; raise ``ConfigInvalid`` for anything else."""
    kind, _, rest = text.partition(":")
    parts = rest.split("/")
    wanted = {WALK: 1, ROLLING: 1, COMBINATORIAL: 2}.get(kind)
    if wanted != len(parts) or not all(part.isdecimal() and len(part) < 4 for part in parts):
        raise ConfigInvalid(
            f"--folds is {shown(text)}; write walk:3, rolling:3 or combinatorial:6/2 (groups and "
            "how many are tested at a time)."
        )
    numbers = tuple(map(int, parts))
    if 0 in numbers:
        raise ConfigInvalid(f"--folds is {text}, and 0 folds judge nothing; ask for at least 1.")
    return kind, numbers


def _days(span: Span) -> Span:
    """Return the first midnight in *span* and the last, in days."""
    return -(-span[0] // DAY_MS), span[1] // DAY_MS


def _merged(parts: Sequence[Span]) -> tuple[Span, ...]:
    """Return *parts*, in order, with those that touch as one."""
    found: list[Span] = []
    for start, stop in parts:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return tuple(found)


def _stopped(known: Sequence[Span]) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Return *known* without its last share, and that share."""
    left = round(STOP_SHARE * sum(stop - start for start, stop in known))
    train = list(known)
    validation: list[Span] = []
    while left > 0:
        start, stop = train.pop()
        cut = max(start, stop - left)
        validation.insert(0, (cut, stop))
        left -= stop - cut
        if cut > start:
            train.append((start, cut))
    return tuple(train), tuple(validation)
