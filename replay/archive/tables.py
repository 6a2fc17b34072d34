"""The bytes of a file to a ``FileTable``: named columns of CSV, JSON, Parquet or Feather."""

from __future__ import annotations

import csv
import gzip
import io
import re
import shlex
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.columns import UNITS, CellInvalidError, Column, IntArray, column_of
from tracepaper.replay.archive.names import BARE, NAMES, PAIR, TIME, plain_name
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence

TEXTS: Final = (".csv", ".txt", ".tsv")
ARROWS: Final = (".parquet", ".pq", ".feather", ".arrow", ".ipc")
SUFFIXES: Final = (*TEXTS, ".json", *ARROWS)
DELIMITERS: Final = (",", ";", "\t", "|")
CELLS_LEAST: Final = 6
CELL_WIDTH_MAX: Final = 256
"""A longer cell is no number or time; its column is left out."""
TOP_CHARACTERS: Final = 2**16
HEADER_LINES: Final = 3
"""The rows from which a head is read."""
PREAMBLE: Final = re.compile(
    r'("?sep=(.|\t)"?[ ,;\t]*\n)?(#[^\n]*\n|[ \t]*\n|[^,;\t|\n]+\n(?=[^\n]*[,;\t|]))*+',
    re.IGNORECASE,
)
"""The delimiter as spreadsheets name it, comments and blank lines, and a title."""
ZONE_LINE: Final = re.compile(r"time[ _-]?zone\W+([\w/+:-]+)", re.IGNORECASE)
CELL_MARK: Final = "\x1f"
"""Separates cells that may hold any delimiter."""
FRAME: Final = Path("the frame")
"""The path of a table that is a frame."""
DAMAGE: Final = (
    *(EOFError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError),
    *(MemoryError, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of gzip, zipfile and pyarrow for damaged files."""
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class FileTable:
    """Rows of one file: *columns* of one length, by their plain names.

    ``lines`` has the number of each row in the file, from 1, in ``unit``: lines of text, or rows.
    ``written``: plain name → the one in the file. ``bare``: the file has no header. ``skipped``:
    lines before the header. ``beside``: texts beside the rows, as (kind, text). ``notes``:
    sentences about conversions.
    """

    path: Path
    columns: Mapping[str, Column]
    lines: IntArray
    unit: str = "row"
    written: Mapping[str, str] = field(default_factory=dict)
    bare: bool = False
    skipped: int = 0
    separator: str = ","
    beside: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

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

        A file without a header has the first columns *names*.
        """
        if self.path == FRAME:
            return f"frame = {change}"
        kind = next((kind for kind in ("json", "parquet") if kind in self.path.name), "csv")
        options = separator = "" if self.separator == "," else f", sep={self.separator!r}"
        if kind == "csv":
            options += ", dtype=str" + (f", skiprows={self.skipped}" if self.skipped else "")
        if self.bare:
            names = [*names, *[*self.columns][len(names) :]]
            options += f", header=None, names={names}" if kind == "csv" else ""
            change += f".set_axis({names}, axis=1)" if kind == "json" else ""
        target = self.path.with_name(f"{self.path.name.split('.', 1)[0]}_new.csv")
        return (
            f"frame = pandas.read_{kind}({str(self.path)!r}{options}); "
            f"{change}.to_csv({str(target)!r}, index=False{separator})"
        )

    def refuse(
        self,
        what: str,
        *,
        row: int | None = None,
        change: str = "",
        names: Sequence[str] = (),
        **choice: str,
    ) -> DataInvalid:
        """Return the one sentence about a table that is not read: *what* is wrong, and remedies.

        These are *choice*, field → column, by ``--columns`` or by renaming, and two lines of pandas
        that *change* the frame, or give a file without a header *names*.
        """
        place = f"{self.path} " if row is None else f"{self.place(row)}: "
        remedies = [] if row is None else ["correct or remove the row"]
        if choice:
            remedies.append(f"choose columns by {self.choice(**choice)}")
            fields = {self.written.get(name, name): field for field, name in choice.items() if name}
            rename = f"frame.rename(columns={fields})" if fields else "frame.assign(volume=0)"
            change = change or rename
        if change:
            remedies.append(f"convert it by pandas: {self.by_pandas(change, names)}")
        found = f" (found {', '.join(self.written.values())})" if change else ""
        return DataInvalid(f"{place}{what}{found}: {', or '.join(remedies)}.")

    def checked(self, name: str, read: Callable[[], Result], **choice: str) -> Result:
        """Return what *read* returns; a ``CellInvalidError`` refuses the column *name*."""
        try:
            return read()
        except CellInvalidError as error:
            raise self.refuse(f"{name} {error.what}", row=error.row, **choice) from None

    def with_times(self, name: str, how: str, cells: str = "") -> str:
        """Return what reads the column *name* of times in pandas; *how* ends the call."""
        column = self.written.get(name, name)
        return f"frame.assign(**{{{column!r}: pandas.to_datetime(frame[{column!r}]{cells}{how})}})"

    def place(self, row: int) -> str:
        """Return the place of row *row* for a message: ``prices.csv: line 17``."""
        return f"{self.path}: {self.unit} {self.lines[row]}"

    def select(self, rows: npt.NDArray[Any]) -> FileTable:
        """Return the rows at these indices, or of this mask."""
        columns = {name: cells[rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines[rows])

    def with_note(self, note: str, columns: Mapping[str, Column] | None = None) -> FileTable:
        """Return the table with another note, and other *columns* if given."""
        return replace(self, columns=columns or self.columns, notes=(*self.notes, note))


class FileHead(NamedTuple):
    """The names of a table's columns, and the number of rows that hold them (0: no header)."""

    names: Sequence[str]
    height: int = 1
    symbol: str = ""


ReadHead = Callable[[Path, Sequence[Sequence[str]]], FileHead]
"""Returns the head of a table by the cells of its first rows."""


def head_of(_path: Path, rows: Sequence[Sequence[str]]) -> FileHead:
    """Return the head of a table of candles by its first *rows*."""
    first = rows[0]
    if re.match(r"\s*[-+]?\d", first[0]) or not re.search(r"[A-Za-z]", "".join(first)):
        unknown = [f"column_{at}" for at in range(len(first))]
        return FileHead(BARE.get(len(first), unknown), 0)
    if len(rows) == HEADER_LINES and rows[1][0] == "Ticker" and len({*rows[1][1:]}) == 1:
        # yfinance: a row of fields, a row of one ticker, and a row that names the time.
        return FileHead(["time", *first[1:]], HEADER_LINES, rows[1][1])
    return FileHead(first)


def _table(path: Path, head: FileHead, cells: Sequence[Column | None], **more: Any) -> FileTable:  # noqa: ANN401 - fields of the table
    """Return the table of *cells*; two columns of one name have it only as it is written."""
    if not more["lines"].size:
        raise DataInvalid(f"{path} has a header and no rows: give one with rows.")
    names = [name.strip() for name in head.names]
    plain = [plain_name(name) for name in names]
    columns, written = dict[str, Column](), dict[str, str]()
    for at, cell in enumerate(cells):
        name = plain[at] or f"column_{at}"
        if plain.count(name) > 1 and (name != names[at] or names.count(name) > 1):
            name = f"{name}_{at}"  # such as t and T, open and close time of some exchanges
        if cell is not None:
            columns[name], written[name] = cell, names[at] or name
    beside = [*more.pop("beside", ()), *([("symbol", head.symbol)] if head.symbol else [])]
    return FileTable(
        path, columns, written=written, bare=not head.height, beside=tuple(beside), **more
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
    if name.endswith(ARROWS):
        return _read_arrow(path, raw, is_parquet=name.endswith(ARROWS[:2]))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataInvalid(f"{path} is no text of UTF-8 although its name says so: check the file.")
    read = _read_text if name.endswith(TEXTS) else _read_json
    return read(path, text.replace("\r\n", "\n").replace("\r", "\n"), read_head)


def unpacked(path: Path) -> tuple[str, bytes]:
    """Return the lower-case name and the content of the file at *path*, or of the one packed in it.

    Raises ``DataInvalid`` if it is unreadable or damaged.
    """
    name = path.name.lower()
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataInvalid(f"{path} {what}: check the path.")
    try:
        with path.open("rb") as file:
            stream: Any = file
            if name.endswith(".gz"):
                name, stream = name.removesuffix(".gz"), gzip.GzipFile(fileobj=file)
            elif name.endswith(".zip"):
                name, stream = _member(path, zipfile.ZipFile(file))
            return name, stream.read()
    except DAMAGE as error:
        why = getattr(error, "strerror", None) or "damaged, cut short or locked"
        raise DataInvalid(f"{path} cannot be read ({why}): fetch it again.") from None


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


def _read_text(path: Path, text: str, read_head: ReadHead) -> FileTable:
    """Return the table of delimited text below comments, blank lines and a title."""
    preamble = match[0] if (match := PREAMBLE.match(text)) else ""
    skipped, body = preamble.count("\n"), text[len(preamble) :].rstrip("\n")
    if not body.strip():
        raise DataInvalid(f"{path} is empty: give one with rows.")
    top = body[:TOP_CHARACTERS].split("\n", 1)[0]
    counts = {mark: top.count(mark) for mark in DELIMITERS}
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
        body, mark = _joined([row for _, row in rows]), CELL_MARK
    first = [line.split(mark) for line in body[:TOP_CHARACTERS].split("\n")[:HEADER_LINES]]
    head = read_head(path, first)
    cells = _cut_rows(path, body, mark, lines, "line", head)
    zones = tuple(("timezone", zone[1]) for zone in ZONE_LINE.finditer(preamble))
    return _table(
        path, head, cells, lines=lines[head.height :], unit="line", skipped=skipped,
        separator=separator, beside=zones,
    )  # fmt: skip


def _joined(rows: Sequence[Sequence[str]]) -> str:
    """Return *rows* of cells as lines of text, with a mark between cells."""
    return "\n".join(CELL_MARK.join(row).replace("\n", " ") for row in rows)


def _cut_rows(
    path: Path, text: str, mark: str, lines: IntArray, unit: str, head: FileHead
) -> list[Column | None]:
    """Cut *text* into columns at each *mark* and line end; *lines* number its rows in *unit*.

    A column is None if a cell is too long for a number.
    """
    raw = np.frombuffer(text.encode("utf-8", "replace") + b"\n" + bytes(CELL_WIDTH_MAX), np.uint8)
    ends = np.flatnonzero((raw == ord(mark)) | (raw == ord("\n")))
    rows = np.flatnonzero(raw[ends] == ord("\n"))
    widths, width = np.diff(rows, prepend=-1)[head.height :], len(head.names)
    for row in np.flatnonzero(widths != width).tolist():
        raise DataInvalid(
            f"{path}: {unit} {lines[head.height + row]} has {widths[row]} columns where the "
            f"first has {width}: correct or remove the row; if most rows are so, name as many in "
            "the header."
        )
    starts = np.concatenate(([0], ends[:-1] + 1))
    first = rows[head.height - 1] + 1 if head.height else 0
    columns = list[Column | None]()
    for at in range(first, first + width):
        lengths = ends[at::width] - starts[at::width]
        longest = max(int(lengths.max(initial=0)), 1)
        if longest > CELL_WIDTH_MAX:
            columns.append(None)
            continue
        cells = np.lib.stride_tricks.sliding_window_view(raw, longest)[starts[at::width]]
        cells[np.arange(longest) >= lengths[:, None]] = 0
        columns.append(cells.view(f"S{longest}").ravel())
    return columns


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
    tables = [(name, rows) for name, rows in lists if isinstance(rows[0], dict | list)]
    name, rows = tables[0] if len(tables) == 1 else ("", [])
    kinds = {type(row) for row in rows}
    names: list[str] = []
    if kinds == {dict}:
        names = [*rows[0]]
        rows = [[row.get(name) for name in names] for row in rows]
    elif kinds == {list}:  # names beside the rows, as pandas and databases write them
        width = len(rows[0])
        names = next((of for _, of in lists if len(of) == width and {*map(type, of)} == {str}), [])
    if kinds not in ({dict}, {list}) or not rows[0]:
        raise DataInvalid(
            f"{path} is JSON of an unknown shape: give one list of rows "
            "[time, open, high, low, close, volume] or of objects with these names, such as by "
            f"pandas: frame = pandas.read_json({str(path)!r}); "
            f"frame.to_csv({str(path.with_suffix('.csv'))!r}, index=False)."
        )
    rows = [["" if value is None else str(value) for value in row] for row in rows]
    head = FileHead(names, 0) if names else read_head(path, rows[:HEADER_LINES])
    lines = 1 + np.arange(len(rows), dtype=np.int64)
    cells = _cut_rows(path, _joined(rows), CELL_MARK, lines, "row", head)
    if PAIR.fullmatch(name.upper()):
        beside.append(("symbol", name))
    table = _table(path, head, cells, lines=lines[head.height :], beside=tuple(beside))
    return replace(table, bare=table.bare and not names)


def _lists(
    name: str, value: object, beside: list[tuple[str, str]], depth: int = 0
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists in nested objects with their names; add texts *beside* them."""
    if isinstance(value, list) and value:
        yield name, value
    elif isinstance(value, dict) and depth < 4:
        for key, inside in value.items():
            yield from _lists(key, inside, beside, depth + 1)
            plain = re.sub("[_ ]", "", key).lower()
            if isinstance(inside, str):
                beside += [
                    (kind, inside) for kind in ("timezone", "category") if plain.endswith(kind)
                ]


def _read_arrow(path: Path, raw: bytes, *, is_parquet: bool) -> FileTable:
    """Read Parquet or Feather with pyarrow, an optional dependency."""
    try:
        import pyarrow as pa
        from pyarrow import feather, parquet
    except ImportError:
        raise ConfigInvalid(missing_sentence("pyarrow", f"{path}")) from None
    try:
        table = (parquet if is_parquet else feather).read_table(pa.BufferReader(raw))
        table.validate(full=True)
        return table_of_columns(path, {name: table[name] for name in table.column_names})
    except (pa.ArrowException, *DAMAGE) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataInvalid(f"{path} is damaged ({reason}): fetch it again.") from None


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
    index: Any = None if isinstance(frame, Mapping) else getattr(frame, "index", None)
    kind = getattr(getattr(index, "dtype", None), "kind", "")
    is_counter = kind == "i" and not (index[:1] >= UNITS["seconds"]).any()
    if kind == "M":
        named = {"time": index, **named}
    elif not is_counter and not any(plain_name(str(name)) in NAMES[TIME] for name in named):
        named = {getattr(index, "name", None) or "index": index, **named} if kind else named
    return table_of_columns(FRAME, named)


def table_of_columns(path: Path, named: Mapping[Any, Any]) -> FileTable:
    """Return columns of any library, by name, as a table."""
    cells = [column_of(values) for values in named.values()]
    shapes = {cell.shape for cell in cells}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1:
        raise DataInvalid(
            f"{path} has columns of different lengths, or not of single values: give rows alone."
        )
    if not shape[0]:
        raise DataInvalid(f"{path} is empty: give one with candles.")
    head = FileHead([str(name) for name in named])
    return _table(path, head, cells, lines=1 + np.arange(shape[0]))
