"""Tests find planted effects, and find absent ones as rarely as their level states."""

from __future__ import annotations

import numpy as np
import pytest
from builders import present
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.learning.statistics import (
    COVERAGES,
    RISK_COVERAGES,
    DailyEstimate,
    DayDifference,
    RankedBars,
    chance,
    corrected,
    difference,
    holm,
    mean,
    risk_curve,
    top,
    verdict,
)
from tracepaper.replay.report.honesty import LEVEL
from tracepaper.strategies.features.rolling import Array

DAY_COUNT = 30
A_DAY = 20
DAYS = np.repeat(np.arange(DAY_COUNT), A_DAY)
ROWS = len(DAYS)


@pytest.mark.parametrize("absent", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_no_finite_number_is_absent(absent: float) -> None:
    assert DailyEstimate(absent, 0.25).rounded() == [None, 0.25]
    assert DailyEstimate(0.5, absent).rounded() == [0.5, None]
    assert DayDifference(absent, None, 3, 1.0).rounded() == [None, None, 1.0]


def by_day(rng: np.random.Generator, daily: float = 1.0) -> Array:
    """Return noise with a component that all rows of a day share."""
    return rng.normal(size=ROWS) + daily * rng.normal(size=DAY_COUNT)[DAYS]


def test_a_useless_difference_is_credible_as_seldom_as_it_is_said_to_be() -> None:
    p_values = [
        difference(by_day(rng), by_day(rng), DAYS).p
        for rng in map(np.random.default_rng, range(200))
    ]
    assert 0.01 < np.mean(np.array(p_values) < LEVEL) < 0.09
    # By bars instead of days it would nearly always be: the planted mistake.
    rng = np.random.default_rng(0)
    bars = np.arange(ROWS)
    naive = [difference(by_day(rng), by_day(rng), bars).p < LEVEL for _ in range(100)]
    assert np.mean(naive) > 0.2


def test_a_true_difference_is_found_with_its_sign() -> None:
    rng = np.random.default_rng(1)
    better = difference(by_day(rng) - 1.5, by_day(rng), DAYS)
    assert verdict(better) == "better"
    assert verdict(better._replace(value=-better.value)) == "worse"
    assert verdict(better, is_less_better=False) == "worse"
    assert verdict(better._replace(p=0.06)) == "level"


def test_one_block_of_days_says_nothing() -> None:
    assert chance(-5.0, 0.1, 9) == 1.0
    assert chance(-5.0, 0.0, 90) == 1.0
    assert chance(-5.0, None, 90) == 1.0
    assert chance(-1.0, 0.4, 10) > chance(-1.0, 0.4, 400)


def test_an_error_covers_days_that_are_like_the_days_before() -> None:
    """With a correlation of 0.4 between days, an error by single days is over a fifth too small."""
    rng, days = np.random.default_rng(3), np.arange(60)
    noise = rng.normal(size=(2_000, 62))
    values = noise[:, 2:] + 0.4 * noise[:, 1:-1] + 0.2 * noise[:, :-2]
    true = values.mean(axis=1).std()
    errors = np.array([mean(row, days).error for row in values])
    assert np.sqrt((errors**2).mean()) / true > 0.9
    single = values.std(axis=1, ddof=1) / 60**0.5
    assert np.sqrt((single**2).mean()) / true < 0.8


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(values: list[float]) -> None:
    adjusted = holm(values)
    order = np.argsort(values, kind="stable")
    for place, value in enumerate(adjusted):
        rank = int(np.flatnonzero(order == place)[0])
        steps = [min(1.0, (len(values) - r) * values[order[r]]) for r in range(rank + 1)]
        assert value == pytest.approx(max(steps))
        assert value >= values[place]


def test_of_many_useless_candidates_one_seldom_looks_good() -> None:
    wrong = 0
    for rng in map(np.random.default_rng, range(100)):
        every = {str(i): difference(by_day(rng), by_day(rng), DAYS) for i in range(6)}
        wrong += any(verdict(each) != "level" for each in corrected(every).values())
    assert wrong / 100 < 0.11


# --- selective prediction


def ranked(rng: np.random.Generator, *, knows: float) -> RankedBars:
    """Return bars with a risk by day and by bar, and a measure that knows part of it."""
    sure = rng.random(ROWS)
    chance = np.clip(0.5 - knows * (sure - 0.5) + 0.08 * rng.normal(size=DAY_COUNT)[DAYS], 0, 1)
    return RankedBars((rng.random(ROWS) < chance).astype(float), sure, DAYS)


def test_a_measure_that_knows_is_found_and_a_useless_one_is_not() -> None:
    informed, useless = [], []
    for rng in map(np.random.default_rng, range(80)):
        parts = [ranked(rng, knows=0.3) for _ in range(2)]
        curve = present(risk_curve(parts))
        noise = present(risk_curve([ranked(rng, knows=0.0) for _ in range(2)]))
        informed.append(verdict(curve.area) == "better")
        useless.append(verdict(noise.area) != "level")
    assert np.mean(informed) > 0.9
    assert 0.005 < np.mean(useless) < 0.11


def test_the_curve_is_its_definition() -> None:
    rng = np.random.default_rng(5)
    parts = [ranked(rng, knows=0.3) for _ in range(2)]
    curve = present(risk_curve(parts))
    expected = []
    for part in parts:
        order = np.argsort(-part.measure)
        counts = np.round(RISK_COVERAGES * ROWS).astype(int)
        expected.append([part.risk[order[:n]].mean() - part.risk.mean() for n in counts])
    np.testing.assert_allclose(curve.excess, np.mean(expected, axis=0), atol=1e-12)
    assert curve.area.value == pytest.approx(np.mean(expected))
    assert curve.excess[-1] == pytest.approx(0.0)
    assert curve.bars == 2 * ROWS
    assert curve.area.days == DAY_COUNT
    surest = curve.gained()
    for share, gained, noise in zip(COVERAGES, surest["gained"], surest["error"], strict=True):
        at = RISK_COVERAGES.tolist().index(pytest.approx(share))
        assert gained == pytest.approx(-curve.excess[at], abs=1e-5)
        assert noise == pytest.approx(present(curve.errors)[at], abs=1e-5)
    # Less a rival of the same bars: nothing of itself, and all of one that knows nothing.
    assert present(risk_curve(parts, parts)).area.pair == pytest.approx((0.0, 0.0))
    blind = [part._replace(measure=np.zeros(ROWS)) for part in parts]
    gap, alone = present(risk_curve(parts, blind)), present(risk_curve(blind))
    assert gap.area.value == pytest.approx(curve.area.value - alone.area.value)


def test_the_share_that_is_chosen_is_exact_even_among_ties() -> None:
    chosen = top(np.zeros(1_000), 0.1)
    assert chosen.sum() == 100
    assert chosen[:100].all()


def test_a_measure_that_says_one_thing_of_all_bars_chooses_by_chance() -> None:
    # The first days are the riskiest: ties in order of time would look like knowledge.
    risk = (DAYS < 10).astype(float)
    curve = present(risk_curve([RankedBars(risk, np.zeros(ROWS), DAYS)]))
    assert abs(curve.area.value) < 0.02


def test_bars_that_were_not_measured_are_left_out() -> None:
    part = ranked(np.random.default_rng(6), knows=0.3)
    half = part._replace(measure=np.where(np.arange(ROWS) % 2, part.measure, np.nan))
    every_second = RankedBars(part.risk[1::2], part.measure[1::2], part.days[1::2])
    masked, dropped = risk_curve([half]), risk_curve([every_second])
    assert masked is not None
    assert dropped is not None
    np.testing.assert_array_equal(masked.excess, dropped.excess)
    assert risk_curve([part._replace(measure=np.full(ROWS, np.nan))]) is None
