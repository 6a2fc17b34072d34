"""The gamma regression minimises its loss, and recovers planted coefficients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from tracepaper.replay.learning.baselines import GAMMA_RIDGE, fit_gamma

RNG = np.random.default_rng(0)
ROWS = RNG.normal(0.5, 1.0, (1_500, 3))
TRUE = np.array([0.8, -0.4, 0.0])
VALUES = np.exp(0.3 + ROWS @ TRUE) * RNG.gamma(2.0, 0.5, len(ROWS))
WEIGHTS = RNG.uniform(0.5, 1.5, len(ROWS))


def test_it_finds_the_minimum_that_a_general_search_finds() -> None:
    fit = fit_gamma(ROWS, VALUES, WEIGHTS)

    def loss(beta: np.ndarray) -> float:
        score = beta[-1] + (ROWS - fit.centre) @ beta[:-1]
        mean = WEIGHTS @ (VALUES * np.exp(-score) + score) / WEIGHTS.sum()
        return float(mean + 0.5 * GAMMA_RIDGE * beta[:-1] @ beta[:-1])

    expected = minimize(loss, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose([*fit.weights, fit.base], expected, atol=1e-4)
    assert fit.weights == pytest.approx(TRUE, abs=0.08)


def test_a_constant_column_and_rows_of_no_weight_do_no_harm() -> None:
    rows = np.column_stack([ROWS, np.ones(len(ROWS))])
    values = np.where(np.arange(len(ROWS)) < 50, np.nan, VALUES)
    weights = np.where(np.arange(len(ROWS)) < 50, 0.0, WEIGHTS)
    fit = fit_gamma(rows, values, weights)
    alone = fit_gamma(ROWS[50:], VALUES[50:], WEIGHTS[50:])
    assert fit.weights[:3] == pytest.approx(alone.weights)
    assert fit.weights[3] == pytest.approx(0.0, abs=1e-9)


def test_wild_values_do_not_throw_it_off() -> None:
    wild = VALUES.copy()
    wild[:3] = 1e6
    fit = fit_gamma(ROWS, wild, WEIGHTS)
    assert np.isfinite([*fit.weights, fit.base]).all()
    score = fit.base + (ROWS - fit.centre) @ fit.weights
    assert np.average(wild * np.exp(-score), weights=WEIGHTS) == pytest.approx(1.0, abs=1e-6)
