"""The deflated Sharpe ratio, held to its paper's example and to an independent computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tracepaper.replay.report.metrics import best_by_chance, deflated_sharpe, ratio_error

# Bailey and Lopez de Prado (2014), "A numerical example": five years of 250 daily returns with an
# annual ratio of 2.5, skew -3 and kurtosis 10; the trials' annual ratios have the variance 1/2.
YEAR, RATIO, COUNT, SKEW, KURTOSIS, VARIANCE = 250, 2.5, 1_250, -3.0, 10.0, 0.5


@pytest.mark.parametrize(("trials", "probability"), [(100, 0.9004), (46, 0.9505)])
def test_the_example_of_the_paper(trials: int, probability: float) -> None:
    ratio = RATIO / math.sqrt(YEAR)
    chance = best_by_chance(trials, VARIANCE / YEAR)
    error = ratio_error(ratio, count=COUNT, skew=SKEW, kurtosis=KURTOSIS)
    assert stats.norm.cdf((ratio - chance) / error) == pytest.approx(probability, abs=5e-5)
    if trials == 100:
        assert chance == pytest.approx(0.1132, abs=5e-5)


def test_returns_give_what_their_moments_give() -> None:
    returns = np.random.default_rng(5).standard_t(5, size=400) / 100 + 0.001
    ratio = returns.mean() / returns.std(ddof=1)
    skew, kurtosis = stats.skew(returns), stats.kurtosis(returns, fisher=False)
    gamma, trials, variance = 0.5772156649015329, 37, 0.004
    chance = math.sqrt(variance) * (
        (1 - gamma) * stats.norm.ppf(1 - 1 / trials)
        + gamma * stats.norm.ppf(1 - 1 / (trials * math.e))
    )
    wanted = stats.norm.cdf(
        (ratio - chance)
        * math.sqrt(returns.size - 1)
        / math.sqrt(1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2)
    )
    probability = deflated_sharpe(returns, trials=trials, variance=variance)
    assert probability == pytest.approx(wanted, abs=1e-12)


def test_the_best_of_many_normal_ratios_is_as_expected() -> None:
    drawn = np.random.default_rng(1).normal(0.0, 0.05, size=(4_000, 200)).max(axis=1)
    assert best_by_chance(200, 0.05**2) == pytest.approx(drawn.mean(), rel=0.01)


def test_one_trial_is_not_deflated_and_nothing_varies_nowhere() -> None:
    assert best_by_chance(1, 0.3) == 0.0
    assert best_by_chance(50, 0.0) == 0.0
    assert deflated_sharpe([0.01] * 40, trials=5, variance=0.1) is None
