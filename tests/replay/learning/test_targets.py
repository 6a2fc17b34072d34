"""Labels look forward by their horizon and no further."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import panel, segment

from tracepaper.replay.learning.samples import (
    DOWN,
    FLAT,
    LABELS,
    NO_LABEL,
    UP,
    direction_of,
    targets,
    uniqueness,
)
from tracepaper.replay.learning.splits import Panel
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR


def test_a_label_is_the_scaled_return_to_its_horizon() -> None:
    bars = panel(900)
    labels = targets(bars, (5, 30))
    t, sigma = 700, bars.unit[0, 700]
    logs = np.log(bars.price[0])
    assert labels["returns"][0, t, 1] == pytest.approx(
        (logs[t + 30] - logs[t]) / (sigma * 30**0.5), rel=1e-5
    )
    squares = np.diff(logs)[t : t + 5] ** 2
    assert labels["variance"][0, t, 0] == pytest.approx(squares.sum() / (5 * sigma**2), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in LABELS if name != "cost"])
def test_a_label_knows_the_bars_to_its_horizon_and_none_beyond(name: str) -> None:
    both = Panel((segment(900), segment(900, seed=1, symbol="BBBUSDT")))
    changed = both.price
    changed[0, 760] *= 2
    changed[0, 761:] /= 2
    before, after = (LABELS[name].function(of, both.unit, 5)[0] for of in (both.price, changed))
    np.testing.assert_array_equal(before[600:755], after[600:755])
    assert not np.array_equal(before[755:760], after[755:760])
    longest = before[..., -1] if before.ndim > 1 else before
    finite = np.isfinite(longest) & (longest != NO_LABEL)
    assert finite[600:-5].all()
    assert not finite[-5:].any()


def test_direction_has_a_flat_band() -> None:
    returns = np.array([-3.0, -0.1, 0.0, 0.19, 0.21, np.nan], dtype=np.float32)
    assert direction_of(returns).tolist() == [DOWN, FLAT, FLAT, FLAT, UP, NO_LABEL]


def test_variance_has_a_floor_where_nothing_moves() -> None:
    bars = panel(900)
    close = bars.segments[0].close
    close[650:700] = close[650]
    assert targets(bars, (5,))["variance"][0, 660, 0] == np.float32(VARIANCE_FLOOR)


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
