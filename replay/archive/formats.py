"""File formats: CSV, JSON, Parquet and others to a ``RawTable``.

Every command reads the formats in ``FORMATS``. Errors about unknown files list them.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.columns import Column, column_of
from tracepaper.replay.archive.layouts import (
    HEADER_LINES,
    PAIR,
    RawTable,
    TableHead,
    distinct,
    head_of,
    is_most,
    reject_unclear,
)
from tracepaper.replay.archive.recordings import MARK
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence

DELIMITERS: Final = (b",", b";", b"\t", b"|")
CELLS_LEAST: Final = 6
CELL_WIDTH_MAX: Final = 256
ReadHead = Callable[[Path, Sequence[Sequence[str]]], TableHead]
"""Reads a table's head from its first rows."""
ZONE_LINE: Final = re.compile(rb"time[ _-]?zone\W+([\w/+:-]+)", re.IGNORECASE)
JSON_START: Final = re.compile(rb"\s*(\{|\[\s*[\[{])")
SEPARATOR_LINE: Final = re.compile(rb'"?sep=(.|\t)"?[ ,;\t]*\n', re.IGNORECASE)


def read_delimited(path: Path, raw: bytes, head_of: ReadHead = head_of) -> RawTable:
    """Return the table of delimited text; *path* names it in messages, *head_of* reads its head.

    Raises ``DataInvalid`` for an empty file, an unknown layout, or a row of another width.
    """
    text = _utf8(path, raw)
    if JSON_START.match(text):
        raise DataInvalid(f"{path} is JSON by its first bytes: rename it to end in .json.")
    whole = text
    skipped, text = _skip_preamble(whole)
    if not text.strip():
        raise DataInvalid(f"{path} is empty: give one with rows.")
    zone = ZONE_LINE.search(whole[: len(whole) - len(text)])
    table = _read_text(path, text, skipped, head_of)
    return table if zone is None else replace(table, zone=zone[1].decode("utf-8", "replace"))


def _read_text(path: Path, text: bytes, skipped: int, head_of: ReadHead) -> RawTable:
    """Return the table of *text*, which follows *skipped* lines in the file."""
    delimiter = _delimiter(text.split(b"\n", 1)[0])
    if b'"' in text or b"\n\n" in text.rstrip(b"\n"):
        return _read_by_rows(path, text, delimiter, skipped, head_of)
    lines = text.split(b"\n", HEADER_LINES)
    first = [_decode(path, lines[0]), *(each.decode("utf-8", "replace") for each in lines[1:])]
    head = head_of(path, [line.split(delimiter.decode()) for line in first[:HEADER_LINES]])
    body = text[sum(len(line) + 1 for line in lines[: head.height]) :]
    if not body.strip():
        raise DataInvalid(f"{path} has a header and no rows: give one with rows.")
    table = _read_in_bulk(
        path, body.rstrip(b"\n"), delimiter, head.names, skipped + 1 + head.height
    )
    return _with_head(table, head, delimiter.decode())


def _with_head(table: RawTable, head: TableHead, separator: str) -> RawTable:
    return replace(table, bare=not head.height, symbol=head.symbol, separator=separator)


def _delimiter(first: bytes) -> bytes:
    """Return the delimiter of the first line; if others are frequent, commas may be decimal."""
    counts = {mark: first.count(mark) for mark in DELIMITERS}
    other = max(DELIMITERS[1:], key=lambda mark: counts[mark])
    if counts[other] >= CELLS_LEAST - 1:
        return other
    return max(DELIMITERS, key=lambda mark: counts[mark])


def table_of_rows(
    path: Path, rows: Sequence[Sequence[object]], names: Sequence[str] | None = None
) -> RawTable:
    """Return a table of *rows* of JSON values, converted to text; None becomes empty."""
    if not rows:
        raise DataInvalid(f"{path} is empty: give one with rows.")
    texts = [["" if value is None else str(value) for value in row] for row in rows]
    if names is None:
        return _text_table(path, texts, range(1, len(rows) + 1), "row")
    head = TableHead(names)
    table = _text_table(path, texts, range(1, len(rows) + 1), "row", lambda *_first: head)
    return replace(table, bare=False)


def _text_table(
    path: Path,
    rows: Sequence[Sequence[str]],
    lines: Sequence[int],
    unit: str,
    head_of: ReadHead = head_of,
    separator: str = ",",
) -> RawTable:
    """Return the table of *rows* of cells with the head; *lines* number them in *unit*."""
    head = head_of(path, rows[:HEADER_LINES])
    rows, lines = rows[head.height :], lines[head.height :]
    _reject_widths(path, unit, lines, np.array([len(row) for row in rows]), len(head.names))
    if not rows:
        raise DataInvalid(f"{path} has a header and no rows: give one with rows.")
    columns: dict[str, Column] = {}
    for name, column in zip(head.names, zip(*rows, strict=True), strict=True):
        cells = [cell.encode() for cell in column]
        if max(map(len, cells)) <= CELL_WIDTH_MAX:  # a longer cell is no number
            columns[name] = np.array(cells, dtype=np.bytes_)
    return _with_head(RawTable(path, columns, np.array(lines), unit), head, separator)


def _utf8(path: Path, raw: bytes) -> bytes:
    """Return *raw* as UTF-8 with plain newlines and no byte order mark."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            raw = raw.decode("utf-16").encode()
        except UnicodeDecodeError:
            raise DataInvalid(f"{path} is damaged UTF-16 text: export it again.") from None
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in raw:
        raise DataInvalid(f"{path} is not text although its name says so: check the file.")
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return raw


def _decode(path: Path, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise DataInvalid(f"{path} is not UTF-8 text: check the file.") from None


def _skip_preamble(text: bytes) -> tuple[int, bytes]:
    """Skip comments, blank lines and a title without delimiters before the table."""
    skipped = 0
    if (mark := SEPARATOR_LINE.match(text)) is not None:  # how spreadsheets declare the delimiter
        skipped, text = 1, text[mark.end() :]
    while text:
        line, _, rest = text.partition(b"\n")
        is_title = not any(mark in line for mark in DELIMITERS) and any(
            mark in rest.partition(b"\n")[0] for mark in DELIMITERS
        )
        if line.strip() and not line.startswith(b"#") and not is_title:
            break
        skipped, text = skipped + 1, rest
    return skipped, text


def _reject_widths(
    path: Path, unit: str, lines: Sequence[int], widths: npt.NDArray[np.int64], expected: int
) -> None:
    for row in np.flatnonzero(widths != expected).tolist():
        what = (
            f"{path}: {unit} {lines[row]} has {widths[row]} columns where the first has {expected}"
        )
        if is_most(widths != expected):
            raise DataInvalid(f"{what}, and so have most rows: name as many in the header.")
        raise DataInvalid(f"{what}; correct or remove the row.")


def _read_in_bulk(
    path: Path, body: bytes, delimiter: bytes, names: Sequence[str], start: int
) -> RawTable:
    """Split unquoted text into columns at its delimiters."""
    width = len(names)
    text = np.frombuffer(body + b"\n" + bytes(CELL_WIDTH_MAX), dtype=np.uint8)
    ends = np.flatnonzero((text == ord(delimiter)) | (text == ord("\n")))
    widths = np.diff(np.flatnonzero(text[ends] == ord("\n")), prepend=-1)
    _reject_widths(path, "line", range(start, start + widths.size), widths, width)
    starts = np.concatenate(([0], ends[:-1] + 1))
    columns = {
        name: column
        for at, name in enumerate(names)
        if (column := _cut(text, starts[at::width], ends[at::width])) is not None
    }
    return RawTable(path, columns, start + np.arange(widths.size))


def _cut(
    text: npt.NDArray[np.uint8], starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]
) -> npt.NDArray[np.bytes_] | None:
    """Return the cells of *text* from *starts* to *ends*; None if one is too long for a number."""
    lengths = ends - starts
    longest = max(int(lengths.max()), 1)
    if longest > CELL_WIDTH_MAX:
        return None
    cells = np.lib.stride_tricks.sliding_window_view(text, longest)[starts]
    cells[np.arange(longest) >= lengths[:, None]] = 0
    return cells.view(f"S{longest}").ravel()


def _read_by_rows(
    path: Path, text: bytes, delimiter: bytes, skipped: int, head_of: ReadHead
) -> RawTable:
    """Read quoted text, or text with blank lines, through the csv module."""
    reader = csv.reader(io.StringIO(_decode(path, text)), delimiter=delimiter.decode())
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(skipped + reader.line_num)
    except csv.Error as error:
        raise DataInvalid(
            f"{path}: line {skipped + reader.line_num} cannot be read ({error}); correct it."
        ) from None
    return _text_table(path, rows, lines, "line", head_of, delimiter.decode())


WRAPPED_MOST: Final = 3
"""The maximum depth of objects around the list of rows of a JSON body."""
PACKING_FAULTS: Final = (
    *(EOFError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of the standard library for damaged archives."""

ARROW_FAULTS: Final = (KeyError, NotImplementedError, OSError, OverflowError, ValueError)
"""Exceptions of pyarrow for damaged files, besides its own."""

UNPACKED_LIMIT: Final = 4 * 2**30
"""The maximum bytes of a file, packed or unpacked; a year of minutes takes 60 MB."""
UNPACKED_TIMES: Final = 200
"""The maximum ratio of unpacked to packed size; candles have 5 to 10."""
UNPACKED_FREE: Final = 128 * 2**20
"""Unpacked bytes that are always allowed, since any machine has that memory."""
LINE_LIMIT: Final = 2**20
PART_BYTES: Final = 2**18


@dataclass(frozen=True)
class Format:
    """One kind of candle file: how its name and first bytes identify it, and its reader.

    ``suffixes`` are lower-case endings of its name. ``read`` takes the path, for messages, and the
    unpacked content, and raises ``DataInvalid``. ``magics`` are first bytes unique to this kind.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, bytes], RawTable]
    magics: tuple[bytes, ...] = ()


Opener = Callable[[Path, bytes], tuple[str, Callable[[int], bytes]]]


@dataclass(frozen=True)
class Compression:
    """One compression: ``open`` returns the name of the file inside, and its reader.

    Without ``open`` the file is rejected by its first bytes: the user has to unpack it.
    """

    name: str
    suffix: str
    magic: bytes
    open: Opener | None = None


def read_table(
    path: Path,
    *,
    columns: Sequence[str] = (),
    head: ReadHead | None = None,
) -> RawTable:
    """Return the columns of the file at *path*; its name determines the format.

    *columns* choose among columns with one meaning. *head* is for a table without candles: it reads
    the header of text. Raises ``DataInvalid`` if the file is unreadable, empty, of an unknown or
    another format, or has ambiguous columns.
    """
    name, raw = unpacked(path)
    if raw.startswith(MARK):
        raise DataInvalid(
            f"{path} is a recording of an order book, and candles are wanted here: give it by "
            "--depth or --events beside candles, or look at it by `tracepaper data check`."
        )
    expected = _format_of(name)
    for each in FORMATS.values():
        if each is not expected and raw.startswith(each.magics):
            suffix = Path(name).suffix or "nothing"
            raise DataInvalid(
                f"{path} is {each.name} by its first bytes and {suffix} by its name: rename it to "
                f"end in {each.suffixes[0]}."
            )
    if expected is None and Path(name).suffix == ".toml":
        raise ConfigInvalid(f"{path} is a configuration; give it by --config, and candles here.")
    if expected is None:
        raise DataInvalid(
            f"{path} has a name of no known kind: rename it to one of {known_suffixes()}."
        )
    if expected.magics and not raw.startswith(expected.magics):
        raise _not_as_named(path, expected.suffixes[0])
    if head is None:
        return reject_unclear(expected.read(path, raw), columns)
    is_text = expected.read is read_delimited
    return read_delimited(path, raw, head) if is_text else expected.read(path, raw)


def unpacked(path: Path) -> tuple[str, bytes]:
    """Return the name and content of the file at *path*, or of the file packed in it.

    Raises ``DataInvalid`` if it is unreadable, empty, damaged or too large, or if a text file has
    too long a line.
    """
    name = path.name.lower()
    raw = _known(path, _read_file(path, has_lines=_is_text(name)))
    if raw.startswith(MARK) or (opened := _opener_of(path, raw)) is None:
        return name, raw
    try:
        name, read = opened(path, raw)
        inside = _read_bounded(path, read, packed=len(raw), has_lines=_is_text(name))
    except PACKING_FAULTS:
        raise DataInvalid(f"{path} is damaged, cut short or locked: fetch it again.") from None
    return name, _known(path, inside)


def _known(path: Path, raw: bytes) -> bytes:
    """Return *raw*; raise ``DataInvalid`` for content often stored in place of data."""
    for mark, what in FOREIGN.items():
        if mark.match(raw):
            raise DataInvalid(f"{path} is {what}.")
    return raw


def known_suffixes() -> str:
    """Return the suffixes of all formats, for a message."""
    suffixes = [suffix[1:] for each in FORMATS.values() for suffix in each.suffixes]
    packed = " or ".join(packing.suffix for packing in PACKINGS if packing.open is not None)
    return f"{', '.join(suffixes)} (also in {packed})"


def _not_as_named(path: Path, suffix: str) -> DataInvalid:
    return DataInvalid(
        f"{path} is not {suffix.removeprefix('.')} although its name says so: "
        "rename it, or fetch it again."
    )


def _format_of(name: str) -> Format | None:
    """Return the format with the suffix of *name*, or None."""
    return next((each for each in FORMATS.values() if name.endswith(each.suffixes)), None)


def _read_file(path: Path, *, has_lines: bool) -> bytes:
    try:
        if path.is_char_device() or path.is_block_device():
            raise DataInvalid(f"{path} is a device, which may never end: name a file.")
        with path.open("rb") as stream:
            raw = _read_bounded(path, stream.read, has_lines=has_lines)
    except IsADirectoryError:
        raise DataInvalid(f"{path} is a folder: name the file in it.") from None
    except FileNotFoundError:
        raise DataInvalid(f"{path} does not exist: check the path.") from None
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read ({error.strerror}): check the file.") from None
    if not raw:
        raise DataInvalid(f"{path} is empty: give one with rows.")
    return raw


def _opener_of(path: Path, raw: bytes) -> Opener | None:
    """Return the compression of *raw*, or None; raise if its name tells another one."""
    suffix = path.suffix.lower()
    for packing in PACKINGS:
        if raw.startswith(packing.magic):
            if packing.open is None:
                raise DataInvalid(
                    f"{path} is compressed with {packing.name}: unpack it to one of "
                    f"{known_suffixes()}."
                )
            if suffix != packing.suffix:
                raise DataInvalid(
                    f"{path} is {packing.name} by its first bytes and {suffix or 'nothing'} by its "
                    f"name: rename it to end in {packing.suffix}."
                )
            return packing.open
        if suffix == packing.suffix:
            raise _not_as_named(path, packing.suffix)
    return None


def _gunzipped(path: Path, raw: bytes) -> tuple[str, Callable[[int], bytes]]:
    return path.name.lower().removesuffix(".gz"), gzip.GzipFile(fileobj=io.BytesIO(raw)).read


def _unzipped(path: Path, raw: bytes) -> tuple[str, Callable[[int], bytes]]:
    """Return name and reader of the single data file in a zip archive, or of its only file."""
    archive = zipfile.ZipFile(io.BytesIO(raw))
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    members = [name for name in names if _format_of(name.lower())] or names
    if len(members) != 1:
        raise DataInvalid(
            f"{path} holds {len(members)} data files where one is wanted: unpack it and name the "
            "files."
        )
    return members[0].lower(), archive.open(members[0]).read


def _is_text(name: str) -> bool:
    return _format_of(name) is FORMATS["csv"]


def _read_bounded(
    path: Path, read: Callable[[int], bytes], *, has_lines: bool, packed: int | None = None
) -> bytes:
    """Read to the end; reject more bytes, or a longer line, than a file of candles has.

    So neither a file that unpacks endlessly from *packed* bytes, nor an endless line of text
    (*has_lines*), fills the memory.
    """
    limit = UNPACKED_LIMIT
    if packed is not None:
        limit = min(limit, max(UNPACKED_FREE, UNPACKED_TIMES * packed))
    parts: list[bytes] = []
    size = line = 0
    while part := read(PART_BYTES):
        size += len(part)
        if size > limit:
            raise DataInvalid(
                f"{path} is larger than {limit // 2**20:,} MiB, or unpacks to more than is "
                "read: look at what it holds, and split it if it is right."
            )
        if has_lines:
            end = max(part.rfind(b"\n"), part.rfind(b"\r"))
            line = line + len(part) if end < 0 else len(part) - end
            if line > LINE_LIMIT:
                raise DataInvalid(
                    f"{path} has a line of more than {LINE_LIMIT // 2**20} MiB, which is no row: "
                    "look at what it holds."
                )
        parts.append(part)
    return b"".join(parts)


def _read_json(path: Path, raw: bytes) -> RawTable:
    """Read rows of values, rows of objects, an object of columns, or a Bybit REST body."""
    document = _json_document(path, raw)
    zone, kind = _text_named(document, "timezone"), _text_named(document, "category")
    return replace(_table_of_document(path, document), zone=zone, kind=kind)


def _json_document(path: Path, raw: bytes) -> object:
    try:
        # Numbers stay text, so that no decimal passes through a double.
        document: Any = msgspec.json.Decoder(float_hook=str).decode(_utf8(path, raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataInvalid(f"{path} is not JSON ({error}): check the file.") from None
    return document


def _text_named(document: object, ending: str, depth: int = 0) -> str:
    """Return the first text in nested objects whose key ends so, such as ``exchange_timezone``."""
    if not isinstance(document, Mapping) or depth == WRAPPED_MOST:
        return ""
    for name, value in document.items():
        plain = str(name).lower().replace("_", "").replace(" ", "")
        if plain.endswith(ending) and isinstance(value, str):
            return value
    texts = (_text_named(value, ending, depth + 1) for value in document.values())
    return next(filter(None, texts), "")


def _table_of_document(path: Path, document: Any) -> RawTable:  # noqa: ANN401 - of any shape
    symbol = ""
    wrapped = [*_lists_of_rows(document)]
    names: list[str] | None = None
    if isinstance(document, Mapping) and len(wrapped) == 1:
        name, document, names = wrapped[0]
        symbol = name if PAIR.fullmatch(name.upper()) else ""
    if isinstance(document, Mapping):
        columns = _columns_within(document)
        if len({len(values) for values in columns.values()}) != 1:
            raise _unknown_json(path)
        names, document = list(columns), list(zip(*columns.values(), strict=True))
    elif not isinstance(document, list):
        raise _unknown_json(path)
    elif document and all(isinstance(row, Mapping) for row in document):
        names = list(document[0])
        document = [[row.get(name) for name in names] for row in document]
    elif not all(isinstance(row, list) and row for row in document):
        raise _unknown_json(path)
    table = table_of_rows(path, document, None if names is None else distinct(path, names))
    return replace(table, symbol=symbol or table.symbol)


def _lists_of_rows(
    document: object, depth: int = 0
) -> Iterator[tuple[str, list[Any], list[str] | None]]:
    """Yield name, rows and column names of the outermost lists of rows in nested objects.

    REST answers nest rows in objects; pandas and databases write column names beside rows.
    """
    if not isinstance(document, Mapping) or depth == WRAPPED_MOST:
        return
    lists = {name: of for name, of in document.items() if isinstance(of, list) and of}
    rows = [
        name for name, of in lists.items() if all(isinstance(row, Mapping | list) for row in of)
    ]
    for name in rows:
        named = [
            of
            for of in lists.values()
            if len(of) == len(lists[name][0]) and all(isinstance(cell, str) for cell in of)
        ]
        yield str(name), lists[name], named[0] if named else None
    for inside in () if rows else document.values():
        yield from _lists_of_rows(inside, depth + 1)


def _columns_within(document: Mapping[Any, Any], depth: int = 0) -> dict[str, list[Any]]:
    """Return the columns of an object, or of the only object in it; skip other values."""
    columns = {str(name): of for name, of in document.items() if isinstance(of, list)}
    inside = [of for of in document.values() if isinstance(of, Mapping)]
    if not columns and len(inside) == 1 and depth < WRAPPED_MOST:
        return _columns_within(inside[0], depth + 1)
    return columns


def _unknown_json(path: Path) -> DataInvalid:
    return DataInvalid(
        f"{path} is JSON of an unknown shape: give a list of rows "
        "[time, open, high, low, close, volume] or of objects with these names."
    )


def _read_arrow(path: Path, raw: bytes, *, feather: bool) -> RawTable:
    """Read Parquet or Feather with pyarrow, an optional dependency."""
    try:
        import pyarrow as pa
        from pyarrow import feather as pa_feather
        from pyarrow import parquet as pa_parquet
    except ImportError:
        raise ConfigInvalid(missing_sentence("pyarrow", f"{path}")) from None
    source = pa.BufferReader(raw)
    try:
        table = pa_feather.read_table(source) if feather else pa_parquet.read_table(source)
        table.validate(full=True)
        names = distinct(path, table.column_names)
        columns = {
            name: column_of(path, name, table.column(place)) for place, name in enumerate(names)
        }
    except (pa.ArrowException, *ARROW_FAULTS) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataInvalid(f"{path} is damaged ({reason}): fetch it again.") from None
    if not table.num_rows:
        raise DataInvalid(f"{path} is empty: give one with rows.")
    return RawTable(path, columns, np.arange(1, table.num_rows + 1), "row")


FORMATS: Final[dict[str, Format]] = {
    "csv": Format("CSV", (".csv", ".txt", ".tsv"), read_delimited),
    "json": Format("JSON", (".json",), _read_json),
    "parquet": Format(
        "Parquet", (".parquet", ".pq"), partial(_read_arrow, feather=False), (b"PAR1",)
    ),
    "feather": Format(
        "Feather",
        (".feather", ".arrow", ".ipc"),
        partial(_read_arrow, feather=True),
        (b"ARROW1", b"FEA1"),
    ),
}
"""Every kind of candle file, by name."""

FOREIGN: Final = {
    re.compile(rb"version https://git-lfs"): (
        "a pointer of Git LFS in the place of a file: fetch that by `git lfs pull`"
    ),
    re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)", re.IGNORECASE): (
        "a web page or XML and holds no rows: look at what it says, and fetch the file again"
    ),
    re.compile(
        rb"\xd0\xcf\x11\xe0|PK\x03\x04.{26}"
        rb"(\[Content_Types\]|_rels/|docProps/|xl/|mimetypeapplication/vnd\.oasis)",
        re.DOTALL,
    ): "a workbook of a spreadsheet: save its sheet as CSV",
}
"""First bytes of content often stored in place of data, and what to do."""

PACKINGS: Final = (
    Compression("gzip", ".gz", b"\x1f\x8b", _gunzipped),
    Compression("zip", ".zip", b"PK\x03\x04", _unzipped),
    Compression("Zstandard", ".zst", b"\x28\xb5\x2f\xfd"),
    Compression("bzip2", ".bz2", b"BZh"),
    Compression("xz", ".xz", b"\xfd7zXZ"),
)
"""Every known compression."""
