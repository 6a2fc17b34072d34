"""The canonical encoding: what a decision's hash covers, and the window's incremental hash."""

from __future__ import annotations

from decimal import Decimal
from hashlib import sha256
from math import inf, nan

import builders
import pytest
import storage_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.storage.record.digest import (
    DecisionHash,
    WindowHash,
    canonical_bar,
    chain_digest,
    decision_digest,
    requests_sha256,
    scale_factor,
)
from tracepaper.strategies.api.context import OrderRequest
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.gates.gate import gate_order
from tracepaper.strategies.types.decisions import (
    BLOCK_BARS,
    Action,
    Decision,
    DecisionOutcome,
    Forecast,
    GateSet,
    PredictionTimeout,
    Regime,
)
from tracepaper.strategies.types.market import Bar, Instrument, Side, Source

BAR = builders.bar(1_000_010, volume=12_340)
ANSWER = cases.model_forecast(3)
DECISION = cases.model_decision(3, ANSWER)


def digest(
    bar: Bar = BAR,
    prediction: Forecast | PredictionTimeout | None = ANSWER,
    decision: Decision = DECISION,
    instrument: Instrument = cases.BTC,
) -> bytes:
    return decision_digest(bar, prediction, decision, instrument)


# ---------------------------------------------------------------- decisions


def test_equal_numbers_of_other_decimals_give_the_same_hash() -> None:
    """65114.20 with two decimals equals 65114.2 with one, and a target of 1.000 equals 1."""
    two = replace(cases.BTC, price_decimals=2, volume_decimals=3, quantity_decimals=3)
    one = replace(cases.BTC, price_decimals=1, volume_decimals=2, quantity_decimals=0)
    bar = Bar("x", 0, 60_000, 6511420, 6511430, 6511410, 6511420, 1230, None, 1, 1, Source.REST)
    coarse = replace(bar, open=651142, high=651143, low=651141, close=651142, volume=123)
    wanted = builders.altered(DECISION, target_quantity=1_000)
    assert digest(bar, None, wanted, two) == digest(
        coarse, None, replace(wanted, target_quantity=1), one
    )


@pytest.mark.parametrize("field", ["open_time_ms", "open", "high", "low", "close", "volume"])
def test_a_decision_covers_each_value_of_its_bar(field: str) -> None:
    assert digest(replace(BAR, **{field: getattr(BAR, field) + 1})) != digest()


@pytest.mark.parametrize(
    ("field", "value"),
    [("turnover", 5), ("market_ms", 1), ("seen_ms", 9), ("source", Source.ARCHIVE)],
)
def test_a_decision_ignores_where_and_when_its_bar_was_seen(field: str, value: object) -> None:
    assert digest(replace(BAR, **{field: value})) == digest()


@pytest.mark.parametrize(
    "field", ["mean_return", "stdev_return", "p_down", "p_flat", "p_up", "volatility"]
)
@pytest.mark.parametrize("horizon", [0, 1])
def test_a_decision_covers_every_number_of_its_forecast(field: str, horizon: int) -> None:
    column = list(getattr(ANSWER, field))
    column[horizon] += 1e-15
    assert digest(prediction=replace(ANSWER, **{field: tuple(column)})) != digest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("confidence", 0.1),
        ("content_free", 0.1),
        ("recent_mass", 0.1),
        ("older_mass", 0.1),
        ("shift", None),
        ("l1_error", 0.1),
        ("entropy", b"1234"),
        ("buckets", b"1234"),
    ],
)
def test_a_decision_covers_its_explanation(field: str, value: object) -> None:
    assert ANSWER.explanation is not None
    explained = replace(ANSWER.explanation, **{field: value})
    assert digest(prediction=replace(ANSWER, explanation=explained)) != digest()
    assert digest(prediction=replace(ANSWER, explanation=None)) != digest()


def test_a_decision_ignores_the_models_id() -> None:
    assert digest(prediction=replace(ANSWER, model_id="another")) == digest()


def test_late_none_and_a_forecast_differ_but_the_deadline_does_not_count() -> None:
    seen = {
        digest(prediction=prediction)
        for prediction in (None, ANSWER, PredictionTimeout(1), PredictionTimeout(2))
    }
    assert len(seen) == 3


@pytest.mark.parametrize("gate", list(gate_order()))
def test_measures_count_but_for_timing_and_risk(gate: str) -> None:
    place = list(gate_order()).index(gate)
    measures = list(DECISION.measures)
    measures[place] = 123.5
    changed = digest(decision=builders.altered(DECISION, measures=tuple(measures))) != digest()
    left_out = gate in {"late", "stale", "tradable", "deadline"} or gate.startswith("risk.")
    assert changed is not left_out


@pytest.mark.parametrize("gate", list(gate_order()))
def test_verdicts_count_but_for_timing_and_risk(gate: str) -> None:
    flipped = DECISION.passed ^ (1 << list(gate_order()).index(gate))
    changed = digest(decision=builders.altered(DECISION, passed=flipped)) != digest()
    left_out = gate in {"late", "stale", "tradable", "deadline"} or gate.startswith("risk.")
    assert changed is not left_out


def test_gates_that_do_not_count_may_be_declared_or_not() -> None:
    """Live declares ``stale``, a replay without quotes does not: the decision is the same."""
    small = GateSet(("operator", "warm", "gap"), (1.0, 100.0, 0.0))
    large = GateSet(
        ("operator", "warm", "late", "gap", "stale", "risk.notional"),
        (1.0, 100.0, 60_000.0, 0.0, 60_000.0, 5.0),
    )
    outcome = DecisionOutcome(Action.LONG, "", True, None, small, 0b111, Regime.UNKNOWN)
    one = Decision(outcome, 5, (1.0, 120.0, 0.0))
    other = builders.altered(
        one,
        gate_set=large,
        measures=(1.0, 120.0, 3.0, 0.0, 17.0, 1.0),
        passed=0b111111,
        refused_by="risk.notional",
        allowed=False,
        reason="another",
    )
    assert digest(decision=one) == digest(decision=other)


def test_thresholds_count() -> None:
    moved = GateSet(DECISION.gate_set.gates, tuple(t + 1 for t in DECISION.gate_set.thresholds))
    assert digest(decision=builders.altered(DECISION, gate_set=moved)) != digest()


def test_action_and_target_count() -> None:
    assert digest(decision=builders.altered(DECISION, action=Action.FLAT)) != digest()
    assert digest(decision=builders.altered(DECISION, target_quantity=-1)) != digest()
    assert digest(decision=builders.altered(DECISION, target_quantity=1)) != digest(
        decision=builders.altered(DECISION, target_quantity=-1)
    )


def test_a_decision_of_the_same_outcome_with_another_target_has_a_hash_of_its_own() -> None:
    hashes, bar = DecisionHash(cases.BTC), canonical_bar(BAR, cases.BTC)
    for target in (0, 1_000, None, 0):
        decision = replace(DECISION, target_quantity=target)
        assert hashes.digest(bar, None, decision) == digest(prediction=None, decision=decision)


def test_equal_numbers_of_an_order_give_the_same_hash_however_they_are_written() -> None:
    def hashed(quantity: Decimal | float) -> str:
        return requests_sha256([OrderRequest(side=Side.BUY, quantity=quantity)])

    assert hashed(Decimal("1.50")) == hashed(Decimal("1.5")) == hashed(1.5)
    assert hashed(Decimal("1.50")) != hashed(Decimal("1.51"))


def test_minus_zero_is_zero_and_what_is_not_finite_is_null() -> None:
    def of(number: float) -> bytes:
        return digest(prediction=replace(ANSWER, mean_return=(number, 0.0)))

    assert of(-0.0) == of(0.0)
    assert of(nan) == of(inf) == of(-inf)
    assert of(nan) != of(0.0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 7), st.integers(0, 7))
def test_the_canonical_number_depends_on_its_value_alone(
    units: int, decimals: int, more: int
) -> None:
    coarse = replace(cases.BTC, price_decimals=decimals, volume_decimals=decimals)
    fine = replace(cases.BTC, price_decimals=decimals + more, volume_decimals=decimals + more)
    bar = replace(BAR, open=units, high=units, low=units, close=units, volume=units)
    finer = units * 10**more
    same = replace(BAR, open=finer, high=finer, low=finer, close=finer, volume=finer)
    assert canonical_bar(bar, coarse) == canonical_bar(same, fine)


def test_more_decimals_than_a_hash_takes_are_refused() -> None:
    with pytest.raises(InvariantBroken, match="19 decimals"):
        scale_factor(19)


def test_a_link_is_the_hash_of_the_one_before_and_the_rows() -> None:
    """The bytes as documented: SHA-256 over the previous digest and MessagePack."""
    rows = bytes([0x92, 0x93, 1, 0xA1, ord("x"), 0xC0, 0xC4, 1, 7])
    by_hand = sha256(b"before" + b"covered" + b"prefix" + rows)
    payload = ((1, "x", None), b"\x07")
    assert chain_digest(b"before", b"covered", b"prefix", payload) == by_hand.digest()


# ---------------------------------------------------------------- windows


def tail(bars: list[Bar]) -> bytes:
    """Chain *bars* from the last to the first."""
    hashed = b""
    for bar in reversed(bars):
        hashed = sha256(canonical_bar(bar, cases.BTC) + hashed).digest()
    return hashed


def naive_window(bars: list[Bar], interval_ms: int) -> bytes:
    """Hash a window from scratch, from its definition."""
    blocks: dict[int, list[Bar]] = {}
    for bar in bars:
        blocks.setdefault(bar.open_time_ms // interval_ms // BLOCK_BARS, []).append(bar)
    *earlier, newest = (blocks[block] for block in sorted(blocks))
    parts = [tail(block) for block in earlier[1:]]
    parts += [canonical_bar(bar, cases.BTC) for bar in newest]
    parts += [tail(block) for block in earlier[:1]]
    return sha256(b"".join(parts) + len(bars).to_bytes(8, "big")).digest()


def window_of(bars: list[Bar], window: int) -> bytes:
    hashed = WindowHash(cases.BTC, builders.MINUTE, window)
    for bar in bars:
        hashed.push(bar)
    return hashed.digest()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 400),
    st.lists(st.integers(0, 399), max_size=12, unique=True)
    | st.integers(0, 300).map(lambda first: list(range(first, first + 90))),
)
def test_the_incremental_hash_is_the_hash_from_scratch(
    window: int, count: int, holes: list[int]
) -> None:
    kept = [bar for at, bar in enumerate(builders.bars(count)) if at not in holes]
    hashed = WindowHash(cases.BTC, builders.MINUTE, window)
    for at, bar in enumerate(kept):
        hashed.push(bar)
        if at % 5 == 0 or at + 1 == len(kept):
            seen = kept[max(0, at + 1 - window) : at + 1]
            assert hashed.digest() == naive_window(seen, builders.MINUTE)


@pytest.mark.parametrize("window", [1, 63, 64, 65, 100, 128, 129])
def test_a_restarted_window_equals_one_that_has_run_forever(window: int) -> None:
    bars = builders.bars(700)
    assert window_of(bars, window) == window_of(bars[-window:], window)


def test_every_bar_of_a_window_counts_and_none_before_it() -> None:
    bars = builders.bars(200)
    whole = window_of(bars, 100)
    for at in (99, 0, 50):
        changed = [*bars]
        changed[at] = replace(bars[at], close=bars[at].close + 1)
        assert window_of(changed, 100) == whole
    for at in (100, 127, 163, 199):
        changed = [*bars]
        changed[at] = replace(bars[at], close=bars[at].close + 1)
        assert window_of(changed, 100) != whole


def test_a_window_refuses_a_bar_that_is_not_newer() -> None:
    hashed = WindowHash(cases.BTC, builders.MINUTE, 10)
    hashed.push(BAR)
    with pytest.raises(InvariantBroken, match="came after"):
        hashed.push(BAR)


def test_a_window_of_no_bars_is_refused() -> None:
    with pytest.raises(InvariantBroken, match="holds nothing"):
        WindowHash(cases.BTC, builders.MINUTE, 0)
