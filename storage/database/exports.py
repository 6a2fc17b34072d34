"""``audit export``: a run's views as Parquet by run, view and day.

Rows are streamed from one snapshot of the database, ``BATCH_ROWS`` at a time. Files are written to
a temporary folder, and moved when they are complete.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import re
import shutil
import sqlite3
from contextlib import closing, contextmanager, suppress
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence
from tracepaper.strategies.units import DAY_MS, day_text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from tracepaper.storage.database.chunks import StoredRun
    from tracepaper.storage.database.reader import Reader
    from tracepaper.storage.database.view_columns import View

BATCH_ROWS: Final = 20_000
"""Rows in memory at a time, and rows of a Parquet row group."""
DECIMAL: Final = (38, 18)
"""Precision and scale of exact numbers in Parquet: 20 digits before the point, 18 after it."""
UNFINISHED: Final = ".unfinished"
"""The folder of incomplete files; their names do not end in ``.parquet``."""

Rows = list[tuple[Any, ...]]

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


class ExportResult(NamedTuple):
    """The rows and files of an export."""

    rows: dict[str, int]  # by view
    files: dict[str, int]  # `new`, `replaced`, `unchanged`, `kept`


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
    Raises ``ConfigInvalid`` if the folder cannot be written, has other files or pyarrow is missing,
    and ``DataInvalid`` for a value that Parquet's types cannot hold.
    """
    counts = {view.name: 0 for view in views}
    files = {"new": 0, "replaced": 0, "unchanged": 0, "kept": 0}
    reader.connection.execute("BEGIN")  # one snapshot for all files
    try:
        stored = reader.stored_run(run_id)
        with closing(_parquet(reader.connection, stored, folder, views, files)) as writing:
            for view, written in writing:
                counts[view] += written
                progress(view, counts[view])
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigInvalid(
            f"{folder} could not be written ({why}); make room or name another folder."
        ) from error
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_FULL:
            raise
        raise ConfigInvalid(
            "The rows could not be sorted by day, since the folder of temporary files is full; "
            "make room there, or name another in SQLITE_TMPDIR."
        ) from error
    finally:
        if reader.connection.in_transaction:  # SQLite has ended it if the disk is full
            reader.connection.execute("ROLLBACK")
    return ExportResult(counts, files)


def _rows(
    connection: sqlite3.Connection, view: View, stored: StoredRun, day: str
) -> Iterator[tuple[Any, ...]]:
    """Return the run's rows of *view*, ordered by *day*, which is the last column, and step."""
    names = [column.name for column in view.columns]
    order = ", ".join(["export_day", *(["sequence"] if "sequence" in names else [])])
    query = (
        f"SELECT {', '.join(names)}, {day} / {DAY_MS} AS export_day FROM {view.name} "
        f"WHERE run_id = ? ORDER BY {order}"
    )
    return connection.execute(query, (stored.run.run_id,))


def _batches(rows: Iterator[tuple[Any, ...]]) -> Iterator[Rows]:
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def _parquet(
    connection: sqlite3.Connection,
    stored: StoredRun,
    folder: Path,
    views: Sequence[View],
    files: dict[str, int],
) -> Generator[tuple[str, int], None, None]:
    """Write all files below ``UNFINISHED``, then move those that differ to their places.

    Yields each view with the number of rows written; counts outcomes in *files*.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ConfigInvalid(missing_sentence("pyarrow", "Parquet")) from None
    types = {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string()}
    typed = {"_text": pa.decimal128(*DECIMAL), "_iso": pa.timestamp("ms", "UTC")}
    first_day = stored.run.period_start_ms // DAY_MS
    with _locked(folder) as unfinished:
        for view in views:
            schema = pa.schema(
                (column.name, typed.get(_ENDING.sub("", column.name), types[column.kind]))
                for column in view.columns
            )
            place = unfinished / f"run_id={quote(stored.run.run_id, safe='')}" / view.name
            # A view without rows on the first day gets an empty file with its columns.
            days = chain([(first_day, iter(()))], _by_day(connection, view, stored))
            for day, rows in days:
                path = place / f"day={day_text(day * DAY_MS)}" / "rows.part"
                path.parent.mkdir(parents=True, exist_ok=True)
                with parquet.ParquetWriter(path, schema, compression="zstd") as file:
                    for batch in _batches(rows):
                        columns = zip(schema, zip(*batch, strict=True), strict=False)
                        arrays = [_array(view.name, field, values) for field, values in columns]
                        file.write_table(pa.Table.from_arrays(arrays, schema=schema))
                        yield view.name, len(batch)
        for place in sorted(unfinished.glob("*/*")):
            _settle(place, folder / place.relative_to(unfinished), files)


def _by_day(
    connection: sqlite3.Connection, view: View, stored: StoredRun
) -> Iterator[tuple[int, Iterator[tuple[Any, ...]]]]:
    """Yield each UTC day that has rows, as days since 1970, with its rows."""
    names = {column.name for column in view.columns}
    day = next(
        (name for name in DAY_OF if name in names), _STEP_OPENED.format(stored.run_key, view.name)
    )
    return groupby(_rows(connection, view, stored, day), key=lambda row: row[-1])


def _array(view: str, field: pa.Field, values: Sequence[Any]) -> pa.Array:
    """Return *values* as an Arrow array; texts of numbers and times are converted to them."""
    import pyarrow as pa

    is_read = pa.types.is_decimal(field.type) or pa.types.is_timestamp(field.type)
    try:
        if is_read:
            return pa.array(values, pa.string()).cast(field.type)
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataInvalid(
            f"{view}.{field.name} holds a value that is no {field.type} ({error}): leave the view "
            "out by --views, or ask for it by `tracepaper audit sql`."
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Lock *folder* against other exports; yield a new folder in it for unfinished files."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigInvalid(
            f"{folder} cannot be written ({error.strerror}); name another folder."
        ) from error
    unfinished = folder / UNFINISHED
    try:
        for path in sorted(folder.iterdir()):
            if path != unfinished and not path.name.startswith("run_id="):
                raise ConfigInvalid(
                    f"{folder} holds {path.name}, which is of no export by day; name another "
                    "folder."
                )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigInvalid(
                f"Another export writes {folder}; wait for its end, or name another folder."
            ) from None
        try:
            shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed
            unfinished.mkdir()
            yield unfinished
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    finally:
        os.close(lock)
        if is_new:
            with suppress(OSError):  # it is not empty if the export succeeded
                folder.rmdir()


def _settle(written: Path, place: Path, files: dict[str, int]) -> None:
    """Move the files of a view from *written* to *place* if they differ from those there.

    A file with more rows is kept: it has rows that a prune dropped from the database.
    """
    import pyarrow as pa
    from pyarrow import parquet

    days = sorted(path.name for path in written.iterdir())
    files["kept"] += sum(path.parent.name not in days for path in place.glob("day=*/rows.parquet"))
    for day in days:
        part, target = written / day / "rows.part", place / day / "rows.parquet"
        outcome = "replaced" if target.exists() else "new"
        if outcome == "replaced":
            if filecmp.cmp(part, target, shallow=False):
                files["unchanged"] += 1
                continue
            with suppress(pa.ArrowInvalid):  # raised for a damaged file, which is replaced
                if parquet.read_metadata(target).num_rows > parquet.read_metadata(part).num_rows:
                    files["kept"] += 1
                    continue
        with part.open("rb") as file:
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        files[outcome] += 1
