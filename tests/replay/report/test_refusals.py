from __future__ import annotations

import sqlite3
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from tracepaper.replay.report.benchmarks import ALLOWED, Mask, forward_returns, judge, refusals
from tracepaper.replay.report.record import Bars, Decisions
from tracepaper.replay.report.report import Report
from tracepaper.replay.run_columns import Floats, Ints

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
    by_gate: dict[str, list[tuple[int, float]]] = {}
    for place, (time, gate, expected, up, down) in enumerate(decisions):
        if expected is None or place + 1 + HORIZON >= len(opens):
            continue
        side = 1 if expected > 0 and up > down else -1 if expected < 0 and up < down else 0
        if side:
            entry, leave = opens[place + 1], opens[place + 1 + HORIZON]
            earned = side * (leave - entry) - ROUND_TRIP_HALF * (entry + leave)
            by_gate.setdefault(gate, []).append((time, earned / entry))
    return by_gate


def test_what_a_gate_refused_equals_a_computation_by_hand(attention_report: Report) -> None:
    expected = by_hand(attention_report)
    rows = {row.gate: row for row in attention_report.refusals}
    assert len(expected) > 2
    for gate, signals in expected.items():
        row = rows[gate]
        returns = [earned for _, earned in signals]
        assert row.measured == len(signals)
        assert row.net == pytest.approx(mean(returns))
        assert row.judged.days == len({time // DAY for time, _ in signals})


def test_a_gate_is_compared_with_what_it_saw_and_let_pass(attention_report: Report) -> None:
    rows = [row for row in attention_report.refusals if row.measured]
    assert len(rows) > 2
    for place, row in enumerate(rows):
        others = rows[:place] if row.gate == ALLOWED else rows[place + 1 :]
        if not others:
            assert row.judged.difference is None
            continue
        mean_of = sum(refusal.measured * (refusal.gross or 0.0) for refusal in others) / sum(
            other.measured for other in others
        )
        assert row.passed == pytest.approx(mean_of)
        assert row.judged.difference == pytest.approx(mean_of - (row.gross or 0.0))


def test_every_decision_is_in_one_row(attention_report: Report) -> None:
    rows = attention_report.refusals
    assert sum(row.decisions for row in rows) == attention_report.record.decisions.sequence.size
    assert rows[-1].gate == ALLOWED
    assert rows[0].gate == "warm"
    assert (rows[0].signals, rows[0].net, rows[0].verdict) == (0, None, "")


def test_without_forecasts_signals_are_unknown_and_not_none(cross_report: Report) -> None:
    assert {row.signals for row in cross_report.refusals} == {None}


def test_a_signal_whose_horizon_has_a_hole_in_it_is_not_measured(attention_report: Report) -> None:
    record = attention_report.record
    (bars,) = record.bars.values()
    moved = bars.open_time_ms.copy()
    moved[500:] += 90 * DAY  # a hole of three months
    holed = replace(record, bars={"linear:BTCUSDT": replace(bars, open_time_ms=moved)})
    whole, returns = forward_returns(record)[1], forward_returns(holed)[1]
    lost = np.isfinite(whole) & np.isnan(returns)
    assert np.flatnonzero(lost).tolist() == list(range(500 - HORIZON - 1, 500))
    assert returns[np.isfinite(returns)].tolist() == whole[np.isfinite(returns)].tolist()


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
    """Return random refusals in stretches of *length* signals."""
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
    """If every signal loses its fee, each gate would seem to save money by net returns."""
    gross, days = world(60, 1)
    chosen = blocks(gross.size, 0.9, 7, 2)
    net = gross - 11e-4
    assert net[chosen].mean() < -10e-4
    judgement = judge(net, chosen, days)
    assert judgement.sign == 0
    # A cost that all pay changes neither the difference nor what a random gate makes.
    free = judge(gross, chosen, days)
    assert (judgement.difference, judgement.error) == pytest.approx((free.difference, free.error))
    assert (judgement.low, judgement.high) == pytest.approx((free.low, free.high))


def test_a_gate_that_refuses_bad_signals_saved_and_one_that_refuses_good_ones_cost() -> None:
    gross, days = world(60, 3)
    chosen = blocks(gross.size, 0.3, 5, 4)
    for effect, sign in ((-4e-4, 1), (4e-4, -1)):
        judgement = judge(gross + effect * chosen, chosen, days)
        assert judgement.sign == sign
        assert judgement.difference == pytest.approx(-effect, rel=0.35)
        assert judgement.low is not None
        assert judgement.high is not None
        assert judgement.low < 0 < judgement.high


def test_one_lucky_day_of_many_signals_proves_nothing() -> None:
    """Thousands of refusals on one day of losses are one observation."""
    gross, days = world(60, 5)
    chosen = blocks(gross.size, 0.02, 1, 6)
    crash = days == 30
    gross[crash] -= 100e-4
    chosen[crash] = True
    naive = gross[chosen].std(ddof=1) / np.sqrt(chosen.sum())
    judgement = judge(gross, chosen, days)
    assert judgement.difference is not None
    assert judgement.difference > 10 * naive
    assert judgement.sign == 0


def test_one_bad_month_proves_nothing_though_its_days_agree() -> None:
    """Near days are similar: a rotated gate finds other months like those of the gate."""
    gross, days = world(200, 11)
    month = days // 40
    gross += np.array([-6e-4, 5e-4, -8e-4, 6e-4, 0.0])[month]
    judgement = judge(gross, month == 0, days)
    assert judgement.difference is not None
    assert judgement.error is not None
    assert judgement.difference > 2 * judgement.error  # by days alone it would have saved
    assert judgement.sign == 0


@pytest.mark.parametrize(
    ("refused_luck", "words"), [(-1, ("saved", "better")), (1, ("cost", "worse"))]
)
def test_a_planted_gate_is_named_for_what_it_did(
    attention_report: Report, refused_luck: int, words: tuple[str, str]
) -> None:
    """One gate refuses losing (or winning) signals; two other gates refuse at random."""
    size = 288 * 40  # five-minute bars of forty days
    chance = np.random.default_rng(12)
    record = attention_report.record
    opens = 100.0 * np.exp(chance.normal(0.0, 1e-3, size).cumsum())
    times = 1_748_217_600_000 + 300_000 * np.arange(size)
    places = np.arange(size)
    bars = Bars(places, times, opens, opens, opens, opens, np.zeros(size))
    ahead = np.zeros(size)
    ahead[: size - HORIZON - 1] = opens[1 + HORIZON :] / opens[1 : size - HORIZON] - 1.0
    side = chance.choice([-1.0, 1.0], size)
    bad = chance.random(size) < 0.3
    side[bad] = refused_luck * np.where(ahead[bad] >= 0, 1.0, -1.0)
    gate = np.where(chance.random(size) < 0.3, "edge", "")  # the last gate, by chance
    gate = np.where(bad & (chance.random(size) < 0.7), "regime", gate)
    gate = np.where(
        chance.random(size) < 0.3, "confidence_entropy", gate
    )  # the first gate, by chance
    nothing = np.full(size, np.nan)
    texts = np.full(size, "linear:BTCUSDT"), np.full(size, "HOLD")
    decisions = Decisions(
        places, texts[0], times, texts[1], gate == "", gate, np.full(size, ""), texts[1],
        side * 1e-3, 0.5 + 0.1 * side, 0.5 - 0.1 * side, *[nothing] * 4,
    )  # fmt: skip
    planted = replace(
        record,
        bar_times=replace(record.bar_times, interval_ms=300_000),
        bars={"linear:BTCUSDT": bars},
        decisions=decisions,
    )
    rows = {row.gate: row for row in refusals(planted)}
    assert [row.judged.days for row in rows.values()] == [40] * 4
    named = {gate: row.verdict for gate, row in rows.items()}
    # The gates by chance, before and after the one that knows, get nothing of what it did.
    assert (named["confidence_entropy"], named["edge"]) == ("no evidence", "no evidence")
    assert (named["regime"], named[ALLOWED]) == words
    kept = rows["regime"].judged.difference
    assert kept is not None
    assert np.sign(kept) == -refused_luck
    costs = 2 * record.cost_rate
    assert rows["regime"].net == pytest.approx((rows["regime"].gross or 0.0) - costs, abs=1e-5)


def test_a_gate_on_few_days_is_not_judged_and_one_that_refuses_all_cannot_be() -> None:
    gross, days = world(40, 7)
    few = (days < 9) & blocks(gross.size, 0.5, 1, 8)
    judgement = judge(gross, few, days)
    assert (judgement.days, judgement.error, judgement.sign) == (9, None, 0)
    assert judgement.difference is not None
    assert judge(gross, np.ones(gross.size, dtype=np.bool_), days).difference is None
    assert judge(gross, np.zeros(gross.size, dtype=np.bool_), days).days == 0
    assert judge(np.empty(0), np.empty(0, dtype=np.bool_), np.empty(0, dtype=np.int64)).days == 0


def test_a_random_gate_is_the_gate_s_own_pattern_moved_along() -> None:
    gross, days = world(60, 9, a_day=20)
    chosen = blocks(gross.size, 0.4, 11, 10)
    moved = [
        float(gross[~there].mean() - gross[there].mean())
        for step in range(20, gross.size - 20)
        if (there := np.roll(chosen, step)).any()
    ]
    judged = judge(gross, chosen, days)
    assert (judged.low, judged.high) == pytest.approx(tuple(np.quantile(moved, (0.025, 0.975))))
