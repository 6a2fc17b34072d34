from __future__ import annotations

import numpy as np
import pytest

from tracepaper.replay.report.attention_charts import confidence_chart, rollout_chart
from tracepaper.replay.report.charts import equity_chart, exposure_share, refusal_chart, rounded
from tracepaper.replay.report.document import Report


def test_the_own_curve_ends_at_the_run_s_return(cross_report: Report) -> None:
    chart = equity_chart(cross_report)
    own = [trace for trace in chart["data"] if trace["name"] == "this run"]
    assert own[0]["x"][-1] == cross_report.record.times_ms[-1]
    whole = 100 * cross_report.accounts[0].performance.total_return
    assert own[0]["y"][-1] == pytest.approx(whole, rel=1e-5)
    assert {"buy and hold", "random twins of this run, 5–95 %"} <= {
        trace["name"] for trace in chart["data"]
    }


def test_a_short_position_between_two_marks_is_still_drawn(cross_report: Report) -> None:
    record = cross_report.record
    bars = record.bars["linear:BTCUSDT"]
    share = record.account.held["linear:BTCUSDT"] * bars.close / record.account.equity[1:]
    shown = exposure_share(cross_report)
    assert shown.size == cross_report.marks_ms.size < share.size
    assert (shown.max(), shown.min()) == pytest.approx((share.max(), share.min()))


def test_gates_without_signals_have_no_bar(attention_report: Report, cross_report: Report) -> None:
    assert refusal_chart(cross_report) is None
    chart = refusal_chart(attention_report)
    assert chart is not None
    measured = [row for row in attention_report.refusals if row.measured]
    assert len(chart["data"][0]["y"]) == len(measured)
    assert chart["data"][0]["y"][-1].startswith(measured[0].gate)  # the first gate on top


def test_the_heatmap_shows_ratios_around_one(attention_report: Report) -> None:
    assert attention_report.attention is not None
    (heatmap,) = attention_report.attention.heatmaps
    shown = next(
        trace
        for trace in rollout_chart(attention_report, heatmap)["data"]
        if trace.get("meta") == "log2"
    )
    ratios = 2.0 ** np.array(shown["z"], dtype=np.float64)
    weighted = (ratios * heatmap.weights[:-1].mean(axis=1, keepdims=True)).sum(axis=0)
    assert weighted == pytest.approx(heatmap.weights[:-1].sum(axis=0), rel=2e-3)


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
