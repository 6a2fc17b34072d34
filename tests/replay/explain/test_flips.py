"""What would have flipped a decision: margins agree with verdicts; the nearest gate."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tracepaper.replay.explain.decision import StoredDecision, counterfactuals_of
from tracepaper.strategies.gates.gate import GATES, gate_order

Row = dict[str, Any]
FORECAST: Row = {
    "horizon": 30,
    "mean_return": -0.0004,
    "stdev_return": 0.002,
    "p_up": 0.3,
    "p_down": 0.45,
}


def gate(which: str, measure: float | None, threshold: float) -> Row:
    passed = measure is not None and (
        measure >= threshold if GATES[which].at_least else measure <= threshold
    )
    return {"gate": which, "measure": measure, "threshold": threshold, "passed": int(passed)}


def stored(*gates: Row, **forecast: Any) -> StoredDecision:
    allowed = all(row["passed"] for row in gates)
    refused_by = next((row["gate"] for row in gates if not row["passed"]), None)
    decision = {
        "allowed": int(allowed),
        "refused_by": refused_by,
        "action": "HOLD",
        "reason": "",
        "open_time_ms": 0,
    }
    return StoredDecision({"interval_ms": 60_000}, decision | (forecast or FORECAST), gates, ())


@given(
    st.sampled_from(gate_order()),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(-1e6, 1e6, allow_nan=False),
)
def test_a_margin_is_negative_exactly_where_the_gate_failed(
    which: str, measure: float, threshold: float
) -> None:
    (gate_flip,) = counterfactuals_of(stored(gate(which, measure, threshold))).gates
    assert gate_flip.margin is not None
    assert (gate_flip.margin >= 0) is gate_flip.passed
    assert abs(gate_flip.margin) == abs(measure - threshold)


@given(st.floats(1e-3, 1e3), st.floats(0.0, 0.999), st.floats(0.0, 0.999))
def test_the_nearest_of_the_failed_gates_has_the_smallest_share(
    threshold: float, confidence: float, edge: float
) -> None:
    assume(abs(confidence - edge) > 1e-9)
    counterfactuals = counterfactuals_of(
        stored(
            gate("confidence_entropy", confidence, 1.0),
            gate("shifted", 0.04, 0.05),
            gate("edge", edge * threshold, threshold),
        )
    )
    assert counterfactuals.must_pass == ("confidence_entropy", "edge")
    assert counterfactuals.nearest == ("confidence_entropy" if confidence > edge else "edge")


def test_a_refusal_by_one_gate_says_what_it_was_short_by() -> None:
    counterfactuals = counterfactuals_of(
        stored(gate("confidence_entropy", 0.3, 0.2), gate("edge", 0.75, 1.0))
    )
    assert not counterfactuals.allowed
    assert counterfactuals.must_pass == ("edge",)
    assert counterfactuals.sentence == "It would have passed, had edge been .25 more."


def test_a_refusal_by_several_names_all_and_the_nearest() -> None:
    counterfactuals = counterfactuals_of(
        stored(gate("shifted", 0.06, 0.05), gate("direction", 0.518, 0.52), gate("edge", 0.1, 1.0))
    )
    assert counterfactuals.sentence == "All of shifted, direction, edge would have had to pass."
    assert counterfactuals.nearest == "direction"


def test_the_share_of_direction_begins_where_its_measure_does() -> None:
    near, never = counterfactuals_of(
        stored(gate("direction", 0.501, 0.52), gate("direction", 0.501, 0.5))
    ).gates
    assert near.share == pytest.approx(-0.95)
    assert never.share is None


def test_an_allowed_decision_names_the_gate_that_was_nearest_to_refusing() -> None:
    counterfactuals = counterfactuals_of(
        stored(
            gate("operator", 1.0, 1.0),
            gate("warm", 590.0, 590.0),
            gate("regime", 1.0, 1.0),
            gate("confidence_entropy", 0.22, 0.2),
            gate("edge", 1.05, 1.0),
        )
    )
    assert (counterfactuals.allowed, counterfactuals.must_pass, counterfactuals.nearest) == (
        True,
        (),
        "edge",
    )
    assert counterfactuals.sentence == "Every gate passed; nearest edge, with .050 to spare."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (gate("regime", 0.0, 1.0), "regime has no margin: it passes or it does not."),
        (
            gate("confidence_margin", None, 0.2),
            "The measure of confidence_margin could not be computed.",
        ),
        (gate("gap", 3.0, 0.0), "It would have passed, had gap been 3 less."),
    ],
)
def test_a_gate_without_a_share_still_says_why(row: Row, words: str) -> None:
    counterfactuals = counterfactuals_of(stored(row))
    assert counterfactuals.sentence == words
    assert counterfactuals.nearest is None


@pytest.mark.parametrize(
    ("mean", "up", "down", "side"),
    [
        (0.001, 0.5, 0.3, "LONG"),
        (-0.001, 0.3, 0.5, "SHORT"),
        (0.001, 0.3, 0.5, "HOLD"),
        (0.0, 0.5, 0.3, "HOLD"),
    ],
)
def test_the_side_is_where_mean_and_classes_agree(
    mean: float, up: float, down: float, side: str
) -> None:
    changed = {**FORECAST, "mean_return": mean, "p_up": up, "p_down": down}
    forecast_side = counterfactuals_of(stored(**changed)).side
    assert forecast_side is not None
    assert forecast_side.side == side
    assert forecast_side.lean == up - down
    assert forecast_side.mean_over_stdev == mean / 0.002
