"""Intervals, fees and exact decimals: each in one place."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from builders import instrument
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates.gate import gate_order, measured
from tracepaper.strategies.units import (
    DAY_MS,
    INTERVAL_NAMES,
    INTERVALS,
    Notional,
    check_money,
    divide_half_even,
    duration,
    interval_start,
    number,
    percent,
    rescaled,
    scaled,
    to_step,
    to_tick,
    unscaled,
)

WIDE = st.integers(-(10**24), 10**24)


@given(WIDE, st.integers(1, 10**12))
def test_division_rounds_half_to_even(numerator: int, denominator: int) -> None:
    exact = Decimal(numerator) / Decimal(denominator)
    context = Decimal(1)
    expected = exact.quantize(context, rounding=ROUND_HALF_EVEN)
    if abs(exact) < Decimal(10) ** 15:
        assert divide_half_even(numerator, denominator) == expected


@given(WIDE, st.integers(0, 18))
def test_text_of_an_integer_reads_back(value: int, decimals: int) -> None:
    assert scaled(Decimal(unscaled(value, decimals)), decimals, name="x") == value


def test_text_has_no_trailing_zeros() -> None:
    assert unscaled(6511420, 2) == "65114.2"
    assert unscaled(-100, 2) == "-1"
    assert unscaled(5, 0) == "5"


def test_excess_decimals_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"0\.123 has more than 2 decimals"):
        scaled(Decimal("0.123"), 2, name="sizing.quantity")


def test_money_beyond_64_bits_is_refused() -> None:
    assert check_money(92_233_720_368 * 10**8, name="cash") == 92_233_720_368 * 10**8
    with pytest.raises(ConfigInvalid, match="beyond"):
        check_money(92_233_720_369 * 10**8, name="cash")


@given(st.integers(1, 10**9), st.integers(-(10**9), 10**9))
def test_notional_is_the_product(price: int, quantity: int) -> None:
    notional = Notional.of(instrument(price_decimals=2, quantity_decimals=3))
    money = Decimal(notional(price, quantity)).scaleb(-8)
    assert money == Decimal(price).scaleb(-2) * Decimal(quantity).scaleb(-3)


@given(st.integers(1, 10**9), st.integers(1, 10**14))
def test_quantity_of_money_is_the_largest_that_fits(price: int, money: int) -> None:
    notional = Notional.of(instrument(price_decimals=2, quantity_decimals=3))
    quantity = notional.quantity(money, price)
    assert notional(price, quantity) <= money < notional(price, quantity + 1)


@given(st.integers(-(10**12), 10**12), st.integers(0, 8), st.integers(0, 8))
def test_rescaling_rounds_half_to_even(value: int, decimals: int, wanted: int) -> None:
    step = Decimal(1).scaleb(-wanted)
    exact = Decimal(value).scaleb(-decimals).quantize(step, rounding=ROUND_HALF_EVEN)
    assert Decimal(rescaled(value, decimals, wanted)).scaleb(-wanted) == exact


def test_every_interval_has_one_name_and_weeks_open_on_mondays() -> None:
    assert {INTERVAL_NAMES[length] for length in INTERVALS.values()} == set(INTERVALS)
    monday_ms = 1_748_217_600_000  # 2025-05-26
    for name, length_ms in INTERVALS.items():
        if name == "M":  # tests/strategies/test_months.py
            continue
        assert interval_start(monday_ms + length_ms - 1, length_ms) == monday_ms, name
    assert interval_start(monday_ms - 1, INTERVALS["W"]) == monday_ms - 7 * DAY_MS


@given(st.floats(0.001, 1e7), st.sampled_from([(2, 10), (1, 1), (4, 25), (0, 5)]))
def test_a_price_or_quantity_goes_to_the_nearest_that_can_be_ordered(
    wanted: float, scale: tuple[int, int]
) -> None:
    decimals, unit = scale
    item = instrument(
        price_decimals=decimals, tick_size=unit, quantity_decimals=decimals, quantity_step=unit
    )
    size = unit / 10**decimals
    for rounded in (to_tick(wanted, item), to_step(wanted, item)):
        assert abs(rounded - wanted) <= size / 2 * (1 + 1e-6)
        assert Decimal(repr(rounded)).scaleb(decimals) % unit == 0


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (119_949, "119.9 s"),
        (119_951, "2.0 min"),
        (-60_000, "-60.0 s"),
        (5_400_000, "90.0 min"),
        (400_000_000, "4.6 days"),
        (None, "–"),
    ],
)
def test_a_duration_has_the_unit_that_people_choose(ms: float | None, text: str) -> None:
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42_570.0, "42,570"),
        (1_234_567.0, "1,234,567"),
        (0.03279768, "0.0328"),
        (1.5, "1.5"),
        (0.00000012345, "0.00000012"),
        (0.0, "0"),
        (-3.14159, "-3.142"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_a_number_is_written_out(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from(gate_order()))
def test_no_measure_is_written_with_an_exponent(value: float, gate: str) -> None:
    assert "e" not in measured(gate, value).replace("yes", "")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (percent(0.0012), "0.12 %"),
        (percent(0.0012, signed=True), "+0.12 %"),
        (percent(-12.3456, 1, signed=True), "-1,234.6 %"),
        (percent(0.5, 0), "50 %"),
    ],
)
def test_a_share_is_written_in_per_cent_with_a_space(text: str, written: str) -> None:
    assert text == written
