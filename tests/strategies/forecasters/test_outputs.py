"""Outputs become figures of their horizon: the Student-t's deviation, the odds, the NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tracepaper.strategies.forecasters.outputs import explanations, forecasts
from tracepaper.strategies.networks.architecture import Outputs
from tracepaper.strategies.time_buckets import weights_of
from tracepaper.strategies.types.decisions import Explanation, Forecast

HORIZONS = (4, 9)


def outputs(bars: int = 1) -> Outputs:
    def filled(*values: float) -> torch.Tensor:
        return torch.tensor(values).expand(1, bars, 2)

    return Outputs(
        mean=filled(0.5, -0.25),
        log_scale=filled(0.0, math.log(2.0)),
        dof=filled(4.0, 10.0),
        direction_logits=torch.tensor([[0.0, 1.0, 2.0], [3.0, 3.0, 3.0]]).expand(1, bars, 2, 3),
        log_variance=filled(math.log(0.25), 0.0),
    )


def explanation_of(bars: int = 1) -> Explanation:
    rollout = np.full((bars, 4), 0.25, dtype=np.float32)
    heads, unknown = np.full((bars, 6), 0.5, dtype=np.float32), np.full(rollout.shape, np.nan)
    return explanations(
        rollout, heads, rollout.astype(float), unknown, errors=[0.0] * bars, content_free=0.1,
        context=200,
    )[0]  # fmt: skip


def forecast_at(sigma: float) -> Forecast:
    (forecast,) = forecasts(
        outputs(),
        np.array([sigma]),
        [explanation_of()],
        horizons=HORIZONS,
        temperature=(1.0, 1.0),
    )
    return forecast


def test_figures_are_scaled_by_sigma_and_the_root_of_the_horizon() -> None:
    forecast = forecast_at(0.01)
    assert forecast.mean_return == pytest.approx((0.5 * 0.02, -0.25 * 0.03))
    assert forecast.volatility == pytest.approx((0.5 * 0.02, 0.03))
    wanted = (stats.t(4.0, scale=0.02).std(), stats.t(10.0, scale=2 * 0.03).std())
    assert forecast.stdev_return == pytest.approx(wanted)
    odds = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    assert (forecast.p_down[0], forecast.p_flat[0], forecast.p_up[0]) == pytest.approx(tuple(odds))
    assert forecast.p_down[1] == pytest.approx(1 / 3)


def test_an_unknown_sigma_makes_every_return_unknown_and_no_odds() -> None:
    forecast = forecast_at(math.nan)
    assert np.isnan(forecast.mean_return + forecast.stdev_return + forecast.volatility).all()
    assert np.isfinite(forecast.p_up).all()


def test_an_explanation_carries_the_rows_as_little_endian_floats() -> None:
    explanation = explanation_of()
    assert weights_of(explanation.buckets).tolist() == [0.25, 0.25, 0.25]
    assert np.frombuffer(explanation.entropy, "<f4").tolist() == [0.5] * 6
    assert explanation.older_mass == 0.25
    assert explanation.confidence_entropy == 0.5
    assert explanation.content_free == 0.1
    assert explanation.recent_mass == 0.25  # a quarter of 200 bars is one cell
    assert explanation.event_focus == 0.5  # both cells between that quarter and the older mass
    assert explanation.rollout_entropy == 1.0
    assert explanation.l1_error == 0.0
    assert explanation.shift is None
