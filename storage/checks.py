"""Results of checks of a run, stored beside its record: the chain does not cover them.

The rule is docs/storage.md, S10. What a check found counts while the run ends with the step
that it was made on.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from tracepaper.storage.database.writer import advice, insert_rows, open_writer
from tracepaper.storage.record.columns import Value, stored_columns
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.market import ParityCheck

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tracepaper.storage.database.chunks import StoredRun


class StoredCheck(NamedTuple):
    """A stored comparison of the run with its replay."""

    kind: str  # the command: verify or parity
    checked_ms: int  # wall time at its end
    result: ParityCheck


_NEWEST: Final = (
    "SELECT kind, checked_ms, content FROM checks WHERE run_key = ? AND head = ? "
    "ORDER BY checked_ms DESC LIMIT 1"
)


def store_check(database: Path, checked: StoredRun, check: StoredCheck) -> str:
    """Store *check* of the run as it stood when that began; a later step makes it stale.

    Returns why it could not be stored, and an empty text where it was: a file that cannot be
    written, or that a daemon writes, keeps no row of it.
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
    same = "run_key = :run_key AND sequence = :sequence AND checked_ms = :checked_ms"
    return _store(database, "checks", [row], f"{same} AND kind = :kind", row)


def store_shortfalls(database: Path, run_key: int, rows: Sequence[Mapping[str, Value]]) -> str:
    """Store *rows* of ``shortfalls`` in place of the run's; return as :func:`store_check` does."""
    return _store(database, "shortfalls", rows, "run_key = :run_key", {"run_key": run_key})


def _store(
    database: Path,
    table: str,
    rows: Sequence[Mapping[str, Value]],
    replaced: str,
    values: Mapping[str, Value],
) -> str:
    """Put *rows* in place of those that meet the condition *replaced*, in one transaction."""
    try:
        writer = open_writer(database)
    except (TracepaperError, OSError) as error:
        return str(error)
    names = stored_columns(table)
    try:
        writer.connection.execute("BEGIN IMMEDIATE")
        writer.connection.execute(f"DELETE FROM {table} WHERE {replaced}", values)
        insert_rows(
            writer.connection, {table: [tuple(row[name] for name in names) for row in rows]}
        )
        writer.connection.execute("COMMIT")
    except sqlite3.Error as error:
        return f"{database} cannot be written ({error}); {advice(error)}."
    finally:
        writer.close()
    return ""


def newest_check(connection: sqlite3.Connection, run_key: int, head: bytes) -> StoredCheck | None:
    """Return the newest comparison with a replay that was made on the run's last step *head*."""
    row = connection.execute(_NEWEST, (run_key, head)).fetchone()
    if row is None:
        return None
    kind, checked_ms, content = row
    return StoredCheck(kind, checked_ms, msgspec.json.decode(content, type=ParityCheck))
