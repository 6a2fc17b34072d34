"""Other people's backtesters, each in an environment of its own; collected only by ``-m peers``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import deadline_s

HERE = Path(__file__).parent
ENVIRONMENTS = Path(sys.prefix) / "peers"
REQUIREMENTS = {
    "backtesting": ("backtesting==0.6.6",),
    "nautilus": ("nautilus_trader==1.221.0",),
    "hftbacktest": ("hftbacktest==2.4.4",),
}
"""What was tried."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless its marker is asked for."""
    del collection_path
    return None if "peers" in config.option.markexpr else True


@pytest.fixture
def peer(tmp_path: Path) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    """Return what runs a peer's program on a task, in an environment made at its first use."""

    def run(name: str, task: dict[str, Any]) -> dict[str, Any]:
        given, answer = tmp_path / "task.json", tmp_path / "answer.json"
        given.write_text(json.dumps(task), encoding="utf-8")
        program = HERE / "programs" / f"with_{name}.py"
        subprocess.run([_python(name), program, given, answer], check=True, timeout=deadline_s(600))
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found

    return run


def _python(name: str) -> Path:
    """Return the interpreter of a peer's own environment."""
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(REQUIREMENTS[name])
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *REQUIREMENTS[name]], check=True)
        stamp.write_text(wanted)
    return python
