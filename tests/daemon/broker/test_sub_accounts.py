"""Splitting and crossing in whole units: equal to a brute force, and adding up."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from tracepaper.strategies.apportion import apportion, crossed, funding_parts
from tracepaper.strategies.units import RATE_SCALE, divide_half_even

WEIGHTS = st.lists(st.integers(0, 10**12), min_size=1, max_size=6).filter(any)


@given(amount=st.integers(-(10**15), 10**15), weights=WEIGHTS)
@example(amount=10, weights=[1, 1, 1])
@example(amount=-10, weights=[1, 1, 1])
@example(amount=1, weights=[0, 5])
def test_a_total_is_split_by_the_largest_remainder(amount: int, weights: list[int]) -> None:
    parts = apportion(amount, weights)
    assert sum(parts) == amount
    exact = [Fraction(amount) * weight / sum(weights) for weight in weights]
    # Independent code: units are given one by one to whoever lacks most.
    floors = [abs(share).__floor__() for share in exact]
    for _ in range(abs(amount) - sum(floors)):
        lacks = [
            abs(share) - got if got == abs(share).__floor__() else Fraction(-1)
            for share, got in zip(exact, floors, strict=True)
        ]
        floors[lacks.index(max(lacks))] += 1
    assert [abs(part) for part in parts] == floors
    if abs(amount) <= sum(weights):
        assert all(abs(part) <= weight for part, weight in zip(parts, weights, strict=True))


@given(wanted=st.lists(st.integers(-(10**9), 10**9), min_size=2, max_size=6))
@example(wanted=[5, -3])
@example(wanted=[2, 2, -3])
@example(wanted=[0, 0])
def test_what_crosses_adds_up_to_nothing_and_leaves_one_side(wanted: list[int]) -> None:
    met = crossed(wanted)
    assert sum(met) == 0
    left = [amount - part for amount, part in zip(wanted, met, strict=True)]
    assert all(abs(part) <= abs(amount) for amount, part in zip(wanted, met, strict=True))
    assert all(part * amount >= 0 for amount, part in zip(wanted, met, strict=True))
    assert sum(left) == sum(wanted)
    assert min(left) >= 0 or max(left) <= 0


@given(
    values=st.lists(st.integers(-(10**16), 10**16), min_size=1, max_size=6),
    rate=st.integers(-(10**8), 10**8),
)
@example(values=[10**14, -(10**14)], rate=10**6)
@example(values=[7, 7, 7], rate=5 * 10**8)
def test_funding_is_paid_and_received_by_each_position(values: list[int], rate: int) -> None:
    due = [value * rate for value in values]
    paid = divide_half_even(sum(due), RATE_SCALE)
    parts = funding_parts(paid, due)
    assert sum(parts) == paid
    for part, amount in zip(parts, due, strict=True):
        assert abs(part - Fraction(amount, RATE_SCALE)) <= 1


def test_what_a_margin_did_not_cover_is_spared_by_the_amounts() -> None:
    due = [6 * RATE_SCALE, 3 * RATE_SCALE, -3 * RATE_SCALE]
    parts = funding_parts(2, due)  # 6 were due, and 2 paid
    assert sum(parts) == 2
    assert parts == [4, 2, -4]
