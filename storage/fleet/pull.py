"""``pull``: copies a database, or one run of it, from a fleet's PostgreSQL into a file.

All is read from one snapshot and written into a new file, which gets its name when it is complete.
docs/fleet.md, F10 to F12, has the rules.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from sqlalchemy import delete, insert

from tracepaper.storage.database.writer import DATABASES, insert_rows, open_writer
from tracepaper.storage.fleet.server import (
    ONE_SNAPSHOT,
    check_schema,
    connect,
    driver_of,
    shown,
    transaction,
)
from tracepaper.storage.fleet.tables import DATABASE
from tracepaper.storage.maintenance import whole_file
from tracepaper.storage.record.columns import TABLES, stored_columns
from tracepaper.strategies.errors import DataInvalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection

BATCH_ROWS: Final = 5_000
_RUNS: Final = (
    "SELECT r.database_id, r.run_key, r.run_id, r.previous_run_id, s.host, s.file FROM runs r "
    "LEFT JOIN shippers s USING (database_id) ORDER BY r.database_id, r.run_key"
)
_ONLY: Final = "SELECT only_run_id FROM databases WHERE database_id = %s"


class PullResult(Struct, frozen=True):
    """The runs and rows of a pull."""

    database_id: str
    run_ids: tuple[str, ...]
    rows: dict[str, int]  # by table
    absent: str = ""  # the predecessor of a run that was pulled alone


class _ServerRun(Struct, frozen=True):
    """A run on the server."""

    database_id: str
    run_key: int
    run_id: str
    previous_run_id: str | None
    host: str | None
    file: str | None


def pull(
    url: str,
    target: Path,
    *,
    run: str = "",
    database: str = "",
    needed_by: str = "--from",
    progress: Callable[[str, int], object] = lambda _table, _rows: None,
) -> PullResult:
    """Write a *database* of the server at *url*, or only its *run*, into the new file *target*.

    *run* and *database* are ids or unique prefixes; "" if the server has only one. Raises
    ``DataInvalid`` if *target* exists or not exactly one database or run matches, ``ServerLost`` if
    the connection fails; then no file is left.
    """
    with (
        whole_file(target, "pull") as partial,
        closing(connect(url, needed_by=needed_by)) as server,
    ):
        check_schema(url, server)
        server.execution_options(**ONE_SNAPSHOT)
        with transaction(url, server, "give the record"):
            runs = [_ServerRun(*row) for row in server.exec_driver_sql(_RUNS)]
            matching = _matching(url, runs, run, database)
            try:
                pulled = _fill(server, partial, matching, progress, alone=bool(run))
            except sqlite3.IntegrityError as error:
                raise DataInvalid(
                    f"The copy of {matching[0].database_id} at {shown(url)} is no record "
                    f"({error}): it was changed by hand. Nothing was pulled; ship its file again, "
                    "under a new id, with `tracepaper db ship --new-id`."
                ) from None
    return pulled


def _matching(url: str, runs: list[_ServerRun], run: str, database: str) -> list[_ServerRun]:
    """Return the run that matches *run*, or all runs of the one database that matches."""
    if not runs:
        raise DataInvalid(
            f"{shown(url)} holds no run yet: `tracepaper db ship --to URL` brings the first."
        )
    if database:
        runs = [stored_run for stored_run in runs if stored_run.database_id.startswith(database)]
    if run:
        exact = [stored_run for stored_run in runs if stored_run.run_id == run]
        runs = exact or [stored_run for stored_run in runs if stored_run.run_id.startswith(run)]
    if not runs:
        named = f"run {run}" if run else f"database {database}"
        raise DataInvalid(
            f"{shown(url)} holds no {named}; `tracepaper fleet URL --json` lists what it has."
        )
    ids = list(dict.fromkeys(stored_run.database_id for stored_run in runs))
    if len(ids) > 1:
        raise DataInvalid(
            f"{shown(url)} holds {len(ids)} databases{' with that' if run or database else ''}, "
            f"such as {ids[0]} and {ids[1]}; name one with --database."
        )
    if run and len(runs) > 1:
        raise DataInvalid(f"{run} could be {runs[0].run_id} or {runs[1].run_id}; write more of it.")
    return runs


def _fill(
    server: Connection,
    partial: Path,
    runs: list[_ServerRun],
    progress: Callable[[str, int], object],
    *,
    alone: bool,
) -> PullResult:
    """Create the file with the rows of *runs*, all of a database or one *alone*."""
    partial.unlink(missing_ok=True)
    database_id = runs[0].database_id
    only, absent = (runs[0], runs[0].previous_run_id or "") if alone else (None, "")
    counts: dict[str, int] = {}
    writer = open_writer(partial)
    try:
        writer.driver.execute("PRAGMA synchronous = OFF")  # ``whole_file`` syncs the complete file
        with writer.connection.begin():
            writer.connection.execute(delete(DATABASES))
            new = insert(DATABASES).values(database_id=database_id)
            for table in TABLES:
                if table == "databases":
                    stored = server.exec_driver_sql(_ONLY, (database_id,)).scalar()
                    only_run_id = only.run_id if only else stored
                    writer.connection.execute(new.values(only_run_id=only_run_id))
                    continue
                where, values = _condition(table, only)
                rows = database_id, *values
                counts[table] = _copy(server, writer.driver, table, where, rows)
                progress(table, counts[table])
    finally:
        writer.close()
    return PullResult(database_id, tuple(run.run_id for run in runs), counts, absent)


def _condition(table: str, only: _ServerRun | None) -> tuple[str, tuple[int, ...]]:
    """Return the condition for the rows of *table* that belong to the run *only*; None: all."""
    if only is None:
        return "", ()
    if table == "models":
        return (
            (
                "AND (model_sha256 IN (SELECT r.model_sha256 FROM runs r WHERE r.database_id = "
                "models.database_id AND r.run_key = %s) OR EXISTS (SELECT 1 FROM events e WHERE "
                "e.database_id = models.database_id AND e.run_key = %s AND "
                "e.kind = 'model_change' AND position(models.model_sha256 in e.content) > 0))"
            ),
            (only.run_key, only.run_key),
        )
    return "AND run_key = %s", (only.run_key,)


def _copy(
    server: Connection,
    file: sqlite3.Connection,
    table: str,
    where: str,
    values: tuple[object, ...],
) -> int:
    """Copy rows of *table* in the order of its key; return their number."""
    names = stored_columns(table)
    keys = ", ".join(column.name for column in TABLES[table] if column.is_key)
    query = f"SELECT {', '.join(names)} FROM {table} WHERE {DATABASE} = %s {where} ORDER BY {keys}"
    count = 0
    with driver_of(server).cursor(f"pull_{table}", binary=True) as cursor:
        cursor.itersize = BATCH_ROWS
        cursor.execute(query.encode(), values)
        while rows := cursor.fetchmany(BATCH_ROWS):
            insert_rows(file, {table: rows})
            count += len(rows)
    return count
