"""Seeded noise is the same everywhere, and the same for numbers and arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.exchange.path import draws, key, mix, mix_array


def test_key_separates_its_parts() -> None:
    assert key("a", "bc") != key("ab", "c")
    assert key(1, 2) == key("1", "2")


def test_draws_are_a_prefix_of_longer_draws() -> None:
    assert draws(7, 5) == draws(7, 50)[:5]


def test_mix_is_the_published_splitmix64() -> None:
    # The first output of SplitMix64 for seed 0 mixes its first increment.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_mix_of_an_array_is_mix_of_each_element(values: list[int]) -> None:
    assert mix_array(np.array(values, dtype=np.uint64)).tolist() == [mix(each) for each in values]
