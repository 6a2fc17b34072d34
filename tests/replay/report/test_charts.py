from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tracepaper.replay.report.attention_charts import confidence_chart, rollout_chart
from tracepaper.replay.report.benchmarks import ALLOWED
from tracepaper.replay.report.charts import (
    broken,
    caption,
    drawn_trades,
    equity_chart,
    exposure_share,
    price_chart,
    refusal_chart,
    rolling_chart,
    rounded,
    trades_chart,
)
from tracepaper.replay.report.report import Report


def test_the_own_curve_ends_at_the_run_s_return(cross_report: Report) -> None:
    chart = equity_chart(cross_report)
    own = [trace for trace in chart["data"] if trace["name"] == "this run"]
    assert own[0]["x"][-1] == cross_report.record.times_ms[-1]
    earned = cross_report.accounts[0].performance.total_return
    assert earned is not None
    whole = 100 * earned
    assert own[0]["customdata"][-1] == pytest.approx(whole, rel=1e-5)
    assert {"buy and hold, 100 % held", "random twins of this run, 5–95 %"} <= {
        trace["name"] for trace in chart["data"]
    }


def test_a_short_position_between_two_marks_is_still_drawn(cross_report: Report) -> None:
    record = cross_report.record
    bars = record.bars["linear:BTCUSDT"]
    share = record.account.held["linear:BTCUSDT"] * bars.close / record.account.equity[1:]
    shown = exposure_share(cross_report)
    assert shown.size == cross_report.marks_ms.size < share.size
    assert (shown.max(), shown.min()) == pytest.approx((share.max(), share.min()))


def test_gates_that_cannot_be_judged_have_no_mark(
    attention_report: Report, cross_report: Report
) -> None:
    assert refusal_chart(cross_report) is None
    assert refusal_chart(attention_report) is None  # one day
    judged = tuple(
        replace(row, error_bp=1.5, random_low_bp=-2.0, random_high_bp=3.0, said=said)
        for row, said in zip(
            [row for row in attention_report.refusals if row.measured][:3],
            ("saved", "cost", "no evidence"),
            strict=True,
        )
    )
    chart = refusal_chart(replace(attention_report, refusals=judged))
    assert chart is not None
    band, marks = chart["data"]
    assert (band["base"], band["x"]) == ([-2.0] * 3, [5.0] * 3)
    assert marks["marker"]["color"] == ["var(--muted)", "var(--loss)", "var(--gain)"]
    assert marks["error_x"]["array"] == [3.0] * 3
    assert marks["y"][-1].startswith(judged[0].gate)  # the first gate on top


def test_the_price_chart_marks_every_entry_and_exit_at_its_price(cross_report: Report) -> None:
    chart = price_chart(cross_report, "linear:BTCUSDT")
    assert chart is not None
    marks = {trace["name"]: trace for trace in chart["data"] if trace.get("mode") == "markers"}
    closed = cross_report.own_trades
    entries = marks["entry long"]["x"] + marks["entry short"]["x"]
    assert sorted(entries) == sorted(trade.entered_ms for trade in closed)
    lost = [trade for trade in closed if trade.profit <= 0]
    assert marks["exit, loss"]["x"] == [trade.left_ms for trade in lost]
    assert marks["exit, loss"]["y"] == [trade.exit_price for trade in lost]
    assert marks["exit, loss"]["marker"]["color"] == "var(--loss)"
    assert len(lost) + len(marks["exit, gain"]["x"]) == len(closed)
    assert "the 122 closed trades" in caption(cross_report, "linear:BTCUSDT").replace(
        str(len(closed)), "122"
    )


def test_the_price_chart_counts_every_refused_signal_of_each_gate(
    attention_report: Report,
) -> None:
    chart = price_chart(attention_report, "linear:BTCUSDT")
    assert chart is not None
    (stripes,) = (trace for trace in chart["data"] if trace["type"] == "heatmap")
    drawn = dict(zip(stripes["y"], map(sum, stripes["z"]), strict=True))
    refused = {
        row.gate: row.signals
        for row in attention_report.refusals
        if row.signals and row.gate != ALLOWED
    }
    assert drawn == refused


def test_a_price_of_many_bars_is_thinned_with_its_extremes_and_said(
    cross_report: Report,
) -> None:
    bars = cross_report.record.bars["linear:BTCUSDT"]
    chart = price_chart(cross_report, "linear:BTCUSDT")
    assert chart is not None
    low, high, close = chart["data"][:3]
    assert len(close["x"]) == 800 < bars.close.size
    assert min(low["y"]) == bars.low.min()
    assert max(high["y"]) == bars.high.max()
    many = cross_report.own_trades * 3
    thick = replace(cross_report, trades={**cross_report.trades, "this run": many})
    assert len(drawn_trades(thick, "linear:BTCUSDT")) == 300
    assert f"300 of the {len(many):,} closed trades" in caption(thick, "linear:BTCUSDT")


def test_no_line_crosses_a_hole_in_the_data() -> None:
    times = np.array([10, 20, 30, 90, 100])
    at, (shown,) = broken(times, np.arange(5.0))
    assert at == [10, 20, 30, 89, 90, 100]
    assert np.isnan(shown[3])
    assert broken(np.array([5]), np.ones(1))[0] == [5]


def test_a_benchmark_that_dwarfs_the_run_brings_a_logarithmic_scale(
    cross_report: Report,
) -> None:
    plain = equity_chart(cross_report)
    assert plain["layout"]["yaxis"]["title"]["text"] == "return, %"
    own, *others = cross_report.curves
    huge = replace(others[-1], equity=others[-1].equity[0] * np.linspace(1.0, 50.0, 800))
    chart = equity_chart(replace(cross_report, curves=(own, huge)))
    assert chart["layout"]["yaxis"]["title"]["text"] == "return, % (logarithmic)"
    assert "0" in chart["layout"]["yaxis"]["ticktext"]
    line = next(trace for trace in chart["data"] if trace["name"] == f"{huge.name}, 100 % held")
    assert line["customdata"][-1] == 4_900  # what a pointer shows is the return itself
    mine = next(trace for trace in chart["data"] if trace["name"] == own.name)
    # The run takes a readable part of the height, and lost stays below zero.
    assert abs(mine["y"][-1]) > 0.1 * max(line["y"])
    assert (mine["y"][-1] < 0) is (mine["customdata"][-1] < 0)


def test_gains_and_losses_of_trades_are_counted_apart(cross_report: Report) -> None:
    chart = trades_chart(cross_report)
    assert chart is not None
    returns, spans = chart["data"]
    closed = cross_report.own_trades
    assert sum(returns["y"]) == sum(spans["y"]) == len(closed)
    gained = sum(
        count
        for count, colour in zip(returns["y"], returns["marker"]["color"], strict=True)
        if colour == "var(--gain)"
    )
    assert gained == sum(trade.return_bp > 0 for trade in closed)


def test_a_short_run_has_no_rolling_ratio(cross_report: Report) -> None:
    assert rolling_chart(cross_report) is None
    times = 86_400_000 * np.arange(1, 41)
    chart = rolling_chart(replace(cross_report, rolling=(times, np.linspace(-1, 1, 40))))
    assert chart is not None
    assert chart["data"][0]["y"][0] == -1


def test_the_heatmap_shows_ratios_around_one(attention_report: Report) -> None:
    assert attention_report.attention is not None
    (heatmap,) = attention_report.attention.heatmaps
    shown = next(
        trace
        for trace in rollout_chart(attention_report, heatmap)["data"]
        if trace.get("meta") == "log2"
    )
    ratios = 2.0 ** np.array(shown["z"], dtype=np.float64)
    cells = len(ratios)
    assert cells < len(heatmap.weights)
    by_age = heatmap.weights[:-1].sum(axis=1)
    assert by_age[:cells].sum() > 0.995 * by_age.sum() >= by_age[: cells - 1].sum()
    weighted = (ratios * heatmap.weights[:cells].mean(axis=1, keepdims=True)).sum(axis=0)
    assert weighted == pytest.approx(heatmap.weights[:cells].sum(axis=0), rel=2e-3)


def test_the_oldest_cells_neither_show_nor_stretch_the_heatmap(attention_report: Report) -> None:
    assert attention_report.attention is not None
    (heatmap,) = attention_report.attention.heatmaps
    rng, columns = np.random.default_rng(4), heatmap.times_ms.size
    # Ten cells that move by a tenth, and the oldest, of next to nothing, by a factor of eight.
    usual = np.array([*([0.08] * 10), 0.004, 0.0001, 0.0])[:, None]
    moved = np.exp(0.1 * rng.normal(size=(13, columns)))
    moved[-3:-1] = np.where(np.arange(columns) % 2, 8.0, 0.125)
    planted = replace(heatmap, weights=usual * moved)
    shown = next(
        trace
        for trace in rollout_chart(attention_report, planted)["data"]
        if trace.get("meta") == "log2"
    )
    assert len(shown["z"]) == 11
    assert 0.2 < shown["zmax"] < 1.0  # each cell alike: three, the most there is


def test_a_caption_names_no_panel_that_is_not_drawn(
    cross_report: Report, attention_report: Report
) -> None:
    for report, has_panel in ((cross_report, False), (attention_report, True)):
        chart = price_chart(report, "linear:BTCUSDT")
        assert chart is not None
        assert ("yaxis2" in chart["layout"]) is has_panel
        assert ("refused by that gate" in caption(report, "linear:BTCUSDT")) is has_panel


def test_the_histogram_counts_the_decisions_on_both_sides_of_the_gate(
    attention_report: Report,
) -> None:
    (bars,) = confidence_chart(attention_report)["data"]
    confidence = attention_report.record.decisions.confidence
    explained = int(np.isfinite(confidence).sum())
    assert 0.99 * explained <= sum(bars["y"]) <= explained
    assert attention_report.record.thresholds["confidence"] > 0


def test_rounding_keeps_significant_digits_and_turns_nan_into_null() -> None:
    assert rounded([123456.789, 0.000123456789, float("nan")], 4) == [123500.0, 0.0001235, None]
