"""``audit export``: a run's views as Parquet by run, view and day.

Rows come from one snapshot of the database, ``BATCH_ROWS`` at a time, so memory is bounded. Each
file is moved to its name when it is complete. pyarrow writes them, not polars, which would round an
exact number that has more decimals than ``DECIMAL``.
"""

from __future__ import annotations

import filecmp
import os
import re
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args
from urllib.parse import quote

from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence
from tracepaper.strategies.units import DAY_MS, day_text

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from tracepaper.storage.database.chunks import StoredRun
    from tracepaper.storage.database.reader import Reader
    from tracepaper.storage.database.view_columns import View

BATCH_ROWS: Final = 20_000
"""Rows in memory at a time, and rows of a Parquet row group."""
DECIMAL: Final = (38, 18)
"""Precision and scale of exact numbers in Parquet: 20 digits before the point, 18 after it."""

_STEP_OPENED: Final = (
    "(SELECT s.open_time_ms FROM steps s WHERE s.run_key = {} AND s.sequence = {}.sequence)"
)
DAY_OF: Final = (
    "closed_ms",
    "filled_ms",
    "checked_ms",
    "created_ms",
    "open_time_ms",
    "market_ms",
    "period_start_ms",
)
"""A row belongs to the UTC day of the first of these columns that its view has.

None of them changes, so a row stays in its day. Other views use the open time of the step's bar.
"""
_ENDING: Final = re.compile(r"^.*(?=_[a-z]+$)")
"""Matches a column's name without its ending; it does not match ``text``."""
FileOutcome = Literal["new", "replaced", "unchanged"]
OUTCOMES: Final[tuple[FileOutcome, ...]] = get_args(FileOutcome)


class ExportResult(NamedTuple):
    """The rows and files of an export."""

    rows: dict[str, int]  # by view
    files: dict[FileOutcome, int]


def views_of(names: str) -> tuple[View, ...]:
    """Return the views of the comma-separated *names*, all of them for an empty text."""
    views = {view.name: view for view in VIEWS}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(views)
    for name in wanted:
        if name not in views:
            raise ConfigInvalid(f"There is no view {name}; the views are {', '.join(views)}.")
    return tuple(views[name] for name in dict.fromkeys(wanted))


def export(
    reader: Reader,
    run_id: str,
    folder: Path,
    views: Sequence[View] = VIEWS,
    progress: Callable[[str, int], None] = lambda _view, _rows: None,
) -> ExportResult:
    """Write *views* of the run into *folder*, as docs/storage.md describes.

    All files come from one snapshot. *progress* is called with a view and its rows written so far.
    Raises ``ConfigInvalid`` if pyarrow is missing, ``DataInvalid`` for a value that Parquet's types
    cannot hold.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigInvalid(missing_sentence("pyarrow", "Parquet")) from None
    counts, files = dict.fromkeys((view.name for view in views), 0), dict.fromkeys(OUTCOMES, 0)
    reader.connection.execute("BEGIN")  # one snapshot for all files
    try:
        stored = reader.stored_run(run_id)
        for view in views:
            schema = _schema(view)
            place = folder / f"run_id={quote(stored.run.run_id, safe='')}" / view.name
            for day, rows in _by_day(reader.connection, view, stored):
                target = place / f"day={day_text(day * DAY_MS)}" / "rows.parquet"
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f"rows.{os.getpid()}.part")
                try:
                    with parquet.ParquetWriter(part, schema, compression="zstd") as file:
                        while batch := list(islice(rows, BATCH_ROWS)):
                            file.write_table(_table(view, schema, batch))
                            counts[view.name] += len(batch)
                            progress(view.name, counts[view.name])
                    files[_settle(part, target)] += 1
                finally:
                    part.unlink(missing_ok=True)
    finally:
        if reader.connection.in_transaction:  # SQLite has ended it if the disk is full
            reader.connection.execute("ROLLBACK")
    return ExportResult(counts, files)


def _by_day(
    connection: sqlite3.Connection, view: View, stored: StoredRun
) -> Iterator[tuple[int, Iterator[tuple[Any, ...]]]]:
    """Yield each UTC day, as days since 1970, with its rows by step, whose last value is the day.

    The run's first day comes in any case, so that each view has a file with its columns.
    """
    names = [column.name for column in view.columns]
    day = next(
        (name for name in DAY_OF if name in names), _STEP_OPENED.format(stored.run_key, view.name)
    )
    order = ", ".join(["export_day", *(["sequence"] if "sequence" in names else [])])
    query = (
        f"SELECT {', '.join(names)}, {day} / {DAY_MS} AS export_day FROM {view.name} "
        f"WHERE run_id = ? ORDER BY {order}"
    )
    first_day, has_first = stored.run.period_start_ms // DAY_MS, False
    for at, rows in groupby(connection.execute(query, (stored.run.run_id,)), lambda row: row[-1]):
        has_first = has_first or at == first_day
        yield at, rows
    if not has_first:
        yield first_day, iter(())


def _schema(view: View) -> pa.Schema:
    import pyarrow as pa

    types = {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string()}
    typed = {"_text": pa.decimal128(*DECIMAL), "_iso": pa.timestamp("ms", "UTC")}
    return pa.schema(
        (column.name, typed.get(_ENDING.sub("", column.name), types[column.kind]))
        for column in view.columns
    )


def _table(view: View, schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Return *rows* as an Arrow table; texts of numbers and times are converted to them."""
    import pyarrow as pa

    arrays = []
    for field, values in zip(schema, zip(*rows, strict=True), strict=False):
        is_read = pa.types.is_decimal(field.type) or pa.types.is_timestamp(field.type)
        try:
            array = pa.array(values, pa.string() if is_read else field.type)
            arrays.append(array.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataInvalid(
                f"{view.name}.{field.name} holds a value that is no {field.type} ({error}): leave "
                "the view out by --views, or ask for it by `tracepaper audit sql`."
            ) from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _settle(part: Path, target: Path) -> FileOutcome:
    """Move the complete *part* to *target* if it differs; return what became of the file."""
    outcome: FileOutcome = "replaced" if target.exists() else "new"
    if outcome == "replaced" and filecmp.cmp(part, target, shallow=False):
        return "unchanged"
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    return outcome
