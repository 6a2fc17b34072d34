"""The race is what the record holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import storage_cases as cases
from builders import account, bar, decision, fill, step

from tracepaper.replay.demo.stage import Race
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Gap, GapCause

HOURS = 60
LATE = decision(measures=(("late", 9e6, 6e4, False),), reason="late")


def traded(index: int, *, is_late: bool = False) -> Step:
    """Return a decided bar, every second of which is filled."""
    return step(
        bar(10_000 + index, index=index),
        sequence=index,
        decided=LATE if is_late else decision(),
        fills=(fill(),) if index % 2 else (),
        of=account(100_000 - 10 * index),
    )


def race_of(*steps: Step) -> Race:
    """Return the race of *steps*."""
    race = Race()
    for each in steps:
        race.observe(each)
    return race


def test_the_race_adds_up_its_steps() -> None:
    race = race_of(*(traded(index, is_late=index == 9) for index in range(HOURS)))
    assert race.decisions == HOURS
    assert race.refused[late.name] == 1
    assert race.equity == pytest.approx(100_000 - 10 * (HOURS - 1))
    assert race.fills == HOURS // 2
    assert race.sequence == HOURS - 1
    assert race.closes_ms == {"linear:BTCUSDT": race.now_ms}


def test_a_look_at_the_database_takes_in_what_is_new_alone(tmp_path: Path) -> None:
    race, path = Race(), tmp_path / "run.db"
    race.poll(path)
    assert race.sequence == -1
    steps = cases.plain_steps(40)
    cases.write_run(path, steps)
    race.poll(path)
    race.poll(path)
    assert replace(race, _reader=None) == race_of(*steps)
    race.close()


def test_gaps_are_kept_and_bars_before_the_first_decision_and_revisions_do_not_race() -> None:
    gap = Gap("linear:BTCUSDT", 0, 60_000, GapCause.DISCONNECTED, "rest", 1, 1)
    race = race_of(step(gap), step(bar()), step(bar(), decided=decision(), accepted=False))
    assert race.gaps == [gap]
    assert (race.decisions, race.start_ms) == (0, 0)
