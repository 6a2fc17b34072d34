"""Trades of gates do not overlap, open after the decision, and pay costs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning import table

from tracepaper.replay.learning.card import ROUND_TRIP_COST
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts
from tracepaper.replay.learning.judge.gates import (
    opened_trades,
    spread_rows,
    trade_results,
    with_rules,
)
from tracepaper.strategies.units import DAY_MS

ROWS = 600


@given(st.integers(1, 3_000), st.integers(1, 60))
def test_explained_rows_are_spread_over_all_days_and_hours(count: int, context: int) -> None:
    days, a_day = 20, 96
    opened = np.arange(days * a_day) * (DAY_MS // a_day)
    samples = SimpleNamespace(
        horizons=(4,),
        weights=np.ones((len(opened), 1)),
        segment=SimpleNamespace(open_time_ms=opened),
    )
    rows = np.concatenate(spread_rows(samples, 4, context, count))  # type: ignore[arg-type]
    assert len(rows) == min(count, len(opened) - context + 1)
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= context - 1
    covered = np.unique(opened[rows] // DAY_MS)
    assert len(covered) >= min(count, days) * 3 // 4
    if count >= 2 * days:
        assert len(np.unique(opened[rows] % DAY_MS // (DAY_MS // 4))) == 4


def explained(*, edge: np.ndarray, mean: float = 0.01) -> Forecasts:
    ones, pace_ms = np.ones(ROWS), DAY_MS // 60
    model = {"mean": np.full(ROWS, mean), "scale": ones, "variance": ones}
    return table(
        np.arange(ROWS) * pace_ms,
        {
            "returns": 0 * ones,
            "traded": np.full(ROWS, 0.002),
            "variance": ones,
            "place": np.arange(ROWS),
        },
        {MODEL: {**model, "edge": edge, "shift": ones / 2, "confidence_entropy": ones / 2}},
        horizon=30,
        interval_ms=pace_ms,
    )


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.integers(1, 9))
def test_trades_never_overlap_and_none_is_missed(flags: list[bool], horizon: int) -> None:
    chosen, place = np.array(flags), np.arange(len(flags))
    opened = np.flatnonzero(opened_trades(chosen, place, horizon))
    assert (np.diff(opened) >= horizon).all()
    assert chosen[opened].all()
    for row in np.flatnonzero(chosen):
        assert ((opened <= row) & (row < opened + horizon)).any()


def test_a_result_is_net_of_the_round_trip_and_signed_by_the_forecast() -> None:
    always = np.full(ROWS, 2.0)
    up = trade_results(with_rules(explained(edge=always), {}))["edge"]
    down = trade_results(with_rules(explained(edge=always, mean=-0.01), {}))["edge"]
    cost = 1e4 * ROUND_TRIP_COST
    assert up["trades"] == ROWS // 30
    assert up["net_bp"] == [pytest.approx(20 - cost, abs=1e-3), None]
    assert down["net_bp"] == [pytest.approx(-20 - cost, abs=1e-3), None]


def test_a_closed_gate_trades_nothing() -> None:
    result = trade_results(with_rules(explained(edge=np.zeros(ROWS)), {}))["edge"]
    assert result == {"bars_per_1000": 0.0, "trades": 0, "days": 0}


def test_shift_is_an_upper_bound_and_the_others_are_lower() -> None:
    rows = explained(edge=np.full(ROWS, 2.0))
    open_gates = trade_results(with_rules(rows, {"shifted": 0.6, "confidence_entropy": 0.4}))
    assert open_gates["all_gates"]["trades"] > 0
    for closed in ({"shifted": 0.4}, {"confidence_entropy": 0.6}):
        assert trade_results(with_rules(rows, closed))["all_gates"]["trades"] == 0
