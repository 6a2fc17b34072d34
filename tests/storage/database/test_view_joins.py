"""Views are joined by run and sequence without comparing every row with every other."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import pytest
import storage_cases as cases

VIEWS = ("v_decisions", "v_gates", "v_equity", "v_bars")
BARS = 300
PULSE = 1_000
WORK_LIMIT = BARS * BARS
"""Steps of SQLite's machine that one join may take: a comparison of all pairs takes more."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of one run that decided every bar."""
    database = tmp_path_factory.mktemp("joins") / "run.db"
    cases.write_run(database, cases.plain_steps(BARS))
    return database


def joined(path: Path, first: str, second: str) -> tuple[int, int]:
    """Return the rows of a join of two views, and the steps that SQLite's machine took."""
    pulses = 0

    def count() -> None:
        nonlocal pulses
        pulses += 1

    connection = sqlite3.connect(path)
    connection.set_progress_handler(count, PULSE)
    question = f"SELECT count(*) FROM {first} JOIN {second} USING (run_id, sequence)"
    (rows,) = connection.execute(question).fetchone()
    connection.close()
    return rows, pulses * PULSE


@pytest.mark.parametrize("pair", list(itertools.permutations(VIEWS, 2)), ids="-".join)
def test_two_views_are_joined_in_work_linear_in_their_rows(
    pair: tuple[str, str], path: Path
) -> None:
    rows, work = joined(path, *pair)
    assert rows >= BARS
    assert work < WORK_LIMIT
