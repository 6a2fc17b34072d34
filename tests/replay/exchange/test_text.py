"""Numbers are written as the exchange writes them, and exactly."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.exchange.instruments import padded, parsed, plain, rescaled


@pytest.mark.parametrize(
    ("value", "decimals", "with_zeros", "without"),
    [
        (651_142_0, 2, "65114.20", "65114.2"),
        (5, 3, "0.005", "0.005"),
        (0, 4, "0.0000", "0"),
        (-50, 4, "-0.0050", "-0.005"),
        (1200, 0, "1200", "1200"),
        (1_000, 3, "1.000", "1"),
    ],
)
def test_text_has_the_zeros_of_its_place(
    value: int, decimals: int, with_zeros: str, without: str
) -> None:
    assert padded(value, decimals) == with_zeros
    assert plain(value, decimals) == without


@given(st.integers(-(10**18), 10**18), st.integers(0, 11))
def test_text_is_exact(value: int, decimals: int) -> None:
    exact = Decimal(value).scaleb(-decimals)
    assert Decimal(padded(value, decimals)) == exact
    assert Decimal(plain(value, decimals)) == exact
    assert parsed(padded(abs(value), decimals)) == (abs(value), decimals)


@given(st.integers(-(10**12), 10**12), st.integers(0, 8), st.integers(0, 8))
def test_rescaling_rounds_half_away_from_zero(value: int, decimals: int, wanted: int) -> None:
    step = Decimal(1).scaleb(-wanted)
    exact = Decimal(value).scaleb(-decimals).quantize(step, rounding="ROUND_HALF_UP")
    assert Decimal(rescaled(value, decimals, wanted)).scaleb(-wanted) == exact
