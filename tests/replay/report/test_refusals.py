from __future__ import annotations

import math
import sqlite3
from statistics import mean, stdev

import pytest

from tracepaper.replay.report.document import Report
from tracepaper.replay.report.refusals import ALLOWED

HORIZON = 30
ROUND_TRIP_HALF = 0.00055


def by_hand(report: Report) -> dict[str, list[tuple[int, float]]]:
    """Return (open time, net return) of every measurable signal by gate, one decision at a time."""
    with sqlite3.connect(report.record.database) as db:
        opens = [row[0] for row in db.execute("SELECT open FROM v_bars ORDER BY sequence")]
        decisions = db.execute(
            "SELECT open_time_ms, coalesce(refused_by, 'allowed'), mean_return, p_up, p_down "
            "FROM v_decisions ORDER BY sequence"
        ).fetchall()
    found: dict[str, list[tuple[int, float]]] = {}
    for place, (time, gate, expected, up, down) in enumerate(decisions):
        if expected is None or place + 1 + HORIZON >= len(opens):
            continue
        side = 1 if expected > 0 and up > down else -1 if expected < 0 and up < down else 0
        if side:
            entry, leave = opens[place + 1], opens[place + 1 + HORIZON]
            earned = side * (leave - entry) - ROUND_TRIP_HALF * (entry + leave)
            found.setdefault(gate, []).append((time, earned / entry))
    return found


def test_what_a_gate_refused_equals_a_computation_by_hand(attention_report: Report) -> None:
    expected = by_hand(attention_report)
    rows = {row.gate: row for row in attention_report.refusals}
    assert len(expected) > 2
    for gate, signals in expected.items():
        row = rows[gate]
        returns = [1e4 * earned for _, earned in signals]
        assert row.measured == len(signals)
        assert row.net_bp == pytest.approx(mean(returns))
        assert row.hit_rate == pytest.approx(mean(earned > 0 for earned in returns))
        apart, free = 0, 0
        for time, _ in signals:
            if time >= free:
                apart, free = apart + 1, time + HORIZON * 60_000
        assert row.apart == apart
        if apart > 1:
            assert row.standard_error_bp == pytest.approx(stdev(returns) / math.sqrt(apart))


def test_every_decision_is_in_one_row(attention_report: Report) -> None:
    rows = attention_report.refusals
    assert sum(row.decisions for row in rows) == attention_report.record.decisions.sequence.size
    assert rows[-1].gate == ALLOWED
    assert rows[0].gate == "warm"
    assert (rows[0].signals, rows[0].net_bp, rows[0].said) == (0, None, "")


def test_a_verdict_needs_two_standard_errors(attention_report: Report) -> None:
    for row in attention_report.refusals:
        if row.net_bp is None:
            continue
        clear = row.standard_error_bp is not None and abs(row.net_bp) > 2 * row.standard_error_bp
        expected = ("saved" if row.net_bp < 0 else "cost") if clear else "noise"
        assert row.said == expected


def test_without_a_model_there_are_no_signals(cross_report: Report) -> None:
    assert {row.gate for row in cross_report.refusals} == {"warm", ALLOWED}
    assert all(row.signals == 0 and row.net_bp is None for row in cross_report.refusals)
