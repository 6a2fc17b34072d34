"""Cells of a file to exact integers: decimals of 10⁻ᵏ, and UTC milliseconds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.errors import ConfigInvalid

IntArray = npt.NDArray[np.int64]
Column = npt.NDArray[Any]
"""One raw column of a file: text, floats (NaN if empty), integers or instants."""

INT64_MAX: Final = 2**63 - 1
SAFE_DIGITS: Final = 18  # numbers of so many digits fit in 64 bits
POWERS: Final = 10 ** np.arange(SAFE_DIGITS + 1, dtype=np.int64)
DECIMALS_MOST: Final = 11  # the most that an exchange was seen to send
FLOAT_LIMIT: Final = 10**15  # below it decimals of 15 digits and doubles convert both ways
NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


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

    @property
    def floats(self) -> npt.NDArray[np.float64]:
        """The nearest doubles."""
        return self.mantissa / 10.0**self.places

    def rescale(self, places: int) -> Decimals:
        """Return the same values with *places* decimals, which must not be fewer.

        Raises ``CellInvalidError`` if a value does not fit in 64 bits at that scale.
        """
        factor = 10 ** (places - self.places)
        too_big = np.abs(self.mantissa) > INT64_MAX // factor
        if too_big.any():
            what = f"has more than 64 bits at {places} decimals"
            raise CellTooLongError(int(too_big.argmax()), what)
        return Decimals(self.mantissa * factor, places)


def column_of(values: Any) -> Column:  # noqa: ANN401 - of any library
    """Return *values*, a column of any library, as floats, integers, instants or text."""
    if getattr(getattr(values, "dtype", None), "tz", None) is not None:  # pandas with a zone
        values = getattr(values, "dt", values).tz_convert("UTC")
        values = getattr(values, "dt", values).tz_localize(None)
    array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if array.dtype.kind == "M":
        return array.astype("datetime64[us]")
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype == np.float64:
        return array
    if array.dtype.kind == "f":  # the shortest text of a single is the number that was meant
        array = np.array([None if np.isnan(value) else value for value in array], dtype=object)
    cells = (b"" if value is None else str(value).encode() for value in array.tolist())
    return np.array([*cells], dtype=np.bytes_)


def texts_of(column: npt.NDArray[Any]) -> list[str]:
    """Return the cells as stripped text; a float as its shortest text."""
    cells = column.tolist()
    if column.dtype.kind != "S":
        return [str(cell) for cell in cells]
    return [cell.decode("utf-8", "replace").strip() for cell in cells]


# ---------------------------------------------------------------- numbers


def parse(column: Column) -> Decimals:
    """Return *column* as exact decimals; a float counts as its shortest text, so 0.1 is 0.1.

    Raises ``CellInvalidError`` at the first empty, non-numeric, non-finite or oversized cell.
    """
    if column.dtype.kind == "i":
        return Decimals(column.astype(np.int64), 0)
    if column.dtype.kind == "f":
        return _parse_floats(column)
    return _parse_text(column.astype(np.bytes_))


def _parse_floats(values: npt.NDArray[np.float64]) -> Decimals:
    """Find the fewest decimals at which every double is the nearest to its decimal."""
    if (bad := ~np.isfinite(values)).any():
        row = int(bad.argmax())
        raise CellInvalidError(row, "is empty" if np.isnan(values[row]) else "is not finite")
    largest = float(np.abs(values).max(initial=0.0))
    for places in range(16):
        if largest * 10.0**places >= FLOAT_LIMIT:
            break
        mantissa = np.rint(values * 10.0**places)
        # A quotient of two exact doubles is rounded once, so equality proves the round trip.
        if np.array_equal(mantissa / 10.0**places, values):
            return Decimals(mantissa.astype(np.int64), places)
    return _parse_text(np.array([repr(value) for value in values.tolist()], dtype=np.bytes_))


def _parse_text(cells: npt.NDArray[np.bytes_]) -> Decimals:
    """Parse all plain cells at once; cells with signs, blanks or exponents one by one."""
    # A file has many rows of short cells: take one character of all rows after another.
    characters = np.ascontiguousarray(cells.view(np.uint8).reshape(cells.size, -1).T)
    value, places, digits, dots = np.zeros((4, cells.size), dtype=np.int64)
    odd = np.zeros(cells.size, dtype=np.bool_)
    for character in characters:
        digit = character - np.uint8(ord("0"))  # other characters wrap to above 9
        is_digit, is_dot = digit < 10, character == ord(".")
        np.multiply(value, 10, out=value, where=is_digit)
        np.add(value, digit, out=value, where=is_digit)
        odd |= ~(is_digit | is_dot | (character == 0))
        digits += is_digit
        places += is_digit & (dots > 0)
        dots += is_dot
    for row in np.flatnonzero(odd | (digits == 0) | (digits > SAFE_DIGITS) | (dots > 1)).tolist():
        value[row], places[row] = _parse_cell(row, bytes(cells[row]))
    places[value == 0] = 0
    while (finest := int(places.max(initial=0))) and not (value[places == finest] % 10).any():
        value[places == finest] //= 10
        places[places == finest] -= 1
    lift = np.where(value == 0, 0, finest - places)
    limit = INT64_MAX // POWERS[lift.clip(0, SAFE_DIGITS)]
    too_big = (lift > SAFE_DIGITS) | (np.abs(value) > limit)
    if too_big.any():
        what = f"has more than 64 bits at {finest} decimals"
        raise CellTooLongError(int(too_big.argmax()), what)
    return Decimals(value * POWERS[lift], finest)


def _parse_cell(row: int, cell: bytes) -> tuple[int, int]:
    """Return value and decimals of a cell that is not plain, such as ``1e-05``."""
    text = cell.decode("utf-8", "replace").strip()
    if not text or text.lower() in {"null", "none", "na"}:
        raise CellInvalidError(row, "is empty")
    if not NUMBER.fullmatch(text):  # Decimal accepts nan, 1_000 and digits of other alphabets
        raise CellInvalidError(row, f"is not a number but {text[:40]!r}")
    whole, _, rest = f"{Decimal(text):f}".partition(".")
    rest = rest.rstrip("0")  # a single 1.500 must not give its column three decimals
    if abs(value := int(whole + rest)) > INT64_MAX:
        raise CellTooLongError(row, f"has more digits than 64 bits hold in {text[:40]!r}")
    return value, len(rest)


def fitting(column: Column) -> Decimals | None:
    """Return *column* as ``parse`` does; None where 64 bits do not hold it."""
    try:
        return parse(column)
    except CellTooLongError:
        return None


def floats_of(column: Column) -> npt.NDArray[np.float64]:
    """Return *column* as floats; raise ``CellInvalidError`` at a cell that is no number."""
    texts = () if column.dtype.kind in "if" else texts_of(column)
    for row, text in enumerate(texts):
        if not NUMBER.fullmatch(text):
            raise CellInvalidError(row, f"is not a number but {text[:40]!r}")
    values = column.astype(np.float64)
    if (too_big := np.abs(values) >= INT64_MAX).any():
        raise CellTooLongError(int(too_big.argmax()), "has more digits than 64 bits hold")
    return values


def rounded(columns: Sequence[npt.NDArray[np.float64]], digits: int) -> list[Decimals]:
    """Return *columns* rounded to the same decimals: at most *digits* of the largest number."""
    largest = max(float(np.abs(values).max()) for values in columns)
    places = min(max(digits - 1 - math.floor(math.log10(largest)), 0), DECIMALS_MOST)
    return [Decimals(np.rint(values * 10.0**places).astype(np.int64), places) for values in columns]


# ---------------------------------------------------------------- times

UNITS: Final = {
    "seconds": 10**8,
    "milliseconds": 10**11,
    "microseconds": 10**14,
    "nanoseconds": 10**17,
}
"""The smallest number of each unit; it implies the unit, as they overlap outside 1973 to 5138."""
EPOCH: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
DIGITS: Final = re.compile(
    r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r"(?:(?:[01]\d|2[0-3])(?:[0-5]\d(?:[0-5]\d)?)?)?(?:\.0)?"
)
"""A date in digits alone, which looks like an epoch: ``2024010100``."""
HALF_DAY: Final = "%Y-%m-%d %I-%p"
"""``2024-01-02 05-AM``, of CryptoDataDownload."""
ZONELESS: Final = "times are text without a zone, read as UTC"


def epoch_ms(column: Column, *, whole: bool = True) -> tuple[IntArray, tuple[str, ...]]:
    """Return *column* as UTC milliseconds, with notes about conversions.

    Times are instants, an epoch, or text of ISO 8601. Fractions of a millisecond are rejected (open
    times of candles), or with *whole* false cut off (trades). Raises ``CellInvalidError``.
    """
    notes: tuple[str, ...] = ()
    if column.dtype.kind == "M":  # already instants, also before 1973
        if (empty := np.isnat(column)).any():
            raise CellInvalidError(int(empty.argmax()), "is empty")
        times, rest = np.divmod(column.astype("datetime64[us]").astype(np.int64), 1000)
    elif column.dtype.kind in "if" or EPOCH.fullmatch(texts_of(column[:1])[0]):
        times, rest, notes = _from_numbers(column)
    else:
        times, rest, notes = _from_texts(texts_of(column))
    if whole and rest.any():
        raise CellInvalidError(int(rest.argmax()), "is not a whole millisecond")
    return times, notes


def are_instants(column: Column) -> bool:
    """Return whether the first time is an instant; else it is a local time of unknown zone."""
    with suppress(CellInvalidError):
        return ZONELESS not in epoch_ms(column[:1], whole=False)[1]
    return False


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


def _from_numbers(column: Column) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """Convert each number by its magnitude, since Binance changed its unit within a month."""
    ends = texts_of(column[[0, -1]])
    if all(map(DIGITS.fullmatch, ends)) and all(map(DIGITS.fullmatch, texts_of(column))):
        raise CellInvalidError(0, f"is a date in digits alone, {ends[0]}")
    decimals = parse(column)
    scale = 10**decimals.places
    integral = decimals.mantissa // scale
    if (too_small := integral < UNITS["seconds"]).any():
        row = int(too_small.argmax())
        raise CellInvalidError(row, f"is {integral[row]}, which is before 1973 in every unit")
    powers = np.searchsorted([*UNITS.values()], integral, side="right") - 1
    times, rest = np.empty((2, integral.size), dtype=np.int64)
    used = [power for power in range(len(UNITS)) if (powers == power).any()]
    for power in used:
        rows = powers == power
        ms = Fraction(1000, scale * 1000**power)  # reduced, so nothing overflows
        products = decimals.mantissa[rows] * ms.numerator
        times[rows], rest[rows] = np.divmod(products, ms.denominator)
    names = " and ".join([*UNITS][power] for power in used)
    notes = () if used == [1] else (f"times are in {names}, converted to milliseconds",)
    return times, rest, notes


def _from_texts(texts: list[str]) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """Convert text in the style of its first cell; without a zone it is UTC."""
    read = _half_day if texts[0].endswith(("AM", "PM")) else _iso
    times, zone = [], None
    for row, text in enumerate(texts):
        try:
            moment = read(text)
        except ValueError:
            what = f"is not a time but {text[:40]!r}" if text else "is empty"
            raise CellInvalidError(row, what) from None
        is_zoned = moment.tzinfo is not None
        if zone is not None and zone != is_zoned:
            raise CellInvalidError(row, f"is not a time like {texts[0]!r} but {text[:40]!r}")
        zone = is_zoned
        moment = moment if is_zoned else moment.replace(tzinfo=UTC)
        times.append(round(moment.timestamp() * 1_000_000))
    whole, rest = np.divmod(np.array(times, dtype=np.int64), 1000)
    return whole, rest, () if zone else (ZONELESS,)


def _iso(text: str) -> datetime:
    """Return the moment of *text* of ISO 8601; raise ``ValueError`` for another."""
    # Python accepts any letter before the clock, also the plus of an offset from UTC.
    if text[4:5] != "-" or text[7:8] != "-" or text[10:11] not in "T ":
        raise ValueError(text)
    return datetime.fromisoformat(text.replace(" UTC", "Z"))


def _half_day(text: str) -> datetime:
    return datetime.strptime(text, HALF_DAY)  # noqa: DTZ007 - without a zone, as ISO text
