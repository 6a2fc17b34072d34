"""A newcomer's empty folder: commands in this process, or as programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli
from newcomer import Shell, TerminalInProcess


@pytest.fixture
def say(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> TerminalInProcess:
    """Return a terminal in an empty folder, from which Python imports too."""
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setenv("COLUMNS", "100")
    return TerminalInProcess(cli)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Return a shell in an empty folder, whose programs are those of this environment."""
    return Shell(tmp_path)
