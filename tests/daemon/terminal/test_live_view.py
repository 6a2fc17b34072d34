"""The live view and the log view, drawn from steps."""

from __future__ import annotations

import io
import json
import pickle
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from builders import account, bar, bars, decision, fill, forecast, instrument, quote, run, step
from fakes import ManualClock
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tracepaper.daemon.terminal.console import configure
from tracepaper.daemon.terminal.live_view import Lines, Pace, RunWatcher
from tracepaper.daemon.terminal.screen import (
    CLOSES_KEPT,
    EQUITY_KEPT,
    FILLS_KEPT,
    RunView,
    Status,
    apply_change,
    line_chart,
    screen,
    sparkline,
    split,
    status_lines,
)
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.types.decisions import (
    Position,
    PredictionTimeout,
    RunRow,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import Command, CommandKind, Gap, GapCause
from tracepaper.strategies.units import MONEY_SCALE

INSTRUMENTS = {"linear:BTCUSDT": instrument()}


def state_of(*steps: Step, of: RunRow | None = None) -> Status:
    """Return what the view's own process knows after *steps*."""
    view = RunView(of or run(instruments=tuple(INSTRUMENTS.values())), ManualClock())
    status: Status = {"bars_per_s": 33.4}
    for each in steps:
        view.observe(each)
        for change in pickle.loads(pickle.dumps(view.changes())):
            apply_change(status, change)
    return status


def text(status: Status, width: int = 120, height: int = 50, chosen: str = "") -> str:
    lines = screen(status, width, height, chosen)
    assert len(lines) <= height
    assert all(line.cell_len <= width for line in lines)
    return "\n".join(line.plain for line in lines)


def drawn(*steps: Step, width: int = 120) -> str:
    return text(state_of(*steps), width)


def full_step(sequence: int = 3) -> Step:
    return step(
        bar(close=6_511_420),
        sequence=sequence,
        decided=decision(),
        prediction=forecast(),
        fills=(fill(),),
        position=Position(-1_500, -1_500 * 6_500_000 * 10**3, 0, 25 * 10**7),
        of=account(100_012),
        shadows=(ShadowStep("ungated", Position(), account(99_930), ()),),
    )


def test_the_screen_shows_what_was_decided_and_why() -> None:
    screen = drawn(full_step())
    for words in (
        "65,114.20",
        "+0.200 % ± 0.400 % in 30 bars",
        "↓30 %",
        "↑50 %",
        "confidence_entropy 0.200",
        "regime MOMENTUM",
        "recent mass 0.600",
        "HOLD  refused by edge",
        "✗ edge  0.4, needs ≥ 1, 0.6 short  round-trip costs",
        "✓ 3 of 4 passed",
        "fills     ",
        "BUY  1 BTCUSDT at 101.00",
        "-1.5 BTC at 65,000.00",
        "+2.50",
        "100,012.00 +0.01 %",
        "ungated shadow 99,930.00 -0.07 %",
        "fees and funding",
        "decisions 1  fills 1  33.4 bars/s",
        "closed 2023-11-14 22:15 UTC",
    ):
        assert words in screen


def test_on_margin_the_screen_says_what_is_bound_and_where_it_ends() -> None:
    config = json.dumps({"account": {"margin": "isolated", "leverage": "10"}})
    of = structs.replace(run(instruments=(instrument(),)), config=config)
    held = Position(1_500, 150 * MONEY_SCALE, margin=15 * MONEY_SCALE)
    state = state_of(step(bar(), decided=decision(), position=held), of=of)
    price = Decimal(state["instruments"]["linear:BTCUSDT"]["liquidation_price"])
    assert f"15.00 at 10 x, liquidated at {price:,.2f}" in text(state)
    assert "margin used 15.00" in text(state)
    assert "margin" not in drawn(full_step())


def live_step(gates: int, *, failed: int = 1, name: str = "linear:BTCUSDT") -> Step:
    """Return a step with a position whose decision has so many gates, the first of them failed."""
    names = [name for name in GATES if not name.startswith("risk")][:gates]
    rows = tuple((name, 0.21, 0.18, at >= failed) for at, name in enumerate(names))
    last = structs.replace(full_step(), decision=decision(measures=rows))
    fills = tuple(structs.replace(of, instrument=name) for of in last.fills)
    return structs.replace(last, event=structs.replace(last.event, instrument=name), fills=fills)


@pytest.mark.parametrize(("width", "height"), [(60, 14), (80, 23), (200, 49)])
@pytest.mark.parametrize("symbols", [1, 4, 6])
@pytest.mark.parametrize("failed", [1, 17])
def test_money_and_failing_gates_are_never_cut_off(
    width: int, height: int, symbols: int, failed: int
) -> None:
    named = tuple(instrument(f"{letter}USDT") for letter in "ABCDEF"[:symbols])
    of = structs.replace(run(instruments=named), strategy="a_module_of_mine:AStrategyWithALongName")
    state = state_of(*(live_step(17, failed=failed, name=item.id) for item in named), of=of)
    state |= {"halted_by": "operator", "log": ("line 7",)}
    screen = text(state, width, height, named[-1].id)
    assert "-1.5 " in screen
    assert " equity 100,012.00 +0.01 %" in screen
    assert "HALTED by operator" in screen
    assert "bars/s" in screen.splitlines()[0]
    assert f"{named[-1].symbol:<10}65,114.20" in screen
    assert "✗ operator" in screen
    assert "line 7" in screen or height == 14
    whole = failed == 1 or height == 49
    assert (f"✓ {17 - failed} of 17 passed" in screen) is whole
    assert ("more of 17 failed" in screen) is not whole


def test_a_gate_that_passed_nearly_is_shown_and_one_that_cannot_be_near_is_not() -> None:
    rows = (
        ("operator", 1.0, 1.0, True),
        ("warm", 4_349.0, 4_349.0, True),  # capped: it stops there
        ("shifted", 0.0095, 0.01, True),
        ("confidence_entropy", 0.199, 0.18, True),  # a little over a tenth
        ("confidence_margin", 0.19, 0.18, True),
        ("edge", 1.0, 1.0, True),
    )
    screen = drawn(step(bar(), decided=decision(measures=rows)))
    gates = [line.strip() for line in screen.splitlines() if "needs" in line]
    assert gates == [
        "gates     ! edge  1, needs ≥ 1, 0 to spare  round-trip costs",
        "! shifted  0.0095, needs ≤ 0.01, 0.0005 to spare  JS distance",
        "! confidence_margin  0.19, needs ≥ 0.18, 0.01 to spare  of both",
    ]
    assert "✓ 6 of 6 passed" in screen


def test_between_bars_fills_and_marks_move_money_and_position() -> None:
    held = Position(2_000, 2_000 * 6_500_000 * 10**3, 0, -7 * MONEY_SCALE)
    later = step(quote(), sequence=4, position=held, of=account(99_990))
    screen = drawn(full_step(), later)
    assert "2 BTC at 65,000.00  -7.00" in screen
    assert "equity 99,990.00 -0.01 %" in screen
    assert "ungated shadow 99,930.00" in screen


def test_what_is_kept_is_bounded_and_evenly_spread() -> None:
    view, status = RunView(run(instruments=(instrument(),)), ManualClock()), Status()
    count = 5 * EQUITY_KEPT
    for number, candle in enumerate(bars(count)):
        view.observe(step(candle, decided=decision(), of=account(number), fills=(fill(),)))
    for parts in (2, 1):
        changes = view.changes()
        assert len(changes) == parts
        for change in changes:
            apply_change(status, change)
    assert len(status["closes"]["linear:BTCUSDT"]) == CLOSES_KEPT
    assert len(status["newest"]) == FILLS_KEPT
    assert EQUITY_KEPT // 2 <= len(status["equity"]) <= EQUITY_KEPT
    curve = [value // MONEY_SCALE for value in status["equity"]]
    assert curve == list(range(0, count, count // len(curve)))


def test_control_characters_and_markup_are_shown_as_text() -> None:
    hostile = "\x1b[2J[bold]x[/]\nnext"
    of = structs.replace(run(instruments=(instrument(),)), strategy=hostile)
    state = state_of(step(bar(), decided=decision(), fills=(fill(reason=hostile),)), of=of)
    state["log"] = (hostile,)
    for line in screen(state, 200, 50):
        assert not set(line.plain) & {"\x1b", "\n", "\t"}
    assert "\\x1b[2J[bold]x[/]" in text(state, 200)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10, 3), (40, 6), (500, 200)])
def test_no_size_of_terminal_is_too_small_or_too_large(width: int, height: int) -> None:
    assert text(state_of(live_step(17)), width, height)


def test_a_status_has_few_instruments_whole_and_a_line_for_each_of_many() -> None:
    for many in (2, 9):
        named = tuple(instrument(f"{letter}USDT") for letter in "ABCDEFGHI"[:many])
        of = structs.replace(run(instruments=named))
        status = state_of(*(live_step(5, name=item.id) for item in named), of=of)
        del status["closes"]
        lines = status_lines(status)
        text = "\n".join(line.plain for line in lines)
        assert all(item.symbol in text for item in named)
        assert text.count("✗ operator") == (many if many == 2 else 0)
        assert text.count("refused by operator") == many


def test_the_operators_word_is_shown_until_another_lifts_it() -> None:
    halt, resume = (
        step(Command(kind, "news", 0, 0), sequence=9)
        for kind in (CommandKind.HALT, CommandKind.RESUME)
    )
    assert "HALTED by operator" in drawn(full_step(), halt)
    assert "HALTED" not in drawn(full_step(), halt, resume)


def test_a_late_forecast_and_a_missing_measure_are_shown() -> None:
    rows = (("deadline", 0.0, 1.0, False), ("confidence_entropy", None, 0.18, False))
    screen = drawn(
        step(bar(), decided=decision(measures=rows), prediction=PredictionTimeout(1_000))
    )
    assert "none within 1000 ms" in screen
    assert "✗ confidence_entropy  –, needs ≥ 0.18" in screen


def test_a_warm_up_bar_has_no_decision() -> None:
    screen = drawn(step(bar()))
    assert "gates" not in screen
    assert "1 bar taken in" in screen


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=80))
def test_a_sparkline_spans_lowest_to_highest(values: list[int]) -> None:
    line = sparkline(values)
    assert len(line) == len(values)
    if len(set(values)) > 1:
        assert line[values.index(min(values))] == "▁"
        assert line[values.index(max(values))] == "█"


@given(
    st.lists(st.integers(1, 10**12), min_size=1, max_size=80),
    st.integers(1, 60),
    st.integers(2, 20),
)
def test_a_chart_has_its_highest_and_lowest_value_at_its_edges(
    values: list[int], columns: int, rows: int
) -> None:
    lines = line_chart(values, columns, rows)
    assert [len(line) for line in lines] == [columns] * rows
    assert set("".join(lines)) != {"⠀"}
    if len(set(values)) > 1 and 2 * columns >= len(values):
        assert set(lines[0]) != {"⠀"}
        assert set(lines[-1]) != {"⠀"}


@given(
    st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=3, max_size=3), st.integers(1, 60)
)
def test_a_split_bar_has_all_its_cells(shares: list[float], cells: int) -> None:
    parts = split(shares, cells)
    assert sum(parts) == cells
    assert min(parts) >= 0


def test_the_pace_is_of_the_last_ten_seconds() -> None:
    clock = ManualClock()
    pace = Pace(clock)
    assert pace.per_second() == 0.0
    for _ in range(100):
        clock.advance(network_s=1.0)
        pace.count()
    assert pace.per_second() == pytest.approx(1.0)
    for _ in range(1_000):
        clock.advance(network_s=0.02)
        pace.count()
    assert pace.per_second() == pytest.approx(50.0, rel=0.02)


def test_elsewhere_each_second_has_one_decision_line(log: io.StringIO) -> None:
    clock = ManualClock()
    watcher = RunWatcher(Lines(clock), limit=None, until_ms=None)
    watcher.opened(run())
    for number, candle in enumerate(bars(30)):
        watcher.watch(step(candle, sequence=number, decided=decision(), prediction=forecast()))
        clock.advance(network_s=0.1)
    documents = [json.loads(line) for line in log.getvalue().splitlines()]
    decisions = [line for line in documents if line["event"] == "decision"]
    assert all(line["reason"] for line in decisions)
    assert 3 <= len(decisions) <= 4
    assert decisions[0]["action"] == "HOLD"
    assert decisions[0]["refused_by"] == "edge"
    assert decisions[0]["confidence_entropy"] == 0.2
    assert decisions[0]["equity"] == "100000"


def test_fills_gaps_and_commands_are_never_left_out(log: io.StringIO) -> None:
    gap_step = step(Gap("linear:BTCUSDT", 0, 60_000, GapCause.MISSED, "", 0, 0))
    halt_step = step(Command(CommandKind.HALT, "news", 0, 0))
    watcher = RunWatcher(Lines(ManualClock()), limit=None, until_ms=None)
    watcher.opened(run())
    for each in (full_step(1), full_step(2), full_step(3), gap_step, halt_step):
        watcher.watch(each)
    documents = [json.loads(line) for line in log.getvalue().splitlines()]
    events = [line["event"] for line in documents]
    assert events.count("fill") == 3
    (gap,) = (line for line in documents if line["event"] == "gap")
    assert (gap["cause"], gap["repaired_by"]) == ("missed", "never")
    (command,) = (line for line in documents if line["event"] == "command")
    assert (command["kind"], command["note"]) == ("HALT", "news")
    (first, *_) = (line for line in documents if line["event"] == "fill")
    assert (first["side"], first["quantity"], first["price"]) == ("BUY", "1", "101")


# What `run` says when it ends: what happened since its start, and what to type next.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watcher() -> RunWatcher:
    configure(stream=io.StringIO())
    run_watcher = RunWatcher(Lines(ManualClock()), limit=None, until_ms=None)
    run_watcher.opened(run(instruments=(instrument(),)))
    passing = (("operator", 1.0, 1.0, True), ("edge", 1.4, 1.0, True))
    allowed = decision(measures=passing)
    refused = decision()
    for sequence, decided in enumerate((allowed, refused, refused)):
        run_watcher.watch(
            step(
                bar(index=sequence),
                sequence=sequence,
                decided=decided,
                fills=(fill(),) if decided is allowed else (),
                of=account(99_987),
            )
        )
    return run_watcher


def test_a_terminal_is_told_what_happened_and_what_to_type_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_watcher, terminal = watcher(), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    run_watcher.print_summary(Path("mine.db"))
    output = terminal.getvalue()
    assert "since this start: 3 bars decided, 1 allowed, 1 fill; equity 99,987.00." in output
    assert "Refused most by edge 2." in output
    for words in ("tracepaper report", "tracepaper audit verify"):
        assert any(words in line and "--db mine.db" in line for line in output.splitlines())


def test_elsewhere_it_is_one_log_line(monkeypatch: pytest.MonkeyPatch) -> None:
    run_watcher, log, out = watcher(), io.StringIO(), io.StringIO()
    configure(stream=log)
    monkeypatch.setattr(sys, "stdout", out)
    run_watcher.print_summary(Path("mine.db"))
    (line,) = (json.loads(text) for text in log.getvalue().splitlines())
    assert out.getvalue() == ""
    assert (line["event"], line["bars"], line["refused"]) == ("ended", 3, {"edge": 2})
