"""A card reads back as it was written."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.storage.checkpoints import dump, parse
from tracepaper.strategies.errors import ConfigInvalid

SCALARS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TABLES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=5), max_size=4),
    lambda inner: st.dictionaries(
        KEYS, SCALARS | inner | st.lists(inner, min_size=1, max_size=3), max_size=4
    ),
    max_leaves=8,
)


@given(TABLES)
def test_what_is_read_is_what_was_written(card: dict[str, Any]) -> None:
    assert tomllib.loads(dump(card)) == card
    unknown = {**card, "unknown": [0.5, None]}  # an error of one block of days
    assert parse(dump(unknown)) == unknown


def test_a_long_list_is_wrapped_and_a_short_one_is_not() -> None:
    text = dump({"calibration": {"quantiles": {"edge": [i / 7 for i in range(99)]}}})
    assert max(len(line) for line in text.splitlines()) <= 100
    assert dump({"split": {"seeds": [0, 1]}}) == "[split]\nseeds = [0, 1]\n"


@pytest.mark.parametrize("value", [math.nan, math.inf, b"bytes", {1, 2}])
def test_what_toml_cannot_hold_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(ConfigInvalid, match=r"model\.odd"):
        dump({"model": {"odd": value}})
