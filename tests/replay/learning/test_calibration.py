"""Calibration undoes a known miscalibration, and its measures are the gates'."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from msgspec.structs import replace
from scipy.special import softmax

from tracepaper.replay.learning.card import (
    NO_ATTENTION,
    ROUND_TRIP_COST,
    quantiles,
    sentences,
    slope,
    temperature,
)
from tracepaper.replay.learning.estimators.ensemble import network_share
from tracepaper.replay.learning.judge.gates import default_thresholds, measures
from tracepaper.replay.report.honesty import FEW_DAYS
from tracepaper.strategies.api.model import EXPLAINED
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.gate import GATES, MEASURES, GateInputs

RNG = np.random.default_rng(3)
NAMES = (*(gate.calibrated_as for gate in GATES.values() if gate.calibrated_as), "recent_mass")


@pytest.mark.parametrize("applied", [0.5, 1.0, 2.5])
def test_temperature_finds_the_one_that_was_applied(applied: float) -> None:
    logits = RNG.normal(size=(20_000, 3))
    truth = softmax(logits, axis=-1)
    classes = (RNG.random((20_000, 1)) > truth.cumsum(axis=1)).sum(axis=1)
    estimate = temperature((logits * applied).astype(np.float32), classes)
    assert estimate == pytest.approx(applied, rel=0.05)


def test_slope_is_that_of_realised_on_predicted() -> None:
    forecast = RNG.normal(size=5_000)
    assert slope(forecast, 0.6 * forecast) == pytest.approx(0.6)
    assert slope(forecast, -forecast) == 0.0
    assert slope(np.zeros(4), np.ones(4)) == 0.0


def test_quantiles_are_the_percentiles() -> None:
    percentiles = quantiles(np.concatenate([np.arange(101.0), [np.nan]]))
    assert percentiles == tuple(float(q) for q in range(1, 100))
    with pytest.raises(DataInvalid, match="no value"):
        quantiles(np.array([np.nan]))


def test_measures_are_those_of_the_gates() -> None:
    forecast = builders.forecast(explained=builders.explanation())
    horizon = forecast.horizons[-1]
    at = forecast.horizons.index(horizon)
    document = measures([forecast, forecast], available=MEASURES, horizon=horizon, slope=0.4)
    gate_inputs = GateInputs(
        forecast=forecast,
        explanation=forecast.explanation,
        horizon_index=at,
        slope=0.4,
        round_trip_cost=ROUND_TRIP_COST,
    )
    for gate, name in (
        ("confidence_entropy", "confidence_entropy"),
        ("collapsed", "collapsed"),
        ("shifted", "shift"),
        ("direction", "direction"),
        ("edge", "edge"),
    ):
        assert document[name][1] == GATES[gate].measure(gate_inputs)
    assert forecast.explanation is not None
    assert document["recent_mass"][0] == forecast.explanation.recent_mass


def test_a_forecast_without_an_explanation_has_no_measure_of_attention() -> None:
    bare = replace(builders.forecast(), explanation=None)
    unexplained = MEASURES - set(EXPLAINED)
    document = measures([bare], available=unexplained, horizon=bare.horizons[0], slope=1.0)
    assert {"confidence_margin", "direction", "edge"} < document.keys()
    assert {"confidence_entropy", "collapsed", "shift", "recent_mass"}.isdisjoint(document)


def test_the_default_thresholds_are_those_of_the_gates() -> None:
    percentiles = {name: [float(percent) for percent in range(1, 100)] for name in NAMES}
    expected = {
        "confidence_entropy": 1.0, "collapsed": 1.0, "shifted": 99.0, "direction": 1.0, "edge": 1.0,
    }  # fmt: skip
    document = default_thresholds({"quantiles": percentiles})
    assert {name: document[name] for name in expected} == expected
    assert document.keys() == expected.keys()
    mild = {"confidence": {"chosen": "margin", "strict": False}, "quantiles": percentiles}
    document = default_thresholds(mild)
    assert document["confidence_margin"] == 1.0
    assert "confidence_entropy" not in document
    strict = {"confidence": {"chosen": "margin", "strict": True}, "quantiles": percentiles}
    assert default_thresholds(strict)["confidence_margin"] == 50.0


@pytest.mark.parametrize(
    ("error", "days", "explained", "verb"),
    [
        (0.01, FEW_DAYS, FEW_DAYS, "beat"),
        (0.01, FEW_DAYS - 1, FEW_DAYS - 1, "did not"),
        (0.01, 2 * FEW_DAYS, 14, "did not"),  # its own days are those that were explained
        (0.05, FEW_DAYS, FEW_DAYS, "did not"),
        (float("nan"), FEW_DAYS, FEW_DAYS, "did not"),
    ],
)
def test_a_gain_without_an_error_or_of_few_days_beats_nothing(
    error: float, days: int, explained: int, verb: str
) -> None:
    main = {
        "days": days,
        "sign_accuracy": {"network": [0.5, 0.1], "majority_sign": [0.5, 0.1]},
        "qlike": {"network": [1, 0], "har": [2, 0]},
    }
    paired = {"sign": {"majority_sign": [0.0, 0.1, 1.0]}, "qlike": {"har": [-1.0, 0.1, 0.01]}}
    figures = {"30": main, "paired": {"30": paired}}
    surest = {"gained": [0.0, 0.0, 0.06], "error": [0.0, 0.0, error], "days": explained}
    passed = {"bars_per_1000": 0.0, "trades": 0, "days": 0}
    gates = {"selective": {"entropy": surest}, "traded": {"edge": passed}}
    lines = sentences(figures, gates, horizon=30)
    (entropy,) = [sentence for sentence in lines if sentence.startswith(f"The entropy gate {verb}")]
    assert f"on {explained} days" in entropy
    assert ("too few days" in entropy) == np.isnan(error)
    assert any(f"So few days ({days}) prove" in line for line in lines) == (days < FEW_DAYS)
    bare = sentences(figures, {**gates, "selective": {}}, horizon=30)
    assert not any("entropy gate" in sentence for sentence in bare)
    assert NO_ATTENTION in bare
    assert any(sentence.startswith("No untouched bar had a calibrated") for sentence in bare)
    few = {"traded": {"edge": {"bars_per_1000": 0.004, "trades": 3, "days": 2}}}
    lines = sentences(figures, gates | few, horizon=30)
    assert any("On 0.004 of 1,000 untouched bars the model had a" in line for line in lines)


def test_the_share_is_the_minimum_of_qlike_and_its_gain_is_told_by_day() -> None:
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(40), 100)
    log_variance = rng.normal(size=len(days))
    value = np.exp(log_variance) * rng.gamma(4.0, 0.25, len(days))
    first, second = (log_variance + 0.4 * rng.normal(size=len(days)) for _ in range(2))
    blend = network_share(first, second, value, days)

    def qlike(share: float) -> float:
        score = share * first + (1 - share) * second
        return float((np.maximum(value, 0.01) * np.exp(-score) + score).mean())

    grid = [qlike(share) for share in np.linspace(0, 1, 201)]
    assert qlike(blend.share) <= min(grid) + 1e-12
    assert 0.3 < blend.share < 0.7  # equal members with errors of their own
    assert blend.gain.value < -4 * (blend.gain.error or 0.0) < 0
    assert blend.gain.value == pytest.approx(qlike(blend.share) - min(qlike(0), qlike(1)))


def test_a_half_that_only_adds_noise_has_no_share() -> None:
    rng = np.random.default_rng(1)
    days = np.repeat(np.arange(30), 50)
    good = rng.normal(size=len(days))
    value = np.exp(good)
    bad = good + 3.0
    assert network_share(good, bad, value, days) == (1.0, (0.0, 0.0))
    assert network_share(bad, good, value, days) == (0.0, (0.0, 0.0))
