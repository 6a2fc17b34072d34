"""No training label overlaps a tested bar or its embargo."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import DAY_BARS, HORIZONS, MINUTE_MS, START_MS, segment

from tracepaper.replay.learning.splits import (
    STOP_SHARE,
    Fold,
    Part,
    Segment,
    Span,
    combinatorial,
    paths,
    read_folds,
    walk_forward,
    with_calibration,
)
from tracepaper.strategies.errors import ConfigInvalid

DAY_MS = DAY_BARS * MINUTE_MS
BARS = segment(8 * DAY_BARS)
OTHER = segment(6 * DAY_BARS, seed=1, symbol="BBBUSDT", start=DAY_BARS // 3)
SPAN = (START_MS, START_MS + 8 * DAY_MS)
EMBARGO_MS = 45 * MINUTE_MS
LEARNT = (Part.TRAIN, Part.VALIDATION)


def leaks(fold: Fold, segments: list[Segment]) -> int:
    """Return the number of training labels that span a held-out bar or open in its embargo.

    By the definition, bar by bar: a label of bar t at horizon h spans the bars t + 1 to t + h.
    """
    count = 0
    later = (*fold.calibration, *fold.test)
    for part, spans in (
        (Part.TRAIN, (*fold.validation, *later)),
        (Part.VALIDATION, later),
        (Part.CALIBRATION, fold.test),
    ):
        for bars in segments:
            held = np.zeros(len(bars), dtype=bool)
            after = np.zeros(len(bars), dtype=bool)
            for start, stop in spans:
                held |= (bars.open_time_ms >= start) & (bars.open_time_ms < stop)
                after |= (bars.open_time_ms >= stop) & (bars.open_time_ms < stop + fold.embargo_ms)
            mask = fold.labelled(bars, HORIZONS, part)
            for column, horizon in enumerate(HORIZONS):
                for row in np.flatnonzero(mask[:, column]).tolist():
                    count += bool(held[row : row + horizon + 1].any() or after[row])
    return count


FOLDS: dict[str, Callable[[], list[Fold]]] = {
    "walk": lambda: walk_forward(SPAN, 3, embargo_ms=EMBARGO_MS),
    "rolling": lambda: walk_forward(SPAN, 3, embargo_ms=EMBARGO_MS, is_rolling=True),
    "combinatorial": lambda: combinatorial(SPAN, 5, 2, embargo_ms=EMBARGO_MS)[::3],
    "calibrated": lambda: [
        with_calibration(fold) for fold in walk_forward(SPAN, 3, embargo_ms=EMBARGO_MS)
    ],
}


@pytest.mark.parametrize("kind", FOLDS)
def test_no_label_that_is_learnt_touches_a_test_nor_its_embargo(kind: str) -> None:
    for fold in FOLDS[kind]():
        assert leaks(fold, [BARS, OTHER]) == 0
        for part in (*LEARNT, Part.TEST):
            assert fold.labelled(BARS, HORIZONS, part).any(), part


def test_what_calibrates_is_the_end_of_what_is_learnt_from_and_nothing_else() -> None:
    for fold in walk_forward(SPAN, 2, embargo_ms=EMBARGO_MS):
        calibrated = with_calibration(fold)
        assert (calibrated.calibration, calibrated.test) == (fold.validation, fold.test)
        spans = (*calibrated.train, *calibrated.validation, *calibrated.calibration)
        assert all(span[1] == two[0] for span, two in pairwise(spans))
        assert length(spans) == length((*fold.train, *fold.validation))
        masks = [calibrated.labelled(BARS, HORIZONS, part) for part in Part]
        assert (np.sum(masks, axis=0) <= 1).all()  # no bar is in two parts
        alone = fold.labelled(BARS, HORIZONS, Part.CALIBRATION)
        np.testing.assert_array_equal(alone, fold.labelled(BARS, HORIZONS, Part.VALIDATION))


def test_planted_leaks_are_found() -> None:
    fold = combinatorial(SPAN, 5, 2, embargo_ms=EMBARGO_MS)[4]
    (start, _), *_ = fold.test

    class FoldWithoutPurge(Fold):
        def labelled(self, segment: Segment, horizons: object, part: Part) -> np.ndarray:
            mask = super().labelled(segment, HORIZONS, part)
            if part is Part.TRAIN:  # the last bar before a test: its label ends inside
                mask[np.searchsorted(segment.open_time_ms, start) - 1, 0] = True
            return mask

    class FoldWithoutEmbargo(Fold):
        def labelled(self, segment: Segment, horizons: object, part: Part) -> np.ndarray:
            return replace(fold, embargo_ms=0).labelled(segment, HORIZONS, part)

    walk = walk_forward(SPAN, 3, embargo_ms=EMBARGO_MS)[0]

    class FoldWithSharedBars(Fold):  # what calibrates stops the fit as well
        def labelled(self, segment: Segment, horizons: object, part: Part) -> np.ndarray:
            return walk.labelled(segment, HORIZONS, part)

    sound = with_calibration(walk)
    assert leaks(sound, [BARS]) == 0
    shared = FoldWithSharedBars(
        sound.train, sound.validation, sound.test, EMBARGO_MS, sound.calibration
    )
    assert leaks(shared, [BARS]) > 0
    values = (fold.train, fold.validation, fold.test, fold.embargo_ms)
    assert leaks(FoldWithoutPurge(*values), [BARS]) == 1
    assert leaks(FoldWithoutEmbargo(*values), [BARS]) > 0


@settings(max_examples=40, deadline=None)
@given(groups=st.integers(2, 7), data=st.data())
def test_combinatorial_folds_test_each_choice_once_and_each_group_alike(
    groups: int, data: st.DataObject
) -> None:
    tests = data.draw(st.integers(1, groups - 1))
    folds = combinatorial(SPAN, groups, tests, embargo_ms=0)
    every = sorted({span for fold in folds for span in fold.test})
    assert len(folds) == math.comb(groups, tests)
    assert {fold.test for fold in folds} == set(combinations(every, tests))
    assert every[0][0] == SPAN[0]
    assert every[-1][1] == SPAN[1]
    routes = paths(groups, tests)
    assert len(routes) == math.comb(groups - 1, tests - 1)
    for route in routes:
        for group, place in enumerate(route):
            assert every[group] in folds[place].test
    # No answer of a fold is used twice.
    used = [(group, place) for route in routes for group, place in enumerate(route)]
    assert len(used) == len(set(used)) == tests * len(folds)


def length(spans: tuple[Span, ...]) -> int:
    return sum(stop - start for start, stop in spans)


@given(st.integers(2, 8), st.integers(1, 3))
def test_all_that_is_not_tested_is_learnt_from_or_stops_the_fit(groups: int, tests: int) -> None:
    if tests >= groups:
        return
    for fold in combinatorial(SPAN, groups, tests, embargo_ms=0):
        whole = length(fold.train) + length(fold.validation)
        assert whole + length(fold.test) == SPAN[1] - SPAN[0]
        assert length(fold.validation) == round(STOP_SHARE * whole)
        spans = sorted((*fold.train, *fold.validation, *fold.test))
        assert all(span[1] == two[0] for span, two in pairwise(spans))


def test_a_walk_learns_from_the_past_alone_and_tests_the_rest_once() -> None:
    for is_rolling in (False, True):
        folds = walk_forward(SPAN, 4, embargo_ms=0, is_rolling=is_rolling)
        tests = [fold.test[0] for fold in folds]
        assert (tests[0][0], tests[-1][1]) == (SPAN[0] + 4 * DAY_MS, SPAN[1])
        assert all(span[1] == two[0] for span, two in pairwise(tests))
        for fold in folds:
            assert max(stop for _, stop in (*fold.train, *fold.validation)) == fold.test[0][0]
    starts = [walk.train[0][0] for walk in folds]
    assert starts == [SPAN[0] + day * DAY_MS for day in range(4)]
    assert {length(fold.train) + length(fold.validation) for fold in folds} == {4 * DAY_MS}


def test_folds_are_cut_at_midnights_within_the_span() -> None:
    uneven = (SPAN[0] + 5 * MINUTE_MS, SPAN[1] - 7 * MINUTE_MS)
    for fold in read_folds("walk:2", uneven, embargo_ms=0):
        assert all(at % DAY_MS == 0 for span in fold.test for at in span)
        assert fold.train[0][0] >= uneven[0]
        assert fold.test[0][1] <= uneven[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("walk", "write walk:3"),
        ("walk:3/2", "write walk:3"),
        ("walk:0", "write numbers of at least 1"),
        ("walk:9", "fewer folds"),
        ("rolling:x", "write walk:3"),
        ("combinatorial:6", "write walk:3"),
        ("combinatorial:3/3", "fewer tests than groups"),
        ("combinatorial:30/2", "8 days cannot be cut"),
        ("k:3", "write walk:3"),
    ],
)
def test_folds_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        read_folds(text, SPAN, embargo_ms=0)
