"""A path to a ``Table``: compression by magic bytes against suffix, then CSV, JSON or Arrow."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from tracepaper.replay.archive.decimals import Column
from tracepaper.replay.archive.names import normalise
from tracepaper.replay.archive.tables import Table, read_delimited, table_of_rows
from tracepaper.strategies.errors import DataInvalid

MAGIC: Final = (
    (b"\x1f\x8b", ".gz", "gzip"),
    (b"PK\x03\x04", ".zip", "zip"),
    (b"PAR1", ".parquet", "Parquet"),
    (b"ARROW1", ".feather", "Feather"),
    (b"FEA1", ".feather", "Feather"),
    (b"\x28\xb5\x2f\xfd", ".zst", "Zstandard"),
    (b"BZh", ".bz2", "bzip2"),
    (b"\xfd7zXZ", ".xz", "xz"),
)
SQLITE_MAGIC: Final = b"SQLite format 3\0"
TEXT_SUFFIXES: Final = (".csv", ".txt", ".tsv")
JSON_SUFFIXES: Final = (".json",)
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
FEATHER_SUFFIXES: Final = (".feather", ".arrow", ".ipc")
WRAPPERS: Final = ("candles", "data", "prices")
"""Names under which a body holds its list of rows, as Coinbase's and others' do."""
KNOWN: Final = "csv, txt, tsv, json (also .gz or .zip), parquet, feather"
ZIP_FAULTS: Final = (
    *(EOFError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""What the standard library raises on harmed archives, besides its own error."""

ARROW_FAULTS: Final = (KeyError, NotImplementedError, OSError, OverflowError, ValueError)
"""The same of pyarrow, besides its own errors."""

UNPACKED_LIMIT: Final = 4 * 2**30
"""Bytes that one file may unpack to: a year of minutes takes some 60 MB."""


def read_table(path: Path) -> Table:
    """Return the columns of the file at *path*.

    Raises ``DataInvalid`` where it is unreadable, empty, of an unknown kind or of another kind
    than its name says.
    """
    raw = _content(path)
    suffix = path.suffix.lower()
    _refuse_mismatch(path, raw, suffix)
    name = path.name.lower()
    if suffix == ".gz":
        name, raw = name.removesuffix(".gz"), _gunzip(path, raw)
    elif suffix == ".zip":
        name, raw = _unzip(path, raw)
    if name.endswith(TEXT_SUFFIXES):
        return read_delimited(path, raw)
    if name.endswith(JSON_SUFFIXES):
        return _read_json(path, raw)
    if name.endswith((*PARQUET_SUFFIXES, *FEATHER_SUFFIXES)):
        return _read_arrow(path, raw, feather=name.endswith(FEATHER_SUFFIXES))
    raise DataInvalid(f"{path} has a name of no known kind: rename it to one of {KNOWN}.")


def is_archive(path: Path) -> bool:
    """Return whether *path* is an SQLite file."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError:
        return False


def _content(path: Path) -> bytes:
    try:
        if path.is_char_device() or path.is_block_device():
            raise DataInvalid(f"{path} is a device, which may never end: name a file.")
        raw = path.read_bytes()
    except IsADirectoryError:
        raise DataInvalid(f"{path} is a folder: name the file in it.") from None
    except FileNotFoundError:
        raise DataInvalid(f"{path} does not exist: check the path.") from None
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read ({error.strerror}): check the file.") from None
    if not raw:
        raise DataInvalid(f"{path} is empty: give a file with candles.")
    return raw


def _refuse_mismatch(path: Path, raw: bytes, suffix: str) -> None:
    """Raise where the first bytes say another kind than the name."""
    kinds = {".pq": ".parquet", ".arrow": ".feather", ".ipc": ".feather"}
    expected = kinds.get(suffix, suffix)
    packed = {magic_suffix for _, magic_suffix, _ in MAGIC}
    for magic, magic_suffix, kind in MAGIC:
        if raw.startswith(magic):
            if magic_suffix != expected:
                raise DataInvalid(
                    f"{path} is {kind} by its first bytes and {suffix or 'nothing'} by its name: "
                    f"rename it to end in {magic_suffix}."
                    if magic_suffix in {".gz", ".zip", ".parquet", ".feather"}
                    else f"{path} is compressed with {kind}: unpack it to one of {KNOWN}."
                )
            return
    if expected in packed:
        raise DataInvalid(
            f"{path} is not {expected.removeprefix('.')} although its name says so: "
            "rename it, or fetch it again."
        )


def _gunzip(path: Path, raw: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            return _bounded(path, stream.read)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataInvalid(f"{path} is damaged or cut short: fetch it again.") from None


def _unzip(path: Path, raw: bytes) -> tuple[str, bytes]:
    """Return name and bytes of the one data file in a zip archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = [
                member
                for member in archive.infolist()
                if member.filename.lower().endswith((*TEXT_SUFFIXES, *JSON_SUFFIXES))
                and not member.filename.startswith("__MACOSX")
            ]
            if len(members) != 1:
                raise DataInvalid(
                    f"{path} holds {len(members)} data files where one is wanted: unpack it and "
                    "name the files."
                )
            with archive.open(members[0]) as stream:
                return members[0].filename.lower(), _bounded(path, stream.read)
    except ZIP_FAULTS:
        raise DataInvalid(f"{path} is damaged or locked: fetch it again.") from None


def _bounded(path: Path, read: Callable[[int], bytes]) -> bytes:
    """Read no more than the limit, so that a small hostile file cannot fill the memory."""
    raw = read(UNPACKED_LIMIT + 1)
    if len(raw) > UNPACKED_LIMIT:
        raise DataInvalid(
            f"{path} unpacks to more than {UNPACKED_LIMIT // 2**30} GiB: split the file."
        )
    return raw


def _read_json(path: Path, raw: bytes) -> Table:
    """Read rows of values, rows of objects, an object of columns, or a Bybit REST body."""
    try:
        # Numbers stay text, so that no decimal passes through a double.
        document: Any = msgspec.json.Decoder(float_hook=str).decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataInvalid(f"{path} is not JSON ({error}): check the file.") from None
    if isinstance(document, Mapping) and isinstance(document.get("result"), Mapping):
        document = document["result"].get("list")
    if isinstance(document, Mapping):
        listed = [document[name] for name in WRAPPERS if isinstance(document.get(name), list)]
        if len(listed) == 1 and all(isinstance(row, Mapping | list) for row in listed[0]):
            document = listed[0]
    if isinstance(document, Mapping):
        columns = {str(name): values for name, values in document.items()}
        lengths = {len(values) for values in columns.values() if isinstance(values, list)}
        if len(lengths) != 1 or not all(isinstance(v, list) for v in columns.values()):
            raise _unknown_json(path)
        names = [normalise(name) for name in columns]
        return table_of_rows(path, list(zip(*columns.values(), strict=True)), names)
    if not isinstance(document, list):
        raise _unknown_json(path)
    if document and all(isinstance(row, Mapping) for row in document):
        keys = list(document[0])
        rows = [[row.get(key) for key in keys] for row in document]
        return table_of_rows(path, rows, [normalise(key) for key in keys])
    if not all(isinstance(row, list) and row for row in document):
        raise _unknown_json(path)
    return table_of_rows(path, document)


def _unknown_json(path: Path) -> DataInvalid:
    return DataInvalid(
        f"{path} is JSON of an unknown shape: give a list of rows "
        "[time, open, high, low, close, volume] or of objects with these names."
    )


def _read_arrow(path: Path, raw: bytes, *, feather: bool) -> Table:
    """Read Parquet or Feather through pyarrow, which is an optional dependency."""
    try:
        import pyarrow as pa
        from pyarrow import feather as pa_feather
        from pyarrow import parquet as pa_parquet
    except ImportError:
        raise DataInvalid(f"{path} needs pyarrow to be read: install tracepaper[data].") from None
    source = pa.BufferReader(raw)
    try:
        found = pa_feather.read_table(source) if feather else pa_parquet.read_table(source)
        found.validate(full=True)
        columns = {
            normalise(name): _arrow_column(pa, found.column(place))
            for place, name in enumerate(_column_names(path, found.column_names))
        }
    except (pa.ArrowException, *ARROW_FAULTS) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataInvalid(f"{path} is damaged ({reason}): fetch it again.") from None
    if not found.num_rows:
        raise DataInvalid(f"{path} is empty: give a file with candles.")
    return Table(path, columns, np.arange(1, found.num_rows + 1), "row")


def _column_names(path: Path, names: Sequence[str]) -> Sequence[str]:
    normal = [normalise(name) for name in names]
    for name in normal:
        if normal.count(name) > 1:
            raise DataInvalid(f"{path} has two columns {name}: remove one of them.")
    return names


def _arrow_column(pa: Any, column: Any) -> Column:  # noqa: ANN401 (pyarrow has no types)
    """Return an Arrow column as floats, integers (times as µs or ns) or text."""
    kind = column.type
    if pa.types.is_float64(kind) or pa.types.is_integer(kind):
        values: Column = column.to_numpy()
        return values.astype(np.int64) if values.dtype.kind in "ui" else values.astype(np.float64)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # Microseconds of any year since 1973 name themselves as such.
        instants = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        numbers: Column = instants.to_numpy()
        return numbers
    texts = [b"" if value is None else str(value).encode() for value in column.to_pylist()]
    return np.array(texts, dtype=np.bytes_)
