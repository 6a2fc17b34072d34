"""Exact decimals."""

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from builders import instrument
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.market import Notional, check_money, divide_half_even, scaled, unscaled

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
    assert check_money(922_337_203 * 10**10, name="cash") == 922_337_203 * 10**10
    with pytest.raises(ConfigInvalid, match="beyond"):
        check_money(922_337_204 * 10**10, name="cash")


@given(st.integers(1, 10**9), st.integers(-(10**9), 10**9))
def test_notional_is_the_product(price: int, quantity: int) -> None:
    notional = Notional.of(instrument(price_decimals=2, quantity_decimals=3))
    money = Decimal(notional(price, quantity)).scaleb(-10)
    assert money == Decimal(price).scaleb(-2) * Decimal(quantity).scaleb(-3)


@given(st.integers(1, 10**9), st.integers(1, 10**14))
def test_quantity_of_money_is_the_largest_that_fits(price: int, money: int) -> None:
    notional = Notional.of(instrument(price_decimals=2, quantity_decimals=3))
    quantity = notional.quantity(money, price)
    assert notional(price, quantity) <= money < notional(price, quantity + 1)
