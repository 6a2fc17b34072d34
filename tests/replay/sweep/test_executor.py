"""Any unit of work: in processes what is refused ends all, and what is lost is named."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from user_strategies import importable

from tracepaper.daemon.session.run_row import code_version
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.sweep.executor import InThisProcess, LocalProcesses, Spread
from tracepaper.replay.sweep.on_ray import load_work, surroundings
from tracepaper.replay.sweep.places import executor_on
from tracepaper.replay.sweep.trial import Cell, Work, read_request
from tracepaper.storage import checkpoints
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


@pytest.mark.parametrize("executor", [LocalProcesses, InThisProcess])
def test_values_come_in_the_order_of_the_units(work: ModuleType, executor: Any) -> None:
    messages: list[str] = []
    kept: dict[int, int] = {}
    squares = Spread(executor)(work.squared, [7, 1, 4], messages.append, kept.__setitem__)
    assert squares == [49, 1, 16]
    assert kept == {0: 49, 1: 1, 2: 16}
    assert sorted(messages[0::2]) == ["squaring 1", "squaring 4", "squaring 7"]
    assert messages[1::2] == ["1 of 3 done.", "2 of 3 done.", "3 of 3 done."]


def test_what_the_function_refuses_ends_it_at_once(work: ModuleType) -> None:
    kept: dict[int, int] = {}
    with pytest.raises(ConfigInvalid, match=r"^Three is refused\.$"):
        Spread(executor_on(None, 1))(work.squared, [1, 3, 4], lambda _: None, kept.__setitem__)
    assert kept == {0: 1}


def test_a_lost_process_is_named_and_the_others_go_on(work: ModuleType) -> None:
    kept: dict[int, int] = {}
    with pytest.raises(StrategyFailed, match=r"^Part 1 of 3: Its process ended"):
        Spread(executor_on(None, 1))(work.squared, [5, 1, 4], lambda _: None, kept.__setitem__)
    assert kept == {1: 1, 2: 16}


# ---------------------------------------------------------------- workers of another machine


@pytest.fixture
def packed(candles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Return the work of a sweep by a checkpoint of one's own, which is here no more."""
    monkeypatch.setattr(checkpoints, "_HELD", {})
    mine = tmp_path / "mine"
    mine.mkdir()
    for path in checkpoints.files_of(checkpoints.locate("flash-1m")):
        shutil.copy(path, mine)
    given = {"model": {"checkpoint": str(mine)}, "sizing": {"mode": "fixed", "quantity": "0.1"}}
    spec = RunSpec(candles=(str(candles),), config=given)
    work_of = read_request(spec, {"fast": [3]}, "return", strategy="sma_cross").work.packed()
    shutil.rmtree(mine)
    return work_of


def over_there(work: Work, around: dict[str, Any] | None = None) -> tuple[Any, str]:
    return load_work(around or surroundings(), lambda: pickle.dumps(work))


def test_a_checkpoint_goes_with_the_work(packed: Work, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert not checkpoints.is_checkpoint(mine)
    work, why = over_there(packed)
    assert why == ""
    assert checkpoints.is_checkpoint(mine)
    bundled = checkpoints.load(checkpoints.locate("flash-1m"))
    assert checkpoints.load(mine).id == bundled.id
    assert work(Cell(0, "whole", 0, {"fast": 3}, None, None)).error == ""


def test_another_version_or_library_is_named(packed: Work) -> None:
    around = surroundings()
    around["equal"] = {**around["equal"], "tracepaper": "0.0.9+abc"}
    text = f"tracepaper is {code_version()} there and 0.0.9+abc here; install the same on every "
    assert over_there(packed, around) == (None, f"{text}node.")
    around["equal"] = {**surroundings()["equal"], "torch": "1.0"}
    work, why = over_there(packed, around)
    assert work is None
    assert why.startswith("torch is ")


@pytest.mark.parametrize(("changed", "message"), [
    ({"config_sha256": "another"}, "it reads another configuration; put the file where every node"),
    ({"strategy": "nowhere_at_all:Mine"}, "'nowhere_at_all:Mine' cannot be imported"),
    ({"record_folder": Path("/nowhere/at/all")}, "an objective that is a function reads runs"),
])  # fmt: skip
def test_a_worker_that_lacks_something_says_what(
    packed: Work, changed: dict[str, Any], message: str
) -> None:
    work, why = over_there(replace(packed, **changed))
    assert work is None
    assert message in why


def test_work_of_a_module_that_is_not_there_is_refused() -> None:
    work, why = load_work(surroundings(), lambda: b"cnowhere_at_all\nMine\n.")
    assert (work, why) == (None, "No module named 'nowhere_at_all'")


def test_settings_of_the_sender_stand_in_place_of_the_worker_s(
    packed: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = surroundings()
    monkeypatch.setenv("TRACEPAPER_EXECUTION__LATENCY_MS", "7")
    monkeypatch.setenv("TRACEPAPER_NOTIFY__ADDRESSES", "env:HOOK")
    assert "TRACEPAPER_NOTIFY__ADDRESSES" not in surroundings()["environment"]
    assert over_there(packed, around)[1] == ""
    assert "TRACEPAPER_EXECUTION__LATENCY_MS" not in os.environ
