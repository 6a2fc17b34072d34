"""Files for the tests of a fleet, and the comparison of two of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from storage_cases import plain_steps

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.record.columns import TABLES, stored_columns


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table with the types of its values, in the order of its key."""
    found = {}
    with closing(sqlite3.connect(path)) as db:
        for table, columns in TABLES.items():
            keys = ", ".join(column.name for column in columns if column.is_key)
            names = ", ".join(stored_columns(table))
            rows = db.execute(f"SELECT {names} FROM {table} ORDER BY {keys}").fetchall()
            found[table] = [tuple((type(value), value) for value in row) for row in rows]
    return found


def assert_same(path: Path, other: Path) -> None:
    first, second = contents(path), contents(other)
    for table in TABLES:
        assert first[table] == second[table], table


def grown(path: Path, count: int, *, seed: int, since: int) -> None:
    log = SqlAuditLog.open(path)
    log.resume("r-1")
    for step in plain_steps(count, seed=seed)[since:]:
        log.append_now(step)
    log.close()
