from __future__ import annotations

import base64
import sqlite3
from statistics import mean

import numpy as np
import pytest
from builders import present
from pages import layers_of

from tracepaper.replay.document.charts import HeatLayer
from tracepaper.replay.report.attention import COLUMNS_MAX, read_attention
from tracepaper.replay.report.attention_charts import (
    age_map_chart,
    by_age_of,
    cells_of,
    heads_over_time_chart,
    position_map_chart,
)
from tracepaper.replay.report.heads import edges_of
from tracepaper.replay.report.report import Report
from tracepaper.storage.database import reader as reader_module
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.forecasters.attribution import RolloutMap
from tracepaper.strategies.types.decisions import BLOCK_BARS

MINUTE = 60_000
RECENT_CELLS = 17  # the newest quarter of 4,349 bars in cells of 64


def decided(report: Report, what: str) -> list[float]:
    with sqlite3.connect(report.record.database) as db:
        rows = db.execute(f"SELECT {what} FROM v_decisions WHERE confidence_entropy IS NOT NULL")
        return [row[0] for row in rows]


def test_every_column_of_the_heatmap_holds_all_of_the_attention(attention_report: Report) -> None:
    (heatmap,) = present(attention_report.attention).heatmaps
    columns = heatmap.times_ms.size
    assert 1 < columns <= COLUMNS_MAX
    assert heatmap.weights.shape == (70, columns)
    assert heatmap.weights.sum(axis=0) == pytest.approx(np.ones(columns), abs=1e-4)
    explained = len(decided(attention_report, "sequence"))
    assert present(attention_report.attention).explained == explained


def test_a_trade_s_rollout_by_age_agrees_with_the_stored_recent_mass_and_buckets(
    attention_report: Report,
) -> None:
    aged = present(attention_report.attention).rollout_by_age
    assert aged
    with sqlite3.connect(attention_report.record.database) as db:
        for sequence, row in aged.items():
            mass, opened = db.execute(
                "SELECT recent_mass, open_time_ms FROM v_decisions WHERE sequence = ?", (sequence,)
            ).fetchone()
            assert row[:RECENT_CELLS].sum() == pytest.approx(mass, abs=1e-6)
            (newest,) = db.execute(
                "SELECT weight FROM v_explanations WHERE sequence = ? AND bucket = '0'", (sequence,)
            ).fetchone()
            (second,) = db.execute(
                "SELECT weight FROM v_explanations WHERE sequence = ? AND bucket = '1'", (sequence,)
            ).fetchone()
            held = (opened // MINUTE % BLOCK_BARS + 1) / BLOCK_BARS
            assert row[0] == pytest.approx(newest + (1 - held) * second, abs=1e-6)


def test_the_heads_mean_confidence_is_the_decisions(attention_report: Report) -> None:
    heads = present(attention_report.attention).head_confidence
    assert (heads.size, attention_report.heads) == (16, 4)
    assert heads.mean() == pytest.approx(
        mean(decided(attention_report, "confidence_entropy")), abs=1e-6
    )


def test_the_heads_over_time_are_the_confidence_of_each_column(attention_report: Report) -> None:
    [heatmap] = present(attention_report.attention).heatmaps
    assert heatmap.heads.shape == (16, heatmap.times_ms.size)
    assert heatmap.heads.mean(axis=0) == pytest.approx(heatmap.confidence_entropy, abs=1e-6)
    chart = heads_over_time_chart(heatmap, attention_report.heads)
    trace = layers_of(chart)["usual"]
    assert chart is not None
    names = chart.panels[0].y.names
    assert (names[0], names[-1], len(trace.rows)) == ("1.1", "4.4", 16)
    ratio = heatmap.heads[5] / heatmap.heads[5].mean()
    assert 2.0 ** np.array(trace.rows[5]) == pytest.approx(ratio, rel=0.01)
    assert heads_over_time_chart(heatmap, 0) is None


def test_attention_read_in_small_batches_is_the_same_and_keeps_none_of_them(
    attention_report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, record = present(attention_report.attention), attention_report.record
    monkeypatch.setattr(reader_module, "CHUNK_STEPS", 97)
    with Reader.open(record.database) as reader:
        parts = present(read_attention(reader, record, whole.rollout_by_age.keys()))
    assert parts.explained == whole.explained
    assert parts.head_confidence == pytest.approx(whole.head_confidence)
    assert parts.rollout_by_age.keys() == whole.rollout_by_age.keys()
    assert all(row.base is None for row in parts.rollout_by_age.values())
    [of_parts], [of_whole] = parts.heatmaps, whole.heatmaps
    for measure in ("times_ms", "close", "weights", "confidence_entropy", "heads"):
        assert getattr(of_parts, measure) == pytest.approx(getattr(of_whole, measure))


def test_winners_and_losers_share_out_the_trades(attention_report: Report) -> None:
    closed = attention_report.trades["ungated"]
    winners, losers = attention_report.groups
    assert attention_report.shown == "ungated"
    assert winners.trades == sum(trade.profit > 0 for trade in closed)
    assert winners.trades + losers.trades == len(closed) > 4
    with sqlite3.connect(attention_report.record.database) as db:
        mass = [
            db.execute(
                "SELECT recent_mass FROM v_decisions WHERE sequence = ?", (trade.entry_sequence,)
            ).fetchone()[0]
            for trade in closed
            if trade.profit <= 0
        ]
    assert losers.means["recent_mass"][0] == pytest.approx(mean(mass))
    assert losers.means["entropy"][0] == pytest.approx(1 - losers.means["confidence_entropy"][0])
    assert sum(losers.rollout) == pytest.approx(1.0, abs=1e-4)


# ---------------------------------------------------------------- attention map


BARS = 6
TIMES = [60_000 * bar for bar in range(BARS)]


def triangle() -> RolloutMap:
    """Return rows that attend to the bar three before (or the oldest) and to themselves."""
    weights = np.zeros((BARS, BARS))
    for row in range(BARS):
        weights[row, row] += 0.25
        weights[row, max(0, row - 3)] += 0.75
    return RolloutMap(np.arange(BARS - 1, -1, -1), weights, np.zeros(BARS))


def test_a_cell_by_position_is_a_bar_and_what_lies_later_is_empty() -> None:
    shares, firsts = cells_of(triangle().weights)
    assert firsts.tolist() == list(range(BARS))
    assert shares[5].tolist() == pytest.approx([np.nan] * 2 + [0.75, np.nan, np.nan, 0.25],
                                                     nan_ok=True)  # fmt: skip


def test_a_cell_by_age_counts_back_from_each_rows_own_bar() -> None:
    shares, _ = cells_of(by_age_of(triangle()))
    assert shares[:, 3].tolist() == pytest.approx([np.nan] * 3 + [0.75] * 3, nan_ok=True)
    assert shares[2, :3].tolist() == pytest.approx([0.25, np.nan, 0.75], nan_ok=True)


def test_cells_of_several_bars_hold_their_mean_share() -> None:
    bars = 1_030
    rollout_map = RolloutMap(np.array([0]), np.arange(bars, dtype=float)[None], np.zeros(1))
    for weights in (rollout_map.weights, by_age_of(rollout_map)):
        shares, firsts = cells_of(weights)
        assert len(firsts) == 512
        assert np.nansum(shares[0] * np.diff(firsts, append=bars)) == pytest.approx(
            bars * (bars - 1) / 2
        )


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
