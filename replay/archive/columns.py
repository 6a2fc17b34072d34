"""Converts columns to exact integers in 10⁻ᵏ and to UTC milliseconds, vectorised."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from math import gcd
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

IntArray = npt.NDArray[np.int64]
Column = (
    npt.NDArray[np.bytes_]
    | npt.NDArray[np.float64]
    | npt.NDArray[np.int64]
    | npt.NDArray[np.datetime64]
)
"""One raw column of a file: text, floats (NaN if empty), integers or instants."""

INT64_MAX: Final = 2**63 - 1
SAFE_DIGITS: Final = 18  # numbers of so many digits fit in 64 bits
FLOAT_LIMIT: Final = 10**15  # below it decimals of 15 digits and doubles convert both ways
FLOAT_DECIMALS_MAX: Final = 15
NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
NOT_FINITE: Final = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
POWERS: Final = 10 ** np.arange(SAFE_DIGITS + 1, dtype=np.int64)


class CellInvalidError(ValueError):
    """A cell that is not a finite decimal of 64 bits; the reader adds file, line and remedy."""

    def __init__(self, row: int, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.row = row
        self.what = what
        self.remedy = remedy


class CellTooLongError(CellInvalidError):
    """A valid number that does not fit in 64 bits at the decimals of its column."""


@dataclass(frozen=True, eq=False)
class Decimals:
    """A column of exact decimals: ``mantissa[i] * 10 ** -places``."""

    mantissa: IntArray
    places: int

    def __getitem__(self, rows: slice | IntArray) -> Decimals:
        """Return the given rows, in the given order."""
        return Decimals(self.mantissa[rows], self.places)

    def rescale(self, places: int) -> Decimals:
        """Return the same values with *places* decimals, which must not be fewer.

        Raises ``CellInvalidError`` if a value does not fit in 64 bits at that scale.
        """
        if places == self.places:
            return self
        factor = 10 ** (places - self.places)
        too_big = np.flatnonzero(np.abs(self.mantissa) > INT64_MAX // factor)
        if too_big.size:
            raise CellTooLongError(int(too_big[0]), f"has more than 64 bits at {places} decimals")
        return Decimals(self.mantissa * factor, places)


def texts_of(column: npt.NDArray[Any]) -> list[str]:
    """Return the cells as stripped text; a float as its shortest text."""
    cells = column.tolist()
    if column.dtype.kind != "S":
        return [str(cell) for cell in cells]
    return [cell.decode("utf-8", "replace").strip() for cell in cells]


def parse(column: Column) -> Decimals:
    """Return *column* as exact decimals; a float counts as its shortest text, so 0.1 is 0.1.

    Raises ``CellInvalidError`` at the first empty, non-numeric, non-finite or oversized cell.
    """
    if column.dtype.kind == "i":
        return Decimals(column.astype(np.int64), 0)
    if column.dtype.kind == "f":
        return _parse_floats(column.astype(np.float64))
    return _parse_text(column.astype(np.bytes_))


def column_of(path: Path, name: str, values: Any) -> Column:  # noqa: ANN401 - of any library
    """Return *values* as floats, integers, instants or text.

    Raises ``DataInvalid`` if they are no column.
    """
    if getattr(getattr(values, "dtype", None), "tz", None) is not None:  # pandas with a zone
        values = getattr(values, "dt", values).tz_convert("UTC")
        values = getattr(values, "dt", values).tz_localize(None)
    array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if array.ndim != 1:
        raise DataInvalid(f"{path}: {name} is no column of single values: give one value a row.")
    if array.dtype.kind == "M":
        return array.astype("datetime64[us]")
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        return plain_floats(array)
    texts = [b"" if value is None else str(value).encode() for value in array.tolist()]
    return np.array(texts, dtype=np.bytes_)


def plain_floats(values: npt.NDArray[np.floating]) -> Column:
    """Return floats as doubles; single precision as its shortest text, the intended number."""
    if values.dtype.itemsize >= np.dtype(np.float64).itemsize:
        return values.astype(np.float64)
    return np.array(
        [b"" if np.isnan(value) else str(value).encode() for value in values], dtype=np.bytes_
    )


def _parse_floats(values: npt.NDArray[np.float64]) -> Decimals:
    """Find the fewest decimals at which every double is the nearest to its decimal."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        number = values[bad[0]]
        raise CellInvalidError(int(bad[0]), "is empty" if np.isnan(number) else "is not finite")
    largest = float(np.max(np.abs(values), initial=0.0))
    for places in range(FLOAT_DECIMALS_MAX + 1):
        if largest * 10.0**places >= FLOAT_LIMIT:
            break
        mantissa = np.rint(values * 10.0**places)
        # A quotient of two exact doubles is rounded once, so equality proves the round trip.
        if np.array_equal(mantissa / 10.0**places, values):
            return Decimals(mantissa.astype(np.int64), places)
    return _parse_text(np.array([repr(value) for value in values.tolist()], dtype=np.bytes_))


def _parse_text(cells: npt.NDArray[np.bytes_]) -> Decimals:
    """Parse all cells at once, one character position after another; odd cells by Decimal."""
    value, places, odd = _scan_characters(cells)
    for row in np.flatnonzero(odd).tolist():
        value[row], places[row] = _parse_cell(row, bytes(cells[row]))
    _drop_trailing_zeros(value, places)
    finest = int(places.max(initial=0))
    lift = finest - places
    if int(lift.max(initial=0)) > SAFE_DIGITS:
        raise CellTooLongError(int(np.argmax(places)), "has too many decimals beside the others")
    too_big = np.flatnonzero(np.abs(value) > INT64_MAX // POWERS[lift])
    if too_big.size:
        raise CellTooLongError(int(too_big[0]), f"has more than 64 bits at {finest} decimals")
    return Decimals(value * POWERS[lift], finest)


def _scan_characters(
    cells: npt.NDArray[np.bytes_],
) -> tuple[IntArray, IntArray, npt.NDArray[np.bool_]]:
    """Return value and decimals of every plain cell, and a mask of the other cells."""
    rows, width = cells.size, cells.dtype.itemsize
    # A file has many rows of short cells: process a character position of all rows at once.
    characters = np.ascontiguousarray(cells.view(np.uint8).reshape(rows, width).T)
    value = np.zeros(rows, dtype=np.int64)
    places = np.zeros(rows, dtype=np.int64)
    digits = np.zeros(rows, dtype=np.int64)
    dotted = np.zeros(rows, dtype=np.bool_)
    minus = characters[0] == ord("-") if width else dotted.copy()
    odd = np.zeros(rows, dtype=np.bool_)
    for position, character in enumerate(characters):
        digit = character - np.uint8(ord("0"))  # other characters wrap to above 9
        is_digit = digit < 10
        is_dot = character == ord(".")
        plain = is_digit | (character == 0) | (is_dot & ~dotted)
        odd |= ~(plain | minus) if position == 0 else ~plain
        np.multiply(value, 10, out=value, where=is_digit)
        np.add(value, digit, out=value, where=is_digit)
        digits += is_digit
        places += is_digit & dotted
        dotted |= is_dot
    np.negative(value, out=value, where=minus)
    return value, places, odd | (digits == 0) | (digits > SAFE_DIGITS)


def _parse_cell(row: int, cell: bytes) -> tuple[int, int]:
    """Return value and decimals of a cell that is not plain, such as ``1e-05``."""
    text = cell.decode("utf-8", "replace").strip()
    if not text or text.lower() in {"null", "none", "na"}:
        raise CellInvalidError(row, "is empty")
    if NOT_FINITE.fullmatch(text):
        raise CellInvalidError(row, f"is not finite but {text!r}")
    if not NUMBER.fullmatch(text):  # Decimal accepts 1_000 and digits of other alphabets
        raise CellInvalidError(row, f"is not a number but {text[:40]!r}")
    sign, digits, exponent = Decimal(text).as_tuple()
    # Check before computing powers of ten: 1e9999 would take forever.
    if not isinstance(exponent, int) or abs(exponent) > 2 * SAFE_DIGITS:
        raise CellInvalidError(row, f"has an exponent that is out of range in {text[:40]!r}")
    mantissa = int("".join(map(str, digits)))
    # Drop trailing zeros: a single 1.500 must not give its column three decimals.
    while exponent < 0 and mantissa and mantissa % 10 == 0:
        mantissa, exponent = mantissa // 10, exponent + 1
    if mantissa == 0:
        return 0, 0
    mantissa *= 10 ** max(exponent, 0)
    if mantissa > INT64_MAX:
        raise CellTooLongError(row, f"has more digits than 64 bits hold in {text[:40]!r}")
    return -mantissa if sign else mantissa, max(-exponent, 0)


def _drop_trailing_zeros(value: IntArray, places: IntArray) -> None:
    """Remove trailing zeros from the decimals, in place."""
    places[value == 0] = 0
    active = np.flatnonzero(places)
    while active.size:
        quotient, rest = np.divmod(value[active], 10)
        active, quotient = active[rest == 0], quotient[rest == 0]
        value[active] = quotient
        places[active] -= 1
        active = active[places[active] > 0]


def round_to_fit(column: Column, digits_after: int) -> Decimals:
    """Return *column* rounded half-even to *digits_after* decimals, through exact Decimals.

    Only for volumes whose extra digits come from sums of doubles.
    """
    unit = Decimal(1).scaleb(-digits_after)
    rounded = [str(Decimal(text).quantize(unit)) for text in texts_of(column)]
    return _parse_text(np.array(rounded, dtype=np.bytes_))


UNITS: Final = (
    # (smallest number of this unit, its name, units per millisecond as numerator, denominator)
    (10**8, "seconds", 1000, 1),
    (10**11, "milliseconds", 1, 1),
    (10**14, "microseconds", 1, 1_000),
    (10**17, "nanoseconds", 1, 1_000_000),
)
"""Between 1973 and 5138 the units do not overlap, so a number implies its unit."""
SPREADSHEET_DAYS: Final = (32_874, 51_136)
"""Days since 1899-12-30 from 1990 to 2039, as spreadsheets save dates."""

TIME_NUMBER: Final = re.compile(rb"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*")
COMPACT_DATE: Final = re.compile(rb"(19|20)\d{6}")
COMPACT_MOMENT: Final = re.compile(
    rb"((?:19[7-9]|20\d)\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])([01]\d|2[0-3])([0-5]\d)?([0-5]\d)?"
)
"""``2025013115``, ``202501311530`` and ``20250131153000``: no plausible epoch numbers."""
DAY_FIRST: Final = re.compile(rb"(\d\d?)\.(\d\d?)\.(\d{4})(?=\D|$)")
_MONTH: Final = rb"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
MONTHS: Final = b"janfebmaraprmayjunjulaugsepoctnovdec"
WORDED: Final = re.compile(
    rb"([a-z]{3,9}, ?)?((\d\d?)[ -]%b|%b (\d\d?),?)[ -](\d{4})\b,?" % (_MONTH, _MONTH),
    re.IGNORECASE,
)
"""``Jan 01, 2024``, ``01-Jan-2024`` and ``Mon, 01 Jan 2024``."""
SLASHED: Final = re.compile(rb"(\d\d?)/(\d\d?)/(\d{4})(?=\D|$)")
HALF_DAY: Final = re.compile(
    rb"[ T,]+(\d{1,2})(?:[:.-](\d\d))?(?:[:.-](\d\d))?[ -]?([AaPp])\.?[Mm]\.?$"
)
"""``05-AM``, ``5:00 PM`` and ``05:00:00 pm`` after a date."""
OFFSET: Final = re.compile(rb"(Z|UTC|GMT|[+-]\d\d(:?\d\d)?)\s*$")
"""A zone after a date; search only the rest, since a date may end like one."""
OFFSET_OF_DATE: Final = re.compile(rb"[+-](0\d|1[0-4])(:?\d\d)?")
SHORT: Final = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[ T]+(\d{1,2})(?=:))?")
"""``2025-1-31 9:30``: spreadsheets omit leading zeros."""
OFFSETS_MOST: Final = 2
MINUTE_DIGITS: Final = 4
SECOND_DIGITS: Final = 6
DATE_WIDTH: Final = len("2025-01-31")
ZONE_NAME: Final = re.compile(r" (?:UTC|GMT)([+-]\d\d:?\d\d)?$")
ZONELESS: Final = "times are text without a zone, read as UTC"


def epoch_ms(column: Column, *, whole: bool = True) -> tuple[IntArray, tuple[str, ...]]:
    """Return *column* as UTC milliseconds, with notes about conversions.

    Fractions of a millisecond are rejected (open times of candles), or with *whole* false cut off
    (trades). Raises ``CellInvalidError``.
    """
    if column.dtype.kind == "M":  # already instants, also before 1973
        if (empty := np.flatnonzero(np.isnat(column))).size:
            raise CellInvalidError(int(empty[0]), "is empty")
        return _whole_ms(column.astype(np.int64), whole=whole), ()
    if (moments := _compact_moments(column)) is not None:
        return _from_text(moments, whole=whole)
    if column.dtype.kind in "if" or _is_numeric(bytes(column[0])):
        return _from_numbers(column, whole=whole)
    return _from_text(column.astype(np.bytes_), whole=whole)


def are_instants(column: Column) -> bool:
    """Return whether the first time is an instant; else it is a local time of unknown zone."""
    if column.dtype.kind == "M":
        return True
    cell = _ends(column)[0]
    if OFFSET.search(cell[DATE_WIDTH:]):
        return True
    is_number = _is_numeric(cell) and not COMPACT_MOMENT.fullmatch(cell)
    return is_number and float(cell) >= UNITS[0][0]


def instant(text: str) -> int:
    """Return the UTC milliseconds of a command-line time: ISO text, or an epoch of any unit.

    Raises ``ConfigInvalid``.
    """
    try:
        times, _ = epoch_ms(np.array([text.strip().encode()], dtype=np.bytes_))
    except CellInvalidError as error:
        raise ConfigInvalid(
            f"The time {text!r} {error.what}: write it as 2025-01-31T12:00 (UTC)."
        ) from None
    return int(times[0])


def join_digits(
    dates: npt.NDArray[np.bytes_], times: npt.NDArray[np.bytes_]
) -> npt.NDArray[np.bytes_]:
    """Join columns of ``20250131`` and ``153000`` or ``1530``, the notation of Stooq.

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


def _compact_moments(column: Column) -> npt.NDArray[np.bytes_] | None:
    """Return *column* as ISO text if every cell is a date and time in digits, else None."""
    if column.dtype.kind not in "iS":
        return None
    if not all(map(COMPACT_MOMENT.fullmatch, _ends(column))):
        return None  # saves reading a long column of numbers twice
    cells = column.astype(np.bytes_)
    matches = [COMPACT_MOMENT.fullmatch(cell.strip()) for cell in cells.tolist()]
    if not all(matches):
        return None
    texts = [
        b"%s-%s-%sT%s:%s:%s" % (*part.groups()[:4], part[5] or b"00", part[6] or b"00")
        for part in matches
        if part is not None
    ]
    return np.array(texts, dtype=np.bytes_)


def _ends(column: Column) -> list[bytes]:
    """Return the text of the first and last cells."""
    return [bytes(cell).strip() for cell in column[[0, -1]].astype(np.bytes_).tolist()]


def _is_numeric(cell: bytes) -> bool:
    return TIME_NUMBER.fullmatch(cell) is not None and COMPACT_DATE.fullmatch(cell.strip()) is None


def _from_numbers(column: Column, *, whole: bool) -> tuple[IntArray, tuple[str, ...]]:
    """Convert each number by its magnitude, since a file may change its unit midway."""
    decimals = parse(column)
    scale = 10**decimals.places
    integral = decimals.mantissa // scale
    too_small = np.flatnonzero(integral < UNITS[0][0])
    if too_small.size:
        row = int(too_small[0])
        if SPREADSHEET_DAYS[0] <= integral[row] < SPREADSHEET_DAYS[1]:
            raise CellInvalidError(
                row,
                f"is {integral[row]}, as spreadsheets count days",
                "save dates as text, or convert them, such as by pandas: frame[column] = "
                "pandas.to_datetime(frame[column], unit='D', origin='1899-12-30')",
            )
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
        shared = gcd(numerator, scale)  # else nanoseconds written as seconds overflow
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
    """Convert ISO text, or text with the day first (``31.01.2025``); without a zone it is UTC."""
    first = bytes(cells[0]).strip()
    if DAY_FIRST.match(first):
        cells = _year_first(cells, DAY_FIRST, day=0)
    elif SLASHED.match(first):
        cells = _year_first(cells, SLASHED, day=_place_of_day(cells))
    elif WORDED.match(first):
        cells = np.array([WORDED.sub(_without_words, cell.strip(), 1) for cell in cells.tolist()])
    if HALF_DAY.search(first):
        cells = np.array([HALF_DAY.sub(_whole_day, cell.strip()) for cell in cells.tolist()])
    _reject_joined_clocks(cells.tolist())
    microseconds = np.array(
        [_microseconds(row, cell) for row, cell in enumerate(cells.tolist())], dtype=np.int64
    )
    notes = () if OFFSET.search(bytes(cells[0])[DATE_WIDTH:]) else (ZONELESS,)
    return _whole_ms(microseconds, whole=whole), notes


def _whole_ms(microseconds: IntArray, *, whole: bool) -> IntArray:
    broken = np.flatnonzero(microseconds % 1000)
    if whole and broken.size:
        raise CellInvalidError(int(broken[0]), "is not a whole millisecond")
    return microseconds // 1000


def _reject_joined_clocks(cells: list[bytes]) -> None:
    """Raise ``CellInvalidError`` if the texts after dates cannot be offsets of one zone.

    A zone has at most two offsets, of at most 14 hours, without seconds.
    """
    offsets = set[bytes]()
    for row, cell in enumerate(cells):
        tail = cell.strip()[DATE_WIDTH:]
        if tail.startswith((b"+", b"-")):
            offsets.add(tail)
            if len(offsets) > OFFSETS_MOST or not OFFSET_OF_DATE.fullmatch(tail):
                shown = cell.decode("utf-8", "replace")[:40]
                raise CellInvalidError(
                    row, f"is {shown!r}, a date and a clock", "write a blank between them"
                )


def _place_of_day(cells: npt.NDArray[np.bytes_]) -> int:
    """Return whether the day comes first (0) or second (1) in dates with slashes.

    Raises ``CellInvalidError`` if all dates are ambiguous.
    """
    parts = [SLASHED.match(cell.strip()) for cell in cells.tolist()]
    places = [[int(part[at]) for part in parts if part is not None] for at in (1, 2)]
    if max(places[0]) > 12:
        return 0
    if max(places[1]) > 12:
        return 1
    raise CellInvalidError(
        0, "is a date whose day and month cannot be told apart", "write it as 2025-01-31"
    )


def _year_first(
    cells: npt.NDArray[np.bytes_], date: re.Pattern[bytes], *, day: int
) -> npt.NDArray[np.bytes_]:
    """Rewrite the dates in *cells* that match *date* as 2025-01-31."""

    def iso_date(parts: re.Match[bytes]) -> bytes:
        number, month = parts[day + 1], parts[2 - day]
        return b"-".join((parts[3], month.zfill(2), number.zfill(2)))

    return np.array([date.sub(iso_date, cell.strip(), count=1) for cell in cells.tolist()])


def _without_words(date: re.Match[bytes]) -> bytes:
    """Convert a date with its month in words to 2025-01-31."""
    month = MONTHS.index((date[4] or date[5]).lower()) // 3 + 1
    return b"%s-%02d-%s" % (date[7], month, (date[3] or date[6]).zfill(2))


def _whole_day(clock: re.Match[bytes]) -> bytes:
    """Convert a 12-hour time to 24 hours."""
    hour = int(clock[1]) % 12 + (12 if clock[4] in b"Pp" else 0)
    return b" %02d:%s:%s" % (hour, clock[2] or b"00", clock[3] or b"00")


def _offset(zone: re.Match[str]) -> str:
    """Return the offset of ``UTC``, ``GMT`` or ``GMT+0100`` at the end of a time."""
    return zone[1] or "+00:00"


def _with_noughts(short: re.Match[str]) -> str:
    year, *parts = short.groups()
    month, day, hour = (part and part.zfill(2) for part in parts)
    return f"{year}-{month}-{day}" + (f" {hour}" if hour else "")


def _microseconds(row: int, cell: bytes) -> int:
    """Return the microseconds of one text of any usual form; raise ``CellInvalidError``."""
    text = cell.decode("utf-8", "replace").strip()
    head, tail = text[:DATE_WIDTH].replace(".", "-").replace("/", "-"), text[DATE_WIDTH:]
    if tail.startswith(("Z", "+", "-")):  # a date and its zone
        tail = f"T00{tail}"
    iso_text = head + ZONE_NAME.sub(_offset, tail)
    try:
        try:
            moment = datetime.fromisoformat(iso_text)
        except ValueError:
            moment = datetime.fromisoformat(SHORT.sub(_with_noughts, iso_text, count=1))
    except ValueError:
        what = "is empty" if not text else f"is not a time but {text[:40]!r}"
        raise CellInvalidError(row, what) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
