"""``status`` and ``command`` against a daemon's server, found through its lock file."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from builders import MINUTE, START_MS, bar, decision, forecast, run, step
from command_line import Cli
from fakes import ManualClock
from operated import OperatedDaemon, serving

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.http.client import ask, token_file, write_token
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.http.server import Caller
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.market import CommandKind, CommandOrigin


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[OperatedDaemon]:
    monitor = Monitor(run=run(), clock=ManualClock(START_MS + MINUTE))
    monitor.observe(step(bar(), decided=decision(), prediction=forecast()))
    async with serving(tmp_path / "run.db", monitor) as operated:
        yield operated


async def called(*arguments: str | Path) -> int:
    return await asyncio.to_thread(invoke, [str(word) for word in arguments])


async def test_status_shows_health_account_and_gates(
    daemon: OperatedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await called("status", "--db", daemon.database) == 0
    output = capsys.readouterr().out
    for words in (
        "running",
        "run-7f3a",
        "1 bar decided",
        "Gates refused the only bar, most by edge (1).",
        "100,000.00",
        "✗ edge",
        "of 4 passed",
    ):
        assert words in output


async def test_a_program_reads_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(run=run(), clock=ManualClock(START_MS + MINUTE))
    sentence = "the disk of the books is full, " * 20
    monitor.outage = lambda: sentence
    async with serving(tmp_path / "run.db", monitor) as operated:
        await called("status", "--db", operated.database)
    assert f"{sentence}\n" in capsys.readouterr().out


async def test_status_as_json_is_one_document(
    daemon: OperatedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await called("status", "--db", daemon.database, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ready"] is True
    assert document["instruments"]["linear:BTCUSDT"]["refused_by"] == "edge"


async def test_the_exit_code_says_whether_the_daemon_is_ready(
    tmp_path: Path, daemon: OperatedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await called("status", "--ready", "--db", daemon.database) == 0
    assert capsys.readouterr().out == "ready\n"
    unready = tmp_path / "unready.db"
    async with serving(unready, Monitor(run=run(), clock=ManualClock(START_MS + MINUTE))):
        for way in ([], ["--json"], ["--ready"]):
            assert await called("status", *way, "--db", unready) == 1
            output = capsys.readouterr()
            assert "no bar" in output.out
            assert output.err == ""
    assert await called("status", "--ready", "--db", tmp_path / "nobody.db") == 1
    assert "No daemon runs" in capsys.readouterr().err


@pytest.mark.sockets
async def test_the_operators_word_reaches_the_daemon(
    daemon: OperatedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await called("command", "halt", "--note", "news", "--db", daemon.database) == 0
    assert capsys.readouterr().out == "HALT is event 17 of the run.\n"
    assert await called("command", "FLATTEN", "--db", daemon.database, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"kind": "FLATTEN", "sequence": 17}
    assert daemon.commands == [(CommandKind.HALT, "news"), (CommandKind.FLATTEN, "")]
    caller = Caller("database", pwd.getpwuid(os.geteuid()).pw_name)
    assert daemon.callers == [(CommandOrigin.COMMAND, caller)] * 2


async def test_the_token_is_its_owners_alone_and_new_at_each_start(daemon: OperatedDaemon) -> None:
    file = token_file(daemon.database)
    before = os.umask(0)
    try:
        tokens = {file.read_text(), *(write_token(daemon.database) for _ in range(3))}
    finally:
        os.umask(before)
    assert len(tokens) == 4
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not list(file.parent.glob("*.partial"))


async def test_a_token_is_not_written_through_a_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("run.db.token", "run.db.token.partial"):
        (tmp_path / name).symlink_to(precious)
    write_token(tmp_path / "run.db")
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("way", ["gone", "another's", "another's to read", "earlier", "a link"])
async def test_a_command_without_the_token_is_refused_in_one_sentence(
    daemon: OperatedDaemon, cli: Cli, way: str
) -> None:
    file = token_file(daemon.database)
    words = "give the command as that user"
    if way == "gone":
        file.unlink()
        words = "start the daemon again"
    elif way == "earlier":
        write_token(daemon.database)
        words = r"send one of the daemon's \[http\] tokens, or the text of the file"
    elif way == "a link":
        file.rename(file.with_name("kept"))
        file.symlink_to("kept")
    elif os.geteuid() == 0:
        # Only root can make a file of another user, and be somebody else for a moment.
        os.chown(file, 12_345, 12_345)
        file.chmod(0o644 if way == "another's to read" else 0o600)
        for folder in file.parents:
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
                folder.chmod(0o711)
        os.seteuid(54_321)
    else:
        file.chmod(0)
    try:
        with pytest.raises(TracepaperError, match=words):
            await asyncio.to_thread(ask, daemon.database, "/command", {"kind": "HALT"})
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert daemon.commands == []
    assert await called("status", "--db", daemon.database) == 0  # looking needs none


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "serves no status"),
        ("http://127.0.0.1:1", "does not answer at http://127.0.0.1:1"),
    ],
)
async def test_a_daemon_that_gives_no_status_is_named(
    daemon: OperatedDaemon, capsys: pytest.CaptureFixture[str], address: str, words: str
) -> None:
    daemon.lock.publish(address)
    assert await called("status", "--db", daemon.database) == 1
    assert words in capsys.readouterr().err


async def test_a_note_of_any_length_is_refused_in_a_sentence(
    daemon: OperatedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    for length, words in ((600, "within 500 characters"), (50_000, "write a shorter one")):
        note = "x" * length
        assert await called("command", "HALT", "--note", note, "--db", daemon.database) == 1
        assert words in capsys.readouterr().err
    assert daemon.commands == []
