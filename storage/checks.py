"""Stored results of checks of a run, which the chain does not cover.

docs/storage.md, S10, has the rule. A result is current while its step is the run's last.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from tracepaper.storage.database.remedies import unusable
from tracepaper.storage.record.columns import Value, stored_columns
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.market import ParityCheck

if TYPE_CHECKING:
    from pathlib import Path

    from tracepaper.storage.database.chunks import StoredRun


class StoredCheck(NamedTuple):
    """A stored comparison of the run with its replay, or with decisions by a longer history."""

    kind: str  # the command, verify or parity; or WARMUP
    checked_ms: int  # wall time at its end
    result: ParityCheck


WARMUP: Final = "warmup"
"""The kind of a comparison with decisions by a longer history."""
_NEWEST: Final = (
    "SELECT kind, checked_ms, content FROM checks WHERE run_key = ? AND head = ? "
    "AND (kind = ?) = ? ORDER BY checked_ms DESC LIMIT 1"
)


def store_check(database: Path, checked: StoredRun, check: StoredCheck) -> str:
    """Store *check* for the run's last step when the check began; a later step makes it stale.

    Returns "", or the reason why it could not be stored: the file cannot be written, or a daemon
    writes it.
    """
    result = check.result
    row: dict[str, Value] = {
        "run_key": checked.run_key,
        "checked_ms": check.checked_ms,
        "kind": check.kind,
        "sequence": checked.step_count - 1,
        "head": checked.head_digest,
        "result": result.outcome.value,
        "compared": result.compared,
        "identical": result.identical + result.within_tolerance,
        "content": msgspec.json.encode(result).decode(),
    }
    # Imported here, because the readers of this file need no SQLAlchemy, which loads in .3 s.
    from sqlalchemy import delete

    from tracepaper.storage.database.schema import metadata
    from tracepaper.storage.database.writer import insert_rows, open_writer

    try:
        writer = open_writer(database)
    except (TracepaperError, OSError) as error:
        return str(error)
    same = {name: row[name] for name in ("run_key", "sequence", "checked_ms", "kind")}
    values = tuple(row[column] for column in stored_columns("checks"))
    try:
        with writer.connection.begin():
            writer.connection.execute(delete(metadata.tables["checks"]).filter_by(**same))
            insert_rows(writer.driver, {"checks": [values]})
    except sqlite3.Error as error:
        return unusable(database, error)
    finally:
        writer.close()
    return ""


def newest_check(
    connection: sqlite3.Connection, run_key: int, head: bytes, *, of_warmup: bool = False
) -> StoredCheck | None:
    """Return the newest comparison of the run with a replay whose last step had digest *head*.

    With *of_warmup* it is that with decisions by a longer history.
    """
    row = connection.execute(_NEWEST, (run_key, head, WARMUP, of_warmup)).fetchone()
    if row is None:
        return None
    kind, checked_ms, content = row
    return StoredCheck(kind, checked_ms, msgspec.json.decode(content, type=ParityCheck))
