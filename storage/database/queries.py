"""``audit sql``, with limits.

A single operation of SQLite can take minutes and gigabytes and cannot be interrupted: only ending
the process stops it.
"""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import socket
import sqlite3
import threading
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

MEMORY_BYTES: Final = 2 * 2**30
"""Memory that a query may add to that of the process."""
INTERRUPT_S: Final = 1.0
"""Seconds that SQLite has to react to an interrupt; then the process is ended."""
TOO_LONG: Final = "The query took too long and was stopped; ask for less, or allow more time."


class QueryAnswer(NamedTuple):
    """The result of a query; ``cut`` describes the rows present if it is incomplete."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    cut: str = ""

    def documents(self) -> list[dict[str, Any]]:
        """Return one dictionary per row; blobs become lower-case hexadecimal text."""
        return [
            {
                name: value.hex() if isinstance(value, bytes) else value
                for name, value in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        ]


def ask_within(
    path: Path, sql: str, parameters: dict[str, object], *, rows_most: int, seconds: float
) -> QueryAnswer:
    """Run *sql* over the database *path* within *seconds* and ``MEMORY_BYTES``.

    Raises what ``ask`` does, and ``DataInvalid`` after that time. SQLite reacts to the time limit
    and to Ctrl-C between two operations; if one takes too long, the process is ended.
    """
    from tracepaper.storage.database.reader import Reader

    done, (stop_read, stop_write) = threading.Event(), socket.socketpair()

    def watch(connection: sqlite3.Connection) -> None:
        is_stopped = bool(select.select([stop_read], [], [], seconds)[0])
        if done.is_set():
            return
        connection.interrupt()
        if not done.wait(INTERRUPT_S):
            os.write(2, b"" if is_stopped else f"{TOO_LONG}\n".encode())
            os._exit(130 if is_stopped else 1)

    stop_write.setblocking(False)  # noqa: FBT003 - the library takes no keyword
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    with stop_read, stop_write, Reader.open(path) as reader:
        watcher = threading.Thread(target=watch, args=(reader.connection,), daemon=True)
        before = signal.set_wakeup_fd(stop_write.fileno())
        resource.setrlimit(
            resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
        )
        watcher.start()
        try:
            return ask(reader.connection, sql, parameters, rows_most=rows_most)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            done.set()
            signal.set_wakeup_fd(before)
            stop_write.send(b"+")
            watcher.join()


_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR})

# A query may read, compute and be recursive; it may not attach, write or change settings.
_ALLOWED: Final = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)

NAMED: Final = {
    "decisions": (
        "SELECT sequence, open_time_iso, instrument, action, refused_by, reason, mean_return, "
        "confidence_entropy, regime, target_quantity_text AS target_quantity "
        "FROM v_decisions WHERE run_id = :run ORDER BY sequence DESC"
    ),
    "fills": (
        "SELECT sequence, filled_iso, instrument, order_id, side, position_side, "
        "quantity_text AS quantity, price_text AS price, fee_text AS fee, "
        "fee_base_text AS fee_base, liquidity, model, reason, status "
        "FROM v_fills WHERE run_id = :run ORDER BY sequence DESC, ordinal DESC"
    ),
    "equity": (
        "SELECT sequence, market_iso, instrument, quantity_text AS quantity, cash_text AS cash, "
        "equity_text AS equity, realized_pnl_text AS realized_pnl, "
        "unrealized_pnl_text AS unrealized_pnl, fees_paid_text AS fees_paid, "
        "funding_paid_text AS funding_paid "
        "FROM v_equity WHERE run_id = :run ORDER BY sequence DESC"
    ),
}
"""Questions that ``audit sql`` knows by a name: of one run, the newest row first."""
NAMED_ROWS: Final = 20

ROWS_MOST: Final = 100_000
BYTES_MOST: Final = 256 * 2**20
VALUE_BYTES_MOST: Final = 64 * 2**20
"""Most rows and bytes of a result, which is held in memory, and most bytes of one value."""
_FETCHED: Final = 256

_NAME: Final = re.compile(r"\w+")


def ask(
    connection: sqlite3.Connection,
    sql: str,
    parameters: dict[str, object] | Sequence[object] = (),
    *,
    rows_most: int = ROWS_MOST,
) -> QueryAnswer:
    """Run *sql*, one SELECT, and return its result; raise ``ConfigInvalid`` for anything else.

    The result is cut after *rows_most* rows or ``BYTES_MOST`` bytes, which its ``cut`` reports.
    Raises ``DataInvalid`` if a value is larger than ``VALUE_BYTES_MOST``.
    """
    # SQLite creates table-valued functions on first use, which the authorizer would deny.
    connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES_MOST)
    connection.set_authorizer(_authorize)
    try:
        cursor = connection.execute(sql, parameters)
        rows, cut = _fetched(cursor, rows_most)
    except MemoryError:
        raise DataInvalid("The answer does not fit into memory; ask for less at once.") from None
    except (sqlite3.Error, sqlite3.Warning) as error:
        connection.set_authorizer(None)
        raise _refusal(connection, sql, error) from error
    finally:
        connection.set_authorizer(None)
    if cursor.description is None:
        raise ConfigInvalid("The query is empty; try `SELECT * FROM v_runs`.")
    return QueryAnswer(tuple(column[0] for column in cursor.description), rows, cut)


def _fetched(cursor: sqlite3.Cursor, rows_most: int) -> tuple[list[tuple[Any, ...]], str]:
    """Return the rows of *cursor* within the limits; if they were cut, also a description."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    while batch := cursor.fetchmany(_FETCHED):
        for row in batch:
            if len(rows) == rows_most:
                return rows, f"the first {rows_most:,} rows"
            size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if size > BYTES_MOST:
                return rows, f"the first {len(rows):,} rows, {BYTES_MOST >> 20} MiB"
            rows.append(row)
    return rows, ""


def _refusal(
    connection: sqlite3.Connection, sql: str, error: sqlite3.Error | sqlite3.Warning
) -> Exception:
    """Return the exception to raise for an *error* of SQLite."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _DAMAGED:
        return error  # the file is damaged; the query is not the cause
    if code == sqlite3.SQLITE_INTERRUPT:
        return DataInvalid(TOO_LONG)
    if code == sqlite3.SQLITE_TOOBIG:
        return DataInvalid(
            f"A value of the answer is larger than {VALUE_BYTES_MOST >> 20} MiB; ask for less."
        )
    refused = code == sqlite3.SQLITE_AUTH
    reason = str(error).rstrip(".")
    cause = "only one SELECT that reads tables and views is allowed" if refused else reason
    names = _existing_names(connection, sql, reason)
    return ConfigInvalid(
        f"The query cannot be asked: {cause}; {names or 'try `SELECT * FROM v_runs`'}."
    )


def _existing_names(connection: sqlite3.Connection, sql: str, reason: str) -> str:
    """List the existing names if *reason* is a missing column or table."""
    if not reason.startswith(("no such column", "no such table")):
        return ""
    missing = reason.rpartition(": ")[2].rpartition(".")[2]
    query = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY name DESC"
    tables = [str(name) for (name,) in connection.execute(query)]
    if reason.startswith("no such table"):
        views = [name for name in tables if name.startswith("v_")]
        return f"the views are {', '.join(sorted(views))}{_nearest(missing, views)}"
    in_query = set(_NAME.findall(sql.lower()))
    columns = {
        table: [str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})")]
        for table in tables
        if table in in_query
    }
    if not columns:
        return ""
    listed = "; ".join(f"{table} has {', '.join(names)}" for table, names in columns.items())
    return listed + _nearest(missing, [name for names in columns.values() for name in names])


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f" (the nearest is {near[0]})" if near else ""


def _authorize(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY
