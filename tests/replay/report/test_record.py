from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.report import Report
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid


def test_a_decision_without_its_bar_is_refused(pair_report: Report, tmp_path: Path) -> None:
    path = Path(shutil.copy(pair_report.record.database, tmp_path / "forged.db"))
    with sqlite3.connect(path) as db:
        db.execute(
            "UPDATE steps SET ignored = 1 WHERE sequence = "
            "(SELECT max(sequence) FROM steps WHERE open > 0)"
        )
    with Reader.open(path) as reader, pytest.raises(DataInvalid, match="without their bars"):
        read_record(reader, path, reader.find("last"))
