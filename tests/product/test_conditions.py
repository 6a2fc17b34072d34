"""Commands in a poor environment: an answer or one sentence, and the right exit code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from programs import BIN, environment
from waiting import deadline_s

START = 1_704_067_200_000
COMMANDS = {
    "replay BTCUSDT.csv --set strategy.name=sma_cross --set strategy.fast=3 --db run.db": 0,
    "explain last:40 --db run.db": 0,
    "audit verify last --db run.db": 0,
    "config show": 0,
    "data check BTCUSDT.csv": 0,
    "verify last --db none.db": 1,
    "replay none.csv": 1,
}
"""Commands and the exit code of each in a good environment."""
CONDITIONS = {
    "ASCII": {
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONCOERCECLOCALE": "0",
    },
    "no home": {"HOME": ""},
    "closed output": {},
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_no_command_ends_in_a_traceback(condition: str, tmp_path: Path) -> None:
    rows = [
        f"{START + at * 60_000},{100 + at % 7},{101 + at % 7},{99 + at % 7},{100 + at % 7},5"
        for at in range(300)
    ]
    head = "open_time,open,high,low,close,volume"
    (tmp_path / "BTCUSDT.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    home = {"XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    given = environment({**home, **CONDITIONS[condition]})
    if condition == "no home":
        given = {name: value for name, value in given.items() if name != "HOME"}
    closed = condition == "closed output"
    for command, code in COMMANDS.items():
        done = subprocess.run(
            [str(BIN / "tracepaper"), *command.split()],
            cwd=tmp_path,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=None if closed else subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            timeout=deadline_s(120),
            preexec_fn=(lambda: os.close(1)) if closed else None,
        )
        error = done.stderr.decode("utf-8", "replace")
        assert "Traceback" not in error, command
        assert done.returncode == code, (command, error)
        if code:
            assert error.strip().splitlines()[-1].endswith("."), (command, error)
