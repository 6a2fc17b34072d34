"""Reads and checks files of a user's covariates, which may grow, and keeps them beside a database.

A file is CSV or Parquet; a frame is read as the Parquet file that holds it. Column ``time`` is when
a row became known: a time with a zone, or Unix milliseconds. Column ``symbol``, if present, is the
symbol of the row. All others are numbers.

An incomplete last line is left for the next reading. A file that is rewritten, as Parquet always
is, is read from its start.

docs/models.md, L63 and L65, has the rules.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.storage.paths import path_of
from tracepaper.strategies.covariates import (
    AGE,
    ALL_SYMBOLS,
    CovariateRows,
    FixedCovariates,
    feature_name,
    rows_of,
)
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.extras import missing_sentence

TIME: Final = "time"
SYMBOL: Final = "symbol"
FRAME: Final = Path("the frame of covariates")
"""The name of a frame in messages."""
COLUMNS_MAX: Final = 1_024
_ARROW: Final = (".parquet", ".pq")
_DELIMITED: Final = (".csv",)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_OLDEST_MS, _NEWEST_MS = 100_000_000_000, 10_000_000_000_000  # 1973 and 2286
_DIGITS: Final = 18

Table = dict[str, Sequence[Any]]


@dataclass(frozen=True)
class CovariateFile:
    """The content of a file of covariates: rows by symbol, and the SHA-256 of its bytes."""

    path: Path
    sha256: str
    columns: tuple[str, ...]
    rows: dict[str, CovariateRows]

    def chosen(self, columns: Sequence[str]) -> dict[str, CovariateRows]:
        """Return the rows with only *columns*, in this order; raise ``DataInvalid`` for others."""
        for name in columns:
            if name not in self.columns:
                raise DataInvalid(
                    f"{self.path} lacks the column {shown(name)}, which the model was trained "
                    "with; add it."
                )
        places = [self.columns.index(name) for name in columns]
        return {
            symbol: CovariateRows(rows.time_ms, rows.from_ms, rows.values[:, places])
            for symbol, rows in self.rows.items()
        }

    def standing(self, columns: Sequence[str]) -> FixedCovariates:
        """Return *columns* as covariates that do not change."""
        return FixedCovariates(self.sha256, self.chosen(columns))


def read_covariates(given: Any) -> CovariateFile:  # noqa: ANN401 - a path or any library's frame
    """Read a file of covariates, or a frame.

    Raises ``DataInvalid`` for a missing file, one that is no table or has no rows, a time without a
    zone, times that do not ascend, and a number that is not finite.
    """
    is_file = isinstance(given, (str, Path))
    path = path_of(given) if is_file else FRAME
    content = file_bytes(path) if is_file else given
    if is_text(path):
        table = text_table(path, content)
    elif path.suffix in _ARROW or not is_file:
        table = _arrow(path, content)
    else:
        raise DataInvalid(
            f"{path} is no file of covariates; name one that ends in .csv or .parquet."
        )
    columns, rows = rows_in(path, table)
    if not rows:
        raise DataInvalid(f"{path} has no rows; give covariates.")
    hashed = content if is_file else _bytes_of(columns, rows)
    return CovariateFile(path, hashlib.sha256(hashed).hexdigest(), columns, rows)


def rows_in(
    path: Path, table: Table, *, before: int = 0, newest: Mapping[str, int] = MappingProxyType({})
) -> tuple[tuple[str, ...], dict[str, CovariateRows]]:
    """Return the columns of *table* and its rows by symbol; raise as ``read_covariates`` does.

    The file has *before* rows before *table*; *newest* are their last times by symbol.
    """
    if TIME not in table:
        raise DataInvalid(f"{path} has no column {TIME}; name so when each row became known.")
    columns = tuple(name for name in table if name not in {TIME, SYMBOL})
    _require_names(path, columns)
    times = _times(path, table[TIME], before)
    values = np.stack([_numbers(path, name, table[name], before) for name in columns], axis=1)
    return columns, _by_symbol(path, times, values, table.get(SYMBOL), before, newest)


def _bytes_of(columns: Sequence[str], rows: Mapping[str, CovariateRows]) -> bytes:
    parts = [repr((columns, *rows)).encode()]
    parts += [array.tobytes() for each in rows.values() for array in (each.time_ms, each.values)]
    return b"".join(parts)


def is_text(path: Path) -> bool:
    """Return whether *path* is a text file, to which lines can be appended."""
    return path.suffix in _DELIMITED


def file_bytes(path: Path) -> bytes:
    """Return the content of *path*; raise ``DataInvalid`` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataInvalid(
            f"{path} cannot be read ({error.strerror}); name a file of covariates."
        ) from None


def text_table(path: Path, raw: bytes, *, before: int = 0) -> Table:
    """Return the columns of the CSV text *raw*; the file has *before* rows before it."""
    try:
        lines = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataInvalid(f"{path} is no CSV in UTF-8 ({error}); write it again.") from None
    if not lines:
        raise DataInvalid(f"{path} has no rows; give covariates.")
    header, *rows = lines
    for number, row in enumerate(rows, before + 2):
        if len(row) != len(header):
            raise DataInvalid(
                f"{path}, line {number}: {len(row)} fields where the first line has {len(header)}; "
                "write it again."
            )
    if len(set(header)) < len(header):
        raise DataInvalid(f"{path} names a column twice; rename one of them.")
    return {name: [row[at] for row in rows] for at, name in enumerate(header)}


def _arrow(path: Path, content: Any) -> Table:  # noqa: ANN401 - a file's bytes, or a frame
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ConfigInvalid(missing_sentence("pyarrow", f"{path}")) from None
    try:
        if isinstance(content, bytes):
            content = pa.BufferReader(content)
            stored = parquet.read_table(content, page_checksum_verification=True)
        else:
            stored = pa.table(content)
        stored.validate(full=True)
        return {name: _arrow_column(pa, stored.column(name)) for name in stored.column_names}
    except (pa.ArrowException, OSError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataInvalid(f"{path} is damaged ({reason}); write it again.") from None


def _arrow_column(pa: Any, column: Any) -> Sequence[Any]:  # noqa: ANN401 - pyarrow has no types
    """Return a column's values; times with a zone as milliseconds, numbers as an array."""
    is_number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if pa.types.is_timestamp(column.type):
        if column.type.tz is None:
            return ["a time without a zone"] * len(column)
        nanoseconds = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
        if not nanoseconds.null_count:
            # Rounded up, so that a row is never known before its time.
            milliseconds: Sequence[Any] = -(-nanoseconds.to_numpy() // 1_000_000)
            return milliseconds
    values: Sequence[Any] = (
        column.to_numpy() if is_number and not column.null_count else column.to_pylist()
    )
    return values


def _require_names(path: Path, columns: Sequence[str]) -> None:
    if not 0 < len(columns) <= COLUMNS_MAX:
        raise DataInvalid(
            f"{path} has {len(columns)} columns of numbers beside {TIME}; give 1 to "
            f"{COLUMNS_MAX:,}."
        )
    for name in columns:
        if not name.isidentifier() or not name.isascii():
            raise DataInvalid(
                f"{path} has a column {shown(name)}; name columns by letters, digits and _ alone."
            )
    names = [feature_name(name) for name in columns]
    if AGE in names or len(set(names)) < len(names):
        raise DataInvalid(
            f"{path} has a column {AGE}, which is made of {TIME}, or two of one feature's name; "
            "rename it."
        )


def _times(path: Path, column: Sequence[Any], before: int) -> NDArray[np.int64]:
    if isinstance(column, np.ndarray) and column.dtype.kind in "iu":
        times = column.astype(np.int64)
    else:
        times = np.array(
            [_time_ms(path, at, value) for at, value in enumerate(column, before)], np.int64
        )
    wrong = np.flatnonzero((times < _OLDEST_MS) | (times >= _NEWEST_MS))
    if len(wrong):
        raise DataInvalid(
            f"{path}, row {before + wrong[0] + 1}: the time {times[wrong[0]]} is no milliseconds "
            "of the epoch; give these, or a time with a zone."
        )
    return times


def _time_ms(path: Path, at: int, value: object) -> int:
    """Return a time in milliseconds, rounded up, so that a row is never known before its time."""
    text = str(value).strip()
    if text.isdecimal() and len(text) <= _DIGITS:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise DataInvalid(
            f"{path}, row {at + 1}: the time {shown(value)} cannot be read; give one with a zone, "
            "such as 2024-06-01T12:00:00Z, or milliseconds of the epoch."
        ) from None
    if moment.tzinfo is None:
        raise DataInvalid(
            f"{path}, row {at + 1}: the time {shown(value)} has no zone; write it as UTC, such as "
            "2024-06-01T12:00:00Z."
        )
    return -((_EPOCH - moment) // _MILLISECOND)


def _numbers(path: Path, name: str, column: Sequence[Any], before: int) -> NDArray[np.float64]:
    if isinstance(column, np.ndarray):
        numbers = column.astype(np.float64)
    else:
        numbers = np.array(
            [_number(path, name, at, value) for at, value in enumerate(column, before)]
        )
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        at = int(wrong[0])
        value = numbers[at].item() if isinstance(column, np.ndarray) else column[at]
        raise DataInvalid(
            f"{path}, row {before + at + 1}: {name} is {shown(value)}; every covariate must be "
            "finite, so leave such a row out."
        )
    return numbers.reshape(-1)


def _number(path: Path, name: str, at: int, value: Any) -> float:  # noqa: ANN401 - of any table
    try:
        return math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise DataInvalid(
            f"{path}, row {at + 1}: {name} is {shown(value)}, which is no number; write it again."
        ) from None


def _by_symbol(
    path: Path,
    times: NDArray[np.int64],
    values: NDArray[np.float64],
    symbols: Sequence[Any] | None,
    before: int,
    newest: Mapping[str, int],
) -> dict[str, CovariateRows]:
    if symbols is None:
        names = [ALL_SYMBOLS] * len(times)
    else:
        names = [str(symbol or "") for symbol in symbols]
        if "" in names:
            at = before + names.index("") + 1
            raise DataInvalid(f"{path}, row {at}: the symbol is empty; name one.")
    places: dict[str, list[int]] = {}
    for at, symbol in enumerate(names):
        places.setdefault(symbol, []).append(at)
    by_symbol = {symbol: rows_of(times[at], values[at]) for symbol, at in places.items()}
    for symbol, rows in by_symbol.items():
        steps = np.diff(rows.time_ms, prepend=newest.get(symbol, 0))
        wrong = np.flatnonzero(steps <= 0)
        if len(wrong):
            of_symbol = f" of {symbol}" if symbol else ""
            fault = "repeats the one before" if steps[wrong[0]] == 0 else "is before the last one"
            raise DataInvalid(
                f"{path}, row {before + places[symbol][wrong[0]] + 1}: the time "
                f"{iso(int(rows.time_ms[wrong[0]]))}{of_symbol} {fault}; times must ascend."
            )
    return by_symbol


def iso(ms: int) -> str:
    """Return UTC milliseconds as ISO 8601 text."""
    return (_EPOCH + ms * _MILLISECOND).isoformat(timespec="milliseconds")


# ---------------------------------------------------------------- beside a database


def kept_covariates(database: Path) -> Path:
    """Return the folder with the covariates that runs of *database* used."""
    return database.with_name(database.name + ".vectors")


def keep_covariates(file: CovariateFile, database: Path) -> Path:
    """Copy *file* beside *database* atomically, under its hash as name; return the copy."""
    copy = kept_covariates(database) / f"{file.sha256}{file.path.suffix}"
    if not copy.exists():
        raw = file_bytes(file.path)
        if hashlib.sha256(raw).hexdigest() != file.sha256:
            raise DataInvalid(f"{file.path} changed while it was read; start again.")
        write_whole((raw,), copy)
    return copy


def write_whole(parts: Iterable[bytes], path: Path) -> None:
    """Write *parts* to the file *path* atomically: a killed process leaves the old file.

    Raises ``OSError`` that names *path* if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(handle)
            Path(temporary).replace(path)
            sync_names(path.parent)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def sync_names(folder: Path) -> None:
    """Bring the names in *folder*, and its own, to the disk: it may keep a file, but not its name.

    A file system that cannot sync a folder orders these changes itself.
    """
    for place in (folder, folder.absolute().parent):
        with suppress(OSError):
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def find_covariates(database: Path, sha256: str) -> CovariateFile:
    """Return the file that a run of *database* used; raise ``CheckpointMismatch`` without it."""
    folder = kept_covariates(database)
    places = [folder / (sha256 + ending) for ending in (*_DELIMITED, *_ARROW)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise CheckpointMismatch(
            f"The covariates that the run used are not kept any more ({folder / sha256}.csv or "
            ".parquet is missing); restore the file beside the database."
        )
    file = read_covariates(path)
    if file.sha256 != sha256:
        raise CheckpointMismatch(
            f"{path} was changed after the run: its SHA-256 is not the one in its name; restore it."
        )
    return file


class Growth(NamedTuple):
    """The result of reading a file: all of it, or only the added lines."""

    file: CovariateFile
    is_whole: bool
    lines: bytes = b""  # all complete lines so far; empty if the file is not text
    rows: int = 0  # rows so far
    newest_ms: Mapping[str, int] = MappingProxyType({})  # by symbol


class GrowingFile:
    """A file of covariates that is read repeatedly while it grows."""

    def __init__(self, path: Path) -> None:
        """Start before the first line of *path*."""
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._accepted: Growth | None = None

    def has_changed(self) -> bool:
        """Return whether the file is missing, or was changed or replaced since the last call."""
        before = self._stamp
        try:
            status = self.path.stat()
        except OSError:
            self._stamp = None
            return True
        self._stamp = status.st_size, status.st_mtime_ns, status.st_ino
        return self._stamp != before

    def read(self) -> Growth:
        """Read the lines after the accepted ones; raise as ``read_covariates`` does."""
        if not is_text(self.path):
            return Growth(read_covariates(self.path), is_whole=True)
        content = file_bytes(self.path)
        lines = content[: content.rfind(b"\n") + 1]  # the last line may be incomplete
        header = content[: content.find(b"\n") + 1]
        if not header:
            raise DataInvalid(f"{self.path} has no rows; give covariates.")
        accepted = self._accepted
        is_whole = accepted is None or not lines.startswith(accepted.lines)
        before, count, newest = (header, 0, {}) if accepted is None or is_whole else accepted[2:]
        table = text_table(self.path, header + lines[len(before) :], before=count)
        columns, rows = rows_in(self.path, table, before=count, newest=newest)
        added = sum(map(len, rows.values()))
        if not count + added:
            raise DataInvalid(f"{self.path} has no rows; give covariates.")
        file = CovariateFile(self.path, hashlib.sha256(lines).hexdigest(), columns, rows)
        last = {symbol: int(series.time_ms[-1]) for symbol, series in rows.items()}
        return Growth(file, is_whole, lines, count + added, {**newest, **last})

    def accept(self, growth: Growth) -> None:
        """Accept the lines of *growth*, so that they are not read again."""
        self._accepted = growth
