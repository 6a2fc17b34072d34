"""The probability of backtest overfitting: its definition, planted luck and skill, and a sweep."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import stats

import tracepaper
from tracepaper.replay.report.metrics import overfitting_probability
from tracepaper.replay.sweep.result import luck

DAYS = 120


def by_definition(daily: np.ndarray, groups: int) -> float:
    """Return the share of halves with a logit below zero, and half of those with zero.

    Written from the paper: matrices J of whole days, Sharpe ratios of them, ranks by scipy.
    """
    stretches = np.array_split(np.arange(len(daily)), groups)
    logits = []
    for half in combinations(range(groups), groups // 2):
        inside = np.concatenate([stretches[at] for at in half])
        outside = np.setdiff1d(np.arange(len(daily)), inside)
        ratios = [daily[rows].mean(axis=0) / daily[rows].std(axis=0) for rows in (inside, outside)]
        rank = stats.rankdata(ratios[1])[ratios[0].argmax()] / (daily.shape[1] + 1)
        logits.append(np.log(rank / (1 - rank)))
    signs = np.sign(np.round(logits, 12))
    return float(np.mean(signs < 0) + np.mean(signs == 0) / 2)


@pytest.mark.parametrize("candidates", [2, 9])
def test_it_is_its_definition(candidates: int) -> None:
    daily = np.random.default_rng(candidates).standard_t(4, size=(DAYS + 3, candidates)) / 100
    probability = overfitting_probability(daily)
    assert probability == pytest.approx(by_definition(daily, 16), abs=1e-12)


def test_where_there_is_nothing_to_choose_nothing_is_said() -> None:
    column = np.random.default_rng(13).normal(size=(DAYS, 1))
    assert overfitting_probability(column) is None
    assert overfitting_probability(np.hstack([column, column, column])) is None
    assert overfitting_probability(np.hstack([column, -column])[:29]) is None
    # Who never traded has a ratio of zero, and is better than who lost.
    flat = np.hstack([np.abs(column), np.zeros_like(column)])
    assert overfitting_probability(flat) == 0.0
    assert overfitting_probability(-flat) == 0.0


def test_a_sweep_says_it_beside_the_deflated_ratio(days: Path) -> None:
    swept = tracepaper.sweep(
        "sma_cross", str(days), {"fast": [3, 5], "slow": [12, 20]}, "sharpe", jobs=1
    )
    daily = np.array([cell.daily for cell in swept.cells]).T
    assert daily.shape[1] == 4
    assert swept.overfitting is not None
    assert swept.overfitting.probability == overfitting_probability(daily)
    assert (swept.overfitting.points, swept.overfitting.left_out) == (4, 0)
    text = " ".join(luck(swept))
    share = f"{swept.overfitting.probability * 100:.0f} %"
    assert f"Probability of backtest overfitting: {share}" in text
    assert "deflated Sharpe ratio" in text
    written = msgspec.json.decode(msgspec.json.encode(swept.document()))
    assert written["overfitting_probability"] == swept.overfitting.probability
