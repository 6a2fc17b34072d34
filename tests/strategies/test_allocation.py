"""Weights held to what defines them, not to another solver."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import present
from hypothesis import given, settings
from hypothesis import strategies as st

from tracepaper.strategies import allocation
from tracepaper.strategies.allocation import (
    AllocationGoal,
    Array,
    WeightRule,
    allocate,
    covariance,
    covariance_of,
    expected_gain,
    repaired,
    require_solver,
    returns_of,
    rounded,
    volume_bounds,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid


def drawn(bars: int, assets: int, seed: int) -> Array:
    source = np.random.default_rng(seed)
    mixing = source.normal(size=(assets, assets))
    return 0.01 * source.normal(size=(bars, assets)) @ mixing


@settings(max_examples=25, deadline=None)
@given(bars=st.integers(3, 60), assets=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_covariance_is_shrunk_by_the_share_of_the_published_formula(
    bars: int, assets: int, seed: int
) -> None:
    returns = drawn(bars, assets, seed)
    sample = returns.T @ returns / bars
    mean = np.trace(sample) / assets
    noise = sum(((np.outer(row, row) - sample) ** 2).sum() for row in returns) / bars**2
    distance = ((sample - mean * np.eye(assets)) ** 2).sum()
    share = min(1.0, noise / distance) if distance > 1e-30 else 1.0
    expected = share * mean * np.eye(assets) + (1 - share) * sample
    values = covariance(returns)
    assert np.allclose(values, expected, rtol=1e-9, atol=1e-18)
    assert np.linalg.eigvalsh(values).min() > 0


def test_newer_bars_weigh_more_with_a_half_life() -> None:
    calm, wild = 0.001 * drawn(50, 2, 1), drawn(50, 2, 1)
    first, last = np.vstack([wild, calm]), np.vstack([calm, wild])
    even = np.trace(covariance(first))
    assert even == pytest.approx(np.trace(covariance(last)))
    assert np.trace(covariance(first, half_life=5)) < 0.1 * even
    assert np.trace(covariance(last, half_life=5)) > 1.5 * even


@settings(max_examples=20, deadline=None)
@given(
    assets=st.integers(1, 5),
    seed=st.integers(0, 200),
    rule=st.sampled_from(list(WeightRule)),
    bound=st.sampled_from([0.15, 0.5, 1.0]),
)
def test_weights_keep_their_limits_and_have_six_decimals(
    assets: int, seed: int, rule: WeightRule, bound: float
) -> None:
    risk = covariance(drawn(40, assets, seed))
    expected = 0.01 * np.random.default_rng(seed).normal(size=assets)
    values = allocate(rule, risk, expected=expected, bound=bound)
    assert values.min() >= 0
    assert values.max() <= bound
    assert values.sum() <= 1
    assert np.array_equal(values, np.round(values, 6))
    if rule is WeightRule.MINIMUM:
        assert values.sum() == pytest.approx(min(1.0, bound * assets), abs=1e-5)


def least(assets: int, loss: Callable[[Array], float], steps: int, *, whole: bool) -> float:
    """Return the least loss over a grid of weights that sum to 1, or to at most 1."""
    parts = (np.array(each) for each in itertools.product(range(steps + 1), repeat=assets))
    return min(
        loss(each / steps)
        for each in parts
        if each.sum() == steps or (not whole and each.sum() < steps)
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 200),
    rule=st.sampled_from(list(WeightRule)),
    share=st.sampled_from([0.0, 1e-4, 0.01, 1.0]),
)
def test_no_position_is_above_its_share_of_what_trades(
    seed: int, rule: WeightRule, share: float
) -> None:
    source = np.random.default_rng(seed)
    prices, volumes = np.exp(source.normal(size=(2, 3, 40)))
    contexts: list[Any] = [
        SimpleNamespace(
            history=SimpleNamespace(close=close, volume=volume),
            account=SimpleNamespace(equity=1_000.0),
        )
        for close, volume in zip(prices, volumes, strict=True)
    ]
    limits = volume_bounds(share, contexts, bars=8)
    weights = allocate(
        rule, covariance(drawn(40, 3, seed)), expected=source.normal(size=3), by_volume=limits
    )
    if limits is None:
        assert share == 0.0
        return
    traded = 8 * (prices * volumes).mean(axis=1)
    assert (1_000.0 * weights <= share * traded).all()
    if rule is WeightRule.MINIMUM:  # what may not be held of one is held of another, or not at all
        assert weights.sum() == pytest.approx(min(1.0, limits.sum()), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cost", [0.0, 0.3])
def test_no_grid_point_has_less_variance_and_turnover(seed: int, cost: float) -> None:
    risk, held = covariance(drawn(30, 3, seed)), np.array([0.7, 0.1, 0.2])
    unit = np.trace(risk) / 3

    def loss(weights: Array) -> float:
        return float(weights @ risk @ weights / unit + cost * np.abs(weights - held).sum())

    values = allocate(WeightRule.MINIMUM, risk, held=held, cost=cost)
    assert loss(values) <= least(3, loss, 40, whole=True) + 1e-4


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cost", [0.0, 0.002])
def test_no_grid_point_has_more_of_what_mean_variance_wants(seed: int, cost: float) -> None:
    risk, held = covariance(drawn(30, 3, seed)), np.array([0.5, 0.0, 0.0])
    expected = 0.002 * np.random.default_rng(seed).normal(size=3)

    def loss(weights: Array) -> float:
        traded = np.abs(weights - held).sum()
        return float(2.5 * weights @ risk @ weights + cost * traded - expected @ weights)

    values = allocate(
        WeightRule.MEAN_VARIANCE, risk, expected=expected, held=held, aversion=5.0, cost=cost
    )
    assert loss(values) <= least(3, loss, 40, whole=False) + 1e-6


def test_the_simple_rules_are_what_they_say() -> None:
    risk = np.diag([0.04, 0.01, 0.0])
    assert allocate(WeightRule.EQUAL, risk).tolist() == [0.333333] * 3
    assert allocate(WeightRule.INVERSE, risk).tolist() == [0.333333, 0.666667, 0.0]
    assert allocate(WeightRule.INVERSE, risk, bound=0.5).tolist() == [0.333333, 0.5, 0.0]
    assert allocate(WeightRule.INVERSE, np.zeros((2, 2))).tolist() == [0.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(assets=st.integers(2, 6), seed=st.integers(0, 999), shrink=st.sampled_from([0.0, 0.1, 1.0]))
def test_whatever_is_said_of_pairs_becomes_a_correlation_matrix(
    assets: int, seed: int, shrink: float
) -> None:
    pairs = np.random.default_rng(seed).uniform(-1.2, 1.2, (assets, assets))
    repaired_matrix = repaired(pairs, shrink=shrink)
    assert (repaired_matrix == repaired_matrix.T).all()
    assert (np.diag(repaired_matrix) == 1.0).all()
    assert np.linalg.eigvalsh(repaired_matrix)[0] > -1e-12
    if shrink == 1.0:
        assert (repaired_matrix == np.eye(assets)).all()


def test_correlations_are_repaired_by_the_published_steps_and_only_where_they_must() -> None:
    good = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 1.0]])
    assert (repaired(good) == good).all()
    assert repaired(good, shrink=0.25) == pytest.approx(good * 0.75 + np.eye(3) * 0.25)
    bad = np.array([[1.0, 0.9, 0.7], [0.9, 1.0, -0.4], [0.7, -0.4, 1.0]])
    values, vectors = np.linalg.eig(bad)  # Rebonato and Jäckel 1999, by another routine
    assert values.min() < -0.1
    root = vectors @ np.diag(np.sqrt(np.maximum(values, 0.0)))
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    assert repaired(bad) == pytest.approx(root @ root.T, abs=1e-12)
    deviations = np.array([0.01, 0.02, 0.03])
    wanted = np.diag(deviations) @ (0.75 * good + 0.25 * np.eye(3)) @ np.diag(deviations)
    assert covariance_of(deviations, good, shrink=0.25) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("pairs", "shrink", "sentence"),
    [
        (np.ones((2, 3)), 0.0, "a square matrix of finite numbers"),
        (np.full((2, 2), np.nan), 0.0, "of finite numbers"),
    ],
)
def test_correlations_that_are_none_are_refused(pairs: Array, shrink: float, sentence: str) -> None:
    with pytest.raises(DataInvalid, match=sentence):
        repaired(pairs, shrink=shrink)


def test_rounding_never_passes_one() -> None:
    assert rounded(np.array([0.3333336, 0.3333336, 0.3333336])).sum() <= 1.0
    assert rounded(np.array([-1e-9, 0.5])).tolist() == [0.0, 0.5]


def test_returns_are_of_common_closes() -> None:
    closes = [np.array([100.0, 110.0, 99.0]), np.array([10.0, 10.0, 20.0])]
    assert np.allclose(np.exp(returns_of(closes)), [[1.1, 1.0], [0.9, 2.0]])


def test_what_cannot_be_weighed_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = np.eye(2)
    hostile: list[tuple[Callable[[], object], str]] = [
        (lambda: covariance(drawn(2, 2, 0)), "at least 3 finite"),
        (lambda: covariance(np.full((9, 2), np.nan)), "at least 3 finite"),
        (lambda: allocate(WeightRule.EQUAL, np.eye(3)[:2]), "the same assets"),
        (lambda: allocate(WeightRule.EQUAL, np.full((2, 2), np.inf)), "the same assets"),
        (lambda: allocate(WeightRule.EQUAL, risk, held=np.zeros(3)), "the same assets"),
        (lambda: allocate(WeightRule.MEAN_VARIANCE, risk), "a finite return"),
        (
            lambda: allocate(WeightRule.MEAN_VARIANCE, risk, expected=np.array([np.nan, 0])),
            "a finite",
        ),
        (lambda: allocate(WeightRule.MINIMUM, np.zeros((2, 2))), "No asset has moved"),
    ]
    for broken, sentence in hostile:
        with pytest.raises(DataInvalid, match=sentence):
            broken()
    with pytest.raises(ConfigInvalid, match="above 0, at most 1"):
        allocate(WeightRule.EQUAL, risk, bound=1.5)
    for aversion, cost in ((-1.0, 0.0), (1.0, -0.001), (1.0, float("nan"))):
        with pytest.raises(ConfigInvalid, match="of at least 0"):
            allocate(
                WeightRule.MEAN_VARIANCE, risk, expected=np.zeros(2), aversion=aversion, cost=cost
            )

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(allocation, "import_module", absent)
    require_solver(WeightRule.INVERSE)
    with pytest.raises(ConfigInvalid, match=r"pip install 'tracepaper\[portfolio\]"):
        allocate(WeightRule.MINIMUM, risk)


GOALS = [
    AllocationGoal(WeightRule.MEAN_VARIANCE, 8, None, 0.3, 4.0, 0.001),
    AllocationGoal(WeightRule.MEAN_VARIANCE, 8, 20.0, 0.3, 4.0, 0.001),
    AllocationGoal(WeightRule.MINIMUM, 8, None),
    AllocationGoal(WeightRule.MINIMUM, 8, 20.0),
]


@pytest.mark.parametrize("goal", GOALS)
def test_an_expected_gain_is_the_difference_of_the_objective(goal: AllocationGoal) -> None:
    returns = drawn(90, 3, 4)
    held, weights = np.array([0.6, 0.1, 0.1]), np.array([0.2, 0.5, 0.3])
    risk = 8 * covariance(returns, half_life=goal.half_life)
    gain = present(expected_gain(goal, returns, held=held, weights=weights))
    if goal.rule is WeightRule.MINIMUM:
        scaled = held / 0.8
        wanted = np.sqrt(scaled @ risk @ scaled) - np.sqrt(weights @ risk @ weights)
    else:
        mean = 0.3 * 8 * returns.mean(axis=0)

        def utility(of: Array) -> float:
            return float(mean @ of - 2.0 * of @ risk @ of)

        wanted = utility(weights) - utility(held) - 0.001 * np.abs(weights - held).sum()
    assert gain[0] == pytest.approx(wanted, rel=1e-9)
    unmoved = present(expected_gain(goal, returns, held=weights, weights=weights))
    assert np.allclose(unmoved, 0.0, atol=1e-15)


@pytest.mark.parametrize("goal", GOALS)
def test_its_error_is_the_spread_over_other_bars(goal: AllocationGoal) -> None:
    """Drawn anew 400 times, gains of one pair of weights spread as their errors say."""
    source = np.random.default_rng(8)
    mixing = 0.01 * source.normal(size=(3, 3))
    held, weights = np.array([0.6, 0.1, 0.3]), np.array([0.2, 0.5, 0.3])
    gains, errors = [], []
    for _ in range(400):
        returns = source.normal(size=(300, 3)) @ mixing
        gain = present(expected_gain(goal, returns, held=held, weights=weights))
        gains.append(gain[0])
        errors.append(gain[1])
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.15)


def test_neighbouring_bars_that_are_alike_widen_the_error() -> None:
    goal = GOALS[2]
    held, weights = np.array([0.6, 0.1, 0.3]), np.array([0.2, 0.5, 0.3])
    returns = drawn(120, 3, 4)
    doubled = np.repeat(returns, 2, axis=0)
    once = present(expected_gain(goal, returns, held=held, weights=weights))
    twice = present(expected_gain(goal, doubled, held=held, weights=weights))
    # Independent bars would have made it 1 / sqrt(2) of that.
    assert twice[1] / once[1] > 0.8


def test_nothing_is_expected_of_rules_without_an_objective_or_of_an_empty_account() -> None:
    returns, none = drawn(60, 2, 1), np.zeros(2)
    weights = np.array([0.5, 0.5])
    for rule in (WeightRule.EQUAL, WeightRule.INVERSE):
        goal = AllocationGoal(rule, 8)
        assert expected_gain(goal, returns, held=weights, weights=weights) is None
    assert expected_gain(GOALS[2], returns, held=none, weights=weights) is None
    gain = present(expected_gain(GOALS[0], returns, held=none, weights=weights))
    assert gain[1] > 0
