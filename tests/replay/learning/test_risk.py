"""Tests of tails accept correct tails and reject wrong ones."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from learning import table
from numpy.typing import NDArray
from scipy import integrate, stats

from tracepaper.replay.learning.judge.forecasts import MODEL, NORMAL, Forecasts
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.metrics import (
    SIDES,
    breach_rows,
    christoffersen,
    follows,
    measured_tails,
    standardized_tails,
    student_tails,
    value_at_risk,
    without_overlap,
)
from tracepaper.replay.learning.judge.tables import tables_of
from tracepaper.strategies.types.decisions import SHARES

DAYS, A_DAY = 60, 288
PACE_MS = 300_000


def keys_of(places: NDArray[np.int64], symbol: int | NDArray[np.int64]) -> NDArray[np.int64]:
    return (places << 32) + symbol


def forecasts(*, horizon: int = 1, dof: float = 4.0, seed: int = 0) -> Forecasts:
    """Return correct forecasts of Student t returns."""
    source, bars = np.random.default_rng(seed), DAYS * A_DAY
    scale = np.exp(0.3 * source.normal(size=bars))
    mean = 0.05 * source.normal(size=bars)
    value = mean + scale * source.standard_t(dof, bars)
    model = {"mean": mean, "scale": scale, "dof": np.full(bars, dof)}
    return table(
        (np.arange(bars) + 1_000) * PACE_MS,
        {"returns": value, "variance": value**2, "unit": np.ones(bars)},
        {MODEL: model},
        horizon=horizon,
        interval_ms=PACE_MS,
    )


@pytest.mark.parametrize("dof", [2.5, 5.0, 40.0])
@pytest.mark.parametrize("share", SHARES)
def test_the_shortfall_is_the_mean_of_what_lies_beyond(dof: float, share: float) -> None:
    limit, expected = value_at_risk(np.array([0.3]), np.array([2.0]), np.array([dof]), share)
    law = stats.t(dof, loc=0.3, scale=2.0)
    assert law.sf(limit[0]) == pytest.approx(share, rel=1e-9)
    beyond, _ = integrate.quad(lambda x: x * law.pdf(x), limit[0], np.inf)
    assert expected[0] == pytest.approx(beyond / share, rel=1e-6)


def breaches(rows: Forecasts, standardized: dict[str, Any] | None = None) -> list[Any]:
    """Return the tests of the Student t tails, or those of a card."""
    tails = student_tails(rows) if standardized is None else measured_tails(rows, standardized["1"])
    return [SimpleNamespace(**row) for row in breach_rows(rows, tails)]


def test_right_tails_are_believed_and_wrong_ones_are_not() -> None:
    right = forecasts()
    for breach in breaches(right):
        assert breach.realised.value == pytest.approx(breach.share, abs=4 * breach.realised.error)
        assert breach.kupiec_p > 0.01
        assert breach.shortfall.value == pytest.approx(1.0, abs=4 * breach.shortfall.error)
        assert breach.bars == DAYS * A_DAY
    narrow = breaches(right.with_fields(MODEL, scale=0.7 * right.value("scale")))
    assert [(breach.tail, breach.share) for breach in narrow] == [
        (f"of a {side} position", share) for side in SIDES for share in SHARES
    ]
    for breach in narrow:
        assert breach.kupiec_p < 1e-4
        assert breach.realised.value > breach.share
    thin = breaches(right.with_fields(MODEL, dof=np.full(len(right), 200.0)))
    assert all(breach.shortfall.value > 1.15 for breach in thin)


@pytest.mark.parametrize("dof", [3.0, 5.0])
def test_tails_that_are_too_thin_are_right_once_calibrated(dof: float) -> None:
    def thin(seed: int) -> Forecasts:
        # A normal law of the right 90 % interval, as an ensemble's is.
        right = forecasts(dof=dof, seed=seed)
        wide = stats.t.ppf(0.95, dof) / stats.norm.ppf(0.95)
        normal = np.full(len(right), 1e6)
        return right.with_fields(MODEL, scale=wide * right.value("scale"), dof=normal)

    standardized = standardized_tails(thin(1))
    other = thin(2)
    for before, after in zip(breaches(other), breaches(other, standardized), strict=True):
        assert after.realised.value == pytest.approx(after.share, abs=4 * after.realised.error)
        assert after.shortfall.value == pytest.approx(1.0, abs=4 * after.shortfall.error)
        if before.share == 0.01:
            assert before.realised.value > before.share + 2 * before.realised.error


def test_a_tail_of_both_sides_has_the_error_of_a_quantile() -> None:
    constants = standardized_tails(forecasts(dof=NORMAL, seed=20))["1"]
    for at, share in enumerate(SHARES):
        limit = stats.norm.isf(share)
        error = (share * (1 - share) / (2 * DAYS * A_DAY)) ** 0.5 / stats.norm.pdf(limit)
        assert constants["errors"][at][0] == pytest.approx(error, rel=0.6)  # of twelve blocks
        assert constants["losses"][at][0] == pytest.approx(limit, abs=3 * error)


def test_few_losses_and_a_law_with_its_own_tails_calibrate_no_tail() -> None:
    assert standardized_tails(forecasts()) == {}
    right = forecasts(dof=NORMAL)
    few = right.where(slice(0, 99))
    normal = [[2.326348, 2.665214], [1.644854, 2.062713]]
    as_it_was = {"losses": normal, "errors": [[0.0, 0.0], [0.0, 0.0]]}
    assert standardized_tails(few)["1"] == as_it_was
    # Bars that share their future are one loss, however many there are.
    far = standardized_tails(forecasts(horizon=len(right) // 99, dof=NORMAL))
    assert list(far.values()) == [as_it_was]


def test_each_tail_is_that_of_its_position() -> None:
    right = forecasts()
    labels = {**right.labels, "returns": right.labels["returns"] - 1.5}
    fallen = replace(right, labels=labels)
    by_tail = {(breach.tail, breach.share): breach for breach in breaches(fallen)}
    assert by_tail["of a long position", 0.05].realised.value > 0.1
    assert by_tail["of a short position", 0.05].realised.value < 0.03


def test_breaches_that_follow_one_another_are_found() -> None:
    source = np.random.default_rng(3)
    always = np.ones(4_999, dtype=np.bool_)
    even = source.random(5_000) < 0.05
    p_value = christoffersen(even, always)
    assert p_value is not None
    assert p_value > 0.05
    clustered = np.repeat(source.random(500) < 0.05, 10)
    p_value = christoffersen(clustered, always)
    assert p_value is not None
    assert p_value < 1e-6
    assert christoffersen(np.zeros(50, dtype=np.bool_), always[:49]) is None
    assert christoffersen(clustered, ~always) is None


def test_bars_apart_share_no_future_and_follow_where_nothing_is_missing() -> None:
    places = np.array([7, 8, 9, 10, 12, 16, 20, 24, 9, 12, 15])
    symbols = np.array([1] * 8 + [2] * 3)
    shuffled = np.random.default_rng(0).permutation(len(places))
    keys = keys_of(places, symbols)[shuffled]
    rows = without_overlap(keys, 4)
    chosen = keys[rows]
    assert (chosen >> 32).tolist() == [8, 12, 16, 20, 24, 12]
    assert (chosen & 0xFFFFFFFF).tolist() == [1, 1, 1, 1, 1, 2]
    assert follows(chosen, 4).tolist() == [True] * 4 + [False]
    assert follows(keys_of(np.array([8, 16, 20]), np.array([1, 1, 1])), 4).tolist() == [False, True]


# ---------------------------------------------------------------- a head of quantiles


def quantile_rows(rows: Forecasts) -> list[dict[str, Any]]:
    [entry] = [each for each in tables_of(Judgement(rows, {}, [])) if each.key == "pinball"]
    return entry.documents()


def test_quantiles_that_are_right_lose_what_the_law_loses_and_shifted_ones_more() -> None:
    right, levels = forecasts(), (0.05, 0.5, 0.95)
    labels = {**right.labels, "unit": np.full(len(right), 0.002), "direction": np.zeros(len(right))}
    wide = np.full(len(right), 2.0)  # t of 4 has a variance of 2
    right = replace(right, labels=labels, levels=levels).with_fields("ewma", variance=wide)
    mean, scale, value = *(right.value(name) for name in ("mean", "scale")), labels["returns"]
    heads = np.stack([mean + scale * stats.t.ppf(at, 4.0) for at in levels], axis=1)
    scores = quantile_rows(right.with_fields(MODEL, quantiles=heads))
    assert [row["forecaster"] for row in scores] == 3 * ["model", "its own Student t", "EWMA"]
    pinball = np.maximum(0.05 * (value - heads[:, 0]), -0.95 * (value - heads[:, 0]))
    assert scores[0]["value"]["value"] == pytest.approx(20 * pinball.mean(), rel=1e-6)
    assert scores[1]["difference"]["value"] == pytest.approx(0, abs=1e-9)
    assert scores[2]["verdict"] == "better"
    shifted = quantile_rows(right.with_fields(MODEL, quantiles=heads + 3.0))
    assert {row["verdict"] for row in shifted if "verdict" in row} - {None} == {"worse"}
