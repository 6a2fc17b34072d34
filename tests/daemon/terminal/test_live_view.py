"""The live view on a pseudo-terminal: what it draws, and that nothing waits for the terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from builders import MINUTE, START_MS, bar, decision, instrument, run, step
from fakes import ManualClock
from waiting import until

from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.daemon.terminal.live_view import LINES_KEPT, LiveView, view_of
from tracepaper.daemon.terminal.status import Status
from tracepaper.strategies.errors import FeedLost

pytestmark = pytest.mark.sockets


class PseudoTerminal:
    """A pseudo-terminal of 60 columns, and all that was read from it."""

    def __init__(self, *, reads: bool = True) -> None:
        self.ours, self.theirs = pty.openpty()
        self.stream: TextIO = os.fdopen(self.theirs, "w")
        self._written = bytearray()
        if reads:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while chunk := os.read(self.ours, 65_536):
                self._written += chunk
        except OSError:  # how Linux reports the end of a pseudo-terminal
            pass

    @property
    def text(self) -> str:
        return self._written.decode(errors="replace")

    @property
    def plain(self) -> str:
        """What was written so far, without the terminal's own sequences."""
        return re.sub(r"\x1b\[[0-9;?$<>]*[a-zA-Z]", "", self.text)

    def view(self, status: Status, *, height: int = 20) -> LiveView:
        console = Terminal(
            file=self.stream, force_terminal=True, width=60, height=height, highlight=False
        )
        return LiveView(console, lambda: status)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> PseudoTerminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    return PseudoTerminal()


def monitor_of(symbols: int = 1) -> Monitor:
    named = tuple(instrument(f"{letter}USDT") for letter in "ABCDEF"[:symbols])
    monitor = Monitor(run=run(instruments=named), clock=ManualClock(START_MS + MINUTE))
    for item in named:
        monitor.observe(step(bar(instrument_id=item.id), decided=decision()))
    return monitor


async def test_the_status_is_drawn_below_the_log_lines_which_stay(
    terminal: PseudoTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    before = termios.tcgetattr(terminal.theirs)
    view = terminal.view(monitor_of().status())
    with view.shown():
        await until(lambda: "equity 100,000.00" in terminal.plain, poll_s=0.02)
        sys.stderr.write("a \x1b[31mwarning\x1b[0m\nnot yet whole")
        await until(lambda: "a warning" in terminal.plain, poll_s=0.02)
        logged = terminal.plain.index("a warning")
        await until(lambda: "equity" in terminal.plain[logged:], poll_s=0.02)
        # A daemon that is killed here leaves the terminal as it was.
        assert termios.tcgetattr(terminal.theirs) == before
        assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")
        assert view.is_drawn
    assert not view.is_drawn
    assert sys.stderr is terminal.stream
    # The status is erased; what was written reaches the other end of the terminal later.
    await until(lambda: "\x1b[2K" in terminal.text[terminal.text.rindex("equity") :], poll_s=0.02)


async def test_of_many_instruments_each_has_one_line_if_there_is_too_little_room(
    terminal: PseudoTerminal,
) -> None:
    with terminal.view(monitor_of(4).status(), height=20).shown():
        await until(lambda: "DUSDT" in terminal.plain, poll_s=0.02)
    assert "gates" not in terminal.plain
    assert terminal.plain.count("refused by edge") >= 4


async def test_until_there_is_a_status_the_view_says_what_the_start_waits_for(
    terminal: PseudoTerminal,
) -> None:
    outages: Iterator[str | None] = iter([None, "no answer from HOST for 1 s; next try in 2 s"])
    answers = iter([False] * 4 + [True] * 1_000)

    def status() -> Status:
        if not next(answers):
            raise FeedLost("No daemon runs.")
        return monitor_of().status()

    view = terminal.view({})
    view._status = status  # noqa: SLF001 - a daemon that starts
    view.outage = lambda: next(outages, None)
    with view.shown():
        await until(lambda: "equity" in terminal.plain, poll_s=0.02)
    said = [terminal.plain.find(text) for text in ("starting", "no answer from HOST", "equity")]
    assert -1 < said[0] < said[1] < said[2]
    assert "No daemon runs." not in terminal.plain


async def test_a_daemon_that_no_longer_answers_leaves_its_last_status(
    terminal: PseudoTerminal,
) -> None:
    answers = iter([monitor_of().status()])

    def status() -> Status:
        if (answer := next(answers, None)) is None:
            raise FeedLost("The daemon does not answer.")
        return answer

    view = terminal.view({})
    view._status = status  # noqa: SLF001 - a daemon that stops to answer
    with view.shown():
        await until(lambda: "The daemon does not answer." in terminal.plain, poll_s=0.02)
        await until(lambda: terminal.plain.count("equity") > 1, poll_s=0.02)


def test_a_terminal_that_takes_nothing_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = PseudoTerminal(reads=False)
    monkeypatch.setattr(sys, "stderr", stuck.stream)
    view = stuck.view(monitor_of().status())
    with view.shown():
        for number in range(2 * LINES_KEPT):  # a pseudo-terminal holds 4 kB
            sys.stderr.write(f"line {number} of the log\n")
    assert view.is_drawn  # its thread is left behind, and ends with the process


async def test_a_closed_terminal_ends_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = PseudoTerminal(reads=False)
    monkeypatch.setattr(sys, "stderr", closed.stream)
    view = closed.view(monitor_of().status())
    with view.shown():
        os.close(closed.ours)
        await until(lambda: not view.is_drawn, poll_s=0.02)


def test_only_a_terminal_in_the_foreground_is_drawn_on(
    terminal: PseudoTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    assert view_of(Path("none.db")) is not None
    monkeypatch.setattr(os, "tcgetpgrp", lambda _descriptor: os.getpgrp() + 1)
    assert view_of(Path("none.db")) is None
    monkeypatch.setattr(os, "tcgetpgrp", lambda _descriptor: os.getpgrp())
    assert view_of(Path("none.db")) is not None
    for dumb in ("dumb", "unknown"):
        monkeypatch.setenv("TERM", dumb)
        assert view_of(Path("none.db")) is None
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert view_of(Path("none.db")) is None
