"""A file or a data frame to a ``FileTable``: columns by their plain names, and one refusal."""

from __future__ import annotations

import csv
import gzip
import io
import re
import shlex
import zipfile
import zlib
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.columns import (
    EPOCH,
    UNITS,
    CellInvalidError,
    Column,
    IntArray,
    column_of,
    texts_of,
)
from tracepaper.replay.archive.names import NAMES, PRICES, TIME, bare_names, plain_name
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence

TEXTS: Final = (".csv", ".txt", ".tsv")
ARROWS: Final = (".parquet", ".pq", ".feather", ".arrow", ".ipc")
SUFFIXES: Final = (*TEXTS, *ARROWS)
PACKED: Final = (".gz", ".zip")
BOOKS: Final = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
LINES: Final = (".jsonl", ".ndjson")
DELIMITERS: Final = (";", "\t", "|", ",")
"""Of equal counts the first: commas may be decimal."""
CELL_WIDTH_MAX: Final = 256
"""A longer cell is no number or time; its column is left out."""
TOP_CHARACTERS: Final = 2**16
HEADER_LINES: Final = 9
"""The lines among which the header is."""
ABOVE: Final = re.compile(r'\s*$|#|"?sep=', re.IGNORECASE)
"""Lines above a header: blank, comments, the delimiter as spreadsheets name it."""
THOUSANDS: Final = re.compile(rb"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
SHORTENED: Final = re.compile(rb"[\d.,]+[KMB]")
DECIMAL_COMMA: Final = re.compile(rb"[+-]?\d*,\d+")
CELL_MARK: Final = "\x1f"
"""Separates cells that may hold any delimiter."""
FRAME: Final = Path("the frame")
"""The path of a table that is a frame."""
DAMAGE: Final = (
    *(EOFError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError),
    *(MemoryError, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of gzip, zipfile and pyarrow for damaged files."""
INVERSE_HELD: Final = (
    "holds contracts that are margined and paid in coin (inverse), and only linear contracts, spot "
    "and shares can be traded: give the file of a USDT or USDC contract, or move it out of a "
    "folder of that name"
)
Result = TypeVar("Result")
Names = Mapping[str, Sequence[str]]
"""Field → the plain names that its column may have; the first is preferred."""


@dataclass(frozen=True, eq=False)
class FileTable:
    """Rows of one file: *columns* of one length, by their plain names.

    ``lines`` has the number of each row in the file, from 1, in ``unit``: lines of text, or rows.
    ``written``: plain name → the one in the file. ``twice``: plain names of several columns.
    ``bare``: the columns have no names. ``symbol``: that of yfinance's columns. ``opened``: pandas'
    expression of the file. ``notes``: sentences about conversions.
    """

    path: Path
    columns: Mapping[str, Column]
    lines: IntArray
    unit: str = "row"
    written: Mapping[str, str] = field(default_factory=dict)
    twice: frozenset[str] = frozenset()
    bare: bool = False
    symbol: str = ""
    separator: str = ","
    opened: str = "frame"
    notes: list[str] = field(default_factory=list)

    def find(self, names: Names) -> dict[str, str]:
        """Return field → plain name of its column, for the fields of *names* that have one.

        Raises ``DataInvalid`` if two columns have one name of a field.
        """
        fields = {}
        for each, accepted in names.items():
            if repeated := sorted(self.twice.intersection(accepted)):
                what = f"has two columns {repeated[0]}"
                raise self.refuse(what, change="frame.drop(columns='NAME')")
            if present := [name for name in accepted if name in self.columns]:
                fields[each] = present[0]
        return fields

    def texts(self, kind: str) -> list[str]:
        """Return the different texts of the column of *kind*, a key of ``NAMES``."""
        name = self.find({kind: NAMES[kind]}).get(kind)
        column = np.zeros(0) if name is None else np.unique(self.columns[name])
        return texts_of(column) if column.dtype.kind == "S" else []

    @property
    def plain_numbers(self) -> str:
        """The frame in pandas with plain numbers, where its cells tell how they are written.

        ``42,000.5`` has commas between thousands, ``1.2K`` is shortened, and ``0,5`` has a decimal
        comma. ``42,000`` tells neither.
        """
        texts = [cells for cells in self.columns.values() if cells.dtype.kind == "S"]
        cells = {cell.strip() for column in texts for cell in column.tolist()}
        thousands = [of[2] is not None for of in map(THOUSANDS.fullmatch, cells) if of]
        if any(thousands) or any(map(SHORTENED.fullmatch, cells)):
            return "frame.replace({',': '', 'K$': 'e3', 'M$': 'e6', 'B$': 'e9'}, regex=True)"
        if len(thousands) < sum(DECIMAL_COMMA.fullmatch(cell) is not None for cell in cells):
            return "frame.replace(',', '.', regex=True)"
        return "frame"

    def by_pandas(self, change: str) -> str:
        """Return two lines of pandas that read the file, *change* the frame and write it anew."""
        is_unnamed = self.bare and "set_axis" not in change
        named = f".set_axis({[*self.written.values()]}, axis=1)" if is_unnamed else ""
        opened = f"frame = {self.opened}{named}; " * (self.opened + named != "frame")
        if self.path == FRAME:
            return f"{opened}frame = {change}"
        options = "index=False" + f", sep={self.separator!r}" * (self.separator != ",")
        return f"{opened}{change}.to_csv({anew(self.path)!r}, {options})"

    def refuse(
        self,
        what: str,
        *,
        row: int | None = None,
        is_row: bool = False,
        change: str = "",
        choice: Mapping[str, str] = MappingProxyType({}),
    ) -> DataInvalid:
        """Return the one sentence about a table that is not read: *what* is wrong, and remedies.

        These are to correct the *row*, if *is_row* wrong and not the file, *choice*, field → column
        (an empty one is left out), by ``--columns`` or by renaming, and lines of pandas that
        *change* the frame.
        """
        place = f"{self.path} " if row is None else f"{self.place(row)}: "
        remedies = ["correct or remove the row"] if is_row else []
        if choice:
            given = [
                f"--columns {of}={shlex.quote(name) if name else ''}" for of, name in choice.items()
            ]
            if self.path == FRAME:
                given = [str({of: name or None for of, name in choice.items()}).replace("'", '"')]
                given = [f"columns={given[0]}"]
            remedies.append(f"choose columns by {' '.join(given)}")
            fields = {self.written.get(name, name): of for of, name in choice.items() if name}
            named = self.set_names if self.bare else f"frame.rename(columns={fields})"
            change = change or named
        if change:
            remedies.append(f"convert it by pandas: {self.by_pandas(change)}")
        found = "read as" if self.bare else "found"
        found = f" ({found} {', '.join(self.written.values())})" if change else ""
        remedies = remedies or ["correct the file"]
        return DataInvalid(f"{place}{what}{found}: {', or '.join(remedies)}.")

    @property
    def set_names(self) -> str:
        """What names all columns in pandas."""
        return f"frame.set_axis({['NAME'] * len(self.written)}, axis=1)"

    def clock(self, name: str) -> str:
        """Return pandas' expression of the times in the column *name*, which are readable."""
        first, how = texts_of(self.columns[name][:1])[0], ""
        if EPOCH.fullmatch(first):
            place = np.searchsorted([*UNITS.values()], float(first), side="right") - 1
            kind = "float" if "." in first else "int64"
            how = f".astype({kind!r}), unit={['s', 'ms', 'us', 'ns'][place]!r}"
        return f"pandas.to_datetime(frame[{self.written[name]!r}]{how})"

    def checked(
        self,
        name: str,
        title: str,
        read: Callable[[Column], Result],
        change: Callable[[], str] | None = None,
        choice: Mapping[str, str] = MappingProxyType({}),
    ) -> Result:
        """Return what *read* makes of the column *name*.

        A ``CellInvalidError`` refuses the row, or the file if its last row fails as well. *change*
        gives the lines of pandas, by default those of plain numbers.
        """
        column = self.columns[name]
        try:
            return read(column)
        except CellInvalidError as error:
            row, what = error.row, f"{title} {error.what}"
        try:
            read(column[-1:])
            is_row = True
        except CellInvalidError:
            is_row = False
        if change is None:
            lines = self.plain_numbers.removesuffix("frame")
        else:
            lines = "" if is_row else change()
        choice = {} if is_row else choice
        raise self.refuse(what, row=row, is_row=is_row, change=lines, choice=choice)

    def place(self, row: int) -> str:
        """Return the place of row *row* for a message: ``prices.csv: line 17``."""
        return f"{self.path}: {self.unit} {self.lines[row]}"

    def select(self, rows: npt.NDArray[Any]) -> FileTable:
        """Return the rows at these indices, or of this mask."""
        columns = {name: cells[rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines[rows])


def anew(path: Path) -> str:
    """Return the file into which printed lines of pandas convert the one at *path*."""
    return str(path.with_name(f"{path.name.split('.', 1)[0]}_new.csv"))


def _table(
    path: Path,
    names: Sequence[str],
    cells: Sequence[Column | None],
    lines: IntArray,
    *,
    bare: bool = False,
    **more: Any,  # noqa: ANN401 - fields of the table
) -> FileTable:
    """Return the table of *cells*, of which those of one plain name are numbered.

    A column without a name is called as pandas calls it, those of a *bare* table by their number.
    """
    if not lines.size:
        raise DataInvalid(f"{path} has a header and no rows: give one with rows.")
    if bare:
        names = bare_names([texts_of(each[:1])[0] if each is not None else "" for each in cells])
    names = [name.strip() or f"Unnamed: {at}" for at, name in enumerate(names)]
    plains = [plain_name(name) for name in names]
    twice = frozenset(name for name in plains if plains.count(name) > 1)
    columns, written = dict[str, Column](), dict[str, str]()
    for at, (name, cell) in enumerate(zip(plains, cells, strict=True)):
        if cell is not None:
            plain = f"{name}_{at}" if name in twice else name
            columns[plain], written[plain] = cell, names[at]
    return FileTable(path, columns, lines, written=written, twice=twice, bare=bare, **more)


# ---------------------------------------------------------------- bytes


def read_table(path: Path, names: Names = NAMES) -> FileTable:
    """Return the columns of the file at *path*; its name determines the format.

    The header of a text is the first of its lines with two of the *names* or more. Raises
    ``DataInvalid`` if the file is unreadable, empty, damaged or of an unknown format.
    """
    name, raw = unpacked(path)
    if name.endswith(".toml"):
        raise ConfigInvalid(f"{path} is a configuration; give it by --config, and candles here.")
    if name.endswith(BOOKS):
        raise DataInvalid(
            f"{path} is a workbook of a spreadsheet: convert it by pandas: frame = "
            f"pandas.read_excel({str(path)!r}); frame.to_csv({anew(path)!r}, index=False)."
        )
    if name.endswith((".json", *LINES)):
        raise _json_refusal(path, raw)
    if not name.endswith(SUFFIXES):
        raise DataInvalid(
            f"{path} has a name of no known kind: give candles in a file that ends in "
            f"{', '.join(SUFFIXES)}, also in .gz or .zip."
        )
    if name.endswith(ARROWS):
        return _read_arrow(path, raw, "parquet" if name.endswith(ARROWS[:2]) else "feather")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataInvalid(f"{path} is no text of UTF-8 although its name says so: check the file.")
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    return _read_text(path, text, {each for accepted in names.values() for each in accepted})


def unpacked(path: Path) -> tuple[str, bytes]:
    """Return the lower-case name and the content of the file at *path*, or of the one packed in it.

    Raises ``DataInvalid`` if it is unreadable or damaged.
    """
    name = path.name.lower()
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataInvalid(f"{path} {what}: check the path.")
    try:
        if name.endswith(".gz"):
            return name.removesuffix(".gz"), gzip.decompress(path.read_bytes())
        if not name.endswith(".zip"):
            return name, path.read_bytes()
        archive = zipfile.ZipFile(path)
        members = [each for each in archive.namelist() if not each.startswith("__MACOSX")]
        members = [each for each in members if each.lower().endswith(SUFFIXES)] or members
        content = archive.read(members[0]) if len(members) == 1 else b""
    except DAMAGE as error:
        why = getattr(error, "strerror", None) or "damaged, cut short or locked"
        raise DataInvalid(f"{path} cannot be read ({why}): fetch it again.") from None
    if len(members) != 1:
        raise DataInvalid(
            f"{path} holds {len(members)} data files where one is wanted: unpack it and name the "
            "files."
        )
    return members[0].lower(), content


def _read_text(path: Path, text: str, accepted: set[str]) -> FileTable:
    """Return the table of delimited text; lines above its header are left out."""
    tops = text[:TOP_CHARACTERS].split("\n")[:HEADER_LINES]
    places = [at for at, line in enumerate(tops) if not ABOVE.match(line)]
    if not places:
        raise DataInvalid(f"{path} is empty: give one with rows.")
    headers = (
        (at, mark)
        for at in places
        for mark in DELIMITERS
        if len(accepted.intersection(map(plain_name, tops[at].split(mark)))) > 1
        and tops[at].count(mark) not in [line.count(mark) for line in tops[:at]]  # or rows
    )
    # Without names the first row is below a title, which has no cells.
    first = next((at for at in places if re.search(r"[,;\t|]", tops[at])), places[0])
    top, separator = next(headers, (first, max(DELIMITERS, key=tops[first].count)))
    body, mark = text.split("\n", top)[-1] if top else text, separator
    lines = top + 1 + np.arange(body.count("\n") + 1, dtype=np.int64)
    if '"' in body or "\n\n" in body:
        reader = csv.reader(io.StringIO(body), delimiter=separator)
        try:
            rows = [(top + reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            line = f"{path}: line {top + reader.line_num}"
            raise DataInvalid(f"{line} cannot be read ({error}): correct it.") from None
        lines = np.array([line for line, _ in rows], dtype=np.int64)
        body, mark = "\n".join(CELL_MARK.join(r).replace("\n", " ") for _, r in rows), CELL_MARK
    names, second, *_ = [line.split(mark) for line in [*body[:TOP_CHARACTERS].split("\n"), ""]]
    height, bare = 1, not re.search("[A-Za-z]", "".join(names)) or names[0].strip()[:1].isdigit()
    # pandas numbers columns without names, and rows in a first column whose name is empty.
    is_numbered = names[:2] == ["", "0"]
    is_counted = names[is_numbered:] == [*map(str, range(len(names) - is_numbered))]
    if bare:
        height = int(is_counted)
    elif second[0] == "Ticker" and len({*second[1:]}) == 1:
        # yfinance: a row of fields, a row of one ticker, and a row that names the time.
        names, height = ["time", *names[1:]], 3
    options = f", sep={separator!r}" * (separator != ",")
    opened = f"pandas.read_csv({str(path)!r}, dtype=str{options}"
    below = f"{opened}, header=None, skiprows={top + 1}"
    cells = _cut_rows(path, body, mark, lines, len(names), height, f"{below})")
    zone = re.search(r"time[ _-]?zone[: ]*([\w/]*)", "\n".join(tops[:top]), re.IGNORECASE)
    if zone and not bare:
        zones = np.full(lines[height:].size, (zone[1] or "in a comment").encode())
        names, cells = [*names, "timezone"], [*cells, zones]
    if is_counted:
        opened = below + ", index_col=0" * is_numbered
        names, cells = names[is_numbered:], cells[is_numbered:]
    else:
        opened += ", header=None" * bare + f", skiprows={top}" * (top > 0)
    return _table(
        path, names, cells, lines[height:], unit="line", bare=bare, separator=separator,
        opened=f"{opened})",
    )  # fmt: skip


def _cut_rows(
    path: Path, text: str, mark: str, lines: IntArray, width: int, height: int, below: str
) -> list[Column | None]:
    """Cut *text* into columns at each *mark* and line end; *lines* number its rows.

    The first *height* rows are left out; *below* is pandas' expression of what is below the first.
    A column is None if a cell is too long for a number.
    """
    raw = np.frombuffer(text.encode("utf-8", "replace") + b"\n" + bytes(CELL_WIDTH_MAX), np.uint8)
    ends = np.flatnonzero((raw == ord(mark)) | (raw == ord("\n")))
    rows = np.flatnonzero(raw[ends] == ord("\n"))
    widths = np.diff(rows, prepend=-1)[height:]
    usual = int(np.median(widths)) if widths.size else width
    if usual != width and height:
        named = f"frame = {below}; frame.set_axis({['NAME'] * usual}, axis=1)"
        raise DataInvalid(
            f"{path} has rows of {usual} columns below {width} names: name them by pandas: {named}"
            f".to_csv({anew(path)!r}, index=False)."
        )
    for row in np.flatnonzero(widths != width).tolist():
        raise DataInvalid(
            f"{path}: line {lines[height + row]} has {widths[row]} columns where the first has "
            f"{width}: correct or remove the row."
        )
    starts = np.concatenate(([0], ends[:-1] + 1))
    first = rows[height - 1] + 1 if height else 0
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


# ---------------------------------------------------------------- JSON, Parquet, frames


def _json_refusal(path: Path, raw: bytes) -> DataInvalid:
    """Return the refusal of JSON, with lines of pandas that write its only table."""
    if re.search(rb'"category": ?"inverse"', raw):
        return DataInvalid(f"{path} {INVERSE_HELD}.")
    read = f"pandas.read_json({str(path)!r}, dtype=False, precise_float=True"
    written = "index=False"
    try:
        try:
            document = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            document, read = msgspec.json.Decoder().decode_lines(raw), f"{read}, lines=True"
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return DataInvalid(f"{path} is not JSON ({error}): check the file.")
    lists = [*_lists((), document)]
    flat = [(keys, each[0]) for keys, each in lists if _is_flat(each[0])]
    tables = [each for each in flat if is_row(each[1])] or flat
    if names := _names_by_row(document):
        # Rows by their index, as pandas writes a frame, or by their column.
        orient = "" if names[0] in document else ", orient='index'"
        rows = f"{read}{orient})"
        has_time = {*NAMES[TIME]}.intersection(map(plain_name, names))
        written = written if has_time else "index_label='time'"
    elif len(tables) == 1:
        keys, row = tables[0]
        # Names may stand beside the rows, as pandas and databases write them.
        heads = [each for _, each in lists if len(each) == len(row) and {*map(type, each)} == {str}]
        inside = "".join(f"[{key!r}]" for key in keys)
        rows = f"pandas.DataFrame({read}, typ='series'){inside})" if keys else f"{read})"
        rows += f".set_axis({heads[0]}, axis=1)" if heads else ""
        written += "" if heads or isinstance(row, dict) else ", header=False"
    else:
        return DataInvalid(
            f"{path} is JSON with {len(tables)} tables where one is wanted: give the rows of one "
            "in Python as a list or a frame."
        )
    return DataInvalid(
        f"{path} is JSON, and candles are read from tables: convert it by pandas: frame = {rows}; "
        f"frame.to_csv({anew(path)!r}, {written})."
    )


def _is_flat(row: object) -> bool:
    """Return whether *row* is one of single values."""
    cells = [*row.values()] if isinstance(row, dict) else row
    return isinstance(cells, list) and not any(isinstance(cell, dict | list) for cell in cells)


def _names_by_row(document: object) -> list[str]:
    """Return the names of columns in a dictionary of rows or columns by an index, else none."""
    if not isinstance(document, dict) or not all(map(_is_flat, document.values())):
        return []
    rows = [dict.fromkeys(document), *document.values()][:2]
    return next(([*row] for row in rows if isinstance(row, dict) and is_row(row)), [])


def _lists(keys: tuple[str, ...], value: object) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Yield the lists in nested objects, with their keys."""
    if isinstance(value, list) and value:
        yield keys, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _lists((*keys, key), each)


def _read_arrow(path: Path, raw: bytes, kind: str) -> FileTable:
    """Read Parquet or Feather with pyarrow, an optional dependency."""
    try:
        import pyarrow as pa
        from pyarrow import feather, parquet
    except ImportError:
        raise ConfigInvalid(missing_sentence("pyarrow", f"{path}")) from None
    try:
        table = (parquet if kind == "parquet" else feather).read_table(pa.BufferReader(raw))
        table.validate(full=True)
        columns = {name: table[name] for name in table.column_names}
        return replace(_columns(path, columns), opened=f"pandas.read_{kind}({str(path)!r})")
    except (pa.ArrowException, *DAMAGE) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataInvalid(f"{path} is damaged ({reason}): fetch it again.") from None


def is_row(value: object) -> bool:
    """Return whether *value* is a row of a list of candles, as exchanges answer."""
    if isinstance(value, dict):
        return any(
            plain_name(str(n)) in NAMES["close"] and np.ndim(c) == 0 for n, c in value.items()
        )
    return (
        isinstance(value, list | tuple) and len(value) > len(PRICES) and str(value[0])[:1].isdigit()
    )


def table_of_frame(frame: Any) -> FileTable:  # noqa: ANN401 - of any library
    """Return a data frame, a dictionary of columns or a list of rows as a table.

    In pandas the index holds the times if they are instants, or if no column has a name of times.
    Columns without names are those of ``bare_names``. Of columns of two levels, as yfinance gives
    them, one names the prices; the other has one symbol.
    """
    index: Any = getattr(frame, "index", None)
    if getattr(index, "nlevels", 1) > 1:  # a symbol and a time
        return replace(table_of_frame(frame.reset_index()), opened="frame.reset_index()")
    opened, symbol = "pandas.DataFrame(frame)", ""
    if isinstance(frame, Sequence):
        names = _places(frame[0])
        if any(not is_row(row) or _places(row) != names for row in frame):
            raise DataInvalid(f"{FRAME} has rows of different columns: give rows alone.")
        named = {name: [row[name] for row in frame] for name in names}
    elif isinstance(frame, np.ndarray):
        names = frame.dtype.names
        named = {name: frame[name] for name in names} if names else dict(enumerate(frame.T))
    else:
        columns = getattr(frame, "columns", frame)
        named = {name: frame[name] for name in getattr(frame, "column_names", columns)}
        if not isinstance(frame, Mapping):
            opened = "frame.to_pandas()" if hasattr(frame, "to_pandas") else "frame"
    if named and all(isinstance(name, tuple) for name in named):
        level, symbol, named = _of_one_level(named)
        opened += f".droplevel({1 - level}, axis=1)"
    bare = [*named] == [*range(len(named))]
    kind = getattr(getattr(index, "dtype", None), "kind", "")
    is_counter = kind == "i" and not (index[:1] >= UNITS["seconds"]).any()
    has_time = {plain_name(str(name)) for name in named} & {*NAMES[TIME]}
    if kind == "M" or (kind and not is_counter and not has_time):
        name = "time" if kind == "M" else index.name or "index"
        named, opened = {name: index, **named}, f"{opened}.reset_index(names={name!r})"
    return replace(_columns(FRAME, named, bare=bare), opened=opened, symbol=symbol)


def _places(row: Any) -> KeysView[Any]:  # noqa: ANN401 - a row of any library
    """Return what finds the cells of *row*: names or numbers."""
    return (row if isinstance(row, dict) else dict.fromkeys(range(len(row)))).keys()


def _of_one_level(named: Mapping[Any, Any]) -> tuple[int, str, dict[Any, Any]]:
    """Return the level of two that names prices, the symbol in the other, and the columns by name.

    The symbol of a column is empty where the times were an index.
    """
    levels = [*zip(*named, strict=True)]
    level = int({*map(plain_name, map(str, levels[0]))}.isdisjoint(PRICES))
    others = {name[1 - level] for name in named} - {""}
    if len(others) == 1 and len(levels) == 2:
        symbol = str(next(iter(others)))
        return level, symbol, {name[level]: cells for name, cells in named.items()}
    raise DataInvalid(
        f"{FRAME} has columns of several symbols: give one symbol's, such as "
        f"frame.xs({next(iter(others))!r}, axis=1, level={1 - level})."
    )


def _columns(path: Path, named: Mapping[Any, Any], *, bare: bool = False) -> FileTable:
    """Return columns of any library, by name unless they are *bare*, as a table."""
    cells = [column_of(values) for values in named.values()]
    shapes = {cell.shape for cell in cells}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1:
        raise DataInvalid(
            f"{path} has columns of different lengths, or not of single values: give rows alone."
        )
    if not shape[0]:
        raise DataInvalid(f"{path} is empty: give one with candles.")
    names = [str(name) for name in named]
    return _table(path, names, cells, 1 + np.arange(shape[0]), bare=bare)
