"""The race is what the record holds; it is drawn, or told in a line a day."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import storage_cases as cases
from builders import START_MS, account, bar, decision, fill, instrument, step
from rich.console import Console

from tracepaper.replay.demo.race import ACCOUNT, Race
from tracepaper.replay.demo.screen import RaceScreen, chart, sampled, screen, standings
from tracepaper.strategies.types.decisions import Position, Step, TwinStep
from tracepaper.strategies.types.market import Gap, GapCause

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


def race_of(*steps: Step) -> Race:
    """Return the race of *steps*."""
    race = Race(instruments={"linear:BTCUSDT": instrument()}, cash=100_000.0)
    for each in steps:
        race.observe(each)
    return race


def raced() -> Race:
    """Return a race of an hour of minutes."""
    return race_of(
        *(
            traded(index, 100_000 - 10 * index, 100_000 + 5 * index, is_late=index == 9)
            for index in range(HOURS)
        )
    )


def test_the_race_adds_up_its_steps() -> None:
    race = raced()
    assert race.decisions == len(race.times_ms) == HOURS
    assert race.late == 1
    assert race.change(ACCOUNT) == pytest.approx(-0.0059)
    assert race.change("ungated") == pytest.approx(0.00295)
    assert (race.fill_counts[ACCOUNT], race.fill_counts["ungated"]) == (30, 120)
    assert race.fills[-1][1].price == fill().price
    assert race.sequence == HOURS - 1
    assert race.closes_ms == {"linear:BTCUSDT": race.now_ms}


def test_a_look_at_the_database_takes_in_what_is_new_alone(tmp_path: Path) -> None:
    race, path = Race(), tmp_path / "run.db"
    race.look(path)
    assert race.run is None
    steps = cases.plain_steps(40)
    cases.write_run(path, steps)
    race.look(path)
    race.look(path)
    assert race.run is not None
    expected = race_of(*steps)
    shown = (race.sequence, race.decisions, race.curves, race.prices, race.held, race.fill_counts)
    assert shown == (
        expected.sequence,
        expected.decisions,
        expected.curves,
        expected.prices,
        expected.held,
        expected.fill_counts,
    )
    race.close()


def test_gaps_are_kept_and_bars_before_the_first_decision_and_revisions_do_not_race() -> None:
    gap = Gap("linear:BTCUSDT", 0, 60_000, GapCause.DISCONNECTED, "rest", 1, 1)
    race = race_of(step(gap), step(bar()), step(bar(), decided=decision(), accepted=False))
    assert race.gaps == [gap]
    assert (race.decisions, race.curves, race.start_ms) == (0, {}, 0)


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
    race, lines = race_of(), RaceScreen(Console(file=io.StringIO()))
    minutes = 3 * 24 * 60
    for index in range(0, minutes, 30):
        race.observe(traded(index, 100_000 + index, 100_000))
        lines.show(race, speed=1.0, until_ms=START_MS + minutes * 60_000, now="")
    lines.close(race)
    days = capsys.readouterr().err.splitlines()
    assert [line[2:12] for line in days] == [f"2023-11-{day}" for day in (14, 15, 16, 17)]
    assert days[0].endswith("0 fills")
    assert "this run +" in days[1]
    assert standings(race) in days[-1]


def test_a_line_of_prices_takes_evenly_and_ends_with_the_last() -> None:
    assert sampled([1.0, 2.0, 3.0, 4.0], 2) == [2.0, 4.0]
    assert sampled([1.0], 5) == [1.0]
