"""Numbers as people read them: never an exponent, always the unit one would choose."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.gates.gate import gate_order, measured, with_unit
from tracepaper.strategies.units import duration, number


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
    assert "e+" not in with_unit(gate, value)
    assert "e-" not in with_unit(gate, value)
