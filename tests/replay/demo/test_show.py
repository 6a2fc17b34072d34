"""A demo as its viewer has it: four incidents, one run, one screen; and Ctrl-C at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from programs import BIN, Program, run
from waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

SHORT = ["demo", "--model", "none", "--days", "0.5", "--seconds", "3"]
"""Without a model, so that nothing takes its time to start: what is tried is the demo."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("show")


@pytest.fixture(scope="module")
def ending(folder: Path) -> dict[str, Any]:
    """Return what a short demo says at its end."""
    ended = run([*SHORT, "--db", "show.db", "--json"], folder)
    assert ended.code == 0, ended.err[-2000:]
    document: dict[str, Any] = json.loads(ended.out)
    document["announced"] = ended.err
    return document


def test_every_incident_is_announced_and_ends_well(ending: dict[str, Any]) -> None:
    assert len(ending["incidents"]) == 4
    assert "none is missing" in ending["incidents"][0]
    assert "refused by `operator`" in ending["incidents"][1]
    assert "goes on with the same run" in ending["incidents"][2]
    assert "do not match the digest of their commit (tables: steps)" in ending["incidents"][3]
    for number in range(1, 5):
        assert f"Incident {number} of 4" in ending["announced"]
    assert ending["processes"] == 2
    assert ending["chain"]["passes"]
    assert ending["decisions"] >= 2 * 48  # it goes on until the last incident is over


def test_the_page_is_named_once_and_keeps_its_address_when_its_daemon_is_killed(
    ending: dict[str, Any], folder: Path
) -> None:
    [url] = re.findall(r"The page is (http://127\.0\.0\.1:\d+)/", ending["announced"])
    log = (folder / "show.log").read_text()
    assert re.findall(r'"The page is (\S+)/"', log) == [url, url]  # of both processes


def test_the_run_follows_from_its_record_and_nothing_else_is_left(
    ending: dict[str, Any], folder: Path
) -> None:
    assert {path.name for path in folder.iterdir()} == {"show.db", "show.toml", "show.log"}
    verified = run(["verify", "last", "--db", "show.db", "--json"], folder)
    assert json.loads(verified.out)["agreed"] == ending["decisions"]
    assert ending["parity"]["outcome"] == "identical"
    assert ending["parity"]["identical"] == ending["parity"]["compared"] == ending["decisions"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_the_summary_of_what_was_played(
    tmp_path: Path, by: signal.Signals
) -> None:
    command = [str(BIN / "tracepaper"), "demo", "--model", "none", "--db", "show.db"]
    program = Program(command, tmp_path, name="demo")
    try:
        program.wait_until(lambda: has_decided(tmp_path / "show.db"))
        ended = program.stop(by)
    finally:
        program.kill()
    assert ended.code == 0, ended.err[-2000:]
    assert "What it proved" in ended.out
    assert "\x1b" not in ended.out + ended.err
    log = (tmp_path / "show.log").read_text()
    assert '"event": "ended"' in log.splitlines()[-1]  # the daemon ended in good order


def children_of(program: Program) -> list[str]:
    """Return the ids of the processes that *program* started."""
    pid = program.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def runs(pid: str) -> bool:
    """Return whether process *pid* is there, and no zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


async def test_a_demo_that_is_killed_takes_its_daemon_with_it(tmp_path: Path) -> None:
    program = Program([str(BIN / "tracepaper"), *SHORT, "--db", "show.db"], tmp_path, name="demo")
    try:
        program.wait_until(lambda: "The page is" in program.err)
        children = children_of(program)
    finally:
        program.kill()
    assert len(children) == 1
    await until(lambda: not any(map(runs, children)), poll_s=0.05)


def has_decided(database: Path) -> bool:
    """Return whether a bar is decided in *database*."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as reader:
            (count,) = reader.execute("SELECT count(*) FROM v_decisions").fetchone()
    except sqlite3.OperationalError:
        return False  # it is not made yet
    return bool(count)


@pytest.mark.long
def test_a_daemon_that_dies_leaves_the_summary_and_one_sentence(tmp_path: Path) -> None:
    program = Program([str(BIN / "tracepaper"), *SHORT, "--db", "show.db"], tmp_path, name="demo")
    try:
        program.wait_until(lambda: "Incident 1 of 4" in program.err)
        (pid,) = re.findall(r"The daemon is process (\d+)", program.err)
        os.kill(int(pid), signal.SIGKILL)
        ended = program.end()
    finally:
        program.kill()
    assert ended.code == 1, ended.err[-2000:]
    assert "What it proved" in ended.out
    assert ended.err.splitlines()[-1].endswith("ended early; its log is show.log.")
    assert "Traceback" not in ended.err
