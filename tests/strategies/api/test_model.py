"""What a user's model answers becomes a forecast, or one sentence about what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import present
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.api.model import (
    EXPLAINED,
    OF_MEASURE,
    AnswerMalformed,
    forecast_of,
    forecasts_of,
)
from tracepaper.strategies.api.strategy import AttentionStrategy, SmaCross, declared_gates
from tracepaper.strategies.gates.evaluator import is_finite_forecast
from tracepaper.strategies.gates.gate import GATES, HEAD_MEASURES, MEASURES
from tracepaper.strategies.types.decisions import Forecast


def parsed(answer: object, *measures: str, horizons: tuple[int, ...] = (30,)) -> Forecast | None:
    return forecast_of(answer, horizons=horizons, measures=measures)


def test_a_number_is_the_only_horizons_and_what_is_not_given_is_empty() -> None:
    forecast = parsed({"mean_return": np.float32(0.5)}, "mean_return")
    assert forecast == Forecast((30,), (0.5,), (), (), (), (), ())


def test_one_probability_completes_the_others() -> None:
    forecast = present(
        parsed({"p_up": [0.6, 0.5], "p_flat": [0.1, 0.5]}, "probabilities", horizons=(5, 30))
    )
    assert forecast.p_down == pytest.approx((0.3, 0.0))
    both = present(parsed({"p_up": 0.6, "p_down": 0.3}, "probabilities"))
    assert both.p_flat == pytest.approx((0.1,))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (3.0, "return a mapping"),
        ({"mean": 1.0}, "answer only"),
        ({}, "answered without it"),
        ({"mean_return": [1.0, 2.0]}, "give one number each"),
        ({"mean_return": [[1.0]]}, "give one number each"),
        ({"mean_return": "high"}, "give one number per horizon"),
        ({"mean_return": 10**400}, "give one number per horizon"),
        ({"mean_return": 1.0, "volatility": 1.0}, "declare its measure"),
        ({"mean_return": 1.0, "p_down": 1.0}, "declare the measure probabilities"),
    ],
)
def test_an_answer_of_another_shape_is_named(answer: object, words: str) -> None:
    with pytest.raises(AnswerMalformed, match=words):
        parsed(answer, "mean_return")


def test_rows_answered_at_once_are_as_answered_one_by_one() -> None:
    answers = {"mean_return": np.array([0.1, 0.2]), "p_up": np.array([[0.6], [0.4]])}
    measures = ("mean_return", "probabilities")
    forecasts = forecasts_of(answers, 2, horizons=(30,), measures=measures)
    alone = [parsed({"mean_return": m, "p_up": p}, *measures) for m, p in [(0.1, 0.6), (0.2, 0.4)]]
    assert forecasts == alone
    with pytest.raises(AnswerMalformed, match="one entry per row"):
        forecasts_of(answers, 3, horizons=(30,), measures=measures)


@given(
    st.none() | st.floats() | st.text() | st.dictionaries(
        st.sampled_from([*OF_MEASURE, "p_up", "p_down", "p_flat"]),
        st.floats() | st.none() | st.text() | st.lists(st.floats(), max_size=3),
    )
)  # fmt: skip
def test_any_answer_is_a_forecast_or_a_sentence(answer: Any) -> None:
    try:
        forecast = parsed(answer, "mean_return", "probabilities", "confidence_entropy")
    except AnswerMalformed as error:
        assert str(error).startswith(("answered", "declares"))  # noqa: PT017 - it may also pass
        return
    assert forecast is None or isinstance(is_finite_forecast(forecast), bool)


def test_a_gate_is_declared_where_the_model_gives_what_it_needs() -> None:
    model = AttentionStrategy(context=1, horizon=30, horizon_index=0, measures={"mean_return"})
    given_alone = {"mean_return"}
    names = declared_gates(model, by_quotes=False, risk={}, measures=frozenset(given_alone))
    assert names >= {"operator", "deadline", "finite", "edge"}
    assert not names & {"confidence_entropy", "collapsed", "shifted", "regime", "direction"}
    every = declared_gates(model, by_quotes=True, risk={})
    assert every == set(model.gates) - {
        "confidence_calibrated",
        "confidence_margin",
        "learned_regime",
        "dropout_spread",
    }
    of_heads = declared_gates(model, by_quotes=True, risk={}, measures=MEASURES | HEAD_MEASURES)
    assert of_heads - every == {"learned_regime", "dropout_spread"}
    plain = SmaCross(fast=1, slow=2, long_only=True)
    assert declared_gates(plain, by_quotes=True, risk={}, measures=frozenset()) == plain.gates


def test_every_measure_has_names_in_an_answer() -> None:
    assert set(OF_MEASURE) == MEASURES | {"attended"}
    needs = {need for gate in GATES.values() for need in gate.needs}
    assert needs <= MEASURES | HEAD_MEASURES
    assert MEASURES.issuperset(EXPLAINED)
