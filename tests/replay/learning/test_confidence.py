"""A planted confidence is found, a useless one refuses almost nothing, and no bar fits itself."""

from __future__ import annotations

from dataclasses import replace as replaced

import builders
import numpy as np
import pytest
from learning import table
from msgspec.structs import replace

from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts
from tracepaper.replay.learning.judge.gates import (
    confidence_sentence,
    cross_fitted,
    fit_cells,
    fit_confidence,
    folds,
    gates_section,
    judge_cells,
    judge_holdouts,
    judged_section,
    outcomes,
    probabilities_by,
    regime_sentence,
)
from tracepaper.replay.report.honesty import FEW_DAYS
from tracepaper.strategies.gates.gate import GATES, INPUTS, GateInputs, input_names, input_values
from tracepaper.strategies.types.calibration import CALIBRATED, FittedConfidence

ROWS, DAYS = 4_000, 80
NAMES = (*INPUTS, "entropy_0", "entropy_1")


def rows(
    *,
    sure_by: str = "",
    gain: float = 0.0,
    calm_by: str = "",
    seed: int = 0,
    horizon: int = 2,
    days: int = DAYS,
) -> Forecasts:
    """Return rows in which one input raises the accuracy of sign and volatility."""
    drawn = np.random.default_rng(seed)
    inputs = {name: drawn.normal(size=ROWS) for name in NAMES}
    likely = 1 / (1 + np.exp(-gain * inputs[sure_by])) if sure_by else np.full(ROWS, 0.5)
    right = np.where(drawn.random(ROWS) < likely, 1.0, -1.0)
    unsure = 0.8 * np.exp(-inputs[calm_by]) if calm_by else np.zeros(ROWS)
    variance = np.exp(np.clip(unsure * drawn.normal(size=ROWS), -4, 4))
    size = np.abs(drawn.normal(size=ROWS)) * np.sqrt(variance)
    pace_ms = days * 86_400_000 // ROWS
    measures = {
        "confidence_entropy": (inputs["entropy_0"] + inputs["entropy_1"]) / 2,
        "recent_mass": inputs["recent_mass"],
        "shift": inputs["shift"],
    }
    model = {
        "mean": np.full(ROWS, 0.1),
        "scale": np.ones(ROWS),
        "variance": np.ones(ROWS),
    }
    return table(
        np.arange(ROWS) * pace_ms,
        {
            "returns": right * size,
            "traded": right * size,
            "variance": variance,
            "place": np.arange(ROWS),
        },
        {MODEL: {**inputs, **model, **measures}},
        horizon=horizon,
        interval_ms=pace_ms,
    )


def fitted_to(forecasts: Forecasts) -> FittedConfidence:
    fitted, _ = fit_confidence(forecasts)
    assert fitted is not None
    return fitted


def test_an_entropy_that_tells_right_from_wrong_is_found_and_is_strict() -> None:
    fitted, evidence = fit_confidence(rows(sure_by="entropy_0", gain=1.0))
    assert fitted is not None
    assert fitted.chosen == CALIBRATED  # one head of two: their mean is less sure
    weights = dict(zip(fitted.sign.names, fitted.sign.weight, strict=True))
    assert max(weights, key=lambda name: abs(weights[name])) == "entropy_0"
    added, error = evidence["attention_adds"]["sign"]
    assert added > 4 * error > 0
    strict, untouched = judge_holdouts(rows(sure_by="entropy_0", gain=1.0, seed=1), fitted)
    assert strict
    assert [holdout["days"] for holdout in untouched["holdouts"]] == [DAYS // 2] * 2
    assert "strict by default (q0.5)" in confidence_sentence(
        replace(fitted, strict=True), untouched
    )


@pytest.mark.parametrize("days", [FEW_DAYS - 1, FEW_DAYS])
def test_few_days_earn_no_strict_threshold(days: int) -> None:
    fitted = fitted_to(rows(sure_by="entropy_0", gain=1.0))
    untouched = rows(sure_by="entropy_0", gain=1.0, seed=1, days=days)
    assert judge_holdouts(untouched, fitted)[0] == (days == FEW_DAYS)


def test_a_confidence_that_tells_nothing_refuses_next_to_nothing_and_says_so() -> None:
    fitted, evidence = fit_confidence(rows())
    assert fitted is not None
    added, error = evidence["attention_adds"]["sign"]
    assert abs(added) < 2.5 * error
    strict, untouched = judge_holdouts(rows(seed=1), fitted)
    assert not strict
    text = confidence_sentence(fitted, untouched)
    assert "did not credibly raise sign accuracy" in text
    assert text.endswith("by default (q0.01).")


def test_the_second_holdout_begins_where_the_split_says() -> None:
    fitted, _ = fit_confidence(rows(sure_by="entropy_0", gain=1.0))
    assert fitted is not None
    untouched = rows(sure_by="entropy_0", gain=1.0, seed=1)
    days = np.unique(untouched.day)
    _, report = judge_holdouts(untouched, fitted, int(days[DAYS // 4]) * 86_400_000)
    assert [holdout["days"] for holdout in report["holdouts"]] == [DAYS // 4, DAYS - DAYS // 4]
    for outside in (days[0], days[-1] + 1):  # one span repeats nothing
        assert judge_holdouts(untouched, fitted, int(outside) * 86_400_000) == (False, {})


def test_worth_on_one_span_alone_is_not_worth() -> None:
    fitted = fitted_to(rows(sure_by="entropy_0", gain=1.0))
    good, chance = rows(sure_by="entropy_0", gain=1.0, seed=1), rows(seed=1)
    half = np.arange(ROWS) < ROWS // 2
    value = np.where(half, good.labels["returns"], chance.labels["returns"])
    mixed = replaced(good, labels={**good.labels, "returns": value})
    strict, untouched = judge_holdouts(mixed, fitted)
    first, second = (holdout["holm"][CALIBRATED] for holdout in untouched["holdouts"])
    assert first < 0.05 < second
    assert not strict


def test_the_errors_of_the_volatility_are_found_and_widen_its_intervals() -> None:
    fitted, evidence = fit_confidence(rows(calm_by="entropy_1"))
    assert fitted is not None
    gain, error = evidence["volatility"]
    assert gain > 4 * error
    assert list(fitted.spread) == sorted(fitted.spread, reverse=True)
    assert fitted.spread[0] > 1.3
    assert fitted.spread[-1] < 1.0
    _, untouched = judge_holdouts(rows(calm_by="entropy_1", seed=1), fitted)
    assert confidence_sentence(fitted, untouched).endswith("which sizing.by_confidence uses.")


def test_more_of_a_rising_input_never_means_less() -> None:
    fitted = fitted_to(rows(sure_by="mean_over_stdev", gain=-1.0))
    weights = dict(zip(fitted.sign.names, fitted.sign.weight, strict=True))
    assert weights["mean_over_stdev"] == 0.0
    assert weights["margin"] >= 0.0
    fitted = fitted_to(rows(sure_by="shift", gain=-1.0))
    weights = dict(zip(fitted.sign.names, fitted.sign.weight, strict=True))
    assert weights["shift"] < -0.5


def test_no_label_of_a_fold_shares_a_moment_with_what_was_fitted() -> None:
    bars = outcomes(rows(horizon=7))
    judged_once = np.zeros(len(bars.labels["hit"]))
    for judged, fitted in folds(bars):
        judged_once += judged
        first, last = bars.open_ms[judged].min(), bars.until_ms[judged].max()
        assert not (fitted & (bars.until_ms >= first) & (bars.open_ms <= last)).any()
        assert fitted.sum() > ROWS // 2
    assert (judged_once == 1).all()


def test_a_bar_is_judged_by_a_fit_that_its_own_outcome_cannot_move() -> None:
    bars = outcomes(rows(sure_by="entropy_0", gain=1.0))
    parts = folds(bars)
    before = cross_fitted(bars, parts, bars.labels["hit"], NAMES, signed=True)
    judged, _ = parts[2]
    turned = np.where(judged, 1 - bars.labels["hit"], bars.labels["hit"])
    after = cross_fitted(bars, parts, turned, NAMES, signed=True)
    assert (before[judged] == after[judged]).all()
    assert (before[~judged] != after[~judged]).any()


def test_few_rows_fit_nothing() -> None:
    assert fit_confidence(rows().where(slice(0, 100))) == (None, {})


def test_the_gate_computes_what_was_fitted() -> None:
    fitted = fitted_to(rows(sure_by="entropy_0", gain=1.0))
    forecast = builders.forecast(0.003, p_up=0.6, p_down=0.3)
    names = input_names(forecast)
    assert names == (*INPUTS, "entropy_0")
    score = replace(
        fitted.sign, names=names, center=fitted.sign.center[:6], scale=fitted.sign.scale[:6],
        weight=fitted.sign.weight[:6],
    )  # fmt: skip
    inputs = GateInputs(forecast=forecast, fitted=replace(fitted, sign=score))
    values = input_values(names, forecast, 0)
    assert values[:2] == [0.003 / 0.004, (0.6 - 0.3) / (0.6 + 0.3)]
    columns = {name: np.array([value]) for name, value in zip(names, values, strict=True)}
    row = table(np.zeros(1, np.int64), {}, {MODEL: columns})
    assert GATES["confidence_calibrated"].measure(inputs) == probabilities_by(score, row)[0]
    unknown = builders.forecast(explained=builders.explanation(shift=None))
    assert GATES["confidence_calibrated"].measure(replace_forecast(inputs, unknown)) is None


def replace_forecast(inputs: GateInputs, forecast: object) -> GateInputs:
    return replace(inputs, forecast=forecast)


def test_regimes_are_the_planted_ones_in_the_order_of_what_followed() -> None:
    base = rows()
    drawn = np.random.default_rng(5)
    planted = drawn.integers(3, size=ROWS)
    middles = np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 5.0], [0.0, 10.0, 5.0]])
    places = middles[planted] + 0.3 * drawn.normal(size=(ROWS, 3))
    measures = dict(zip(("recent_mass", "confidence_entropy", "shift"), places.T, strict=True))
    realised = np.array([1.0, 3.0, 0.5])[planted]
    bars = replaced(
        base,
        labels={**base.labels, "variance": realised},
    ).with_fields(MODEL, **measures)
    cells = fit_cells(bars, 3)
    assert cells is not None
    assert cells.ratio == pytest.approx((0.5, 1.0, 3.0))
    judged = judge_cells(bars, cells, 0.1)
    shares = [float((planted == kind).mean()) for kind in (2, 0, 1)]
    assert [judged[str(regime)]["share"] for regime in (1, 2, 3)] == pytest.approx(shares, abs=1e-4)
    assert judged["3"]["variance_ratio"] == pytest.approx([3.0, 0.0])
    assert fit_cells(bars, 3) == cells
    assert fit_cells(bars, 8) is None
    assert regime_sentence(judged) == (
        "Realised ÷ forecast variance by the card's own regimes: 0.50 (± 0.00 by days) in "
        "regime 1, 3.00 (± 0.00 by days) in regime 3."
    )


def test_the_card_says_what_all_gates_let_through_together() -> None:
    bars = rows(sure_by="entropy_0", gain=1.0)
    section = gates_section(bars, {})
    strict, mild = section["coverage"]
    chosen = section["confidence"]["chosen"]
    assert chosen == CALIBRATED
    assert set(strict["thresholds"]) == {"confidence_calibrated", "shifted", "regime"}
    # The lower 99 % of shift, and half or nearly all; every regime.
    assert strict["share"] == pytest.approx(0.5 * 0.99, abs=0.02)
    assert mild["share"] == pytest.approx(0.99 * 0.99, abs=0.02)
    assert set(strict["regimes"]) == {"MOMENTUM", "MIXED", "MEAN_REVERSION"}
    section, figures, sentences = judged_section(rows(seed=1), section)
    assert section["confidence"]["strict"] is False
    assert set(figures) == {"confidence", "regimes"}
    assert len(sentences) == 3
    assert sentences[1].startswith("On the calibration slice, the measures of attention added")
    assert sentences[2].startswith("Realised ÷ forecast variance by the card's own regimes: ")
    still = bars.with_fields(MODEL, recent_mass=np.ones(ROWS))
    assert gates_section(still, {})["coverage"] == []
    assert judged_section(rows(), {"quantiles": {}}) == ({"quantiles": {}}, {}, [])
