"""Comparisons on a card come from paired figures by day, never from two separate figures."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from learning import table

from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts
from tracepaper.replay.learning.judge.metrics import figures, paired_figures
from tracepaper.replay.report.honesty import MAJORITY, compared_sentences
from tracepaper.storage import checkpoints

PACE_MS = 2_160_000  # forty bars a day


def forecasts(*, better: float = 0.0, days: int = 60, rises: float = 0.5) -> Forecasts:
    """Return true variances with noise; the model's noise is less by *better*."""
    rng = np.random.default_rng(3)
    rows = 40 * days
    variance = np.exp(rng.normal(size=rows))
    value = np.where(rng.random(rows) < rises, 1.0, -1.0) * np.sqrt(variance)
    noise = {name: rng.normal(size=rows) for name in (MODEL, "ewma", "tree")}
    noise[MODEL] *= 1.0 - better
    values = {name: {"variance": variance * np.exp(0.3 * of)} for name, of in noise.items()}
    rng.normal(size=rows)
    values[MODEL] |= {
        "mean": rng.normal(size=rows),
        "scale": np.ones(rows),
        "dof": np.full(rows, 5.0),
        "logits": np.zeros((rows, 3), dtype=np.float32),
    }
    most = 1.0 if (value > 0).mean() >= 0.5 else -1.0
    labels = {
        "returns": value,
        "variance": variance,
        "direction": np.where(value > 0, 2, 0),
        "unit": np.ones(rows),
    }
    noisy = table(np.arange(rows) * PACE_MS, labels, values, horizon=16, interval_ms=PACE_MS)
    return noisy.with_fields(MAJORITY, sign=np.full(rows, most)).cooled({})


def paired(judged: Forecasts) -> dict[str, Any]:
    """Return the figures of a card."""
    return figures(judged, "model") | paired_figures(judged)


def sentences_of(judged: Forecasts) -> list[str]:
    return compared_sentences(paired(judged), 16, "model")


def test_errors_of_size_are_in_basis_points_beside_no_move() -> None:
    plain = forecasts()
    scaled = replace(plain, labels={**plain.labels, "unit": np.full(2_400, 0.002)})
    document = figures(scaled)["16"]
    value = scaled.labels["returns"]
    off = 20.0 * (value - scaled.value("mean"))  # bp
    assert document["mae"][MODEL][0] == pytest.approx(np.abs(off).mean(), abs=1e-5)
    assert document["mse"][MODEL][0] == pytest.approx((off**2).mean(), abs=1e-4)
    assert document["mae"]["no_move"][0] == pytest.approx(20 * np.abs(value).mean(), abs=1e-5)
    assert document["mse"]["no_move"][0] == pytest.approx(400 * (value**2).mean(), abs=1e-4)
    bare = {**scaled.values, MODEL: {"variance": scaled.value("variance")}}
    without = figures(replace(scaled, values=bare), "model")["16"]
    assert list(without["mae"]) == list(without["mse"]) == ["no_move"]
    assert "direction" not in without
    assert "coverage_90" not in without


@pytest.mark.parametrize("name", sorted(checkpoints.bundled()))
def test_no_bundled_card_claims_more_than_it_keeps(name: str) -> None:
    stored = checkpoints.read_card(checkpoints.BUNDLED / name)
    sentences = stored["honesty"]["sentences"]
    # Better or worse is said with its p alone, and of no difference that chance explains.
    for sentence in sentences:
        if re.search(r"\b(better|worse) than the best", sentence):
            match = re.search(r"p ([\d.]+) by Holm over", sentence)
            assert match is not None
            assert float(match[1]) < 0.05
    assert sum("by Holm over" in sentence for sentence in sentences) >= 1


def test_level_is_said_of_two_points_that_differ_by_chance() -> None:
    level = sentences_of(forecasts())[1]
    assert "is level with the best baseline's" in level
    assert "by Holm over 2" in level
    assert "is better than the best baseline's" in sentences_of(forecasts(better=0.6))[1]
    assert "is worse than the best baseline's" in sentences_of(forecasts(better=-0.6))[1]
    assert "is level with the best baseline's" in sentences_of(forecasts(better=0.6, days=20))[1]
    assert "is worse than the best baseline's" in sentences_of(forecasts(better=-2.0, days=20))[1]
    sign = sentences_of(forecasts(better=0.6, rises=0.6))[0]
    # A coin is worse than always rising where six in ten rise.
    assert "worse than always predicting the more frequent sign (58.9 %; -8.8 ± " in sign


def test_a_gain_is_told_by_the_year_in_which_it_was_seen() -> None:
    """However good the mean is, a gain that ended with a year says so."""
    judged = forecasts(better=0.6, days=120)
    year_begins = int(np.datetime64("2026-01-01", "ms").astype(np.int64))
    moved = year_begins - 60 * 86_400_000
    judged = replace(judged, open_ms=judged.open_ms + moved, until_ms=judged.until_ms + moved)
    noise = judged.value("variance", "tree")
    judged = judged.with_fields("har_pooled", variance=noise)
    judged = judged.with_fields("har", variance=2 * noise)
    is_new = judged.open_ms >= year_begins
    faded = np.where(is_new, judged.value("variance", "ewma"), judged.value("variance"))

    def said(variance: np.ndarray) -> str:
        return sentences_of(judged.with_fields(MODEL, variance=variance))[-1]

    assert said(faded).startswith("Against har pooled, a HAR that knows the hour of day, its QLIKE")
    assert " in 2025 (60 days), " in said(faded)
    assert said(faded).endswith(
        "in 2026 (60 days); less is better, and a gain was last seen in 2025."
    )
    assert said(judged.value("variance")).endswith("a gain was last seen in 2026.")
    assert said(judged.value("variance", "ewma")).endswith("no year shows a gain.")


def test_the_majority_sign_and_climatology_are_the_best_constants() -> None:
    """Public reports: DeepLOB#5, evaluate#63, thesis#18, tidd#72, Bioinfor-DeepATT#1."""
    falling = forecasts(rises=0.3)
    main = paired(falling)["16"]
    falls = float(np.mean(falling.labels["returns"] < 0))
    assert main["sign_accuracy"]["majority_sign"][0] == pytest.approx(falls, abs=1e-5)
    direction = main["direction"]
    # Of the classes that occur, or are forecast, the constant hits one alone.
    assert direction["accuracy_climatology"][0] == pytest.approx(falls, abs=1e-5)
    assert direction["macro_f1_climatology"][0] == pytest.approx(
        2 * falls / (1 + falls) / 3, abs=1e-5
    )
    brier = 1 - falls**2 - (1 - falls) ** 2
    assert direction["brier_climatology"][0] == pytest.approx(brier, abs=1e-5)
    assert direction["brier"][0] == pytest.approx(2 / 3, abs=1e-5)
    less = direction["brier_less_climatology"]
    assert less[0] == pytest.approx(2 / 3 - brier, abs=2e-5)
    assert 0 < less[1] < 0.02
    # What climatology would have said costs nothing beside it.
    logits = np.log(np.broadcast_to([falls, 1e-12, 1 - falls], (len(falling), 3)))
    usual = falling.with_fields(MODEL, logits=logits.astype(np.float32)).cooled({})
    same = figures(usual)["16"]["direction"]
    assert same["brier_less_climatology"][0] == pytest.approx(0.0, abs=1e-5)
