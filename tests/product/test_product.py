"""The product as its users hold it: processes, files, signals, exit codes and sentences."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from programs import BIN, ROOT, Ended, Program, environment, pointing_at, run
from waiting import deadline_s

from tracepaper.replay.samples import DEMO_CANDLES

pytestmark = pytest.mark.slow

BARS: Final = 120
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


def asked(question: str, database: Path) -> list[Any]:
    with sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as db:
        return db.execute(question).fetchall()


# ---------------------------------------------------------------- a demo that ends by itself


@dataclass(frozen=True)
class Demo:
    folder: Path
    ended: Ended

    @property
    def database(self) -> Path:
        return self.folder / "demo.db"

    @property
    def said(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.ended.out)
        return document


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Run a demo of the default model, over the real websocket on loopback."""
    folder = tmp_path_factory.mktemp("demo")
    given = ["--data", str(DEMO_CANDLES), "--bars", str(BARS), "--speed", SPEED]
    options = [*given, "--db", "demo.db", "--json"]
    return Demo(folder, run(["demo", *options], folder))


def test_the_demo_ends_by_itself_and_prints_json_alone(demo: Demo) -> None:
    assert demo.ended.code == 0, demo.ended.err[-2000:]
    assert demo.said["decisions"] >= BARS
    assert demo.said["chain"] == {"holds": True, "steps": demo.said["chain"]["steps"]}
    assert demo.said["equity"] > 0
    assert demo.said["database"] == "demo.db"
    assert demo.said["parity"]["outcome"] == "identical"
    assert demo.said["parity"]["identical"] == demo.said["decisions"]
    assert all(json.loads(line)["timestamp"] for line in demo.ended.err.splitlines())


def test_every_decision_of_the_demo_follows_from_its_record(demo: Demo) -> None:
    verified = run(["verify", "last", "--db", "demo.db", "--json"], demo.folder)
    assert verified.code == 0, verified.err
    found = json.loads(verified.out)
    assert found["agreed"] == found["decisions"] == demo.said["decisions"]


def test_a_replay_of_the_recorded_run_decides_identically(demo: Demo) -> None:
    replayed = run(["replay", "--data", "demo.db#last", "--db", "again.db", "--json"], demo.folder)
    assert replayed.code == 0, replayed.err
    compared = run(["parity", "demo.db#last", "again.db#last", "--json"], demo.folder)
    found = json.loads(compared.out)
    assert compared.code == 0
    assert found["identical"] == found["compared"] == demo.said["decisions"]


def test_the_chain_of_the_demo_holds(demo: Demo) -> None:
    checked = run(["audit", "verify", "last", "--db", "demo.db"], demo.folder)
    assert (checked.code, "holds" in checked.out) == (0, True)


def test_a_changed_bar_is_found_and_named(demo: Demo) -> None:
    changed = demo.folder / "changed.db"
    assert run(["db", "backup", "changed.db", "--db", "demo.db"], demo.folder).code == 0
    (sequence, opened) = asked(
        "SELECT sequence, open_time_iso FROM v_decisions ORDER BY sequence DESC LIMIT 1 OFFSET 60",
        changed,
    )[0]
    with sqlite3.connect(changed) as db:
        touched = db.execute(
            f"UPDATE steps SET low = low - 1 WHERE step & {2**28 - 1} = ?", (sequence,)
        )
        assert touched.rowcount == 1
    checked = run(["audit", "verify", "last", "--db", "changed.db"], demo.folder)
    assert checked.code == 1
    assert f"Step {sequence} (linear:BTCUSDT {opened[:16]}Z) was changed" in checked.out


# ---------------------------------------------------------------- a demo that goes on


@dataclass(frozen=True)
class Story:
    """What was asked of one running demo, in order, and how it ended at Ctrl-C."""

    pid: int
    status: Ended
    halted: Ended
    second: Ended
    after: dict[str, Any]
    ended: Ended
    database: Path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Question, command, double and interrupt a demo that would go on."""
    folder = tmp_path_factory.mktemp("story")
    (folder / "trader.toml").write_text(TRADER)
    options = ["-c", "trader.toml", "--db", "open.db"]
    tracepaper = str(BIN / "tracepaper")
    program = Program([tracepaper, "demo", "--speed", SPEED, *options], folder, name="demo")
    try:
        program.wait_until(lambda: '"event": "decision"' in program.err)
        status = run(["status", "--db", "open.db"], folder)
        halted = run(["command", "HALT", "--note", "a look", "--db", "open.db"], folder)
        second = run(["run", *options], folder)
        program.wait_until(lambda: '"refused_by": "operator"' in program.err)
        after = run(["status", "--db", "open.db", "--json"], folder)
        ended = program.stop(signal.SIGINT)
        yield Story(
            program.process.pid,
            status,
            halted,
            second,
            json.loads(after.out),
            ended,
            folder / "open.db",
        )
    finally:
        program.kill()


@pytest.mark.long
def test_ctrl_c_ends_a_demo_in_order_with_its_summary(story: Story) -> None:
    assert story.ended.code == 0, story.ended.err[-2000:]
    assert re.search(r"\d+ decisions, \w+ ", story.ended.out)
    assert "The chain of" in story.ended.out
    assert "Traceback" not in story.ended.err
    assert asked("SELECT count(*) FROM v_runs WHERE ended_at IS NOT NULL", story.database) == [(1,)]


def test_status_shows_the_running_daemon_with_its_gates(story: Story) -> None:
    assert story.status.code == 0
    assert f"process {story.pid}" in story.status.out
    assert {"running", "operator", "stale"} <= set(re.findall(r"\w+", story.status.out))


def test_a_halt_is_obeyed_audited_and_shown(story: Story) -> None:
    assert story.halted.code == 0
    assert story.after["instruments"]["linear:BTCUSDT"]["reason"] == "refused by operator"
    told = asked(
        "SELECT min(sequence), content FROM v_events WHERE kind = 'command'", story.database
    )
    assert "a look" in told[0][1]
    refused = "SELECT DISTINCT refused_by FROM v_decisions WHERE sequence > ?"
    with sqlite3.connect(story.database) as db:
        assert db.execute(refused, (told[0][0],)).fetchall() == [("operator",)]


def test_a_second_instance_is_refused_with_the_holders_pid(story: Story) -> None:
    assert story.second.code == 2
    assert f"open.db is in use by process {story.pid};" in story.second.err.splitlines()[-1]
    assert story.second.out == ""


def test_sigterm_ends_a_daemon_in_good_order(tmp_path: Path) -> None:
    exchange = [str(BIN / "tracepaper"), "exchange", "--data", str(DEMO_CANDLES), "--speed", SPEED]
    beside = Program(exchange, tmp_path, name="exchange")
    try:
        beside.wait_until(lambda: "\n" in beside.out)
        daemon = Program(
            [str(BIN / "tracepaper"), "run", "--db", "run.db"],
            tmp_path,
            name="daemon",
            extra=pointing_at(beside.out),
        )
        try:
            daemon.wait_until(lambda: '"event": "decision"' in daemon.err)
            ended = daemon.stop(signal.SIGTERM)
        finally:
            daemon.kill()
    finally:
        beside.kill()
    assert ended.code == 0, ended.err[-2000:]
    checked = run(["audit", "verify", "last", "--db", "run.db"], tmp_path)
    assert checked.code == 0


# ---------------------------------------------------------------- replays

INTERRUPTED: Final = '''
"""A strategy that presses Ctrl-C on its own process at a bar named by the environment."""
import os, signal
from tracepaper.strategies.api.context import BarContext
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types import Action, Bar

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
    said = json.loads(whole.out)
    assert {"run_id", "database", "bars", "decisions", "equity", "seconds"} <= set(said)
    (times,) = asked(
        "SELECT open_time_ms FROM v_bars ORDER BY sequence LIMIT 1 OFFSET 7777",
        tmp_path / "whole.db",
    )
    cut = run([*data, "--db", "cut.db"], tmp_path, {**path, "PRESS_CTRL_C_AT": str(times[0])})
    assert cut.code == 130
    stopped = json.loads(cut.out)
    assert not stopped["finished"]
    assert stopped["bars"] < said["bars"]
    resumed = run([*data, "--db", "cut.db", "--resume", stopped["run_id"]], tmp_path, path)
    assert resumed.code == 0, resumed.err
    compared = run(["parity", "whole.db#last", "cut.db#last", "--json"], tmp_path)
    found = json.loads(compared.out)
    assert compared.code == 0, compared.out
    assert found["identical"] == found["compared"] == said["decisions"]
    once = "SELECT count(*), count(DISTINCT open_time_ms) FROM v_bars"
    assert asked(once, tmp_path / "cut.db") == [(said["bars"], said["bars"])]
    assert json.loads(resumed.out)["equity"] == said["equity"]


def test_lookahead_aggregates_candles_as_a_replay_does(tmp_path: Path) -> None:
    (tmp_path / "trader.toml").write_text(f'[market]\ninterval = "15"\n{TRADER}')
    data = ["--data", str(DEMO_CANDLES), "-c", "trader.toml", "--json"]
    checked = run(["lookahead", *data, "--probes", "3", "--bars", "300"], tmp_path)
    assert checked.code == 0, checked.err
    found = json.loads(checked.out)
    assert (found["holds"], found["probes"], found["bars"]) == (True, 3, 300)


def test_a_corrupt_checkpoint_is_refused_by_its_hash(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "storage" / "models" / "flash-1m", tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (tmp_path / "paper.toml").write_text('[model]\ncheckpoint = "model"\n')
    data = ["--data", str(DEMO_CANDLES), "--db", "run.db"]
    refused = run(["replay", "-c", "paper.toml", *data], tmp_path)
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert "SHA-256" in refused.err
    assert refused.out == ""


# ---------------------------------------------------------------- terminals


def on_a_terminal(arguments: list[str], extra: dict[str, str]) -> str:
    """Run the program with its stdout on a pseudo-terminal; return what it wrote there."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in environment().items() if name != "NO_COLOR"}
    done = subprocess.run(
        [str(BIN / "tracepaper"), *arguments],
        env={**kept, "TERM": "xterm-256color", **extra},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        check=True,
        timeout=deadline_s(),
    )
    assert done.returncode == 0
    written = os.read(ours, 65_536).decode()
    os.close(theirs)
    os.close(ours)
    return written


@pytest.mark.long
def test_no_color_is_honoured_on_a_terminal(demo: Demo) -> None:
    coloured = re.compile(r"\x1b\[(?:\d+;)*(?:3[1-8]|9[1-7])[;m]")
    command = ["explain", f"last:{demo.said['explained_sequence']}", "--db", str(demo.database)]
    assert coloured.search(on_a_terminal(command, {}))
    assert not coloured.search(on_a_terminal(command, {"NO_COLOR": "1"}))


def test_no_terminal_means_no_escapes(demo: Demo) -> None:
    listed = run(["audit", "decisions", "last", "--db", "demo.db"], demo.folder)
    assert listed.code == 0
    assert "\x1b" not in listed.out + listed.err
