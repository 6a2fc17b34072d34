"""What a card says of the judgement gates: confidence, regimes, and what they let through together.

The rules are docs/decisions.md, G18 and G32 to G36.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.config.sections import GateSection, RegimeSection
from tracepaper.replay.learning.card import (
    PERCENTS,
    RECENT_MASS,
    ROUND_TRIP_COST,
    quantiles,
    rounded,
)
from tracepaper.replay.learning.judge.confidence import (
    ablation,
    fit_cells,
    fit_confidence,
    judge_cells,
    judge_spans,
    regime_sentence,
    scored,
    sentence,
)
from tracepaper.replay.learning.judge.explained import (
    GATE_COLUMNS,
    INPUT_COLUMNS,
    Judgement,
    passing,
    selective,
    traded,
    with_confidence,
)
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.strategies.gates.declared import confidence_calibrated, edge, regime
from tracepaper.strategies.gates.evaluator import RegimeBounds, key_of, next_regime, threshold_of
from tracepaper.strategies.gates.gate import AUTO, GATES, MILDEST, Gate, ThresholdKey
from tracepaper.strategies.types.calibration import (
    CONFIDENCES,
    ENTROPY,
    Calibration,
    FittedConfidence,
    RegimeCells,
)
from tracepaper.strategies.types.decisions import Regime

HYSTERESIS: Final = float(RegimeSection().hysteresis)


def gates_section(found: Forecasts, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``[calibration]`` with what gates need: quantiles, confidence, regimes, coverage.

    *found* are what a run's own forecaster said of the calibration slice.
    """
    measures = dict(found.values[GATE_COLUMNS])
    known = {name: list(quantiles(values)) for name, values in measures.items()}
    section = {
        **section,
        "bars": len(found),
        "round_trip_cost": ROUND_TRIP_COST,
        "percents": [PERCENTS[0], PERCENTS[-1]],
        "quantiles": known,
    }
    fitted, evidence = fit_confidence(found)
    if fitted is not None:
        name = confidence_calibrated.calibrated_as
        measures[name] = scored(fitted.sign, found.values[INPUT_COLUMNS])
        known[name] = list(quantiles(measures[name]))
        section |= {"confidence": msgspec.to_builtins(fitted), "cross_fitted": evidence}
    if (cells := fit_cells(found)) is not None:
        section["regimes"] = msgspec.to_builtins(cells)
    usual = _in_usual_regimes(found, known) if RECENT_MASS in measures else None
    if RECENT_MASS in measures and usual is None:
        return {**section, "coverage": []}
    return {**section, "coverage": coverage(measures, section, usual)}


def judged_gates(
    table: Forecasts, found: Forecasts, section: Mapping[str, Any], second_span_ms: int | None
) -> Judgement:
    """Return what the gates by ``[calibration]`` make of the untouched rows *found*, of *table*.

    Its figures and sentences are those of the gates alone.
    """
    section, figures, sentences = judged_section(found, section, second_span_ms=second_span_ms)
    thresholds = default_thresholds(section)
    every = {"selective": selective(found), "traded": traded(found, thresholds), **figures}
    rules = passing(found, thresholds)
    return Judgement(with_confidence(table, found), every, sentences, found, rules, section)


def judged_section(
    found: Forecasts, section: Mapping[str, Any], *, second_span_ms: int | None = None
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return ``[calibration]`` with its verdict, the figures of *found*, and what they say.

    *found* are untouched rows; what they are not asked for is left as it was.
    """
    judged, figures, said = dict(section), {}, []
    if "confidence" in section:
        fitted = msgspec.convert(section["confidence"], FittedConfidence)
        strict, evidence = judge_spans(found, fitted, second_span_ms)
        fitted = msgspec.structs.replace(fitted, strict=strict)
        judged["confidence"] = msgspec.to_builtins(fitted)
        figures["confidence"] = evidence
        said += [sentence(fitted, evidence), ablation(section["cross_fitted"])]
    if "regimes" in section:
        cells = msgspec.convert(section["regimes"], RegimeCells)
        figures["regimes"] = judge_cells(found, cells, HYSTERESIS)
        said.append(regime_sentence(figures["regimes"]))
    return judged, figures, said


def default_thresholds(section: Mapping[str, Any]) -> dict[str, float]:
    """Return the default thresholds of the calibrated gates but ``edge``, by their measures.

    Of the confidences only the chosen one's, as strict as *section* says that it has earned.
    Regimes are left out: by default none is refused.
    """
    fitted = section.get("confidence")
    strict = fitted is not None and bool(fitted["strict"])
    return {
        gate.calibrated_as: value
        for gate, value in _defaults(section, strict=strict).items()
        if gate.calibrated_as
    }


def _defaults(section: Mapping[str, Any], *, strict: bool) -> dict[Gate, float]:
    """Return the default threshold of each calibrated gate but ``edge`` that a run declares."""
    known, fitted = section["quantiles"], section.get("confidence")
    chosen = ENTROPY if fitted is None else fitted["chosen"]
    found = {}
    for gate in GATES.values():
        key = gate.threshold
        if gate.calibrated_as not in known or gate is edge or not isinstance(key, ThresholdKey):
            continue
        if gate.chosen_by in CONFIDENCES and gate.chosen_by != chosen:
            continue
        text = str(key.default)
        if text == AUTO:
            text = key.strict if strict else MILDEST
        found[gate] = _quantile(text, gate.calibrated_as, known, key=key_of(gate))
    return found


def _quantile(text: str, name: str, known: Mapping[str, Any], *, key: str = "") -> float:
    calibration = Calibration({name: tuple(of) for name, of in known.items()}, {}, 0.0)
    return threshold_of(text, name, calibration, key=key or name)


def coverage(
    measures: Mapping[str, NDArray[np.float64]],
    section: Mapping[str, Any],
    usual: NDArray[np.bool_] | None = None,
) -> list[dict[str, Any]]:
    """Return the share of rows that pass every judgement gate: by strict, by mildest confidence.

    ``edge`` is taken at the card's round trip; *usual* says which rows lie in a default regime,
    where the model has regimes.
    """
    every = []
    for strict in (True, False):
        passed = np.ones(len(next(iter(measures.values()))), dtype=np.bool_)
        thresholds = {}
        for gate, threshold in _defaults(section, strict=strict).items():
            values = measures[gate.calibrated_as]
            passed &= values >= threshold if gate.at_least else values <= threshold
            thresholds[gate.name] = threshold
        if edge.calibrated_as in measures:
            thresholds[edge.name] = float(str(_key(edge).default))
            passed &= measures[edge.calibrated_as] >= thresholds[edge.name]
        if usual is not None:
            passed &= usual
            thresholds[regime.name] = 1.0
        share = rounded(float(passed.mean()))
        regimes_of = list(GateSection().regimes)
        counted = {"share": share, "thresholds": thresholds, "regimes": regimes_of}
        if counted not in every:
            every.append(counted)
    return every


def _key(gate: Gate) -> ThresholdKey:
    key = gate.threshold
    assert isinstance(key, ThresholdKey)
    return key


def _in_usual_regimes(found: Forecasts, known: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Return which rows lie in one of the default ``gate.regimes``.

    None where recent mass does not move, which no run by default thresholds takes.
    """
    rules = RegimeSection()
    low = _quantile(str(rules.mean_reversion), RECENT_MASS, known)
    high = _quantile(str(rules.momentum), RECENT_MASS, known)
    if low >= high:
        return None
    bounds = RegimeBounds.between(mean_reversion=low, momentum=high, hysteresis=HYSTERESIS)
    usual, now = GateSection().regimes, Regime.UNKNOWN
    inside = np.zeros(len(found), dtype=np.bool_)
    before = None
    rows = zip(
        found.labels["place"].tolist(),
        found.values[GATE_COLUMNS][RECENT_MASS].tolist(),
        strict=True,
    )
    for row, (place, mass) in enumerate(rows):
        if before is not None and place != before + 1:
            now = Regime.UNKNOWN
        now, before = next_regime(now, mass, bounds), place
        inside[row] = now.value in usual
    return inside
