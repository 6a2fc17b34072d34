"""The bytes of a file to a ``FileTable``: named columns of CSV, JSON, Parquet or Feather."""

from __future__ import annotations

import csv
import gzip
import io
import re
import shlex
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.columns import (
    CellInvalidError,
    Column,
    IntArray,
    column_of,
)
from tracepaper.replay.archive.names import BARE, INDEXES, NAMES, PAIR, TIME, plain_name
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence

SUFFIXES: Final = (
    *(".csv", ".txt", ".tsv", ".json", ".parquet", ".pq", ".feather", ".arrow", ".ipc"),
)
DELIMITERS: Final = (",", ";", "\t", "|")
CELLS_LEAST: Final = 6
LINE_MOST: Final = 2**16
"""The characters in which a line before the table and the next one are looked for."""
CELL_WIDTH_MAX: Final = 256
"""A longer cell is no number or time; its column is left out."""
HEADER_LINES: Final = 3
"""The rows from which a head is read."""
WRAPPED_MOST: Final = 3
"""The maximum depth of objects around the rows of a JSON document."""
SIZE_MOST: Final = 2 * 2**30
"""The maximum bytes of a file, packed or unpacked; a year of minutes takes 60 MB."""
PART_BYTES: Final = 2**18
SEPARATOR_LINE: Final = re.compile(r'"?sep=(.|\t)"?[ ,;\t]*\n', re.IGNORECASE)
"""How spreadsheets name the delimiter."""
ZONE_LINE: Final = re.compile(r"time[ _-]?zone\W+([\w/+:-]+)", re.IGNORECASE)
BESIDE: Final = ("timezone", "category")
"""What texts beside the rows of a JSON document say of them, by the end of their name."""
CELL_MARK: Final = "\x1f"
"""Separates cells that may hold any delimiter."""
FRAME: Final = Path("the frame")
"""The path of a table that is a frame."""
DAMAGE: Final = (
    *(EOFError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
"""Exceptions of gzip, zipfile and pyarrow for damaged files."""
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class FileTable:
    """Rows of one file: *columns* of one length, by their plain names.

    ``lines`` has the number of each row in the file, from 1, in ``unit``: lines of text, or rows.
    ``bare``: the file has no header. ``skipped``: lines before the header. ``separator``: between
    cells of text. ``written``: plain name → the one in the file. ``repeated``: plain names that
    several columns have, which then have their written name. ``beside``: texts beside the rows, by
    ``symbol``, ``timezone`` or ``category``. ``notes``: sentences about conversions.
    """

    path: Path
    columns: Mapping[str, Column]
    lines: IntArray
    unit: str = "row"
    bare: bool = False
    skipped: int = 0
    separator: str = ","
    written: Mapping[str, str] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()
    beside: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> str:
        """The names of the columns, for a message."""
        return ", ".join(name or plain for plain, name in self.written.items())

    def choice(self, **columns: str) -> str:
        """Return what chooses *columns*, field → name: an argument for a frame, else options.

        An empty name leaves a field out.
        """
        if self.path == FRAME:
            given = {field: name or None for field, name in columns.items()}
            return f"columns={given}".replace("'", '"')
        return " ".join(
            f"--columns {field}={shlex.quote(name) if name else ''}"
            for field, name in columns.items()
        )

    def by_pandas(self, change: str, names: Sequence[str] = ()) -> str:
        """Return two lines of pandas that read the file, *change* the frame and write it anew.

        *names* are those of its columns if it has no header.
        """
        if self.path == FRAME:
            return f"frame = {change}"
        if names and self.path.name.endswith(".json"):
            change = f"frame.set_axis({[*names]}, axis=1)"
        suffix = self.path.name.removesuffix(".gz").removesuffix(".zip").rpartition(".")[2]
        kind, options = {"json": "json", "parquet": "parquet"}.get(suffix, "csv"), ""
        separator = "" if self.separator == "," else f", sep={self.separator!r}"
        if kind == "csv":
            options = f", dtype=str{separator}"
            options += f", skiprows={self.skipped}" if self.skipped else ""
            options += f", header=None, names={[*names]}" if names else ""
        target = self.path.with_name(f"{self.path.name.split('.', 1)[0]}_new.csv")
        return (
            f"frame = pandas.read_{kind}({str(self.path)!r}{options}); "
            f"{change}.to_csv({str(target)!r}, index=False{separator})"
        )

    def with_times(self, name: str, how: str, cells: str = "") -> str:
        """Return lines of pandas that read the column *name* of times; *how* ends the call."""
        column = self.written.get(name, name)
        change = (
            f"frame.assign(**{{{column!r}: pandas.to_datetime(frame[{column!r}]{cells}{how})}})"
        )
        return self.by_pandas(change, [*self.columns] if self.bare else ())

    def place(self, row: int) -> str:
        """Return the place of row *row* for a message: ``prices.csv: line 17``."""
        return f"{self.path}: {self.unit} {self.lines[row]}"

    def reject(self, error: CellInvalidError, name: str, field: str = "") -> DataInvalid:
        """Return *error* in the column *name* of a *field*, with file, line and what to do."""
        remedy = "correct or remove the row"
        if field:
            remedy += "; if most rows are so, choose another column by "
            remedy += self.choice(**{field: "NAME"})
        return DataInvalid(f"{self.place(error.row)}: {name} {error.what}: {remedy}.")

    def checked(self, field: str, read: Callable[[], Result]) -> Result:
        """*Read* the column of *field*; a ``CellInvalidError`` becomes a ``DataInvalid``."""
        try:
            return read()
        except CellInvalidError as error:
            raise self.reject(error, field, field) from None

    def select(self, rows: npt.NDArray[Any]) -> FileTable:
        """Return the rows at these indices, or of this mask."""
        columns = {name: cells[rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines[rows])

    def with_note(self, note: str, columns: Mapping[str, Column] | None = None) -> FileTable:
        """Return the table with another note, and other *columns* if given."""
        columns = self.columns if columns is None else columns
        return replace(self, columns=columns, notes=(*self.notes, note))


# ---------------------------------------------------------------- heads

Rows = Sequence[Sequence[str]]
"""The cells of a file's first rows, at most ``HEADER_LINES``."""


@dataclass(frozen=True)
class FileHead:
    """The names of a table's columns, and the number of rows that hold them (0: no header)."""

    names: Sequence[str]
    height: int = 1
    symbol: str = ""
    is_plain: bool = False
    """The names are those of the table, as they are."""


ReadHead = Callable[[Path, Rows], FileHead]


def head_of(_path: Path, rows: Rows) -> FileHead:
    """Return the head of a table of candles by its first *rows*."""
    first = rows[0]
    if re.match(r"\s*[-+]?\d", first[0]) or not any(re.search(r"[A-Za-z]", cell) for cell in first):
        names = BARE.get(len(first), ())
        if not names or (names[-1] == "confirm" and first[-1] not in ("0", "1")):
            names = tuple(f"column_{at}" for at in range(len(first)))
        return FileHead(names, 0)
    tickers = rows[1][1:] if len(rows) == HEADER_LINES and rows[1][0] == "Ticker" else ()
    if len(set(tickers)) == 1 and not any(rows[2][1:]) and len(first) == len(rows[1]):
        # yfinance: a row of fields, a row of one ticker, and a row that names the time.
        return FileHead(["time", *first[1:]], HEADER_LINES, tickers[0])
    return FileHead(first)


def _table(
    path: Path, head: FileHead, cells: Mapping[int, Column], lines: IntArray, unit: str
) -> FileTable:
    """Return the table of *cells*, by the place of their column.

    Of names that differ only in case (``t`` and ``T``, open and close time of some exchanges), the
    one written as in ``NAMES`` keeps it. A nameless column is named by its position.
    """
    if not lines.size:
        raise DataInvalid(f"{path} has a header and no rows: give one with rows.")
    names = [name.strip() for name in head.names]
    plain = names if head.is_plain else [plain_name(name) for name in names]
    counts, exact = Counter(plain), Counter(names)
    columns: dict[str, Column] = {}
    written: dict[str, str] = {}
    repeated = set()
    for at, cell in cells.items():
        name = plain[at] or f"column_{at}"
        if counts[name] > 1 and not (exact[name] == 1 and names[at] == name):
            repeated |= {name} if exact[name] != 1 else set()
            name = names[at] if exact[names[at]] == 1 else f"{name}_{at}"
        columns[name], written[name] = cell, names[at]
    return FileTable(
        path,
        columns,
        lines,
        unit,
        bare=not head.height,
        written=written,
        repeated=frozenset(repeated),
        beside=(("symbol", head.symbol),) if head.symbol else (),
    )


# ---------------------------------------------------------------- bytes


def read_table(path: Path, read_head: ReadHead = head_of) -> FileTable:
    """Return the columns of the file at *path*; its name determines the format.

    Raises ``DataInvalid`` if it is unreadable, empty, damaged or of an unknown format.
    """
    name, raw = unpacked(path)
    if name.endswith(".toml"):
        raise ConfigInvalid(f"{path} is a configuration; give it by --config, and candles here.")
    if not name.endswith(SUFFIXES):
        raise DataInvalid(
            f"{path} has a name of no known kind: give candles in a file that ends in "
            f"{', '.join(SUFFIXES)}, also in .gz or .zip."
        )
    if not raw.strip():
        raise DataInvalid(f"{path} is empty: give one with rows.")
    if name.endswith((".csv", ".txt", ".tsv")):
        return _read_text(path, _decoded(path, raw), read_head)
    if name.endswith(".json"):
        return _read_json(path, _decoded(path, raw), read_head)
    return _read_arrow(path, raw, feather=not name.endswith((".parquet", ".pq")))


def unpacked(path: Path) -> tuple[str, bytes]:
    """Return the lower-case name and the content of the file at *path*, or of the one packed in it.

    Raises ``DataInvalid`` if it is unreadable, damaged or too large.
    """
    name = path.name.lower()
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataInvalid(f"{path} {what}: check the path.")
    parts = list[bytes]()
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            stream: Any = file
            if name.endswith(".gz"):
                name, stream = name.removesuffix(".gz"), gzip.GzipFile(fileobj=file)
            elif name.endswith(".zip"):
                name, stream = _member(path, zipfile.ZipFile(file))
            while size <= SIZE_MOST and (part := stream.read(PART_BYTES)):
                parts.append(part)
                size = max(size, len(parts) * PART_BYTES)
    except DAMAGE as error:
        why = getattr(error, "strerror", None) or "damaged, cut short or locked"
        raise DataInvalid(f"{path} cannot be read ({why}): fetch it again.") from None
    if size > SIZE_MOST:
        raise DataInvalid(
            f"{path} holds more than {SIZE_MOST // 2**20:,} MiB: look at what it is, and split it "
            "if it is right."
        )
    return name, b"".join(parts)


def _member(path: Path, archive: zipfile.ZipFile) -> tuple[str, Any]:
    """Return name and stream of the single data file in a zip archive."""
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
    names = [name for name in names if name.lower().endswith(SUFFIXES)] or names
    if len(names) != 1:
        raise DataInvalid(
            f"{path} holds {len(names)} data files where one is wanted: unpack it and name the "
            "files."
        )
    return names[0].lower(), archive.open(names[0])


def _decoded(path: Path, raw: bytes) -> str:
    """Return *raw* as text with plain newlines."""
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataInvalid(f"{path} is no text of UTF-8 although its name says so: check the file.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_text(path: Path, text: str, read_head: ReadHead) -> FileTable:
    """Return the table of delimited text below comments, blank lines and a title."""
    preamble, body = _skip_preamble(text)
    skipped, body = preamble.count("\n"), body.rstrip("\n")
    if not body.strip():
        raise DataInvalid(f"{path} is empty: give one with rows.")
    counts = {mark: body.partition("\n")[0].count(mark) for mark in DELIMITERS}
    # Commas may be decimal where another mark is frequent.
    often = [mark for mark in DELIMITERS[1:] if counts[mark] >= CELLS_LEAST - 1]
    separator = mark = max(often or DELIMITERS, key=lambda mark: counts[mark])
    lines = skipped + 1 + np.arange(body.count("\n") + 1, dtype=np.int64)
    if '"' in body or "\n\n" in body:
        reader = csv.reader(io.StringIO(body), delimiter=separator)
        try:
            rows = [(skipped + reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            line = skipped + reader.line_num
            raise DataInvalid(
                f"{path}: line {line} cannot be read ({error}): correct it."
            ) from None
        lines = np.array([line for line, _ in rows], dtype=np.int64)
        body, mark = _joined(row for _, row in rows), CELL_MARK
    first = [line.split(mark) for line in body.split("\n", HEADER_LINES)[:HEADER_LINES]]
    table = _cut_rows(path, body, mark, lines, "line", read_head(path, first))
    zones = [("timezone", zone[1]) for zone in ZONE_LINE.finditer(preamble)]
    beside = (*table.beside, *zones)
    return replace(table, separator=separator, skipped=skipped, beside=beside)


def _skip_preamble(text: str) -> tuple[str, str]:
    """Return the comments, blank lines and title before the table, and the text from it on."""
    mark = SEPARATOR_LINE.match(text)
    at = mark.end() if mark else 0
    while at < len(text):
        line, _, rest = text[at : at + LINE_MOST].partition("\n")
        below = rest.partition("\n")[0]
        is_title = not any(mark in line for mark in DELIMITERS) and any(
            mark in below for mark in DELIMITERS
        )
        if line.strip() and not line.startswith("#") and not is_title:
            break
        at += len(line) + 1
    return text[:at], text[at:]


def _joined(rows: Iterable[Sequence[str]]) -> str:
    """Return *rows* of cells as lines of text, with a mark between cells."""
    return "\n".join(CELL_MARK.join(row).replace("\n", " ") for row in rows)


def _cut_rows(
    path: Path, text: str, mark: str, lines: IntArray, unit: str, head: FileHead
) -> FileTable:
    """Cut *text* into columns at each *mark* and line end; *lines* number its rows in *unit*."""
    lines = lines[head.height :]
    raw = np.frombuffer(text.encode("utf-8", "replace") + b"\n" + bytes(CELL_WIDTH_MAX), np.uint8)
    ends = np.flatnonzero((raw == ord(mark)) | (raw == ord("\n")))
    rows = np.flatnonzero(raw[ends] == ord("\n"))
    widths, width = np.diff(rows, prepend=-1)[head.height :], len(head.names)
    for row in np.flatnonzero(widths != width).tolist():
        raise DataInvalid(
            f"{path}: {unit} {lines[row]} has {widths[row]} columns where the "
            f"first has {width}: correct or remove the row; if most rows are so, name as many in "
            "the header."
        )
    starts = np.concatenate(([0], ends[:-1] + 1))
    first = rows[head.height - 1] + 1 if head.height else 0
    cells = {
        at: _cells(raw, starts[first + at :: width], ends[first + at :: width])
        for at in range(width)
    }
    return _table(path, head, {at: c for at, c in cells.items() if c is not None}, lines, unit)


def _cells(
    raw: npt.NDArray[np.uint8], starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]
) -> npt.NDArray[np.bytes_] | None:
    """Return the cells of *raw* from *starts* to *ends*; None if one is too long for a number."""
    lengths = ends - starts
    longest = max(int(lengths.max(initial=0)), 1)
    if longest > CELL_WIDTH_MAX:
        return None
    cells = np.lib.stride_tricks.sliding_window_view(raw, longest)[starts]
    cells[np.arange(longest) >= lengths[:, None]] = 0
    return cells.view(f"S{longest}").ravel()


# ---------------------------------------------------------------- JSON, Parquet, Feather


def _read_json(path: Path, text: str, read_head: ReadHead) -> FileTable:
    """Read the only list of rows of values, or of objects, also within other objects."""
    try:
        # Numbers stay text, so that no decimal passes through a double.
        document = msgspec.json.Decoder(float_hook=str).decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise DataInvalid(f"{path} is not JSON ({error}): check the file.") from None
    beside: list[tuple[str, str]] = []
    lists = [*_lists("", document, beside)]
    found = [(name, rows) for name, rows in lists if isinstance(rows[0], dict | list)]
    name, rows = found[0] if len(found) == 1 else ("", [])
    kinds = {type(row) for row in rows}
    names: list[str] = []
    if kinds == {dict}:
        names = [*rows[0]]
        rows = [[row.get(name) for name in names] for row in rows]
    elif kinds == {list}:  # names beside the rows, as pandas and databases write them
        names = next(
            (of for _, of in lists if len(of) == len(rows[0]) and {*map(type, of)} == {str}), names
        )
    if kinds not in ({dict}, {list}) or not rows[0]:
        raise DataInvalid(
            f"{path} is JSON of an unknown shape: give one list of rows "
            "[time, open, high, low, close, volume] or of objects with these names, such as by "
            f"pandas: frame = pandas.read_json({str(path)!r}); "
            f"frame.to_csv({str(path.with_suffix('.csv'))!r}, index=False)."
        )
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    head = FileHead(names, 0) if names else read_head(path, cells[:HEADER_LINES])
    lines = 1 + np.arange(len(cells), dtype=np.int64)
    table = _cut_rows(path, _joined(cells), CELL_MARK, lines, "row", head)
    if PAIR.fullmatch(name.upper()):
        beside.append(("symbol", name))
    return replace(table, bare=table.bare and not names, beside=(*table.beside, *beside))


def _lists(
    name: str, value: object, beside: list[tuple[str, str]], depth: int = 0
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists in nested objects with their names; add texts *beside* them."""
    if isinstance(value, list) and value:
        yield name, value
    elif isinstance(value, dict) and depth <= WRAPPED_MOST:
        for key, inside in value.items():
            yield from _lists(key, inside, beside, depth + 1)
            plain = re.sub("[_ ]", "", key).lower()
            if isinstance(inside, str):
                beside += [(kind, inside) for kind in BESIDE if plain.endswith(kind)]


def _read_arrow(path: Path, raw: bytes, *, feather: bool) -> FileTable:
    """Read Parquet or Feather with pyarrow, an optional dependency."""
    try:
        import pyarrow as pa
        from pyarrow import feather as pa_feather
        from pyarrow import parquet as pa_parquet
    except ImportError:
        raise ConfigInvalid(missing_sentence("pyarrow", f"{path}")) from None
    read = pa_feather.read_table if feather else pa_parquet.read_table
    try:
        table = read(pa.BufferReader(raw))
        table.validate(full=True)
        names = table.column_names
        cells = {at: column_of(path, name, table.column(at)) for at, name in enumerate(names)}
    except (pa.ArrowException, *DAMAGE) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataInvalid(f"{path} is damaged ({reason}): fetch it again.") from None
    return _table(path, FileHead(names), cells, 1 + np.arange(table.num_rows), "row")


def table_of_frame(frame: Any) -> FileTable:  # noqa: ANN401 - of any library
    """Return a data frame, or a dictionary of columns, as a table.

    In pandas the index holds the times if they are instants, or if no column has a name of times.
    Columns of several levels, as in downloads of many symbols, are rejected.
    """
    named = dict(frame) if isinstance(frame, Mapping) else {n: frame[n] for n in frame.columns}
    if any(isinstance(name, tuple) for name in named):
        raise DataInvalid(
            f"{FRAME} has columns of several levels: give one symbol's, frame[symbol]."
        )
    index = None if isinstance(frame, Mapping) else getattr(frame, "index", None)
    kind = getattr(getattr(index, "dtype", None), "kind", "")
    is_time = not any(plain_name(str(name)) in NAMES[TIME] for name in named)
    if kind == "M":
        named = {"time": index, **named}
    elif kind and is_time:
        named = {getattr(index, "name", None) or INDEXES[0]: index, **named}
    cells = {at: column_of(FRAME, str(n), values) for at, (n, values) in enumerate(named.items())}
    sizes = {str(name): cell.size for name, cell in zip(named, cells.values(), strict=True)}
    if not sizes or not min(sizes.values()):
        raise DataInvalid(f"{FRAME} is empty: give one with candles.")
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise DataInvalid(f"{FRAME} has columns of different lengths ({shown}): give rows alone.")
    head = FileHead([str(name) for name in named])
    return _table(FRAME, head, cells, 1 + np.arange(cells[0].size), "row")
