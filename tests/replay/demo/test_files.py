"""A demo's files are claimed before it begins: two never share one, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracepaper.replay.demo.race import create_files
from tracepaper.strategies.errors import DataInvalid

NOW_MS = 1_748_538_720_000


def test_a_second_demo_of_one_second_is_refused(here: Path) -> None:
    first = create_files(None, wall_ms=NOW_MS)
    assert first.database.name == "demo-20250529-171200.db"
    with pytest.raises(DataInvalid, match="exists already"):
        create_files(None, wall_ms=NOW_MS)
    assert [path.name for path in here.iterdir()] == [first.config.name]


def test_what_exists_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "mine.db"
    database.write_text("what I have")
    with pytest.raises(DataInvalid, match="exists already"):
        create_files(database, wall_ms=NOW_MS)
    assert database.read_text() == "what I have"
    with pytest.raises(DataInvalid, match="cannot be written"):
        create_files(tmp_path / "nowhere" / "mine.db", wall_ms=NOW_MS)
