"""The signals that end a process, and a terminal that is closed."""

from __future__ import annotations

import os
import pty
import signal
import sys
from pathlib import Path

import pytest
from programs import Program, ProgramResult

HEARS = """
import sys
from tracepaper.daemon.session.shutdown import handle_signals

heard = []
handle_signals(heard.append)
print("ready", file=sys.stderr, flush=True)
sys.stdin.readline()
print(*heard, flush=True)
"""


def end_of(
    folder: Path, *numbers: signal.Signals, nohup: bool = False, terminal: bool = False
) -> ProgramResult:
    """Return the end of a process that writes which of *numbers* it heard.

    With *terminal* it writes to a terminal, which is closed before the signals come.
    """
    asked, ask = os.pipe()
    ours, theirs = pty.openpty()
    program = Program(
        [sys.executable, "-c", HEARS],
        folder,
        name="hears",
        nohup=nohup,
        stdin=asked,
        stdout=theirs if terminal else None,
    )
    program.wait_until(lambda: "ready" in program.err)
    for descriptor in (asked, ours, theirs):
        os.close(descriptor)
    for number in numbers:
        program.process.send_signal(number)
    os.close(ask)  # the end of its input
    return program.end()


@pytest.mark.parametrize(("nohup", "heard"), [(False, "1 2 15"), (True, "2 15")])
def test_a_hang_up_is_heard_unless_it_was_ignored_at_the_start(
    tmp_path: Path, nohup: bool, heard: str
) -> None:
    ended = end_of(tmp_path, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, nohup=nohup)
    assert ended.code == 0, ended.err
    assert sorted(ended.out.split(), key=int) == heard.split()


def test_a_process_may_write_after_its_terminal_is_closed(tmp_path: Path) -> None:
    ended = end_of(tmp_path, signal.SIGHUP, terminal=True)
    assert ended.code == 0, ended.err


IN_A_CALLBACK = """
import os, signal
from tracepaper.daemon.session.shutdown import exit_zero_on_signals

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

exit_zero_on_signals()
Dropped()
raise SystemExit(7)
"""


def test_a_signal_is_not_lost_where_python_drops_exceptions(tmp_path: Path) -> None:
    """Public reports: aiogram#591, wyoming-piper#47, s3s#196, changedetection.io#1632."""
    ended = Program([sys.executable, "-c", IN_A_CALLBACK], tmp_path, name="dropped").end()
    assert (ended.code, ended.err) == (0, "")
