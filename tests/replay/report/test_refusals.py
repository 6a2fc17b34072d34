from __future__ import annotations

import sqlite3
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from tracepaper.replay.report.document import Report
from tracepaper.replay.report.record import Floats, Ints
from tracepaper.replay.report.refusals import ALLOWED, Mask, forward_returns, judge

DAY = 86_400_000
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
        assert row.days == len({time // DAY for time, _ in signals})


def test_others_are_all_signals_that_the_gate_did_not_refuse(attention_report: Report) -> None:
    rows = [row for row in attention_report.refusals if row.measured]
    every = sum(row.measured for row in rows)
    whole = sum(row.measured * (row.gross_bp or 0.0) for row in rows)
    for row in rows:
        assert row.gross_bp is not None
        others = (whole - row.measured * row.gross_bp) / (every - row.measured)
        assert row.others_bp == pytest.approx(others)
        assert row.kept_better_bp == pytest.approx(others - row.gross_bp)


def test_every_decision_is_in_one_row(attention_report: Report) -> None:
    rows = attention_report.refusals
    assert sum(row.decisions for row in rows) == attention_report.record.decisions.sequence.size
    assert rows[-1].gate == ALLOWED
    assert rows[0].gate == "warm"
    assert (rows[0].signals, rows[0].net_bp, rows[0].said) == (0, None, "")


def test_of_few_days_nothing_is_judged(attention_report: Report) -> None:
    measured = [row for row in attention_report.refusals if row.measured]
    assert {row.said for row in measured} == {"too few days"}
    assert all(row.error_bp is None and row.kept_better_bp is not None for row in measured)


def test_a_signal_whose_horizon_has_a_hole_in_it_is_not_measured(
    attention_report: Report,
) -> None:
    record = attention_report.record
    (bars,) = record.bars.values()
    moved = bars.open_time_ms.copy()
    moved[500:] += 90 * DAY  # a hole of three months
    holed = replace(record, bars={"linear:BTCUSDT": replace(bars, open_time_ms=moved)})
    whole, found = forward_returns(record)[1], forward_returns(holed)[1]
    lost = np.isfinite(whole) & np.isnan(found)
    assert np.flatnonzero(lost).tolist() == list(range(500 - HORIZON - 1, 500))
    assert found[np.isfinite(found)].tolist() == whole[np.isfinite(found)].tolist()


# ---------------------------------------------------------------- planted gates


def world(days: int, seed: int, a_day: int = 60) -> tuple[Floats, Ints]:
    """Return the gross returns of signals that all lose, and their days.

    Neighbours overlap and the signals of a day share its market, as forward returns do.
    """
    chance = np.random.default_rng(seed)
    steps = chance.normal(0.0, 1e-4, days * a_day + HORIZON - 1)
    overlapping = np.convolve(steps, np.ones(HORIZON), "valid")
    by_day = np.repeat(chance.normal(0.0, 5e-4, days), a_day)
    return overlapping + by_day - 2.1e-4, np.repeat(np.arange(days), a_day)


def blocks(size: int, share: float, length: int, seed: int) -> Mask:
    """Return refusals by chance in stretches of *length* signals."""
    chance = np.random.default_rng(seed)
    return np.repeat(chance.random(-(-size // length)) < share, length)[:size]


@pytest.mark.parametrize(("length", "share"), [(1, 0.5), (1, 0.05), (20, 0.4), (60, 0.5)])
def test_a_gate_that_refuses_by_chance_is_called_saved_no_more_often_than_chance_allows(
    length: int, share: float
) -> None:
    signs = []
    for seed in range(200):
        gross, days = world(40, seed)
        signs.append(judge(gross, blocks(gross.size, share, length, 1_000 + seed), days).sign)
    # 2.5 % on either side; of 200, five are expected and eleven are three standard deviations off.
    assert signs.count(1) <= 11
    assert signs.count(-1) <= 11


def test_a_gate_is_not_credited_with_what_every_signal_loses() -> None:
    """Every signal loses its fee: by the net return of its refusals each gate would have saved."""
    gross, days = world(60, 1)
    chosen = blocks(gross.size, 0.9, 7, 2)
    net = gross - 11e-4
    assert net[chosen].mean() < -10e-4
    found = judge(net, chosen, days)
    assert found.sign == 0
    # A cost that all pay changes neither the difference nor what a random gate makes.
    free = judge(gross, chosen, days)
    assert (found.difference, found.error) == pytest.approx((free.difference, free.error))
    assert (found.low, found.high) == pytest.approx((free.low, free.high))


def test_a_gate_that_refuses_bad_signals_saved_and_one_that_refuses_good_ones_cost() -> None:
    gross, days = world(60, 3)
    chosen = blocks(gross.size, 0.3, 5, 4)
    for effect, sign in ((-4e-4, 1), (4e-4, -1)):
        found = judge(gross + effect * chosen, chosen, days)
        assert found.sign == sign
        assert found.difference == pytest.approx(-effect, rel=0.35)
        assert found.low is not None
        assert found.high is not None
        assert found.low < 0 < found.high


def test_one_lucky_day_of_many_signals_proves_nothing() -> None:
    """Thousands of refusals on one terrible day are one observation, not thousands."""
    gross, days = world(60, 5)
    chosen = blocks(gross.size, 0.02, 1, 6)
    crash = days == 30
    gross[crash] -= 100e-4
    chosen[crash] = True
    naive = gross[chosen].std(ddof=1) / np.sqrt(chosen.sum())
    found = judge(gross, chosen, days)
    assert found.difference is not None
    assert found.difference > 10 * naive
    assert found.sign == 0


def test_a_gate_on_few_days_is_not_judged_and_one_that_refuses_all_cannot_be() -> None:
    gross, days = world(40, 7)
    few = (days < 9) & blocks(gross.size, 0.5, 1, 8)
    found = judge(gross, few, days)
    assert (found.days, found.error, found.sign) == (9, None, 0)
    assert found.difference is not None
    assert judge(gross, np.ones(gross.size, dtype=np.bool_), days).difference is None
    assert judge(gross, np.zeros(gross.size, dtype=np.bool_), days).days == 0
    assert judge(np.empty(0), np.empty(0, dtype=np.bool_), np.empty(0, dtype=np.int64)).days == 0


def test_a_random_gate_is_the_gate_s_own_pattern_moved_along() -> None:
    gross, days = world(12, 9)
    chosen = blocks(gross.size, 0.4, 11, 10)
    moved = [
        float(gross[~there].mean() - gross[there].mean())
        for step in range(60, gross.size - 60)
        if (there := np.roll(chosen, step)).any()
    ]
    found = judge(gross, chosen, days)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(moved, (0.025, 0.975))))


def test_without_a_model_there_are_no_signals(cross_report: Report) -> None:
    assert {row.gate for row in cross_report.refusals} == {"warm", ALLOWED}
    assert all(row.signals == 0 and row.net_bp is None for row in cross_report.refusals)
