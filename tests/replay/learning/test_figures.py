"""Figures agree with scipy and scikit's definitions, and their errors with the days' noise."""

from __future__ import annotations

import numpy as np
import pytest
from learning import table
from scipy import stats

from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.judge.forecasts import MODEL
from tracepaper.replay.learning.judge.metrics import METRICS, MetricView, estimate
from tracepaper.replay.learning.statistics import DailyEstimate
from tracepaper.strategies.features.rolling import Array

RNG = np.random.default_rng(4)
ROWS = 4_000
DAYS = np.repeat(np.arange(40), ROWS // 40)
FORECAST = RNG.normal(size=ROWS)
VALUE = 0.3 * FORECAST + RNG.standard_t(3, ROWS)


def figure_of(name: str, value: Array, **fields: Array) -> DailyEstimate:
    """Return a figure of one forecaster of *value*, in order of its day."""
    days = DAYS if len(value) == ROWS else np.arange(len(value))
    place = np.arange(len(value)) - np.searchsorted(days, days)
    labels = {"returns": value, "variance": np.abs(value) + 0.1, "unit": np.ones(len(value))}
    labels["direction"] = value.astype(np.int64)
    rows = table(days * 86_400_000 + place * 60_000, labels, {MODEL: fields})
    return estimate(METRICS[name], MetricView(rows))


def test_the_correlation_agrees_with_scipy() -> None:
    assert figure_of("ic", VALUE, score=FORECAST).value == pytest.approx(
        stats.pearsonr(FORECAST, VALUE)[0]
    )


def test_an_error_is_that_of_blocks_of_five_days() -> None:
    weekly = RNG.normal(size=8)
    values = np.repeat(weekly, ROWS // 8)  # every bar of five days is the same
    daily_estimate = figures.mean(values, DAYS)
    assert daily_estimate.value == pytest.approx(weekly.mean())
    assert daily_estimate.error == pytest.approx(
        0.5 * stats.t.ppf(0.975, 7) * weekly.std(ddof=1) / 8**0.5, rel=1e-3
    )
    drawn = figures.figure(np.stack([values, values**0]), DAYS, lambda s: s[:, 0] / s[:, 1])
    assert drawn.error == pytest.approx(daily_estimate.error, rel=0.15)
    few = DAYS < 9  # one block: nothing says how far another one would be away
    assert figures.mean(values[few], DAYS[few]).error is None


def test_sign_accuracy_leaves_out_what_did_not_move_and_halves_what_was_not_said() -> None:
    daily_estimate = figure_of(
        "sign_accuracy", np.array([2.0, 2.0, 1.0, 0.0]), sign=np.array([1.0, -1.0, 0.0, 5.0])
    )
    assert daily_estimate.value == pytest.approx((1 + 0 + 0.5) / 3)


def test_qlike_is_least_for_the_variance_itself() -> None:
    variance = np.abs(VALUE) + 0.1
    assert figure_of("qlike", VALUE, variance=variance).value == pytest.approx(0.0)
    twice = figure_of("qlike", VALUE, variance=2 * variance).value
    assert twice == pytest.approx(0.5 - np.log(0.5) - 1)


def test_coverage_of_the_right_distribution_is_ninety_percent() -> None:
    value = RNG.standard_t(4, ROWS) * 2.0 + 1.0
    ones = np.ones(ROWS)
    hit = figures.inside(ones, 2 * ones, 4 * ones, value, figures.COVERAGE)
    daily_estimate = figures.mean(hit, DAYS)
    assert daily_estimate.value == pytest.approx(0.9, abs=4 * (daily_estimate.error or 0.0))


def test_brier_of_certainty_is_zero_or_two() -> None:
    classes = np.array([0, 1, 2, 0])
    right = figures.mean(figures.brier_of(np.eye(3)[classes], classes), np.arange(4))
    wrong = figures.mean(figures.brier_of(np.eye(3)[[1, 2, 0, 1]], classes), np.arange(4))
    assert (right.value, wrong.value) == (0.0, 2.0)


def test_accuracy_and_macro_f1_of_three_classes_agree_with_their_definitions() -> None:
    classes, odds = np.array([0, 0, 1, 1, 2, 2]), np.eye(3)[[0, 1, 1, 1, 0, 0]]
    accuracy = figure_of("direction.accuracy", classes, probability=odds)
    f1 = figure_of("direction.macro_f1", classes, probability=odds)
    assert accuracy.value == pytest.approx(3 / 6)
    assert f1.value == pytest.approx((2 * 1 / (3 + 2) + 2 * 2 / (3 + 2) + 0) / 3)
