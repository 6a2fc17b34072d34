"""The live view and the log view, drawn from steps."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from builders import account, bar, bars, decision, fill, forecast, instrument, run, step
from fakes import ManualClock
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tracepaper.daemon.terminal.console import configure
from tracepaper.daemon.terminal.live_view import Lines, Pace, RunWatcher, open_view
from tracepaper.daemon.terminal.screen import ScreenState, screen, sparkline, split
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.types.decisions import Position, PredictionTimeout, Step, TwinStep
from tracepaper.strategies.types.market import Command, CommandKind, Gap, GapCause
from tracepaper.strategies.units import MONEY_SCALE

INSTRUMENTS = {"linear:BTCUSDT": instrument()}


def drawn(*steps: Step, width: int = 120) -> str:
    state = ScreenState(bars_per_s=33.4)
    state.open(run())
    for one in steps:
        state.observe(one, INSTRUMENTS)
    console = Console(file=io.StringIO(), width=width)
    console.print(screen(state))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def full_step(sequence: int = 3) -> Step:
    return step(
        bar(close=6_511_420),
        sequence=sequence,
        decided=decision(),
        prediction=forecast(),
        fills=(fill(),),
        position=Position(-1_500, -1_500 * 6_500_000 * 10**5, 0, 25 * 10**9),
        of=account(100_012),
        twins=(TwinStep("ungated", Position(), account(99_930), ()),),
    )


def test_the_screen_shows_what_was_decided_and_why() -> None:
    shown = drawn(full_step())
    for words in (
        "65,114.20",
        "+0.200% ± 0.400% in 30 bars",
        "↓30%",
        "↑50%",
        "confidence 0.200",
        "regime MOMENTUM",
        "recent mass 0.600",
        "HOLD  refused by edge",
        "✓ confidence 0.21/0.18",
        "✗ edge 0.4/1",
        "-1.5 BTC at 65,000.00",
        "+2.50",
        "100,012.00 +0.01 %",
        "ungated twin 99,930.00 -0.07 %",
        "decisions 1  fills 1  33.4 bars/s",
        "closed 2023-11-14 22:15 UTC",
    ):
        assert words in shown


def test_on_margin_the_screen_says_what_is_bound_and_where_it_ends() -> None:
    config = json.dumps({"account": {"margin": "isolated", "leverage": "10"}})
    state = ScreenState()
    state.open(structs.replace(run(), config=config))
    held = Position(1_500, 150 * MONEY_SCALE, margin=15 * MONEY_SCALE)
    state.observe(step(bar(), decided=decision(), position=held), INSTRUMENTS)
    console = Console(file=io.StringIO(), width=120)
    console.print(screen(state))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    price = state.margin["linear:BTCUSDT"].use_of(held)
    assert price is not None
    assert f"15.00 at 10 x, liquidated at {price.liquidation / 100:,.2f}" in shown
    assert "margin used 15.00" in shown
    assert "margin" not in drawn(full_step())


def test_the_screen_fits_a_narrow_terminal() -> None:
    assert max(map(len, drawn(full_step(), width=60).splitlines())) <= 60


def live_step(gates: int, *, failed: int = 1) -> Step:
    """Return a step with a position whose decision has so many gates, the first of them failed."""
    names = [name for name in GATES if not name.startswith("risk")][:gates]
    rows = tuple((name, 0.21, 0.18, at >= failed) for at, name in enumerate(names))
    return structs.replace(full_step(), decision=decision(measures=rows))


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 24), (200, 50)])
@pytest.mark.parametrize("symbols", [1, 4, 6])
def test_position_and_equity_are_never_cut_off(width: int, height: int, symbols: int) -> None:
    names = [f"linear:{letter}USDT" for letter in "ABCDEF"[:symbols]]
    state = ScreenState()
    state.open(structs.replace(run(), strategy="a_module_of_mine:AStrategyWithALongName"))
    state.halted_by = "operator"
    for name in names:
        one = live_step(17)
        state.observe(
            structs.replace(one, event=structs.replace(one.event, instrument=name)),
            {of: instrument(of.removeprefix("linear:")) for of in names},
        )
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=height)
    with Live(console=console, auto_refresh=False) as live:
        live.update(screen(state), refresh=True)
        shown = Text.from_ansi(file.getvalue()).plain
    assert "-1.5 " in shown
    assert "equity 100,012.00" in " ".join(shown.split())
    assert shown.count("tracepaper") == 1
    head = next(line for line in shown.splitlines() if "tracepaper" in line)
    assert "bars/s" in head
    assert "halted by operator" in head
    assert "✗ operator" in shown
    assert ("✓ 16 of 17 passed" in shown) == ("✓ regime" not in shown)
    assert ("✓ regime" in shown) == (height == 50 or (height, symbols) == (24, 1))


def test_without_a_known_run_the_screen_shows_the_bar_alone() -> None:
    state = ScreenState()
    state.observe(full_step(), INSTRUMENTS)
    console = Console(file=io.StringIO(), width=100)
    console.print(screen(state))
    assert isinstance(console.file, io.StringIO)
    assert "100,012.00" in console.file.getvalue()
    assert "+0.01 %" not in console.file.getvalue()


def test_the_pace_of_warming_up_is_forgotten_at_the_first_decision() -> None:
    clock, file = ManualClock(), io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with open_view(clock=clock, console=console) as view:
        for one in bars(1_000):
            view.show(step(one), INSTRUMENTS)
            clock.advance(network_s=0.001)
        for one in bars(5):
            view.show(step(one, decided=decision()), INSTRUMENTS)
            clock.advance(network_s=1.0)
    paces = re.findall(r"([\d,.]+) bars/s", file.getvalue())
    assert float(paces[-1]) == pytest.approx(1.0, rel=0.3)


def test_before_the_first_bar_the_screen_says_so() -> None:
    assert "waiting for the first closed bar" in drawn()


def test_a_late_forecast_and_a_missing_measure_are_shown() -> None:
    rows = (("deadline", 0.0, 1.0, False), ("confidence", None, 0.18, False))
    shown = drawn(step(bar(), decided=decision(measures=rows), prediction=PredictionTimeout(1_000)))
    assert "none within 1000 ms" in shown
    assert "✗ confidence –/0.18" in shown


def test_a_warm_up_bar_has_no_decision() -> None:
    shown = drawn(step(bar()))
    assert "gates" not in shown
    assert "1 bars taken in" in shown


def test_many_instruments_are_cut_and_counted() -> None:
    symbols = ["AUSDT", "BUSDT", "CUSDT", "DUSDT", "EUSDT", "FUSDT"]
    instruments = {f"linear:{symbol}": instrument(symbol) for symbol in symbols}
    state = ScreenState()
    for name in instruments:
        state.observe(step(bar(instrument_id=name)), instruments)
    console = Console(file=io.StringIO(), width=100)
    console.print(screen(state))
    assert isinstance(console.file, io.StringIO)
    assert "and 2 more instruments" in console.file.getvalue()


def test_a_revision_is_not_drawn() -> None:
    assert "65,114.20" in drawn(full_step(), step(bar(1), sequence=4, accepted=False))


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=80))
def test_a_sparkline_spans_lowest_to_highest(values: list[int]) -> None:
    line = sparkline(values)
    assert len(line) == len(values)
    if len(set(values)) > 1:
        assert line[values.index(min(values))] == "▁"
        assert line[values.index(max(values))] == "█"


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


def test_the_live_view_redraws_at_most_five_times_a_second_and_at_its_end() -> None:
    clock, file = ManualClock(), io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with open_view(clock=clock, console=console) as view:
        view.opened(run())
        for number, one in enumerate(bars(100)):
            view.show(step(one, sequence=number, of=account(100_000 + number)), INSTRUMENTS)
            clock.advance(network_s=0.01)
        drawn_before_end = file.getvalue().count("waiting") + file.getvalue().count("equity")
        assert drawn_before_end <= 6
    assert "100,099.00" in file.getvalue()


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure(stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_elsewhere_each_second_has_one_decision_line(lines: io.StringIO) -> None:
    clock = ManualClock()
    with open_view(clock=clock, console=Console(file=io.StringIO())) as view:
        view.opened(run())
        for number, one in enumerate(bars(30)):
            view.show(
                step(one, sequence=number, decided=decision(), prediction=forecast()), INSTRUMENTS
            )
            clock.advance(network_s=0.1)
    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    decisions = [line for line in said if line["event"] == "decision"]
    assert said[0]["event"] == "run opened"
    assert said[0]["run_id"] == "run-7f3a"
    assert 3 <= len(decisions) <= 4
    assert decisions[0]["action"] == "HOLD"
    assert decisions[0]["refused_by"] == "edge"
    assert decisions[0]["confidence"] == 0.2
    assert decisions[0]["equity"] == "100000"


def test_fills_gaps_and_commands_are_never_left_out(lines: io.StringIO) -> None:
    gap_step = step(Gap("linear:BTCUSDT", 0, 60_000, GapCause.MISSED, "", 0, 0))
    halt_step = step(Command(CommandKind.HALT, "news", 0, 0))
    with open_view(clock=ManualClock(), console=Console(file=io.StringIO())) as view:
        for shown in (full_step(1), full_step(2), full_step(3), gap_step, halt_step):
            view.show(shown, INSTRUMENTS)
    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    events = [line["event"] for line in said]
    assert events.count("fill") == 3
    (gap,) = (line for line in said if line["event"] == "gap")
    assert (gap["cause"], gap["repaired_by"]) == ("missed", "never")
    (command,) = (line for line in said if line["event"] == "command")
    assert (command["kind"], command["note"]) == ("HALT", "news")
    (first, *_) = (line for line in said if line["event"] == "fill")
    assert (first["side"], first["quantity"], first["price"]) == ("BUY", "1", "101")


# What `run` says when it ends: what happened since its start, and what to type next.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def shown() -> RunWatcher:
    configure(stream=io.StringIO())
    found = RunWatcher(Lines(ManualClock()), limit=None, until_ms=None)
    found.opened(run(instruments=(instrument(),)))
    passing = (("operator", 1.0, 1.0, True), ("edge", 1.4, 1.0, True))
    allowed = decision(measures=passing)
    refused = decision()
    for sequence, decided in enumerate((allowed, refused, refused)):
        found.watch(
            step(
                bar(index=sequence),
                sequence=sequence,
                decided=decided,
                fills=(fill(),) if decided is allowed else (),
                of=account(99_987),
            )
        )
    return found


def test_a_terminal_is_told_what_happened_and_what_to_type_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, terminal = shown(), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    found.print_summary(Path("mine.db"))
    said = terminal.getvalue()
    assert "since this start: 3 bars decided, 1 allowed, 1 fills; equity 99,987.00." in said
    assert "Refused most by edge 2." in said
    for words in ("tracepaper report", "tracepaper audit verify"):
        assert any(words in line and "--db mine.db" in line for line in said.splitlines())


def test_elsewhere_it_is_one_log_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found, log, out = shown(), io.StringIO(), io.StringIO()
    configure(stream=log)
    monkeypatch.setattr(sys, "stdout", out)
    found.print_summary(Path("mine.db"))
    (line,) = (json.loads(text) for text in log.getvalue().splitlines())
    assert out.getvalue() == ""
    assert (line["event"], line["bars"], line["refused"]) == ("ended", 3, {"edge": 2})


def test_an_end_before_any_step_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    RunWatcher(Lines(ManualClock()), limit=None, until_ms=None).print_summary(Path("mine.db"))
    assert terminal.getvalue() == ""
