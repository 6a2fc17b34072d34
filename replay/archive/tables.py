"""A file or a data frame to a ``FileTable``: columns by their plain names, and one refusal."""

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
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.columns import (
    UNITS,
    CellInvalidError,
    Column,
    IntArray,
    column_of,
    texts_of,
)
from tracepaper.replay.archive.names import NAMES, PAIR, TIME, bare_names, plain_name
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence

TEXTS: Final = (".csv", ".txt", ".tsv")
ARROWS: Final = (".parquet", ".pq", ".feather", ".arrow", ".ipc")
SUFFIXES: Final = (*TEXTS, ".json", *ARROWS)
DELIMITERS: Final = (";", "\t", "|", ",")
"""Of equal counts the first: commas may be decimal."""
CELL_WIDTH_MAX: Final = 256
"""A longer cell is no number or time; its column is left out."""
TOP_CHARACTERS: Final = 2**16
HEADER_LINES: Final = 9
"""The lines among which the header is."""
ABOVE: Final = re.compile(r'\s*$|#|"?sep=', re.IGNORECASE)
"""Lines above a header: blank, comments, the delimiter as spreadsheets name it."""
ODD: Final = re.compile(rb"\d,\d{3}\.\d|^[\d.,]+[KMB]$")
"""Numbers with commas between thousands, or shortened."""
CELL_MARK: Final = "\x1f"
"""Separates cells that may hold any delimiter."""
NO_VOLUME: Final = "frame.assign(volume=0)"
FRAME: Final = Path("the frame")
"""The path of a table that is a frame."""
DAMAGE: Final = (
    *(EOFError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError),
    *(MemoryError, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of gzip, zipfile and pyarrow for damaged files."""
Result = TypeVar("Result")
Names = Mapping[str, Sequence[str]]
"""Field → the plain names that its column may have; the first is preferred."""
Plain = Callable[[str], str]


@dataclass(frozen=True, eq=False)
class FileTable:
    """Rows of one file: *columns* of one length, by their plain names.

    ``lines`` has the number of each row in the file, from 1, in ``unit``: lines of text, or rows.
    ``written``: plain name → the one in the file. ``twice``: plain names of several columns.
    ``bare``: the file has no header. ``opened``: pandas' expression of the file. ``notes``:
    sentences about conversions.
    """

    path: Path
    columns: Mapping[str, Column]
    lines: IntArray
    unit: str = "row"
    written: Mapping[str, str] = field(default_factory=dict)
    twice: frozenset[str] = frozenset()
    bare: bool = False
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
        """The frame in pandas, without commas between thousands and with K, M and B written out."""
        texts = [cells for cells in self.columns.values() if cells.dtype.kind == "S"]
        if not any(ODD.search(cell) for cells in texts for cell in cells.tolist()):
            return "frame"
        return "frame.replace({',': '', 'K$': 'e3', 'M$': 'e6', 'B$': 'e9'}, regex=True)"

    def by_pandas(self, change: str) -> str:
        """Return two lines of pandas that read the file, *change* the frame and write it anew."""
        if self.path == FRAME:
            return f"frame = {change}"
        is_unnamed = self.bare and "set_axis" not in change
        named = f".set_axis({[*self.written.values()]}, axis=1)" if is_unnamed else ""
        target = self.path.with_name(f"{self.path.name.split('.', 1)[0]}_new.csv")
        options = "index=False" + f", sep={self.separator!r}" * (self.separator != ",")
        return f"frame = {self.opened}{named}; {change}.to_csv({str(target)!r}, {options})"

    def refuse(
        self,
        what: str,
        *,
        row: int | None = None,
        change: str = "",
        **choice: str,
    ) -> DataInvalid:
        """Return the one sentence about a table that is not read: *what* is wrong, and remedies.

        These are *choice*, field → column (an empty one is left out), by ``--columns`` or by
        renaming, and two lines of pandas that *change* the frame.
        """
        place = f"{self.path} " if row is None else f"{self.place(row)}: "
        remedies = [] if row is None else ["correct or remove the row"]
        if choice:
            given = [
                f"--columns {of}={shlex.quote(name) if name else ''}" for of, name in choice.items()
            ]
            if self.path == FRAME:
                given = [str({of: name or None for of, name in choice.items()}).replace("'", '"')]
                given = [f"columns={given[0]}"]
            remedies.append(f"choose columns by {' '.join(given)}")
            fields = {self.written.get(name, name): of for of, name in choice.items() if name}
            change = change or (f"frame.rename(columns={fields})" if fields else NO_VOLUME)
        if change:
            remedies.append(f"convert it by pandas: {self.by_pandas(change)}")
        found = f" (found {', '.join(self.written.values())})" if change else ""
        return DataInvalid(f"{place}{what}{found}: {', or '.join(remedies)}.")

    def checked(self, name: str, read: Callable[[], Result], **choice: str) -> Result:
        """Return what *read* returns; a ``CellInvalidError`` refuses the column *name*."""
        try:
            return read()
        except CellInvalidError as error:
            plain = self.plain_numbers
            change = "" if plain == "frame" else plain
            raise self.refuse(
                f"{name} {error.what}", row=error.row, change=change, **choice
            ) from None

    def place(self, row: int) -> str:
        """Return the place of row *row* for a message: ``prices.csv: line 17``."""
        return f"{self.path}: {self.unit} {self.lines[row]}"

    def select(self, rows: npt.NDArray[Any]) -> FileTable:
        """Return the rows at these indices, or of this mask."""
        columns = {name: cells[rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines[rows])


def _table(
    path: Path,
    names: Sequence[str],
    cells: Sequence[Column | None],
    plain: Plain = plain_name,
    *,
    lines: IntArray,
    beside: Mapping[str, str] = MappingProxyType({}),
    **more: Any,  # noqa: ANN401 - fields of the table
) -> FileTable:
    """Return the table of *cells*; two columns of one name have it only as it is written.

    A text *beside* the rows, by its plain name, is a column of it.
    """
    if not lines.size:
        raise DataInvalid(f"{path} has a header and no rows: give one with rows.")
    names = [name.strip() for name in names]
    plains = [plain(name) for name in names]
    columns, written = dict[str, Column](), dict[str, str]()
    for at, cell in enumerate(cells):
        name = plains[at] or f"column_{at}"
        if plains.count(name) > 1 and (name != names[at] or names.count(name) > 1):
            name = f"{name}_{at}"  # such as t and T, open and close time of some exchanges
        if cell is not None:
            columns[name], written[name] = cell, names[at] or name
    twice = frozenset(name for name in plains if plains.count(name) > 1 and name not in columns)
    texts = {name: np.full(lines.size, text.encode()) for name, text in beside.items()}
    return FileTable(path, {**columns, **texts}, lines, written=written, twice=twice, **more)


# ---------------------------------------------------------------- bytes


def read_table(path: Path, names: Names = NAMES, plain: Plain = plain_name) -> FileTable:
    """Return the columns of the file at *path*; its name determines the format.

    The header of a text is that of the first rows with the most *names*, which *plain* returns.
    Raises ``DataInvalid`` if the file is unreadable, empty, damaged or of an unknown format.
    """
    name, raw = unpacked(path)
    if name.endswith(".toml"):
        raise ConfigInvalid(f"{path} is a configuration; give it by --config, and candles here.")
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
    if name.endswith(".json"):
        return _read_json(path, text, plain)
    return _read_text(path, text, {each for accepted in names.values() for each in accepted}, plain)


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


def _read_text(path: Path, text: str, accepted: set[str], plain: Plain) -> FileTable:
    """Return the table of delimited text; lines above its header are left out."""
    tops = text[:TOP_CHARACTERS].split("\n")[:HEADER_LINES]
    places = [at for at, line in enumerate(tops) if not ABOVE.match(line)]
    if not places:
        raise DataInvalid(f"{path} is empty: give one with rows.")
    # Without names the first row is below a title, which has no cells.
    top = next((at for at in places if re.search(r"[,;\t|]", tops[at])), places[0])
    hits, separator = 0, max(DELIMITERS, key=tops[top].count)
    for at, mark in product(places, DELIMITERS):
        count = len(accepted.intersection(map(plain, tops[at].split(mark))))
        widths = [line.count(mark) for line in tops[: at + 1]]
        if count > hits and widths[-1] not in widths[:-1]:  # what is above are no rows
            hits, top, separator = count, at, mark
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
        body, mark = _joined([row for _, row in rows]), CELL_MARK
    first, second, *_ = [line.split(mark) for line in [*body[:TOP_CHARACTERS].split("\n"), ""]]
    beside, height, bare = dict[str, str](), 1, False
    if re.search("time[ _-]?zone", "".join(tops[:top]), re.IGNORECASE):
        beside["timezone"] = "a comment"
    if not hits and (
        re.match(r"\s*[-+]?\d", first[0]) or not re.search("[A-Za-z]", "".join(first))
    ):
        first, height, bare = [*bare_names(len(first))], 0, True
    elif second[0] == "Ticker" and len({*second[1:]}) == 1:
        # yfinance: a row of fields, a row of one ticker, and a row that names the time.
        beside["symbol"] = second[1]
        first, height = ["time", *first[1:]], 3
    cells = _cut_rows(path, body, mark, lines, "line", len(first), height)
    options = f", sep={separator!r}" * (separator != ",") + f", skiprows={top}" * (top > 0)
    opened = f"pandas.read_csv({str(path)!r}, dtype=str{options}{', header=None' * bare})"
    return _table(
        path, first, cells, plain, lines=lines[height:], unit="line", bare=bare,
        separator=separator, opened=opened, beside=beside,
    )  # fmt: skip


def _joined(rows: Sequence[Sequence[str]]) -> str:
    """Return *rows* of cells as lines of text, with a mark between cells."""
    return "\n".join(CELL_MARK.join(row).replace("\n", " ") for row in rows)


def _cut_rows(
    path: Path, text: str, mark: str, lines: IntArray, unit: str, width: int, height: int
) -> list[Column | None]:
    """Cut *text* into columns at each *mark* and line end; *lines* number its rows in *unit*.

    The first *height* rows are left out. A column is None if a cell is too long for a number.
    """
    raw = np.frombuffer(text.encode("utf-8", "replace") + b"\n" + bytes(CELL_WIDTH_MAX), np.uint8)
    ends = np.flatnonzero((raw == ord(mark)) | (raw == ord("\n")))
    rows = np.flatnonzero(raw[ends] == ord("\n"))
    widths = np.diff(rows, prepend=-1)[height:]
    for row in np.flatnonzero(widths != width).tolist():
        raise DataInvalid(
            f"{path}: {unit} {lines[height + row]} has {widths[row]} columns where the "
            f"first has {width}: correct or remove the row; if most rows are so, name as many in "
            "the header."
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


def _read_json(path: Path, text: str, plain: Plain) -> FileTable:
    """Read the only list of rows of values, or of objects, also within other objects."""
    try:
        # Numbers stay text, so that no decimal passes through a double.
        document = msgspec.json.Decoder(float_hook=str).decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise DataInvalid(f"{path} is not JSON ({error}): check the file.") from None
    beside: dict[str, str] = {}
    lists = [*_lists((), document, beside)]
    tables = [each for each in lists if isinstance(each[1][0], dict | list)]
    keys, rows = tables[0] if len(tables) == 1 else ((), [])
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
    lines = 1 + np.arange(len(rows), dtype=np.int64)
    body = _joined([["" if value is None else str(value) for value in row] for row in rows])
    bare, width = not names, len(rows[0])
    cells = _cut_rows(path, body, CELL_MARK, lines, "row", len(names) or width, 0)
    if keys and PAIR.fullmatch(keys[-1].upper()):
        beside["symbol"] = keys[-1]
    file = f"{str(path)!r}, dtype=False, convert_dates=False"
    opened = f"pandas.read_json({file})"
    if keys:
        inside = "".join(f"[{key!r}]" for key in keys)
        opened = f"pandas.DataFrame(pandas.read_json({file}, typ='series'){inside}"
        opened += f", columns={names})" if kinds == {list} and names else ")"
    return _table(
        path, names or bare_names(width), cells, plain, lines=lines, bare=bare, opened=opened,
        beside=beside,
    )  # fmt: skip


def _lists(
    keys: tuple[str, ...], value: object, beside: dict[str, str]
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Yield the lists in nested objects with their keys; add texts *beside* them."""
    if isinstance(value, list) and value:
        yield keys, value
    elif isinstance(value, dict) and len(keys) < 4:
        for key, inside in value.items():
            yield from _lists((*keys, key), inside, beside)
            kinds = [kind for kind in ("timezone", "category") if plain_name(key).endswith(kind)]
            beside |= {kind: inside for kind in kinds if isinstance(inside, str)}


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
    index: Any = getattr(frame, "index", None)
    kind = getattr(getattr(index, "dtype", None), "kind", "")
    is_counter = kind == "i" and not (index[:1] >= UNITS["seconds"]).any()
    if kind == "M":
        named = {"time": index, **named}
    elif kind and not is_counter and not {plain_name(str(name)) for name in named} & {*NAMES[TIME]}:
        named = {index.name or "index": index, **named}
    return _columns(FRAME, named)


def _columns(path: Path, named: Mapping[Any, Any]) -> FileTable:
    """Return columns of any library, by name, as a table."""
    cells = [column_of(values) for values in named.values()]
    shapes = {cell.shape for cell in cells}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1:
        raise DataInvalid(
            f"{path} has columns of different lengths, or not of single values: give rows alone."
        )
    if not shape[0]:
        raise DataInvalid(f"{path} is empty: give one with candles.")
    return _table(path, [str(name) for name in named], cells, lines=1 + np.arange(shape[0]))
