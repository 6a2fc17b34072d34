"""The ring of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.base import Ring


@given(st.integers(1, 7), st.lists(st.floats(-1e9, 1e9), max_size=40))
def test_ring_equals_the_tail_of_a_list(capacity: int, values: list[float]) -> None:
    ring = Ring(capacity=capacity, width=1)
    for count, value in enumerate(values, start=1):
        ring.push(np.array([value]))
        assert ring.view()[:, 0].tolist() == values[:count][-capacity:]
    assert len(ring) == min(len(values), capacity)


def test_view_is_contiguous_and_read_only() -> None:
    ring = Ring(capacity=3, width=2)
    for index in range(5):
        ring.push(np.array([index, -index], dtype=float))
    view = ring.view()
    assert view.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1.0


def test_empty_ring_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="holds nothing"):
        Ring(capacity=0, width=1)
