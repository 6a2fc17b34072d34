"""Decimal text is read exactly or refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.instruments import (
    ceiled,
    decimals_needed,
    exact,
    exact_signed,
    floored,
    rounded,
)
from tracepaper.strategies.errors import MessageMalformed

plain = st.decimals(min_value=0, max_value=10**9, allow_nan=False, places=4)


@given(value=plain, decimals=st.integers(4, 8), zeros=st.integers(0, 3))
def test_exact_equals_the_decimal_whatever_zeros_follow(
    value: Decimal, decimals: int, zeros: int
) -> None:
    text = f"{value:f}" + "0" * zeros
    assert exact(text, decimals) == int(value.scaleb(decimals))


@given(text=st.text(max_size=45), decimals=st.integers(0, 10))
def test_exact_reads_a_plain_number_or_refuses(text: str, decimals: int) -> None:
    try:
        value = exact(text, decimals)
    except MessageMalformed:
        return
    assert set(text) <= set("0123456789.")
    assert Decimal(text).scaleb(decimals) == value


@pytest.mark.parametrize(
    "text",
    ["", ".", "1.", ".5", "-1", "+1", "1e5", "NaN", "inf", "1_0", " 1", "1 ", "1.2.3", "٣", "0x1"],
)
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(MessageMalformed, match="not a plain decimal"):
        exact(text, 8)


def test_excess_decimals_are_refused_unless_they_are_zeros() -> None:
    assert exact("65114.20", 1) == 651142
    with pytest.raises(MessageMalformed, match="more than the 1 decimals"):
        exact("65114.21", 1)


def test_a_number_beyond_64_bits_is_refused() -> None:
    assert exact("9223372036854775807", 0) == 2**63 - 1
    with pytest.raises(MessageMalformed, match="64 bits"):
        exact("9223372036854775808", 0)


def test_a_rate_may_be_negative_but_not_twice() -> None:
    assert exact_signed("-0.0001", 10) == -1_000_000
    with pytest.raises(MessageMalformed):
        exact_signed("--0.0001", 10)


@given(value=plain, decimals=st.integers(0, 3))
def test_rounding_is_half_even_and_the_bounds_enclose(value: Decimal, decimals: int) -> None:
    text = f"{value:f}"
    unit = Decimal(1).scaleb(-decimals)
    assert rounded(text, decimals) == int(value.quantize(unit).scaleb(decimals))
    assert floored(text, decimals) <= value.scaleb(decimals) <= ceiled(text, decimals)
    assert ceiled(text, decimals) - floored(text, decimals) <= 1


@pytest.mark.parametrize(
    ("text", "needed"), [("0.10", 1), ("5", 0), ("0.000001", 6), ("0.010", 2), ("100", 0)]
)
def test_decimals_needed_ignores_trailing_zeros(text: str, needed: int) -> None:
    assert decimals_needed(text) == needed
