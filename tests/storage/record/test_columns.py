"""A column that is defined once is found wherever columns are: nothing else names it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from programs import ROOT, environment
from waiting import deadline_s

PROGRAM = ROOT / "tests" / "support" / "new_columns_program.py"
TABLES = ("steps", "answers", "outcomes", "holdings", "orders", "fills", "twin_fills")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what a version with new columns finds in a database of this version."""
    folder = tmp_path_factory.mktemp("new_columns")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)],
        env=environment({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(120),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", TABLES)
def test_a_new_column_is_written_and_shown(found: Any, table: str) -> None:
    assert (found["new"]["problem"], found["new"]["warnings"]) == (None, 0)
    assert found["new"]["values"][table]
    assert found["files"][table]
    assert found["frames"][table]
    assert found["documented"][table]


@pytest.mark.parametrize("table", TABLES)
def test_the_chain_covers_a_new_column(found: Any, table: str) -> None:
    assert found["forged"][table] == "changed"


def test_steps_with_new_columns_come_back(found: Any) -> None:
    assert found["comes back"]
    assert found["rechained"]["problem"] is None
