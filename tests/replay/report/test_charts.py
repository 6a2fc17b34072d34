from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import present
from pages import layers_of

from tracepaper.replay.document.charts import Chart, HeatLayer, LineLayer
from tracepaper.replay.report.attention_charts import (
    confidence_chart,
    groups_chart,
    head_confidence_chart,
    rollout_chart,
)
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
)
from tracepaper.replay.report.report import Report


def test_the_own_curve_ends_at_the_run_s_return(cross_report: Report) -> None:
    chart = equity_chart(cross_report)
    line_layer = layers_of(chart)["this run"]
    assert line_layer.role == "accent"
    assert line_layer.x[-1] == cross_report.record.times_ms[-1]
    earned = present(cross_report.accounts[0].performance.total_return)
    whole = 100 * earned
    assert line_layer.y[-1] == pytest.approx(whole, rel=1e-5)
    layers = layers_of(chart).keys()
    assert {"buy and hold, 100 % held", "random timings of this run, 5–95 %", "position"} <= layers
    assert [panel.y.title for panel in chart.panels] == ["return, %", "drawdown, %", "position, %"]
    lost = next(layer for layer in chart.panels[1].layers if layer.name == "this run")  # type: ignore[union-attr]
    worst = present(cross_report.accounts[0].performance.max_drawdown)
    assert min(lost.y) == pytest.approx(-100 * worst, rel=1e-4)  # type: ignore[union-attr]


def test_a_short_position_between_two_marks_is_still_drawn(cross_report: Report) -> None:
    record = cross_report.record
    bars = record.bars["linear:BTCUSDT"]
    share = record.account.held["linear:BTCUSDT"] * bars.close / record.account.equity[1:]
    shares = exposure_share(cross_report)
    assert shares.size == cross_report.marks_ms.size < share.size
    assert (shares.max(), shares.min()) == pytest.approx((share.max(), share.min()))


def test_gates_that_cannot_be_judged_have_no_mark(
    attention_report: Report, cross_report: Report
) -> None:
    assert refusal_chart(cross_report.refusals) is None
    assert refusal_chart(attention_report.refusals) is None  # one day
    judged = tuple(
        replace(
            row,
            judged=replace(row.judged, error=1.5e-4, low=-2e-4, high=3e-4),
            verdict=verdict,
        )
        for row, verdict in zip(
            [row for row in attention_report.refusals if row.measured][:3],
            ("saved", "cost", "no evidence"),
            strict=True,
        )
    )
    chart = present(refusal_chart(judged))
    layers = layers_of(chart)
    band, marks = layers["random gate, 95 %"], layers["this gate, 95 %"]
    assert (band.base, band.x) == ([-2.0] * 3, [5.0] * 3)
    assert marks.roles == ["gain", "loss", "muted"]
    assert marks.errors == [3.0] * 3
    rows = chart.panels[0].y
    assert rows.is_reversed  # the first gate on top
    assert rows.names[0].startswith(judged[0].gate)


def test_the_price_chart_marks_every_entry_and_exit_at_its_price(cross_report: Report) -> None:
    chart = present(price_chart(cross_report, "linear:BTCUSDT"))
    marks = layers_of(chart)
    closed = cross_report.own_trades
    entries = marks["entry long"].x + marks["entry short"].x
    assert sorted(entries) == sorted(trade.opened_ms for trade in closed)
    lost = [trade for trade in closed if trade.profit <= 0]
    assert marks["exit, loss"].x == [trade.closed_ms for trade in lost]
    assert marks["exit, loss"].y == [trade.exit_price for trade in lost]
    assert marks["exit, loss"].roles == ("loss",)
    assert len(lost) + len(marks["exit, gain"].x) == len(closed)
    assert "the 122 closed trades" in caption(cross_report, "linear:BTCUSDT").replace(
        str(len(closed)), "122"
    )


def test_the_price_chart_counts_every_refused_signal_of_each_gate(attention_report: Report) -> None:
    chart = present(price_chart(attention_report, "linear:BTCUSDT"))
    stripes = layers_of(chart)["signals refused"]
    drawn = dict(zip(chart.panels[-1].y.names, map(sum, stripes.rows), strict=True))
    refused = {
        row.gate: row.signals
        for row in attention_report.refusals
        if row.signals and row.gate != ALLOWED
    }
    assert drawn == refused


def test_the_ribbon_shows_what_was_asked_for_at_each_time(
    attention_report: Report, cross_report: Report
) -> None:
    shown = set[str | None]()
    for report in (attention_report, cross_report):
        chart = present(price_chart(report, "linear:BTCUSDT", last=120))
        ribbon, record = layers_of(chart)["asked for"], report.record
        newest = record.decisions.open_time_ms[-120:]
        assert list(ribbon.x) == record.bar_times.closes_of(newest).tolist()
        drawn = [None if cell is None else ribbon.names[int(cell)] for cell in ribbon.rows[0]]
        pairs = zip(record.decisions.action[-120:], record.decisions.allowed[-120:], strict=True)
        assert drawn == [action if allowed else None for action, allowed in pairs]
        shown |= set(drawn)
    assert {None, "LONG", "SHORT"} <= shown


def test_a_price_of_many_bars_is_thinned_with_its_extremes_and_said(cross_report: Report) -> None:
    bars = cross_report.record.bars["linear:BTCUSDT"]
    chart = present(price_chart(cross_report, "linear:BTCUSDT"))
    band, close = layers_of(chart)["low to high"], layers_of(chart)["close"]
    assert len(close.x) == 800 < bars.close.size
    assert min(band.low) == bars.low.min()
    assert max(band.high) == bars.high.max()
    many = cross_report.own_trades * 3
    thick = replace(cross_report, trades={**cross_report.trades, "this run": many})
    assert len(drawn_trades(thick, "linear:BTCUSDT")) == 300
    assert f"300 of the {len(many):,} closed trades" in caption(thick, "linear:BTCUSDT")


def test_no_line_crosses_a_hole_in_the_data() -> None:
    times = np.array([10, 20, 30, 90, 100])
    at, (values,) = broken(times, np.arange(5.0))
    assert at == [10, 20, 30, 89, 90, 100]
    assert np.isnan(values[3])
    assert broken(np.array([5]), np.ones(1))[0] == [5]


def test_an_account_that_dwarfs_the_run_has_a_panel_of_its_own(cross_report: Report) -> None:
    curve, *others = cross_report.curves
    huge = replace(others[-1], equity=others[-1].equity[0] * np.linspace(1.0, 50.0, 800))
    chart = equity_chart(replace(cross_report, curves=(curve, huge)))
    drawn = [[getattr(layer, "name", "") for layer in panel.layers] for panel in chart.panels]
    first, second = drawn[:2]
    assert (curve.name in first, curve.name in second) == (True, False)
    assert (f"{huge.name}, 100 % held" in first, second) == (False, [f"{huge.name}, 100 % held"])
    for panel in equity_chart(cross_report).panels[:1]:
        reach = {
            layer.name: (np.nanmin(np.array(layer.y, float)), np.nanmax(np.array(layer.y, float)))
            for layer in panel.layers
            if isinstance(layer, LineLayer)
        }
        low, high = (f(of[place] for of in reach.values()) for place, f in enumerate((min, max)))
        assert reach[curve.name][1] - reach[curve.name][0] >= (high - low) / 5


def test_a_short_run_has_no_rolling_ratio(cross_report: Report) -> None:
    assert rolling_chart(cross_report) is None
    times = 86_400_000 * np.arange(1, 41)
    chart = rolling_chart(replace(cross_report, rolling=(times, np.linspace(-1, 1, 40))))
    assert layers_of(chart)["Sharpe of 30 days"].y[0] == -1


def ratios_of(chart: Chart) -> HeatLayer:
    [heat] = (
        layer
        for panel in chart.panels
        for layer in panel.layers
        if isinstance(layer, HeatLayer) and layer.scale == "log2"
    )
    return heat


def test_the_heatmap_shows_ratios_around_one(attention_report: Report) -> None:
    (heatmap,) = present(attention_report.attention).heatmaps
    drawn = ratios_of(rollout_chart(attention_report, heatmap))
    ratios = 2.0 ** np.array(drawn.rows, dtype=np.float64)
    cells = len(ratios)
    assert cells < len(heatmap.weights)
    by_age = heatmap.weights[:-1].sum(axis=1)
    assert by_age[:cells].sum() > 0.995 * by_age.sum() >= by_age[: cells - 1].sum()
    weighted = (ratios * heatmap.weights[:cells].mean(axis=1, keepdims=True)).sum(axis=0)
    assert weighted == pytest.approx(heatmap.weights[:cells].sum(axis=0), rel=2e-3)


def test_the_oldest_cells_neither_show_nor_stretch_the_heatmap(attention_report: Report) -> None:
    (heatmap,) = present(attention_report.attention).heatmaps
    rng, columns = np.random.default_rng(4), heatmap.times_ms.size
    # Ten cells that move by a tenth, and the oldest, of next to nothing, by a factor of eight.
    usual = np.array([*([0.08] * 10), 0.004, 0.0001, 0.0])[:, None]
    moved = np.exp(0.1 * rng.normal(size=(13, columns)))
    moved[-3:-1] = np.where(np.arange(columns) % 2, 8.0, 0.125)
    planted = replace(heatmap, weights=usual * moved)
    drawn = ratios_of(rollout_chart(attention_report, planted))
    assert len(drawn.rows) == 11
    assert 0.2 < drawn.high < 1.0  # each cell alike: three, the most there is


def test_the_histogram_counts_the_decisions_on_both_sides_of_the_gate(
    attention_report: Report,
) -> None:
    chart = confidence_chart(attention_report)
    bars, gate = layers_of(chart)["bars"], layers_of(chart)["gate"]
    confidence = attention_report.record.decisions.confidence_entropy
    explained = int(np.isfinite(confidence).sum())
    assert 0.99 * explained <= sum(bars.y) <= explained
    assert gate.at == attention_report.record.thresholds["confidence_entropy"] > 0
    passed = [role == "accent" for role in bars.roles]
    assert passed == [at >= gate.at for at in bars.x]


def test_winners_and_losers_are_two_lines_over_the_ages(attention_report: Report) -> None:
    chart = present(groups_chart(attention_report))
    winners, losers = chart.panels[0].layers
    for line, group in zip((winners, losers), attention_report.groups, strict=True):
        assert isinstance(line, LineLayer)
        assert line.name == f"{group.trades} {group.name}"
        assert line.y == pytest.approx([100 * share for share in group.rollout[:-1]], rel=1e-4)
        assert line.x[1] == 64
    assert groups_chart(replace(attention_report, groups=attention_report.groups[:1])) is None


def test_the_confidence_of_each_head_is_a_cell_that_bears_its_number(
    attention_report: Report,
) -> None:
    chart = present(head_confidence_chart(attention_report, attention_report.heads))
    cells = layers_of(chart)["confidence"]
    shares = np.array(cells.rows).ravel()
    assert shares == pytest.approx(present(attention_report.attention).head_confidence, rel=1e-3)
    assert cells.is_written
    assert (cells.low, cells.high) == pytest.approx((shares.min(), shares.max()), rel=1e-3)
    assert chart.panels[0].x.names[0] == "head 1"
    assert chart.panels[0].y.names[-1] == "layer 4"
    assert head_confidence_chart(attention_report, 0) is None
