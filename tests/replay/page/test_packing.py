"""Columns as differences come back as they were, and small."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import unpacked

from tracepaper.replay.page.packing import LONG, packed

DECIMAL = st.decimals(allow_nan=False, places=4, min_value=-(10**9), max_value=10**9).map(float)
NUMBERS = st.one_of(DECIMAL, st.integers(-(2**50), 2**50), st.none(), st.floats(allow_nan=False))


def back(value: Any) -> Any:
    return unpacked(packed({"/a": value}))["/a"]


@settings(max_examples=30)
@given(st.lists(NUMBERS.filter(lambda each: each is None or abs(each) < math.inf), min_size=LONG))
def test_every_column_of_numbers_comes_back_exactly(column: list[float | None]) -> None:
    assert back(column) == column


def test_a_number_that_is_not_finite_is_null_in_a_column_and_refused_elsewhere() -> None:
    assert back([math.nan, 1.5] * LONG) == [None, 1.5] * LONG
    assert back([math.nan, 1 / 3] * LONG) == [None, 1 / 3] * LONG
    assert back([math.inf, -math.inf, 1 / 3, 1e308] * LONG) == [None, None, 1 / 3, 1e308] * LONG
    with pytest.raises(ValueError, match="Out of range float"):
        packed({"/a": math.nan})


def test_times_cost_next_to_nothing_and_prices_less_than_half_of_their_text() -> None:
    times = list(range(1_700_000_000_000, 1_700_000_000_000 + 12_000 * 60_000, 60_000))
    assert len(packed({"/a": times})) < 300
    prices = [100_000 + (at * 7_919 % 1_013) / 10 for at in range(4_000)]
    text = base64.b64encode(gzip.compress(json.dumps(prices).encode()))
    assert 2 * len(packed({"/a": prices})) < len(text)


def test_rows_stay_json() -> None:
    rows = [[1, "a", None], [2, "b", 1 / 3]]
    assert back({"rows": rows, "mixed": [1, "a", None] * LONG}) == {
        "rows": rows, "mixed": [1, "a", None] * LONG,
    }  # fmt: skip
