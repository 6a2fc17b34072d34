"""Columns of text, floats and instants to exact integers of 10⁻ᵏ and to UTC milliseconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
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
POWERS: Final = 10 ** np.arange(SAFE_DIGITS + 1, dtype=np.int64)


class CellInvalidError(ValueError):
    """A cell that is not a finite decimal of 64 bits; the reader adds file, line and remedy."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row = row
        self.what = what


class CellTooLongError(CellInvalidError):
    """A valid number that does not fit in 64 bits at the decimals of its column."""


@dataclass(frozen=True, eq=False)
class Decimals:
    """A column of exact decimals: ``mantissa[i] * 10 ** -places``."""

    mantissa: IntArray
    places: int

    def __getitem__(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Decimals:
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
    if not NUMBER.fullmatch(text):  # Decimal accepts nan, 1_000 and digits of other alphabets
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
    # (smallest number of this unit, its name, milliseconds as numerator, denominator)
    (10**8, "seconds", 1000, 1),
    (10**11, "milliseconds", 1, 1),
    (10**14, "microseconds", 1, 1_000),
    (10**17, "nanoseconds", 1, 1_000_000),
)
"""Between 1973 and 5138 the units do not overlap, so a number implies its unit."""
SPREADSHEET_DAYS: Final = (32_874, 51_136)
"""Days since 1899-12-30 from 1990 to 2039, as spreadsheets save dates."""
SPREADSHEET: Final = ", as spreadsheets count days"
TIME_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
COMPACT: Final = re.compile(
    r"((?:19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
    r"(?:[ T]?([01]\d|2[0-3])(?::?([0-5]\d))?(?::?([0-5]\d))?)?"
)
"""``20250131``, ``2025013115``, ``202501311530``, ``20250131153000`` and ``20250131 15:30:00``."""
CLOCK: Final = (
    r"(?:[T ,]+(?P<hour>\d\d?)(?::(?P<minute>\d\d))?(?::(?P<second>\d\d)(?:\.(?P<part>\d+))?)?"
    r"(?:[ -]?(?P<half>[AaPp])\.?[Mm]\.?)?"
    r"(?P<zone> ?(?:Z|UTC|GMT)|(?: ?(?:UTC|GMT))?(?P<ahead>[+-]\d\d):?(?P<more>\d\d)?)?)?"
)
YEAR_FIRST: Final = re.compile(r"(?P<year>\d{4})([-./])(?P<a>\d\d?)\2(?P<b>\d\d?)" + CLOCK)
DOTTED: Final = re.compile(r"(?P<b>\d\d?)\.(?P<a>\d\d?)\.(?P<year>\d{4})" + CLOCK)
SLASHED: Final = re.compile(r"(?P<a>\d\d?)/(?P<b>\d\d?)/(?P<year>\d{4})" + CLOCK)
"""Styles of a date (*a* is the month, *b* the day) and its clock; a file has one of them."""
ZONELESS: Final = "times are text without a zone, read as UTC"
EPOCH_DAY: Final = date(1970, 1, 1).toordinal()


def epoch_ms(column: Column, *, whole: bool = True) -> tuple[IntArray, tuple[str, ...]]:
    """Return *column* as UTC milliseconds, with notes about conversions.

    Fractions of a millisecond are rejected (open times of candles), or with *whole* false cut off
    (trades). Raises ``CellInvalidError``.
    """
    if column.dtype.kind == "M":  # already instants, also before 1973
        if (empty := np.flatnonzero(np.isnat(column))).size:
            raise CellInvalidError(int(empty[0]), "is empty")
        return _whole(column.astype("datetime64[us]").astype(np.int64), 1000, whole=whole), ()
    if _is_epoch(column):
        return _from_numbers(parse(column), whole=whole)
    return _from_texts(texts_of(column.astype(np.bytes_)), whole=whole)


def are_instants(column: Column) -> bool:
    """Return whether the first time is an instant; else it is a local time of unknown zone."""
    if column.dtype.kind == "M":
        return True
    if _is_epoch(column):
        return float(column[0]) >= UNITS[0][0]
    style = _style(texts_of(column[:1])[0])
    return style is not None and bool(style.groupdict().get("zone"))


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


def _is_epoch(column: Column) -> bool:
    """Return whether *column* holds numbers since 1970, and no digits of a date and a clock."""
    ends = texts_of(column[[0, -1]].astype(np.bytes_))
    if column.dtype.kind != "f" and not TIME_NUMBER.fullmatch(ends[0]):
        return False
    return not all(map(COMPACT.fullmatch, ends)) or not all(
        map(COMPACT.fullmatch, texts_of(column))
    )


def _whole(values: IntArray, per_ms: int, *, whole: bool) -> IntArray:
    broken = np.flatnonzero(values % per_ms)
    if whole and broken.size:
        raise CellInvalidError(int(broken[0]), "is not a whole millisecond")
    return values // per_ms


def _from_numbers(decimals: Decimals, *, whole: bool) -> tuple[IntArray, tuple[str, ...]]:
    """Convert each number by its magnitude, since Binance changed its unit within a month."""
    scale = 10**decimals.places
    integral = decimals.mantissa // scale
    too_small = np.flatnonzero(integral < UNITS[0][0])
    if too_small.size:
        row = int(too_small[0])
        days = SPREADSHEET_DAYS[0] <= integral[row] < SPREADSHEET_DAYS[1]
        why = SPREADSHEET if days else ", which is before 1973 in every unit"
        raise CellInvalidError(row, f"is {integral[row]}{why}")
    unit = np.searchsorted([start for start, *_ in UNITS], integral, side="right") - 1
    result = np.empty_like(integral)
    names = []
    for place in np.unique(unit).tolist():
        _, name, numerator, denominator = UNITS[place]
        rows = np.flatnonzero(unit == place)
        shared = gcd(numerator, scale)  # else nanoseconds written as seconds overflow
        scaled = decimals.mantissa[rows] * (numerator // shared)
        try:
            result[rows] = _whole(scaled, denominator * (scale // shared), whole=whole)
        except CellInvalidError as error:
            raise CellInvalidError(int(rows[error.row]), error.what) from None
        names.append(name)
    if names == ["milliseconds"]:
        return result, ()
    return result, (f"times are in {' and '.join(names)}, converted to milliseconds",)


def _style(text: str) -> re.Match[str] | None:
    """Return the match of *text* with a style of dates."""
    styles = (YEAR_FIRST, DOTTED, SLASHED, COMPACT)
    return next((match for style in styles if (match := style.fullmatch(text))), None)


def _from_texts(texts: list[str], *, whole: bool) -> tuple[IntArray, tuple[str, ...]]:
    """Convert text in the one style of its first cell; without a zone it is UTC."""
    first = _style(texts[0])
    if first is None:
        what = f"is not a time but {texts[0][:40]!r}" if texts[0] else "is empty"
        raise CellInvalidError(0, what)
    style = first.re
    if style is COMPACT:
        texts = [COMPACT.sub(_with_marks, text) for text in texts]
        style = YEAR_FIRST
    is_day_first = style is SLASHED and _is_day_first(texts)
    like = None
    microseconds = []
    for row, text in enumerate(texts):
        match = style.fullmatch(text)
        parts = match.groupdict("") if match else {}
        kind = (bool(parts.get("zone")), bool(parts.get("half")))
        like = like or kind
        if kind != like or not parts:
            what = f"is not a time like {texts[0][:40]!r} but {text[:40]!r}"
            raise CellInvalidError(row, what if text else "is empty")
        if is_day_first:
            parts["a"], parts["b"] = parts["b"], parts["a"]
        try:
            microseconds.append(_microseconds(parts))
        except ValueError:
            raise CellInvalidError(row, f"is not a time but {text[:40]!r}") from None
    times = _whole(np.array(microseconds, dtype=np.int64), 1000, whole=whole)
    return times, () if first.groupdict().get("zone") else (ZONELESS,)


def _with_marks(compact: re.Match[str]) -> str:
    """Return digits of a date and a clock with the marks of ISO."""
    year, month, day, hour, minute, second = compact.groups("00")
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}"


def _is_day_first(texts: list[str]) -> bool:
    """Return whether the day comes first in dates with slashes, of which one must show it."""
    dates = [match for text in texts if (match := SLASHED.fullmatch(text))]
    first, second = (max(int(match[part]) for match in dates) for part in ("a", "b"))
    if first <= 12 and second <= 12:
        raise CellInvalidError(0, "is a date whose day and month cannot be told apart")
    return first > 12


def _microseconds(parts: Mapping[str, str]) -> int:
    """Return the microseconds since 1970 of the parts of one time; raise ``ValueError``."""
    day = date(int(parts["year"]), int(parts["a"]), int(parts["b"])).toordinal() - EPOCH_DAY
    hour = int(parts["hour"] or 0)
    if half := parts["half"]:
        hour = hour % 12 + (12 if half in "Pp" else 0)
    part = parts["part"] or "0"
    clock = time(hour, int(parts["minute"] or 0), int(parts["second"] or 0), int(f"{part[:6]:0<6}"))
    ahead = int(parts["ahead"] or 0) * 60
    ahead += int(f"{parts['ahead'][:1]}{parts['more'] or 0}") if parts["ahead"] else 0
    if abs(ahead) > OFFSET_MOST or part[6:].strip("0"):
        raise ValueError(parts)
    seconds = (clock.hour * 60 + clock.minute - ahead) * 60 + clock.second
    return (day * 86_400 + seconds) * 1_000_000 + clock.microsecond


OFFSET_MOST: Final = 14 * 60
"""The minutes that a clock is ahead of UTC at most."""
