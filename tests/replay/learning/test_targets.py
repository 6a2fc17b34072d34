"""Labels look forward by their horizon and no further."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import segment

from tracepaper.replay.learning.samples import (
    DOWN,
    FLAT,
    NO_LABEL,
    UP,
    direction_of,
    targets,
    uniqueness,
)
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR


def test_a_label_is_the_scaled_return_to_its_horizon() -> None:
    known = segment(900)
    document = targets(known, (5, 30))
    t, sigma = 700, known.sigma[700]
    logs = np.log(known.close)
    assert document["returns"][t, 1] == pytest.approx(
        (logs[t + 30] - logs[t]) / (sigma * 30**0.5), rel=1e-5
    )
    squares = np.diff(logs)[t : t + 5] ** 2
    assert document["variance"][t, 0] == pytest.approx(squares.sum() / (5 * sigma**2), rel=1e-5)


def test_the_last_bars_have_no_label() -> None:
    document = targets(segment(700), (5, 30))
    assert np.isnan(document["returns"][-5:, 0]).all()
    assert np.isfinite(document["returns"][600:-5, 0]).all()
    assert (document["direction"][-30:, 1] == NO_LABEL).all()
    assert np.isnan(document["variance"][-30:, 1]).all()


def test_a_label_depends_on_no_bar_beyond_its_horizon() -> None:
    long, short = segment(900), segment(900)
    short.close[760:] *= 2
    before, after = targets(long, (5,)), targets(short, (5,))
    np.testing.assert_array_equal(before["returns"][600:755], after["returns"][600:755])
    assert before["returns"][755, 0] != after["returns"][755, 0]


def test_direction_has_a_flat_band() -> None:
    returns = np.array([-3.0, -0.1, 0.0, 0.19, 0.21, np.nan], dtype=np.float32)
    assert direction_of(returns).tolist() == [DOWN, FLAT, FLAT, FLAT, UP, NO_LABEL]


def test_variance_has_a_floor_where_nothing_moves() -> None:
    known = segment(900)
    known.close[650:700] = known.close[650]
    assert targets(known, (5,))["variance"][660, 0] == np.float32(VARIANCE_FLOOR)


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 12))
def test_uniqueness_is_the_mean_of_one_by_the_labels_alive(flags: list[bool], horizon: int) -> None:
    labelled = np.array(flags)
    spans = [range(i + 1, i + 1 + horizon) for i, flag in enumerate(flags) if flag]
    expected = [
        float(
            np.mean(
                [1 / sum(bar in span for span in spans) for bar in range(i + 1, i + 1 + horizon)]
            )
        )
        if flag
        else 0.0
        for i, flag in enumerate(flags)
    ]
    np.testing.assert_allclose(uniqueness(labelled, horizon), expected, rtol=1e-12)
