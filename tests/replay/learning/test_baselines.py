"""Baselines use only the past and agree with their formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learning import DAY_BARS, learnable, segment

from tracepaper.replay.learning import baselines as base
from tracepaper.replay.learning.dataset import alone
from tracepaper.replay.learning.samples import targets
from tracepaper.replay.learning.splits import segments_of
from tracepaper.strategies.features.rows import schema

KNOWN = segment(2 * DAY_BARS)
SCHEMA = schema("v2-1m")


def test_persistence_is_the_last_return_of_the_same_length() -> None:
    values = base.past_return(KNOWN, 30)
    t = 900
    expected = np.log(KNOWN.close[t] / KNOWN.close[t - 30]) / (KNOWN.sigma[t] * 30**0.5)
    assert values[t] == pytest.approx(expected)


def test_seasonal_naive_is_yesterdays_return_over_the_same_hours() -> None:
    values = base.past_return(KNOWN, 30, days=1)
    t = 2_000
    moved = np.log(KNOWN.close[t - DAY_BARS + 30] / KNOWN.close[t - DAY_BARS])
    assert values[t] == pytest.approx(moved / (KNOWN.sigma[t] * 30**0.5))
    assert values[600] == 0.0  # yesterday is not known


def test_past_variances_are_means_of_squares() -> None:
    values = base.past_variances(KNOWN)
    squares = np.diff(np.log(KNOWN.close)) ** 2
    t = 1_800
    for row, window in enumerate((5, 30, 240, 1440)):
        assert values[row, t] == pytest.approx(squares[t - window : t].mean() / KNOWN.sigma[t] ** 2)


def test_prices_that_stand_still_at_first_leave_the_smoothed_variance_a_finite_factor() -> None:
    """Until the first move the smoothed variance is zero: no ratio to it exists."""
    moving = learnable(2 * DAY_BARS)
    close = np.where(np.arange(2 * DAY_BARS) < DAY_BARS, moving.close[DAY_BARS], moving.close)
    [still] = segments_of(replace(moving, open=close, high=close, low=close, close=close), SCHEMA)
    labels, past = targets(alone([still])[0], (30,))["variance"][0], base.past_variances(still)
    assert (past[-1, still.first : DAY_BARS] == 0).all()
    with np.errstate(all="raise"):
        fitted = base.BASELINES["ewma"].fit(base.Training([], labels, labels, labels, past))
        answer = base.BASELINES["ewma"].read(fitted, [still])
        rows = np.arange(still.first, len(still))
        forecast = answer(base.BaselineQuestion(still, rows, past[:, rows], 30, 0))
    assert np.isfinite(forecast).all()


@pytest.mark.parametrize(
    ("minutes", "windows"),
    [(15, (1, 2, 16, 96, 480, 1_920)), (60, (1, 1, 4, 24, 120, 480)), (1440, (1, 1, 1, 1, 5, 20))],
)
def test_windows_of_past_variance_are_times(minutes: int, windows: tuple[int, ...]) -> None:
    assert base.har_windows(minutes * 60_000) == windows


@pytest.mark.parametrize("horizon", [5, 30])
def test_seasonal_variance_is_what_followed_at_the_same_time_of_earlier_days(horizon: int) -> None:
    long = segment(6 * DAY_BARS + 200)
    values = base.seasonal_variances(long, horizon)
    squares = np.diff(np.log(long.close), prepend=np.log(long.close[:1])) ** 2
    t = 5 * DAY_BARS + 100
    days = [
        squares[t - back * DAY_BARS + 1 :][:horizon].mean() / long.sigma[t] ** 2
        for back in range(1, 6)
    ]
    assert values[0, t] == pytest.approx(days[0])
    assert values[1, t] == pytest.approx(np.mean(days))
    assert np.isnan(values[1, t - DAY_BARS])  # five days are not known
    assert np.isnan(base.seasonal_variances(long, DAY_BARS + 1)).all()


@pytest.mark.parametrize("days", [0, 1])
def test_no_baseline_sees_the_future(days: int) -> None:
    changed = segment(2 * DAY_BARS)
    changed.close[2_001:] *= 1.5
    for horizon in (5, 30):
        before = base.past_return(KNOWN, horizon, days=days)
        after = base.past_return(changed, horizon, days=days)
        np.testing.assert_array_equal(before[:2_001], after[:2_001])
        values, other = (base.seasonal_variances(each, horizon) for each in (KNOWN, changed))
        np.testing.assert_array_equal(values[:, :2_001], other[:, :2_001])
    np.testing.assert_array_equal(
        base.past_variances(KNOWN)[:, 600:2_001], base.past_variances(changed)[:, 600:2_001]
    )


def test_ridge_finds_a_line_and_leaves_nan_out() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]])
    rows = rng.normal(1.0, 1.0, (1_000, 3))
    values = rows @ weights + np.array([0.3, -0.1])
    values[::7, 0] = np.nan
    fitted = base.ridge(rows, values)
    probe = rng.normal(size=(5, 3))
    np.testing.assert_allclose(
        fitted.predict(probe), probe @ weights + np.array([0.3, -0.1]), atol=0.02
    )


def test_the_factor_makes_the_mean_ratio_one() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2_000, 2))
    variance = np.exp(rows[:, :1] + rng.normal(size=(2_000, 1)))
    fitted = base.log_variance(rows, variance)
    assert (variance / base.variances_of(fitted, rows)).mean() == pytest.approx(1.0)


def test_har_beats_a_constant_where_volatility_lasts() -> None:
    labels = targets(alone([KNOWN])[0], (30,))["variance"][0, 2_000:-30].astype(float)
    rows = base.log_rows(base.past_variances(KNOWN))[2_000:-30]
    fitted = base.log_variance(rows, labels)

    def loss(forecast: np.ndarray) -> float:
        ratio = labels / forecast
        return float((ratio - np.log(ratio) - 1).mean())

    assert loss(base.variances_of(fitted, rows)) < loss(np.full_like(labels, labels.mean()))


@pytest.mark.parametrize("horizon", [5, 240])
def test_a_rolling_har_is_fitted_each_day_on_labels_that_ended_before_it(
    horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone a segment is fitted on its own labels; pooled, on those of all segments."""
    monkeypatch.setattr(base, "ROLLING_DAYS", 4)
    monkeypatch.setattr(base, "ROLLING_STEP_MS", 60_000)
    known, changed, second = segment(7 * DAY_BARS), segment(7 * DAY_BARS), segment(6 * DAY_BARS)
    last = 6 * DAY_BARS + 100
    changed.close[last + 1 :] *= 1.5
    for pool in ([], [second]):
        values, other = (base.rolling_har([each, *pool], horizon)[0] for each in (known, changed))
        np.testing.assert_array_equal(values[600 : last + 1], other[600 : last + 1])
        assert not np.array_equal(values[last + 1 :], other[last + 1 :])

    monkeypatch.setattr(base, "RIDGE", base.ROLLING_RIDGE)
    inputs, labels = (
        [rows_of(each) for each in (known, second)]
        for rows_of in (
            lambda each: base.har_rows(base.past_variances(each), each.close_time_ms),
            lambda each: targets(alone([each])[0], (horizon,))["variance"][0].astype(float),
        )
    )
    for pool in ([known], [known, second]):
        values = base.rolling_har(pool, horizon)[0]
        for day in (5, 6):
            begin = day * DAY_BARS
            used = slice(begin - 4 * DAY_BARS - horizon, begin - horizon)
            rows, answers = (
                np.concatenate([each[used] for each in parts[: len(pool)]])
                for parts in (inputs, labels)
            )
            fitted = base.log_variance(rows, answers)
            expected = base.variances_of(fitted, inputs[0][begin : begin + 50])[:, 0]
            np.testing.assert_allclose(values[begin : begin + 50], expected, rtol=1e-6)
    first = slice(600, 2 * DAY_BARS)
    past = base.past_variances(known)
    np.testing.assert_array_equal(base.rolling_har([known], horizon)[0][first], past[-1][first])


def test_a_har_knows_the_hour_of_day() -> None:
    """Where the variance follows the hour alone, the forecast is that of the hours ahead."""
    bars = learnable(30 * DAY_BARS)
    minute = np.arange(len(bars))
    size = 1e-4 * np.exp(np.sin(2 * np.pi * minute / DAY_BARS))
    moves = np.cumsum(size * np.where(minute % 2, 1.0, -1.0))
    close = np.rint(1e9 * np.exp(moves)).astype(np.int64)
    [known] = segments_of(replace(bars, open=close, high=close, low=close, close=close), SCHEMA)
    [answer] = base.rolling_har([known], 240)
    label = targets(alone([known])[0], (240,))["variance"][0, :, 0].astype(float)
    day = slice(28 * DAY_BARS, 29 * DAY_BARS)
    np.testing.assert_allclose(answer[day] / label[day], 1.0, atol=0.2)
    last_hours = base.past_variances(known)[2, day]  # four, as the horizon
    assert np.abs(np.log(last_hours / label[day])).max() > 2 * np.log(1.2)
