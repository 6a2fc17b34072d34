"""Delimited text, and rows of values, to a ``RawTable``: exact cells, without a loop a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.decimals import Column
from tracepaper.replay.archive.tables import HEADER_LINES, RawTable, TableHead, head_of
from tracepaper.strategies.errors import DataInvalid

DELIMITERS: Final = (b",", b";", b"\t", b"|")
CELLS_LEAST: Final = 6
CELL_WIDTH_MAX: Final = 256
NEWLINE: Final = 10


def read_delimited(path: Path, raw: bytes) -> RawTable:
    """Return the table of delimited text; *path* names it in messages.

    Raises ``DataInvalid`` for an empty file, an unknown layout, or a row of another width.
    """
    text = _plain(path, raw)
    skipped, text = _skip_preamble(text)
    if not text.strip():
        raise DataInvalid(f"{path} is empty: give a file with candles.")
    delimiter = _delimiter(text.split(b"\n", 1)[0])
    if b'"' in text or b"\n\n" in text.rstrip(b"\n"):
        return _read_by_rows(path, text, delimiter, skipped)
    lines = text.split(b"\n", HEADER_LINES)
    first = [_decode(path, lines[0]), *(each.decode("utf-8", "replace") for each in lines[1:])]
    head = head_of(path, [line.split(delimiter.decode()) for line in first[:HEADER_LINES]])
    body = text[sum(len(line) + 1 for line in lines[: head.height]) :]
    if not body.strip():
        raise DataInvalid(f"{path} has a header and no rows: give a file with candles.")
    body = body.rstrip(b"\n") + b"\n"
    table = _read_in_bulk(path, body, delimiter, head.names, skipped + 1 + head.height)
    return _as_read(table, head, delimiter)


def _as_read(table: RawTable, head: TableHead, delimiter: bytes) -> RawTable:
    separator = delimiter.decode()
    return replace(table, bare=not head.height, symbol=head.symbol, separator=separator)


def _delimiter(first: bytes) -> bytes:
    """Return what parts the cells of the first line; commas may be decimal beside another mark."""
    counts = {mark: first.count(mark) for mark in DELIMITERS}
    other = max(DELIMITERS[1:], key=lambda mark: counts[mark])
    if counts[other] >= CELLS_LEAST - 1:
        return other
    return max(DELIMITERS, key=lambda mark: counts[mark])


def table_of_rows(
    path: Path, rows: Sequence[Sequence[object]], names: Sequence[str] | None = None
) -> RawTable:
    """Return a table of *rows* of values (JSON); numbers arrive as text, None is empty."""
    if not rows:
        raise DataInvalid(f"{path} is empty: give a file with candles.")
    width = len(rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise DataInvalid(
                f"{path}: row {number} has {len(row)} values where the first has {width}; "
                "correct or remove the row."
            )
    cells = [[_cell(value) for value in column] for column in zip(*rows, strict=True)]
    if names is None:
        head = head_of(
            path,
            [
                [column[row].decode("utf-8", "replace") for column in cells]
                for row in range(min(len(rows), HEADER_LINES))
            ],
        )
        cells = [column[head.height :] for column in cells]
        lines = np.arange(head.height + 1, len(rows) + 1)
        return _as_read(_text_table(path, head.names, cells, lines, "row"), head, b",")
    return _text_table(path, names, cells, np.arange(1, len(rows) + 1), "row")


def _cell(value: object) -> bytes:
    return b"" if value is None else str(value).encode()


def _text_table(
    path: Path,
    names: Sequence[str],
    cells: Sequence[Sequence[bytes]],
    lines: npt.NDArray[np.int64],
    unit: str,
) -> RawTable:
    if not lines.size:
        raise DataInvalid(f"{path} has a header and no rows: give a file with candles.")
    columns: dict[str, Column] = {}
    for name, column in zip(names, cells, strict=True):
        if max(map(len, column)) <= CELL_WIDTH_MAX:  # longer cells are no number of ours
            columns[name] = np.array(column, dtype=np.bytes_)
    return RawTable(path, columns, lines, unit)


def _plain(path: Path, raw: bytes) -> bytes:
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
    """Drop comments, blank lines and a title without any delimiter before the table."""
    skipped = 0
    while text:
        line, _, rest = text.partition(b"\n")
        titled = not any(mark in line for mark in DELIMITERS) and any(
            mark in rest.partition(b"\n")[0] for mark in DELIMITERS
        )
        if line.strip() and not line.startswith(b"#") and not titled:
            break
        skipped, text = skipped + 1, rest
    return skipped, text


def _wrong_width(path: Path, line: int, found: int, wanted: int) -> DataInvalid:
    return DataInvalid(
        f"{path}: line {line} has {found} columns where the first has {wanted}; "
        "correct or remove the row."
    )


def _read_in_bulk(
    path: Path, body: bytes, delimiter: bytes, names: Sequence[str], start: int
) -> RawTable:
    """Cut unquoted text into columns by the places of its delimiters, without a loop a row."""
    width = len(names)
    buffer = np.frombuffer(body, dtype=np.uint8)
    marks = np.flatnonzero((buffer == ord(delimiter)) | (buffer == NEWLINE))
    ends = np.flatnonzero(buffer[marks] == NEWLINE)
    fields = np.diff(ends, prepend=-1)
    wrong = np.flatnonzero(fields != width)
    if wrong.size:
        row = int(wrong[0])
        raise _wrong_width(path, start + row, int(fields[row]), width)
    begins = np.concatenate((np.zeros(1, dtype=marks.dtype), marks[:-1] + 1))
    columns: dict[str, Column] = {}
    for place, name in enumerate(names):
        begin, end = begins[place::width], marks[place::width]
        length = end - begin
        longest = int(length.max())
        if longest > CELL_WIDTH_MAX:
            continue
        cells = np.zeros((fields.size, max(longest, 1)), dtype=np.uint8)
        for offset in range(longest):
            characters = buffer.take(begin + offset, mode="clip")
            characters[length <= offset] = 0
            cells[:, offset] = characters
        columns[name] = cells.view(f"S{cells.shape[1]}").ravel()
    return RawTable(path, columns, start + np.arange(fields.size))


def _read_by_rows(path: Path, text: bytes, delimiter: bytes, skipped: int) -> RawTable:
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
    head = head_of(path, rows[:HEADER_LINES])
    names, rows, lines = head.names, rows[head.height :], lines[head.height :]
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise _wrong_width(path, line, len(row), len(names))
    cells = [[cell.encode() for cell in column] for column in zip(*rows, strict=True)]
    if not cells:
        raise DataInvalid(f"{path} has a header and no rows: give a file with candles.")
    table = _text_table(path, names, cells, np.array(lines, dtype=np.int64), "line")
    return _as_read(table, head, delimiter)
