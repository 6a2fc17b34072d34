"""Absent, late, repaired: three words about bars, told of the run and not before one bar."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from command_line import Cli
from scenarios import SCENARIOS

from tracepaper.replay.page import runs
from tracepaper.replay.page.databases import Databases
from tracepaper.replay.report.states import lasting_states
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader


@pytest.mark.parametrize(
    ("repaired_by", "intervals_later", "word", "sentence"),
    [
        ("", 0, "absent", "No decision could trade for"),
        ("rest", 5, "late", "Decisions were late for"),
        ("rest", 1, "repaired", ""),
    ],
)
def test_absent_late_and_repaired_bars_are_three_things(
    tmp_path: Path, cli: Cli, repaired_by: str, intervals_later: int, word: str, sentence: str
) -> None:
    """*intervals_later*: when REST gave the bars, counted from the close of the first."""
    path = Path(shutil.copy(SCENARIOS["a hole"].recorded(), tmp_path / "run.db"))
    with Reader.open(path) as reader:
        interval_ms = reader.run(reader.find("last")).interval_ms
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(
            "UPDATE events SET content = json_set(content, '$.repaired_by', ?), "
            "market_ms = json_extract(content, '$.from_ms') + ? WHERE kind = 'gap'",
            (repaired_by, (1 + intervals_later) * interval_ms),
        )
    with Reader.open(path) as reader:
        states = lasting_states(RunColumns(reader, reader.find("last")))
    assert [state.kind for state in states] == ([word] if sentence else [])
    databases = Databases([path])
    (row,) = runs.runs(databases).runs
    banner = runs.run(databases.find(row.run_id)).absent
    assert bool(banner) is (word == "absent")
    text = " ".join(cli.out("report", "--db", path).split())
    assert all(state.sentence in text for state in states)
    explained = cli.out("explain", "--db", path)
    assert "No decision could trade" not in explained
    assert "were late" not in explained
