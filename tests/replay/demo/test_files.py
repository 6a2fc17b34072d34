"""A demo's files are claimed before it begins: two never share one, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracepaper.replay.demo.race import ShowFiles, named_by_time
from tracepaper.strategies.errors import DataInvalid

NOW_MS = 1_748_538_720_000


def test_a_second_demo_of_one_second_is_refused(here: Path) -> None:
    first = ShowFiles(named_by_time(NOW_MS))
    assert first.database.name == "demo-20250529-171200.db"
    first.create("[market]\n")
    with pytest.raises(DataInvalid, match="exists already"):
        ShowFiles(named_by_time(NOW_MS)).create("")
    assert first.config.read_text(encoding="utf-8") == "[market]\n"


def test_what_exists_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "mine.db"
    database.write_text("what I have")
    with pytest.raises(DataInvalid, match="exists already"):
        ShowFiles(database).create("")
    assert database.read_text() == "what I have"
    with pytest.raises(DataInvalid, match="cannot be written"):
        ShowFiles(tmp_path / "nowhere" / "mine.db").create("")
