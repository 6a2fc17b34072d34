"""What a process tells of its steps comes back as it was, and makes the race that is drawn."""

from __future__ import annotations

import io

import msgspec
import pytest
from builders import START_MS, account, bar, decision, fill, instrument, run, step
from rich.console import Console

from tracepaper.replay.demo.playback import OWN, Race, decode, encode, messages_of, start_message
from tracepaper.replay.demo.screen import DayLines, chart, sampled, screen, standings
from tracepaper.strategies.types.decisions import Position, Step, TwinStep
from tracepaper.strategies.types.market import Command, CommandKind, Gap, GapCause, Quote

KNOWN = {"linear:BTCUSDT": instrument()}
HOURS = 60
LATE = decision(measures=(("late", 9e6, 6e4, False),), reason="late")


def traded(index: int, equity: int, twin: int, *, is_late: bool = False) -> Step:
    """Return a decided bar that left the run with *equity* and its twin with *twin*."""
    fills = (fill(),) if index % 2 else ()
    shadow = TwinStep("ungated", Position(), account(twin), (fill(), fill()))
    return step(
        bar(10_000 + index, index=index),
        sequence=index,
        decided=LATE if is_late else decision(),
        fills=fills,
        of=account(equity),
        twins=(shadow,),
    )


def raced() -> Race:
    """Return a race of an hour of minutes, told line by line."""
    race = Race()
    race.observe(start_message(run(), pid=7, cash=100_000.0))
    for index in range(HOURS):
        made = traded(index, 100_000 - 10 * index, 100_000 + 5 * index, is_late=index == 9)
        for told in messages_of(made, KNOWN):
            race.observe(decode(encode(told)))
    return race


def test_the_race_is_what_was_told() -> None:
    race = raced()
    assert race.decisions == race.closes == len(race.times_ms) == HOURS
    assert race.late == 1
    assert race.change(OWN) == pytest.approx(-0.0059)
    assert race.change("ungated") == pytest.approx(0.00295)
    assert (race.fill_counts[OWN], race.fill_counts["ungated"]) == (30, 120)
    assert race.fills[-1].price == 101.0
    assert (race.sequence, race.starts) == (HOURS - 1, 1)


def test_gaps_and_commands_are_told_and_quotes_are_not() -> None:
    gap = Gap("linear:BTCUSDT", 0, 60_000, GapCause.DISCONNECTED, "rest", 1, 1)
    race = Race()
    quote = Quote("linear:BTCUSDT", 1, 1, 2, 1, 1, 1)
    for event in (gap, Command(CommandKind.HALT, "", 1, 1), quote):
        for told in messages_of(step(event, sequence=4), KNOWN):
            race.observe(decode(encode(told)))
    assert [one.repaired_by for one in race.gaps] == ["rest"]
    assert [(one.kind, one.sequence) for one in race.commands] == [("HALT", 4)]


def test_bars_before_the_first_decision_and_revisions_do_not_race() -> None:
    race = Race()
    for made in (step(bar()), step(bar(), decided=decision(), accepted=False)):
        for told in messages_of(made, KNOWN):
            race.observe(told)
    assert (race.decisions, race.curves, race.start_ms) == (0, {}, 0)


def test_a_line_that_was_cut_short_is_refused() -> None:
    (told,) = messages_of(traded(1, 1, 1), KNOWN)
    with pytest.raises(msgspec.DecodeError):
        decode(encode(told)[:40])


def test_the_curves_grow_to_the_right_and_loss_lies_below_gain() -> None:
    race = raced()
    until_ms = race.start_ms + 2 * (race.now_ms - race.start_ms)
    lines = chart(race, until_ms, columns=40, rows=6).plain.splitlines()
    own = [(row, line.rindex("●")) for row, line in enumerate(lines) if "●" in line]
    twin = [row for row, line in enumerate(lines) if "o" in line]
    assert max(column for _, column in own) <= 10 + 20  # half of the time is over
    assert min(twin) < max(row for row, _ in own)
    assert (lines[0].split()[0], lines[-1].split()[0]) == ("+0.30%", "-0.59%")


@pytest.mark.parametrize("width", [24, 80, 200])
def test_the_screen_fits_any_terminal(width: int) -> None:
    race = raced()
    console = Console(file=io.StringIO(), width=width, record=True)
    shown = screen(race, 5_000.0, race.now_ms, "watch the clock", width=width, has_chart=width > 30)
    console.print(shown)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert sum("●" in line for line in lines) >= 1
    assert any("watch the clock" in " ".join(line.split()) for line in lines)


def test_without_a_terminal_each_day_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    race, lines = Race(), DayLines()
    race.observe(start_message(run(), pid=7, cash=100_000.0))
    minutes = 3 * 24 * 60
    until_ms = START_MS + (minutes - 29) * 60_000
    for index in range(0, minutes, 30):
        for told in messages_of(traded(index, 100_000 + index, 100_000), KNOWN):
            race.observe(told)
        lines.show(race, speed=1.0, until_ms=until_ms, now="")
    said = capsys.readouterr().err.splitlines()
    assert [line[2:12] for line in said] == [f"2023-11-{day}" for day in (14, 15, 16, 17)]
    assert said[0].endswith("0 fills")
    assert "this run +" in said[1]
    assert standings(race) in said[-1]


def test_a_line_of_prices_takes_evenly_and_ends_with_the_last() -> None:
    assert sampled([1.0, 2.0, 3.0, 4.0], 2) == [2.0, 4.0]
    assert sampled([1.0], 5) == [1.0]
