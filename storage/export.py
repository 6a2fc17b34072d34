"""Every view of one run into one file each: Parquet or CSV, streamed, and whole or not at all."""

from __future__ import annotations

import shutil
import sys
from array import array
from contextlib import contextmanager
from datetime import UTC, datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from tracepaper.storage.stored import run_span
from tracepaper.storage.views import VIEWS
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import BLOCK_BARS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tracepaper.storage.reader import Reader, StoredRun
    from tracepaper.storage.view_parts import View

FORMATS: Final = ("parquet", "csv")
BATCH_ROWS: Final = 20_000
"""Rows that are held at once, a few more where one decision has many buckets."""

Rows = list[tuple[Any, ...]]

_EXPLAINED: Final = (
    "SELECT s.sequence, b.open_time_ms, a.buckets, a.older_mass FROM answers a "
    "JOIN steps s ON s.step = a.step JOIN bars b ON b.step = a.step "
    "WHERE a.step BETWEEN ? AND ? AND a.buckets IS NOT NULL ORDER BY a.step"
)


def chosen(names: str) -> tuple[View, ...]:
    """Return the views of the comma-separated *names*, all of them for an empty text."""
    known = {view.name: view for view in VIEWS}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    for name in wanted:
        if name not in known:
            raise ConfigInvalid(f"There is no view {name}; the views are {', '.join(known)}.")
    return tuple(known[name] for name in dict.fromkeys(wanted))


def export(
    reader: Reader,
    run_id: str,
    folder: Path,
    form: str,
    views: Sequence[View] = VIEWS,
    progress: Callable[[str, int], None] = lambda _view, _rows: None,
) -> dict[str, int]:
    """Write *views* of the run into *folder*, one file each; return the rows of each.

    All files show one moment of the run. *progress* hears how many rows of a view are written.
    The folder appears when it is whole. Raises ``ConfigInvalid`` where it is there already and
    not empty, or where Parquet is wanted without pyarrow.
    """
    writing = _csv_file if form == "csv" else _parquet_file
    counts: dict[str, int] = {}
    with _whole(folder) as made, _one_moment(reader.connection):
        stored = reader.stored_run(run_id)
        for view in views:
            counts[view.name] = 0
            with writing(made / f"{view.name}.{form}", view) as write:
                for rows in _batches(reader.connection, view, stored):
                    write(rows)
                    counts[view.name] += len(rows)
                    progress(view.name, counts[view.name])
    return counts


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a folder beside *folder*, which takes its place once all is written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigInvalid(f"{folder} is there already and not empty; name another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = folder.with_name(f".{folder.name}.{token_hex(4)}.part")
        made.mkdir()
    except OSError as error:
        raise ConfigInvalid(
            f"{folder} cannot be written ({error.strerror}); name another folder."
        ) from error
    try:
        yield made
        made.replace(folder)
    except OSError as error:
        raise ConfigInvalid(
            f"{folder} could not be written ({error.strerror}); make room or name another folder."
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """Let every question see the database as it is at the first."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _batches(connection: sqlite3.Connection, view: View, stored: StoredRun) -> Iterator[Rows]:
    """Yield the rows of *view* of the run, in the order of their steps."""
    if view.name == "v_explanations":
        yield from _explanations(connection, stored)
        return
    names = ", ".join(column.name for column in view.columns)
    order = "" if view.name == "v_runs" else " ORDER BY sequence"
    query = f"SELECT {names} FROM {view.name} WHERE run_id = ?{order}"
    cursor = connection.execute(query, (stored.run.run_id,))
    while rows := cursor.fetchmany(BATCH_ROWS):
        yield rows


def _explanations(connection: sqlite3.Connection, stored: StoredRun) -> Iterator[Rows]:
    """Yield the rows of ``v_explanations``: SQL reads a float32 in ten times the time."""
    run_id, interval_ms = stored.run.run_id, stored.run.interval_ms
    block_ms = BLOCK_BARS * interval_ms
    iso: dict[int, str] = {}
    rows: Rows = []
    cursor = connection.execute(_EXPLAINED, run_span(stored.run_key))
    for sequence, open_ms, buckets, older in cursor:
        weights = array("f", buckets)
        if sys.byteorder == "big":
            weights.byteswap()
        newest = open_ms // block_ms
        until_ms = open_ms + interval_ms
        for bucket, weight in enumerate(weights):
            from_ms = (newest - bucket) * block_ms
            times = (from_ms, _iso(iso, from_ms), until_ms, _iso(iso, until_ms))
            rows.append((run_id, sequence, str(bucket), *times, weight))
            until_ms = from_ms
        until_ms = (newest - len(weights) + 1) * block_ms
        rows.append((run_id, sequence, "older", None, None, until_ms, _iso(iso, until_ms), older))
        if len(rows) >= BATCH_ROWS:
            yield rows
            rows = []
            iso.clear()
    if rows:
        yield rows


def _iso(known: dict[int, str], ms: int) -> str:
    """Return *ms* as the views write it."""
    text = known.get(ms)
    if text is None:
        at = datetime.fromtimestamp(ms // 1000, UTC)
        text = known[ms] = f"{at:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"
    return text


# ------------------------------------------------------------ files


@contextmanager
def _csv_file(path: Path, view: View) -> Iterator[Callable[[Rows], object]]:
    """Write UTF-8 text: text in quotation marks, numbers without, and nothing for a null."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(column.name for column in view.columns) + "\n")

        def write(rows: Rows) -> None:
            file.writelines(",".join(map(_cell, row)) + "\n" for row in rows)

        yield write


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"'
    return repr(value)


@contextmanager
def _parquet_file(path: Path, view: View) -> Iterator[Callable[[Rows], object]]:
    """Write columns of the types that the view has."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ConfigInvalid(
            "Parquet needs pyarrow: install tracepaper[data], or export --csv."
        ) from None
    types = {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string()}
    schema = pa.schema([(column.name, types[column.kind]) for column in view.columns])
    with parquet.ParquetWriter(path, schema) as file:

        def write(rows: Rows) -> None:
            columns = [
                pa.array(values, field.type)
                for field, values in zip(schema, zip(*rows, strict=True), strict=True)
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))

        yield write
