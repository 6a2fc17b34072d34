"""``audit sql``: one query that only reads, within a time and a number of rows."""

from __future__ import annotations

import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from threading import Event
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


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
    """Run *sql* over the database *path*; raise what ``ask`` does, or ``DataInvalid`` if late."""
    from tracepaper.storage.database.reader import Reader

    is_over = Event()

    def answer() -> QueryAnswer:
        # The thread has its own connection: after a Ctrl-C while it starts nobody waits for it, and
        # a connection that is closed while it is in use crashes the process.
        with Reader.open(path) as reader:
            reader.connection.set_progress_handler(is_over.is_set, 10_000)
            return ask(reader.connection, sql, parameters, rows_most=rows_most)

    # In a thread, so that Ctrl-C and the end of the time find this one waiting.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(answer).result(timeout=seconds)
        except TimeoutError:
            raise DataInvalid(
                "The query took too long and was stopped; ask for less, or allow more time."
            ) from None
        finally:
            is_over.set()


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
        "SELECT sequence, filled_iso, instrument, order_id, side, quantity_text AS quantity, "
        "price_text AS price, fee_text AS fee, "
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
"""Most rows of a result, which is held in memory."""

_NAME: Final = re.compile(r"\w+")


def ask(
    connection: sqlite3.Connection,
    sql: str,
    parameters: dict[str, object] | Sequence[object] = (),
    *,
    rows_most: int = ROWS_MOST,
) -> QueryAnswer:
    """Run *sql*, one SELECT, and return its result; raise ``ConfigInvalid`` for anything else.

    The result is cut after *rows_most* rows, which its ``cut`` reports.
    """
    # SQLite creates table-valued functions on first use, which the authorizer would deny.
    connection.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')")
    connection.set_authorizer(_authorize)
    try:
        cursor = connection.execute(sql, parameters)
        rows = cursor.fetchmany(rows_most + 1)
    except (sqlite3.Error, sqlite3.Warning) as error:
        connection.set_authorizer(None)
        raise _refusal(connection, sql, error) from error
    finally:
        connection.set_authorizer(None)
    if cursor.description is None:
        raise ConfigInvalid("The query is empty; try `SELECT * FROM v_runs`.")
    cut = f"the first {rows_most:,} rows" if len(rows) > rows_most else ""
    columns = tuple(column[0] for column in cursor.description)
    return QueryAnswer(columns, rows[:rows_most], cut)


def _refusal(
    connection: sqlite3.Connection, sql: str, error: sqlite3.Error | sqlite3.Warning
) -> Exception:
    """Return the exception to raise for an *error* of SQLite."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _DAMAGED:
        return error  # the file is damaged; the query is not the cause
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
