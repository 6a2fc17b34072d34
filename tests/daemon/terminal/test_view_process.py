"""The process of the live view on a pseudo-terminal: its start, its end, and every bad end."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import account, bar, decision, fill, forecast, instrument, run, step
from programs import ROOT, environment
from waiting import until

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.terminal.live_view import LEAVE, RunWatcher, Screen, terminal_of_view
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Instrument

pytestmark = pytest.mark.sockets

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"
PROGRAM = ROOT / "tests" / "support" / "viewed_program.py"
BTC = instrument()


class Terminal:
    """A pseudo-terminal, and all that was written to it."""

    def __init__(self, width: int = 100, height: int = 30) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(width, height)
        self.path = os.ttyname(self.theirs)
        self._written = bytearray()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while chunk := os.read(self.ours, 65_536):
                self._written += chunk
        except OSError:  # how Linux reports the end of a pseudo-terminal
            pass

    @property
    def text(self) -> str:
        """What was written so far."""
        return self._written.decode(errors="replace")

    @property
    def plain(self) -> str:
        """What was written so far, without the terminal's own sequences."""
        return re.sub(r"\x1b\[[0-9;?$<>]*[a-zA-Z]", "", self.text)

    def modes(self) -> list[Any]:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self.theirs)

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def shows(self, words: str) -> None:
        await until(lambda: words in self.plain, poll_s=0.02)

    def close(self) -> None:
        for number in (self.theirs, self.ours):
            os.close(number)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    fake = Terminal()
    yield fake
    fake.close()


def decided(number: int, of: Instrument = BTC) -> Step:
    return step(
        bar(10_000 + number, index=number, instrument_id=of.id),
        sequence=number,
        decided=decision(),
        prediction=forecast(),
        of=account(100_000 + number),
    )


@contextmanager
def viewed(
    terminal: Terminal, instruments: tuple[Instrument, ...] = (BTC,)
) -> Iterator[tuple[Screen, RunWatcher]]:
    """Open the view on *terminal*; end it, as its daemon does."""
    view = Screen(SystemClock(), terminal.path, Path("none.db"))
    view.begin()
    try:
        watcher = RunWatcher(view, limit=None, until_ms=None)
        watcher.opened(run(instruments=instruments))
        yield view, watcher
    finally:
        view.end()


async def test_the_view_takes_the_terminal_and_gives_it_back(terminal: Terminal) -> None:
    before = terminal.modes()
    with viewed(terminal) as (view, watcher):
        watcher.watch(decided(1))
        await terminal.shows("100,001.00")
        await until(lambda: terminal.modes() != before, poll_s=0.02)
        # The last state is told also where no step follows it.
        for number in range(2, 50):
            watcher.watch(decided(number))
        await terminal.shows("100,049.00")
        assert ENTERED in terminal.text
        assert terminal.modes()[6][termios.VSUSP] == b"\0"
    assert view.process.returncode == 0
    await until(lambda: LEFT in terminal.text, poll_s=0.02)
    assert terminal.text.rindex(LEFT) > terminal.text.rindex("\x1b[?2004l")
    assert terminal.modes() == before


async def test_a_view_that_is_killed_leaves_a_whole_terminal_and_log_lines(
    terminal: Terminal, log: io.StringIO
) -> None:
    before = terminal.modes()
    with viewed(terminal) as (view, watcher):
        watcher.watch(decided(1))
        await terminal.shows("100,001.00")
        view.process.kill()
        await until(lambda: "the live view is gone" in log.getvalue(), poll_s=0.02)
        await until(lambda: terminal.text.endswith(LEAVE.decode()), poll_s=0.02)
        assert terminal.modes() == before
        bought = step(bar(index=2), sequence=2, fills=(fill(),))
        watcher.watch(bought)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["event"] for line in lines][:2] == [
        "the live view is gone; log lines follow",
        "fill",
    ]
    assert lines[0]["exit_code"] == -signal.SIGKILL


async def test_a_view_that_hangs_delays_no_step_and_is_ended(terminal: Terminal) -> None:
    before = terminal.modes()
    many = tuple(instrument(f"S{number}USDT") for number in range(300))
    with viewed(terminal, many) as (view, watcher):
        watcher.watch(decided(1, many[0]))
        await terminal.shows("100,001.00")
        view.process.send_signal(signal.SIGSTOP)
        # More than any pipe holds: the thread that tells the view waits, this one does not.
        for number in range(1, 6):
            for candle in many:
                watcher.watch(decided(number, candle))
    assert view.process.returncode == -signal.SIGKILL
    await until(lambda: terminal.text.endswith(LEAVE.decode()), poll_s=0.02)
    assert terminal.modes() == before


async def test_the_view_stops_the_daemon_only_when_it_is_told_to(terminal: Terminal) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: heard.append(number))
    try:
        with viewed(terminal) as (_, watcher):
            watcher.watch(decided(1))
            await terminal.shows("100,001.00")
            terminal.type("q")
            await terminal.shows("leave the view")
            assert not heard
            terminal.type("s")
            await until(lambda: heard, poll_s=0.02)
    finally:
        signal.signal(signal.SIGINT, before)


async def test_a_view_that_is_left_is_followed_by_log_lines(
    terminal: Terminal, log: io.StringIO
) -> None:
    with viewed(terminal) as (view, watcher):
        watcher.watch(decided(1))
        await terminal.shows("100,001.00")
        terminal.type("q")
        await terminal.shows("leave the view")
        terminal.type("l")
        await until(lambda: view.process.returncode == 0, poll_s=0.02)
        view.end()
        watcher.watch(decided(2))
    assert [json.loads(line)["event"] for line in log.getvalue().splitlines()] == ["decision"]


def test_the_terminal_is_that_of_stderr_or_else_of_stdout(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(terminal.path).open("w", encoding="utf-8") as stream:
        for on, off in (("stderr", "stdout"), ("stdout", "stderr")):
            monkeypatch.setattr(sys, on, stream)
            monkeypatch.setattr(sys, off, io.StringIO())
            assert terminal_of_view() == terminal.path
        for dumb in ("dumb", "unknown", ""):
            monkeypatch.setenv("TERM", dumb)
            assert terminal_of_view() is None


# The whole, as a shell starts it: a session of its own, whose terminal this is.


@contextmanager
def shell(words: str, folder: Path) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Run *words* in a shell whose terminal is a new one; ``$PROGRAM`` is the program."""
    terminal = Terminal()
    extra = {"TERM": "xterm-256color", "PROGRAM": f"{sys.executable} {PROGRAM} {folder}"}
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_A_SESSION, "sh", "-c", words],
        env=environment(extra),
        stdin=terminal.theirs,
        stdout=terminal.theirs,
        stderr=terminal.theirs,
        start_new_session=True,
    )
    try:
        yield terminal, process
    finally:
        process.kill()
        process.wait()
        terminal.close()


# Tests that a shell began in the background ignore SIGINT; a new session's programs do not.
_IN_A_SESSION = """\
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
async def test_a_redirected_stderr_has_the_log_and_nothing_else(tmp_path: Path) -> None:
    with shell(f"$PROGRAM 2>{tmp_path}/log", tmp_path) as (terminal, _):
        await terminal.shows("100,000.00")
        # At once, not when the view ends.
        await until(lambda: "all is shown" in (tmp_path / "log").read_text(), poll_s=0.02)
        terminal.resize(132, 43)
        await until(lambda: "\x1b[43;1H" in terminal.text, poll_s=0.02)
        terminal.type("\x03")
        await terminal.shows("it has ended")
        assert terminal.text.index("it has ended") > terminal.text.rindex(LEFT)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["all is shown"]


@pytest.mark.slow
async def test_log_lines_are_in_the_view_and_stay_after_it(tmp_path: Path) -> None:
    with shell("$PROGRAM", tmp_path) as (terminal, _):
        await terminal.shows("all is shown")
        await terminal.shows("100,000.00")
        assert LEFT not in terminal.text
        terminal.type("\x03")
        await terminal.shows("it has ended")
        assert "all is shown" in terminal.text[terminal.text.rindex(LEFT) :]


@pytest.mark.slow
async def test_the_daemon_s_death_leaves_a_whole_terminal(tmp_path: Path) -> None:
    waits = "until stty -a | grep -q ' echo '; do sleep 0.1; done; echo whole again"
    with shell(f"set -m; $PROGRAM; {waits}", tmp_path) as (terminal, _):
        await terminal.shows("100,000.00")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        await terminal.shows("whole again")
        await until(lambda: LEFT in terminal.text, poll_s=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["TERM=dumb $PROGRAM", "set -m; $PROGRAM & wait"])
async def test_a_dumb_terminal_and_the_background_have_log_lines(
    words: str, tmp_path: Path
) -> None:
    with shell(words, tmp_path) as (terminal, _):
        await terminal.shows("all is shown")
        await until((tmp_path / "pid").exists, poll_s=0.02)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGINT)
        await terminal.shows("it has ended")
        assert ENTERED not in terminal.text
