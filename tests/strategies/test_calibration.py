"""What a card fitted is read whole or refused, and decides gates, sizes and regimes."""

from __future__ import annotations

from typing import Any

import models
import msgspec
import pytest
from builders import bar, explanation, forecast, instrument, present
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.api.sizing import Sizer, Sizing, SizingMode
from tracepaper.strategies.api.strategy import AttentionStrategy, declared_gates
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.gates.evaluator import confidence_by, thresholds_of
from tracepaper.strategies.gates.gate import MEASURES, size_factor
from tracepaper.strategies.types.calibration import (
    Calibration,
    FittedConfidence,
    GateCoverage,
    LinearScore,
    RegimeCells,
    coverage_share,
)
from tracepaper.strategies.types.decisions import Action

SCORE = LinearScore(("recent_mass",), (0.5,), (0.1,), (1.0,), 0.0)
FITTED = FittedConfidence(
    horizon=30, chosen="margin", strict=False, sign=SCORE, volatility=SCORE, edges=(0.5,),
    spread=(2.0, 0.8),
)  # fmt: skip
CELLS = RegimeCells(
    names=("recent_mass",), center=(0.5,), scale=(0.1,), cells=((-1.0,), (1.0,)),
    ratio=(0.8, 1.4), error=(0.1, None),  # of a single block
)  # fmt: skip
QUANTILES = {
    name: tuple(place / 100 for place in range(1, 100))
    for name in ("confidence_entropy", "confidence_margin", "confidence_calibrated")
}


def calibration(fitted: FittedConfidence | None = FITTED) -> Calibration:
    return Calibration(QUANTILES, {30: 1.0}, 0.0, fitted)


def settings(by: str = "auto", threshold: str = "auto", horizon: int = 30) -> dict[str, Any]:
    return {"gate": {"confidence_by": by, "confidence": threshold, "horizon": horizon}}


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2), st.floats(0, 5))
def test_a_probability_lies_between_0_and_1_and_rises_with_its_weight(
    values: list[float], weight: float
) -> None:
    score = LinearScore(("margin",), (0.0,), (1.0,), (weight,), 0.3)
    low, high = (score.probability([value]) for value in sorted(values))
    assert low is not None
    assert high is not None
    assert 0 < low <= high < 1


def test_what_is_not_known_has_no_probability() -> None:
    assert SCORE.probability([None]) is None
    assert SCORE.probability([0.5]) == 0.5


@pytest.mark.parametrize(("by", "gate"), [
    ("auto", "confidence_margin"), ("entropy", "confidence_entropy"),
    ("calibrated", "confidence_calibrated"), ("margin", "confidence_margin"),
])  # fmt: skip
def test_one_confidence_is_declared_the_one_that_is_chosen(by: str, gate: str) -> None:
    strategy = AttentionStrategy(context=3, horizon=30, horizon_index=0)
    chosen = confidence_by(settings(by), calibration(), MEASURES)
    names = declared_gates(strategy, by_quotes=False, risk={}, confidence_by=chosen)
    assert {name for name in names if name.startswith("confidence")} == {gate}


def test_without_a_fit_or_at_another_horizon_it_is_entropy_and_calibrated_is_refused() -> None:
    for fitted in (calibration(None), None):
        assert confidence_by(settings(), fitted, MEASURES) == "entropy"
    assert confidence_by(settings(horizon=5), calibration(), MEASURES) == "entropy"
    with pytest.raises(ConfigInvalid, match=r"no fitted confidence at gate\.horizon 5"):
        confidence_by(settings("calibrated", horizon=5), calibration(), MEASURES)
    with pytest.raises(ConfigInvalid, match="gives no probabilities"):
        confidence_by(settings("margin"), calibration(), MEASURES - {"probabilities"})


@pytest.mark.parametrize(("fitted", "threshold"), [
    (FITTED, 0.01), (replace(FITTED, strict=True), 0.5), (None, 0.01),
    (replace(FITTED, strict=True, chosen="entropy"), 0.01),
    (replace(FITTED, strict=True, horizon=5), 0.01),
])  # fmt: skip
def test_the_default_threshold_is_what_the_card_has_earned(
    fitted: FittedConfidence | None, threshold: float
) -> None:
    def threshold_by(text: str, fitted: Calibration | None) -> float:
        return thresholds_of(
            ["confidence_margin"], settings("margin", text), warmup=1, interval_ms=1,
            calibration=fitted,
        )["confidence_margin"]  # fmt: skip

    assert threshold_by("auto", calibration(fitted)) == pytest.approx(threshold)
    assert threshold_by("q0.5", calibration(fitted)) == pytest.approx(0.5)
    assert threshold_by("auto", None) == 0.0


def test_a_size_shrinks_where_the_volatility_is_expected_to_be_off() -> None:
    unsure, edge, sure = (
        forecast(explained=explanation(recent_mass=mass)) for mass in (0.4, 0.5, 0.6)
    )
    assert size_factor(FITTED, unsure, 0) == 0.5
    assert size_factor(FITTED, edge, 0) == size_factor(FITTED, sure, 0) == 1.0  # never more
    long = Signal(Action.LONG, "x")
    for mode in (SizingMode.FIXED, SizingMode.NOTIONAL):
        plain = Sizing(mode, quantity=1_000, notional=10**15)
        whole, scaled = (
            Sizer(sizing, instrument()) for sizing in (plain, replace(plain, confidence=FITTED))
        )
        assert whole.factor(unsure) is None
        assert scaled.factor(unsure) == 0.5
        assert not scaled.follows_signal
        full = whole.target(long, bar(), unsure)
        assert scaled.target(long, bar(), unsure) == pytest.approx(full / 2, abs=5)
        assert scaled.target(long, bar(), sure) == full


def test_a_cell_is_left_only_for_one_that_is_nearer_by_the_hysteresis() -> None:
    assert CELLS.next_cell(None, [0.51], 0.1) == 2
    assert CELLS.next_cell(1, [0.5], 0.1) == 1
    assert CELLS.next_cell(1, [0.504], 0.1) == 1  # .96 away from the one, 1.04 from the other
    assert CELLS.next_cell(1, [0.506], 0.1) == 2
    assert CELLS.next_cell(1, [0.504], 0.0) == 2
    assert CELLS.next_cell(2, [None], 0.1) == 2


def test_a_coverage_counts_for_its_very_thresholds() -> None:
    two, every = ("MIXED", "MOMENTUM"), ("MOMENTUM", "MIXED", "MEAN_REVERSION")
    coverages = tuple(
        GateCoverage(share, {"confidence_entropy": least}, two)
        for share, least in ((0.25, 0.5), (0.75, 0.01))
    )
    assert coverage_share(coverages, {"confidence_entropy": 0.5}, two) == 0.25
    assert coverage_share(coverages, {"confidence_entropy": 0.5, "edge": 1.0}, two) is None
    assert coverage_share(coverages, {"confidence_entropy": 0.5}, every) is None
    other = replace(coverages[1], regimes=every)
    assert coverage_share((other,), {"confidence_entropy": 0.01}, every) == 0.75
    assert coverage_share((), {}, two) is None


def changed(name: str, **values: object) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "quantiles": {"confidence_entropy": list(QUANTILES["confidence_entropy"])},
        "confidence": msgspec.to_builtins(FITTED),
        "regimes": msgspec.to_builtins(CELLS),
        "coverage": [
            {"share": 0.5, "thresholds": {"confidence_entropy": 0.5}, "regimes": ["MIXED"]}
        ],
    }
    if name == "coverage":
        whole["coverage"][0] |= values
    elif name:
        whole[name] |= values
    return models.card(**whole)


def test_a_card_gives_back_what_it_was_given() -> None:
    stored = present(build(changed(""), models.network().state_dict()).calibration)
    assert (stored.confidence, stored.cells) == (FITTED, CELLS)
    assert stored.coverage == (GateCoverage(0.5, {"confidence_entropy": 0.5}, ("MIXED",)),)


@pytest.mark.parametrize(("name", "values", "message"), [
    ("confidence", {"sign": {}}, "missing required field"),
    ("confidence", {"more": 1}, "unknown field"),
])  # fmt: skip
def test_a_card_of_another_version_is_refused_in_one_sentence(
    name: str, values: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        build(changed(name, **values), models.network().state_dict())
