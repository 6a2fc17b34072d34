"""The maps and edges of a report: which cell holds what, and what a chart holds of it."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from pages import layers_of

from tracepaper.replay.document.charts import HeatLayer
from tracepaper.replay.report.attention_charts import (
    age_map_chart,
    cells_by_age,
    cells_by_position,
    position_map_chart,
)
from tracepaper.replay.report.heads import edges_of
from tracepaper.strategies.forecasters.attribution import RolloutMap

BARS = 6
TIMES = [60_000 * bar for bar in range(BARS)]


def triangle() -> RolloutMap:
    """Return rows that rest on the bar three before, or on the oldest, and on themselves."""
    weights = np.zeros((BARS, BARS))
    for row in range(BARS):
        weights[row, row] += 0.25
        weights[row, max(0, row - 3)] += 0.75
    return RolloutMap(np.arange(BARS - 1, -1, -1), weights, np.zeros(BARS))


def test_a_cell_by_position_is_a_bar_and_what_lies_later_is_empty() -> None:
    cells = cells_by_position(triangle())
    assert cells.firsts.tolist() == list(range(BARS))
    assert cells.shares[5].tolist() == pytest.approx([np.nan] * 2 + [0.75, np.nan, np.nan, 0.25],
                                                     nan_ok=True)  # fmt: skip


def test_a_cell_by_age_counts_back_from_each_rows_own_bar() -> None:
    cells = cells_by_age(triangle())
    assert cells.shares[:, 3].tolist() == pytest.approx([np.nan] * 3 + [0.75] * 3, nan_ok=True)
    assert cells.shares[2, :3].tolist() == pytest.approx([0.25, np.nan, 0.75], nan_ok=True)


def test_cells_of_several_bars_hold_their_mean_share() -> None:
    bars = 1_030
    found = RolloutMap(np.array([0]), np.arange(bars, dtype=float)[None], np.zeros(1))
    for cells in (cells_by_position(found), cells_by_age(found)):
        assert len(cells.firsts) == 512
        widths = np.diff(cells.firsts, append=bars)
        assert np.nansum(cells.shares[0] * widths) == pytest.approx(bars * (bars - 1) / 2)


def test_a_chart_holds_the_logarithms_as_bytes_with_their_ends() -> None:
    for chart in (position_map_chart(triangle(), TIMES), age_map_chart(triangle(), TIMES)):
        [heat] = chart.panels[0].layers
        assert isinstance(heat, HeatLayer)
        assert (heat.y, heat.scale) == (TIMES, "log10")
        packed = base64.b64decode(heat.packed)
        levels = np.frombuffer(packed, np.uint8).reshape(-1, len(heat.x))
        assert levels.shape == (BARS, BARS)
        logs = heat.low + (heat.high - heat.low) * levels[5] / 254
        shares = np.where(levels[5] == 255, 0.0, 10.0**logs)
        assert sorted(shares[shares > 0]) == pytest.approx([0.25, 0.75], rel=0.02)
    assert layers_of(position_map_chart(triangle(), TIMES))["a bar"].x == TIMES


def test_edges_lie_where_the_bars_are_and_not_where_their_ages_are() -> None:
    by_age = np.zeros((1, 1, 3, 5))
    by_age[0, 0, :, 4], by_age[0, 0, :, 0] = 0.75, 0.25
    edges = edges_of(by_age)
    assert (edges.bars, edges.shares.sum()) == (7, 3.0)
    assert edges.firsts[:3] == (0, 1, 2)
    assert edges.shares[0, 0, 2, 0] == 0.25  # the newest decision looks at its own bar
    assert edges.shares[0, 0, 0, 2] == 0.25  # the oldest of three is two bars back
    last = edges.firsts.index(max(first for first in edges.firsts if first <= 6))
    assert edges.shares[0, 0, 0, last] == 0.75
