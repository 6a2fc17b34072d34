"""Any unit of work: in processes what is refused ends all, and what is lost is named."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from own_strategies import importable

from tracepaper.replay.sweep.executor import InThisProcess, LocalProcesses, Spread, executor_on
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed

WORK = """
import os
from tracepaper import ConfigInvalid


def squared(unit, say):
    say(f"squaring {unit}")
    if unit == 3:
        raise ConfigInvalid("Three is refused.")
    if unit == 5:
        os._exit(1)
    return unit * unit
"""


@pytest.fixture
def work(tmp_path: Path) -> Iterator[ModuleType]:
    (tmp_path / "squares_of_units.py").write_text(WORK)
    with importable(tmp_path):
        yield import_module("squares_of_units")


@pytest.mark.parametrize("executor", [LocalProcesses(2), InThisProcess()])
def test_values_come_in_the_order_of_the_units(work: ModuleType, executor: Any) -> None:
    said: list[str] = []
    kept: dict[int, int] = {}
    found = Spread(executor)(work.squared, [7, 1, 4], said.append, kept.__setitem__)
    assert found == [49, 1, 16]
    assert kept == {0: 49, 1: 1, 2: 16}
    assert sorted(said[0::2]) == ["squaring 1", "squaring 4", "squaring 7"]
    assert said[1::2] == ["1 of 3 done.", "2 of 3 done.", "3 of 3 done."]


def test_what_the_function_refuses_ends_it_at_once(work: ModuleType) -> None:
    kept: dict[int, int] = {}
    with pytest.raises(ConfigInvalid, match=r"^Three is refused\.$"):
        Spread(LocalProcesses(1))(work.squared, [1, 3, 4], lambda _: None, kept.__setitem__)
    assert kept == {0: 1}


def test_a_lost_process_is_named_and_the_others_go_on(work: ModuleType) -> None:
    kept: dict[int, int] = {}
    with pytest.raises(StrategyFailed, match=r"^Part 1 of 3: Its process ended"):
        Spread(LocalProcesses(1))(work.squared, [5, 1, 4], lambda _: None, kept.__setitem__)
    assert kept == {1: 1, 2: 16}


@pytest.mark.parametrize(("on", "jobs", "said"), [
    ("mars", None, "on is 'mars'; give one of local, ray"),
    (None, 0, "jobs is 0; give how many processes, from 1 on"),
    ("ray", True, "jobs is True; give how many processes"),
])  # fmt: skip
def test_another_place_or_no_number_is_refused(on: Any, jobs: Any, said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        executor_on(on, jobs)
