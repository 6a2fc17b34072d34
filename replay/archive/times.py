"""Time columns to UTC milliseconds: seconds, ms, µs, ns and ISO text, detected and said."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from math import gcd
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.decimals import CellInvalidError, Column, IntArray, parse
from tracepaper.strategies.errors import ConfigInvalid

UNITS: Final = (
    # (smallest number of this unit, its name, units per millisecond as numerator, denominator)
    (10**8, "seconds", 1000, 1),
    (10**11, "milliseconds", 1, 1),
    (10**14, "microseconds", 1, 1_000),
    (10**17, "nanoseconds", 1, 1_000_000),
)
"""No two units overlap between 1973 and 5138, so a number names its own unit."""

NUMBER: Final = re.compile(rb"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*")
COMPACT_DATE: Final = re.compile(rb"(19|20)\d{6}")
DAY_FIRST: Final = re.compile(rb"(\d\d)\.(\d\d)\.(\d{4})(?=\D|$)")
OFFSET: Final = re.compile(rb"(Z|UTC|GMT|[+-]\d\d:?\d\d)\s*$")
MINUTE_DIGITS: Final = 4
SECOND_DIGITS: Final = 6
DATE_WIDTH: Final = len("2025-01-31")
ZONE_NAME: Final = re.compile(r" (?:UTC|GMT)([+-]\d\d:?\d\d)?$")
ZONELESS: Final = "times are text without a zone, read as UTC"
UTC_ENDINGS: Final = (b"Z", b"+00:00", b" GMT+0000", b"+0000", b" UTC", b" GMT", b"+00")


def epoch_ms(column: Column, *, whole: bool = True) -> tuple[IntArray, tuple[str, ...]]:
    """Return *column* as UTC milliseconds, with a note where it was converted.

    With *whole* false, fractions of a millisecond are cut off (trades); else they are refused
    (the open time of a candle). Raises ``CellInvalidError``.
    """
    if column.dtype.kind in "if" or _is_numeric(bytes(column[0])):
        return _from_numbers(column, whole=whole)
    return _from_text(column.astype(np.bytes_), whole=whole)


def iso(epoch: int) -> str:
    """Return the UTC time *epoch* (ms) as ISO text, ``2025-06-22T00:00:00Z``."""
    moment = datetime.fromtimestamp(epoch / 1000, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace(".000", "").replace("+00:00", "Z")


def instant(text: str) -> int:
    """Return the UTC milliseconds of a command line's time: ISO text, or a number of any unit.

    Raises ``ConfigInvalid``.
    """
    try:
        times, _ = epoch_ms(np.array([text.strip().encode()], dtype=np.bytes_))
    except CellInvalidError as error:
        raise ConfigInvalid(
            f"The time {text!r} {error.what}: write it as 2025-01-31T12:00 (UTC)."
        ) from None
    return int(times[0])


def join_date_and_time(
    dates: npt.NDArray[np.bytes_], times: npt.NDArray[np.bytes_]
) -> npt.NDArray[np.bytes_]:
    """Return one text column of a date and a time column, as MetaTrader writes them."""
    return np.char.add(np.char.add(dates, b" "), times)


def join_digits(
    dates: npt.NDArray[np.bytes_], times: npt.NDArray[np.bytes_]
) -> npt.NDArray[np.bytes_]:
    """Return one text column of ``20250131`` and ``153000`` or ``1530``, as Stooq writes them.

    Raises ``CellInvalidError``.
    """
    seconds = int(np.char.str_len(times).max()) > MINUTE_DIGITS
    width = SECOND_DIGITS if seconds else MINUTE_DIGITS
    joined = []
    for row, (date, time) in enumerate(zip(dates.tolist(), times.tolist(), strict=True)):
        if not COMPACT_DATE.fullmatch(date) or not time.isdigit() or len(time) > width:
            shown = f"{date.decode('utf-8', 'replace')} {time.decode('utf-8', 'replace')}"
            raise CellInvalidError(row, f"is not a time but {shown[:40]!r}")
        clock = time.zfill(width)
        parts = [clock[place : place + 2] for place in range(0, width, 2)]
        joined.append(b"-".join((date[:4], date[4:6], date[6:])) + b"T" + b":".join(parts))
    return np.array(joined, dtype=np.bytes_)


def _is_numeric(cell: bytes) -> bool:
    return NUMBER.fullmatch(cell) is not None and COMPACT_DATE.fullmatch(cell.strip()) is None


def _from_numbers(column: Column, *, whole: bool) -> tuple[IntArray, tuple[str, ...]]:
    """Convert each number by its own magnitude, as one file may change its unit half way."""
    decimals = parse(column)
    scale = 10**decimals.places
    integral = decimals.mantissa // scale
    too_small = np.flatnonzero(integral < UNITS[0][0])
    if too_small.size:
        row = int(too_small[0])
        raise CellInvalidError(row, f"is {integral[row]}, which is before 1973 in every unit")
    result = np.empty_like(integral)
    names: list[str] = []
    for (start, name, numerator, denominator), upper in zip(
        UNITS, [*(unit[0] for unit in UNITS[1:]), 2**63 - 1], strict=True
    ):
        rows = np.flatnonzero((integral >= start) & (integral < upper))
        if not rows.size:
            continue
        names.append(name)
        shared = gcd(numerator, scale)  # nanoseconds written as seconds would overflow else
        divisor = denominator * (scale // shared)
        scaled = decimals.mantissa[rows] * (numerator // shared)
        result[rows] = scaled // divisor
        broken = np.flatnonzero(scaled % divisor)
        if whole and broken.size:
            row = int(rows[broken[0]])
            raise CellInvalidError(row, "is not a whole millisecond")
    if names == ["milliseconds"]:
        return result, ()
    return result, (f"times are in {' and '.join(names)}, converted to milliseconds",)


def _from_text(cells: npt.NDArray[np.bytes_], *, whole: bool) -> tuple[IntArray, tuple[str, ...]]:
    """Convert ISO text, also with the day first (``31.01.2025``); text without a zone is UTC."""
    if DAY_FIRST.match(bytes(cells[0]).strip()):
        cells = np.array([DAY_FIRST.sub(rb"\3-\2-\1", cell.strip(), 1) for cell in cells.tolist()])
    zoned = bytes(cells[0]).strip().endswith(UTC_ENDINGS)
    microseconds = _fast_iso(cells)
    if microseconds is None:
        microseconds = np.array(
            [_slow_iso(row, bytes(cell)) for row, cell in enumerate(cells.tolist())],
            dtype=np.int64,
        )
        zoned = re.search(rb"[+-]\d\d:?\d\d$", bytes(cells[0]).strip()) is not None or zoned
    broken = np.flatnonzero(microseconds % 1000)
    if whole and broken.size:
        raise CellInvalidError(int(broken[0]), "is not a whole millisecond")
    notes = () if zoned else (ZONELESS,)
    return microseconds // 1000, notes


def _fast_iso(cells: npt.NDArray[np.bytes_]) -> IntArray | None:
    """Return microseconds where every cell is ``2025-01-31 23:59:59.5`` or the like, else None."""
    for ending in UTC_ENDINGS:
        if np.char.endswith(cells, ending).all():
            cells = np.char.partition(cells, ending)[:, 0]
            break
    width = cells.dtype.itemsize
    characters = np.ascontiguousarray(cells).view(np.uint8).reshape(cells.size, width).copy()
    # A sign behind the date is a zone's; the date itself may be written with hyphens.
    zones = characters[:, DATE_WIDTH + 1 :]
    if width < DATE_WIDTH or _any_of(zones, b"+-Zz"):
        return None
    for position, allowed, standard in ((4, b"-./", b"-"), (7, b"-./", b"-"), (10, b" T\0", b"T")):
        if position < width:
            separator = characters[:, position]
            if not np.isin(separator, np.frombuffer(allowed, dtype=np.uint8)).all():
                return None
            separator[separator != 0] = standard[0]
    try:
        moments = characters.view(f"S{width}").ravel().astype("datetime64[us]")
    except ValueError:
        return None
    return None if np.isnat(moments).any() else moments.astype(np.int64)


def _offset(zone: re.Match[str]) -> str:
    """Return the offset that ``UTC``, ``GMT`` or ``GMT+0100`` at the end of a time names."""
    return zone[1] or "+00:00"


def _any_of(characters: npt.NDArray[np.uint8], wanted: bytes) -> bool:
    return bool(np.isin(characters, np.frombuffer(wanted, dtype=np.uint8)).any())


def _slow_iso(row: int, cell: bytes) -> int:
    """Return the microseconds of one text of any usual form, or name the cell."""
    text = cell.decode("utf-8", "replace").strip()
    head, tail = text[:DATE_WIDTH].replace(".", "-").replace("/", "-"), text[DATE_WIDTH:]
    try:
        moment = datetime.fromisoformat(head + ZONE_NAME.sub(_offset, tail))
    except ValueError:
        what = "is empty" if not text else f"is not a time but {text[:40]!r}"
        raise CellInvalidError(row, what) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
