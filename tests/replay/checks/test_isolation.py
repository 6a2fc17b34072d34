"""A process that hangs ends with its parent, and where it is late."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from programs import environment
from user_strategies import importable
from waiting import deadline_s

from tracepaper.replay.checks.isolation import FreshProcesses, Overdue

PARENT = """
import os
from tracepaper.replay.checks.isolation import FreshProcesses


def hang(connection):
    connection.send(os.getpid())
    while True:
        pass


if __name__ == "__main__":
    import hanging

    with FreshProcesses() as fresh, fresh.child(hanging.hang) as child:
        print(child.receive(), fresh._process.pid, flush=True)
        child.receive()
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[ModuleType]:
    (tmp_path / "hanging.py").write_text(PARENT)
    with importable(tmp_path):
        yield import_module("hanging")


def test_a_kill_of_the_parent_ends_what_hangs(hanging: ModuleType) -> None:
    with subprocess.Popen(
        [sys.executable, str(hanging.__file__)], stdout=subprocess.PIPE, env=environment()
    ) as parent:
        assert parent.stdout is not None
        pids = [int(text) for text in parent.stdout.readline().split()]
        assert len(pids) == 2
        children = [psutil.Process(pid) for pid in pids]
        parent.send_signal(signal.SIGKILL)
        _, running = psutil.wait_procs(children, timeout=deadline_s())
        assert not running


def test_a_child_that_is_late_is_killed(hanging: ModuleType) -> None:
    with FreshProcesses() as fresh, fresh.child(hanging.hang) as child:
        process = psutil.Process(child.receive())
        with pytest.raises(Overdue):
            child.receive(0.0)
        process.wait(timeout=deadline_s())
