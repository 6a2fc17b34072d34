"""The product as its users hold it: processes, files, signals, exit codes and sentences."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from programs import BIN, Program, ProgramResult, exchange_on, pointing_at, run
from waiting import deadline_s

from tracepaper.replay.samples import DEMO_CANDLES

pytestmark = pytest.mark.slow

SPEED: Final = "900"
"""Slow enough for a slow machine: a bar that is decided late does not count."""
TRADER: Final = """
[strategy]
name = "sma_cross"
fast = 3
slow = 7
long_only = false
[sizing]
mode = "fixed"
quantity = "0.1"
"""


def rows(question: str, database: Path) -> list[Any]:
    with sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as db:
        return db.execute(question).fetchall()


# ---------------------------------------------------------------- a daemon that goes on


@dataclass(frozen=True)
class Story:
    """What was asked of one running daemon, in order, and how it ended at Ctrl-C."""

    halted: ProgramResult
    after: dict[str, Any]
    ended: ProgramResult
    database: Path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Question, command and interrupt a daemon that would go on."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "trader.toml").write_text(TRADER)
    command = [str(BIN / "tracepaper"), "run", "-c", "trader.toml", "--db", "open.db"]
    served = ("--data", str(DEMO_CANDLES), "--hold", "--speed", SPEED)
    with exchange_on(folder, *served) as exchange:
        program = Program(command, folder, name="daemon", extra=pointing_at(exchange.out))
        try:
            program.wait_until(lambda: '"event": "decision"' in program.err)
            halted = run(["command", "HALT", "--note", "a look", "--db", "open.db"], folder)
            program.wait_until(lambda: '"refused_by": "operator"' in program.err)
            after = run(["status", "--db", "open.db", "--json"], folder)
            ended = program.stop(signal.SIGINT)
            yield Story(
                halted,
                json.loads(after.out),
                ended,
                folder / "open.db",
            )
        finally:
            program.kill()


@pytest.mark.long
def test_ctrl_c_ends_a_daemon_in_order_with_its_summary(story: Story) -> None:
    assert story.ended.code == 0, story.ended.err[-2000:]
    assert '"event": "ended"' in story.ended.err.splitlines()[-1]
    assert "Traceback" not in story.ended.err
    assert rows("SELECT count(*) FROM v_runs WHERE ended_ms IS NOT NULL", story.database) == [(1,)]


def test_a_halt_is_obeyed_audited_and_shown(story: Story) -> None:
    assert story.halted.code == 0
    assert story.after["instruments"]["linear:BTCUSDT"]["reason"] == "refused by operator"
    commands = rows(
        "SELECT min(sequence), content FROM v_events WHERE kind = 'command'", story.database
    )
    assert "a look" in commands[0][1]
    refused = "SELECT DISTINCT refused_by FROM v_decisions WHERE sequence > ?"
    with sqlite3.connect(story.database) as db:
        assert db.execute(refused, (commands[0][0],)).fetchall() == [("operator",)]


@pytest.mark.parametrize("nohup", [False, True])
def test_a_hang_up_ends_daemon_and_exchange_in_good_order_unless_it_is_ignored(
    tmp_path: Path, nohup: bool
) -> None:
    exchange = [str(BIN / "tracepaper"), "exchange", "--data", str(DEMO_CANDLES), "--speed", SPEED]
    exchange_process = Program(exchange, tmp_path, name="exchange", nohup=nohup)
    try:
        exchange_process.wait_until(lambda: "\n" in exchange_process.out)
        daemon = Program(
            [str(BIN / "tracepaper"), "run", "--db", "run.db"],
            tmp_path,
            name="daemon",
            extra=pointing_at(exchange_process.out),
            nohup=nohup,
        )
        by = signal.SIGHUP
        try:
            daemon.wait_until(lambda: '"event": "decision"' in daemon.err)
            if nohup:
                exchange_process.process.send_signal(by)
                daemon.process.send_signal(by)
                logged = daemon.err.count('"event": "decision"')
                daemon.wait_until(lambda: daemon.err.count('"event": "decision"') > logged)
                by = signal.SIGTERM
            ended = daemon.stop(by)
            exchange_ended = exchange_process.stop(by)
        finally:
            daemon.kill()
    finally:
        exchange_process.kill()
    assert ended.code == 0, ended.err[-2000:]
    assert exchange_ended.code == 0, exchange_ended.err[-2000:]
    assert rows("SELECT count(*) FROM v_runs WHERE ended_ms IS NOT NULL", tmp_path / "run.db") == [
        (1,)
    ]
    checked = run(["audit", "verify", "last", "--db", "run.db"], tmp_path)
    assert checked.code == 0


# ---------------------------------------------------------------- other long commands

LASTS: Final = """
import threading
from pathlib import Path
from tracepaper import Strategy


class Lasts(Strategy):
    def __init__(self, number):
        Path("begun").touch()
        threading.Event().wait()

    def decide(self, now):
        raise AssertionError
"""
SWEEP: Final = [
    *("sweep", str(DEMO_CANDLES), "--strategy", "lasts:Lasts"),
    *("--space", "number=1..4", "--objective", "return"),
]
TRAIN: Final = [
    *("train", "--data", str(DEMO_CANDLES), "--set", "model.kind=lstm", "--out", "model"),
    *("--set", "training.validate_every=1", "--set", "training.steps=100000"),
]


@pytest.mark.parametrize(
    ("command", "sign", "number"),
    [
        (SWEEP, "begun", signal.SIGTERM),
        (SWEEP, "begun", signal.SIGHUP),
        (TRAIN, "model.training", signal.SIGHUP),
    ],
)
def test_a_signal_interrupts_a_sweep_and_a_training_as_ctrl_c_does(
    tmp_path: Path, command: list[str], sign: str, number: signal.Signals
) -> None:
    (tmp_path / "lasts.py").write_text(LASTS)
    extra = {"TRACEPAPER_TRIALS": str(tmp_path / "trials.db")}
    program = Program([str(BIN / "tracepaper"), *command], tmp_path, name="long", extra=extra)
    try:
        program.wait_until((tmp_path / sign).exists)
        workers = psutil.Process(program.process.pid).children(recursive=True)
        ended = program.stop(number)
    finally:
        program.kill()
    assert ended.code == 130, ended.err[-2000:]
    assert "Traceback" not in ended.err
    _, alive = psutil.wait_procs(workers, timeout=deadline_s(30))
    assert alive == []


# ---------------------------------------------------------------- replays

INTERRUPTED: Final = '''
"""A strategy that presses Ctrl-C on its own process at a bar named by the environment."""
import os, signal
from tracepaper.strategies.api.context import BarContext
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar

class Restless(Strategy):
    warmup = 2

    def __init__(self, options):
        self._closes = (0, 0)

    def observe(self, bar: Bar) -> None:
        self._closes = (self._closes[1], bar.close)
        if str(bar.open_time_ms) == os.environ.get("PRESS_CTRL_C_AT"):
            os.kill(os.getpid(), signal.SIGINT)

    def decide(self, now: BarContext) -> Signal:
        before, last = self._closes
        return Signal(Action.LONG if last > before else Action.SHORT, "the last bar")
'''


def test_a_resumed_replay_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "restless.py").write_text(INTERRUPTED)
    (tmp_path / "restless.toml").write_text('[strategy]\nname = "restless:Restless"\n')
    data = ["replay", "-c", "restless.toml", "--data", str(DEMO_CANDLES), "--json"]
    path = {"PYTHONPATH": str(tmp_path)}
    whole = run([*data, "--db", "whole.db"], tmp_path, path)
    assert whole.code == 0, whole.err
    first = json.loads(whole.out)
    assert {"run_id", "database", "bars", "decisions", "equity", "seconds"} <= set(first)
    (times,) = rows(
        "SELECT open_time_ms FROM v_bars ORDER BY sequence LIMIT 1 OFFSET 7777",
        tmp_path / "whole.db",
    )
    cut = run([*data, "--db", "cut.db"], tmp_path, {**path, "PRESS_CTRL_C_AT": str(times[0])})
    assert cut.code == 130
    stopped = json.loads(cut.out)
    assert not stopped["finished"]
    assert stopped["bars"] < first["bars"]
    resumed = run([*data, "--db", "cut.db", "--resume", stopped["run_id"]], tmp_path, path)
    assert resumed.code == 0, resumed.err
    compared = run(["parity", "whole.db#last", "cut.db#last", "--json"], tmp_path)
    document = json.loads(compared.out)
    assert compared.code == 0, compared.out
    assert document["identical"] == document["compared"] == first["decisions"]
    once = "SELECT count(*), count(DISTINCT open_time_ms) FROM v_bars"
    assert rows(once, tmp_path / "cut.db") == [(first["bars"], first["bars"])]
    assert json.loads(resumed.out)["equity"] == first["equity"]


def test_lookahead_aggregates_candles_as_a_replay_does(tmp_path: Path) -> None:
    (tmp_path / "trader.toml").write_text(f'[market]\ninterval = "15"\n{TRADER}')
    data = ["--data", str(DEMO_CANDLES), "-c", "trader.toml", "--json"]
    checked = run(["lookahead", *data, "--probes", "3", "--bars", "300"], tmp_path)
    assert checked.code == 0, checked.err
    document = json.loads(checked.out)
    assert (document["passes"], document["probes"], document["bars"]) == (True, 3, 300)
