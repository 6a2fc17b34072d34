"""What a shown card says in comparison: from the paired figures by day, never from two points."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts, report
from tracepaper.replay.learning.evaluation.user_class import figures_of
from tracepaper.replay.learning.statistics import paired_figures
from tracepaper.replay.report.honesty import compared_sentences
from tracepaper.storage import checkpoints

GIVEN = frozenset({"mean_return", "stdev_return", "volatility", "probabilities"})


def forecasts(*, better: float = 0.0, days: int = 60, rises: float = 0.5) -> HorizonForecasts:
    """Variances that are right but for noise; of ``network`` the noise is less by *better*."""
    rng = np.random.default_rng(3)
    rows = 40 * days
    variance = np.exp(rng.normal(size=rows))
    value = np.where(rng.random(rows) < rises, 1.0, -1.0) * np.sqrt(variance)
    noise = {name: rng.normal(size=rows) for name in ("network", "ewma", "tree")}
    noise["network"] *= 1.0 - better
    zeros = np.zeros(rows)
    return HorizonForecasts(
        horizon=16,
        keys=np.arange(rows),
        days=np.arange(rows) // 40,
        value=value,
        classes=np.where(value > 0, 2, 0),
        variance=variance,
        unit=zeros + 1.0,
        mean=rng.normal(size=rows),
        scale=zeros + 1.0,
        dof=zeros + 5.0,
        logits=np.zeros((rows, 3), dtype=np.float32),
        means={"network": rng.normal(size=rows)},
        variances={name: variance * np.exp(0.3 * of) for name, of in noise.items()},
    )


def paired(found: HorizonForecasts) -> dict[str, Any]:
    """Return the figures of a card."""
    return {"16": figures_of(found, GIVEN)} | paired_figures([found], GIVEN)


def said_of(found: HorizonForecasts) -> list[str]:
    return compared_sentences(paired(found), 16, "model")


def test_errors_of_size_are_in_basis_points_beside_no_move() -> None:
    found = replace(forecasts(), unit=np.full(2_400, 0.002))
    told = report(found, temperature=1.0, slope=1.0)
    off = 20.0 * (found.value - found.mean)  # bp
    assert told["mae"]["network"][0] == pytest.approx(np.abs(off).mean(), abs=1e-5)
    assert told["mse"]["network"][0] == pytest.approx((off**2).mean(), abs=1e-5)
    assert told["mae"]["no_move"][0] == pytest.approx(20 * np.abs(found.value).mean(), abs=1e-5)
    missed = 20 * np.abs(np.sqrt(found.variances["ewma"]) - np.sqrt(found.variance))
    assert told["volatility_mae"]["ewma"][0] == pytest.approx(missed.mean(), abs=1e-5)
    without = figures_of(found, {"volatility"})
    assert list(without["mae"]) == list(without["mse"]) == ["no_move"]
    assert set(without["volatility_mae"]) == {"model", "ewma", "tree"}


@pytest.mark.parametrize("name", sorted(checkpoints.bundled()))
def test_no_bundled_card_claims_more_than_it_keeps(name: str) -> None:
    stored = checkpoints.read_card(checkpoints.BUNDLED / name)
    shown = stored["honesty"]["sentences"]
    # Better or worse is said with its p alone, and of no difference that chance explains.
    for one in shown:
        if re.search(r"\b(better|worse) than the best", one):
            found = re.search(r"p ([\d.]+) by Holm over", one)
            assert found is not None
            assert float(found[1]) < 0.05
    assert sum("by Holm over" in one for one in shown) >= 1
    assert "lstm" in stored["baselines"]["names"]


def test_level_is_said_of_two_points_that_differ_by_chance() -> None:
    level = said_of(forecasts())[1]
    assert "is level with the best baseline's" in level
    assert "by Holm over 2" in level
    assert "is better than the best baseline's" in said_of(forecasts(better=0.6))[1]
    assert "is worse than the best baseline's" in said_of(forecasts(better=-0.6))[1]
    assert "is level with the best baseline's" in said_of(forecasts(better=0.6, days=20))[1]
    sign = said_of(forecasts(better=0.6, rises=0.6))[0]
    # A coin is worse than always rising where six in ten rise.
    assert "worse than always the commoner sign (58.9 %; -8.8 ± " in sign


def test_the_commoner_sign_and_climatology_are_the_best_constants() -> None:
    found = forecasts(rises=0.3)
    figures = paired(found)["16"]
    falls = float(np.mean(found.value < 0))
    assert figures["sign_accuracy"]["commoner_sign"][0] == pytest.approx(falls, abs=1e-5)
    direction = figures["direction"]
    brier = 1 - falls**2 - (1 - falls) ** 2
    assert direction["brier_climatology"][0] == pytest.approx(brier, abs=1e-5)
    entropy = -falls * np.log(falls) - (1 - falls) * np.log(1 - falls)
    assert direction["log_loss_climatology"][0] == pytest.approx(entropy, abs=1e-5)
    assert direction["log_loss"][0] == pytest.approx(np.log(3), abs=1e-5)
    less = direction["log_loss_less_climatology"]
    assert less[0] == pytest.approx(np.log(3) - entropy, abs=2e-5)
    assert 0 < less[1] < 0.02
    # What climatology would have said costs nothing beside it.
    logits = np.log(np.broadcast_to([falls, 1e-12, 1 - falls], (len(found.value), 3)))
    same = figures_of(replace(found, logits=logits.astype(np.float32)), GIVEN)["direction"]
    assert same["brier_less_climatology"][0] == pytest.approx(0.0, abs=1e-5)
