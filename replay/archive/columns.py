"""Cells of a file to exact integers: decimals of 10⁻ᵏ, and UTC milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.errors import ConfigInvalid

IntArray = npt.NDArray[np.int64]
Column = npt.NDArray[Any]
"""One raw column of a file: text, floats (NaN if empty), integers or instants."""

INT64_MAX: Final = 2**63 - 1
DECIMALS_MOST: Final = 11  # the most that an exchange was seen to send
FLOAT_DIGITS: Final = 15  # decimals of so many digits and doubles convert both ways
NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
LONGEST: Final = Context(prec=18)
"""Numbers of so many digits fit in 64 bits."""


class CellInvalidError(ValueError):
    """A cell that is not a finite decimal of 64 bits; the reader adds file, line and remedy."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row = row
        self.what = what


@dataclass(frozen=True, eq=False)
class Decimals:
    """A column of exact decimals: ``mantissa[i] * 10 ** -places``."""

    mantissa: IntArray
    places: int
    is_rounded: bool = False

    def __getitem__(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Decimals:
        """Return the given rows, in the given order."""
        return replace(self, mantissa=self.mantissa[rows])

    @property
    def floats(self) -> npt.NDArray[np.float64]:
        """The nearest doubles."""
        return self.mantissa / 10.0**self.places

    def rescale(self, places: int) -> Decimals:
        """Return the same values with *places* decimals; fewer are rounded half to even.

        Raises ``CellInvalidError`` if a value does not fit in 64 bits at that scale.
        """
        if places < self.places:
            return Decimals(np.rint(self.floats * 10.0**places).astype(np.int64), places)
        factor = 10 ** (places - self.places)
        too_big = np.abs(self.mantissa) > INT64_MAX // factor
        if too_big.any():
            what = f"has more than 64 bits at {places} decimals"
            raise CellInvalidError(int(too_big.argmax()), what)
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

    Digits that do not fit in 64 bits beside the largest number are rounded, of floats those beyond
    ``FLOAT_DIGITS``. Raises ``CellInvalidError`` at the first empty, non-numeric, non-finite or
    oversized cell.
    """
    if column.dtype.kind == "i":
        return Decimals(column.astype(np.int64), 0)
    if column.dtype.kind == "f":
        return _of_floats(column)
    cells = column.astype(np.bytes_)
    return _of_plain(cells) or _of_texts(texts_of(cells))


def _of_floats(values: npt.NDArray[np.float64]) -> Decimals:
    """Find the fewest decimals at which every double is the nearest to its decimal."""
    if (bad := ~np.isfinite(values)).any():
        row = int(bad.argmax())
        raise CellInvalidError(row, "is empty" if np.isnan(values[row]) else "is not finite")
    largest = float(np.abs(values).max(initial=0.0))
    if largest > INT64_MAX:
        row = int(np.abs(values).argmax())
        raise CellInvalidError(row, f"has more digits than 64 bits hold in {values[row]!r}")
    places, mantissa = 0, np.rint(values)
    # A quotient of two exact doubles is rounded once, so equality proves the round trip.
    while not (is_exact := np.array_equal(mantissa / 10.0**places, values)):
        if places == 15 or largest * 10.0 ** (places + 1) >= 10.0**FLOAT_DIGITS:
            break
        places += 1
        mantissa = np.rint(values * 10.0**places)
    return Decimals(mantissa.astype(np.int64), places, is_rounded=not is_exact)


def _of_plain(cells: npt.NDArray[np.bytes_]) -> Decimals | None:
    """Return cells of digits and at most one point, all at once; None if others are among them."""
    value, places, digits, points = np.zeros((4, cells.size), dtype=np.int64)
    # A file has many rows of short cells: take one character of all rows after another.
    for character in cells.view(np.uint8).reshape(cells.size, -1).T:
        digit = character - np.uint8(ord("0"))  # other characters wrap to above 9
        is_digit, is_point = digit < 10, character == ord(".")
        if not (is_digit | is_point | (character == 0)).all():
            return None
        value = np.where(is_digit, 10 * value + digit, value)
        digits += is_digit
        places += is_digit & (points > 0)
        points += is_point
    finest = int(places.max(initial=0))
    longest = int((digits + finest - places).max(initial=0))
    if (digits == 0).any() or (points > 1).any() or longest > LONGEST.prec:
        return None
    mantissa = value * 10 ** (finest - places)
    while finest and not (mantissa % 10).any():
        mantissa, finest = mantissa // 10, finest - 1
    return Decimals(mantissa, finest)


def _of_texts(texts: list[str]) -> Decimals:
    """Return the exact decimals of *texts*, one by one."""
    numbers = [_number(row, text) for row, text in enumerate(texts)]
    largest = max(map(abs, numbers), default=Decimal(0))
    exponents = [-int(number.as_tuple().exponent) for number in numbers if number]
    most = LONGEST.prec - 1 - max(largest.adjusted(), 0)  # digits that fit beside the largest
    finest = max(exponents, default=0)
    places = max(min(finest, most), 0)
    scaled = [int(number.scaleb(places, LONGEST).to_integral_value()) for number in numbers]
    return Decimals(np.array(scaled, dtype=np.int64), places, is_rounded=finest > places)


def _number(row: int, text: str) -> Decimal:
    """Return the number of a cell without zeros at its end."""
    if not text or text.lower() in {"null", "none", "na"}:
        raise CellInvalidError(row, "is empty")
    if not NUMBER.fullmatch(text):  # Decimal accepts nan, 1_000 and digits of other alphabets
        raise CellInvalidError(row, f"is not a number but {text[:40]!r}")
    number = Decimal(text)
    if abs(number) > INT64_MAX:
        raise CellInvalidError(row, f"has more digits than 64 bits hold in {text[:40]!r}")
    return number.normalize(LONGEST)


# ---------------------------------------------------------------- times

UNITS: Final = {
    "seconds": 10**8,
    "milliseconds": 10**11,
    "microseconds": 10**14,
    "nanoseconds": 10**17,
}
"""The smallest number of each unit; it implies the unit, as they overlap outside 1973 to 5138."""
IN_A_MILLISECOND: Final = np.array([1, 1, 10**3, 10**6])
"""How many of each unit; seconds are multiplied afterwards."""
EPOCH: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
DIGITS: Final = re.compile(
    r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r"(?:(?:[01]\d|2[0-3])(?:[0-5]\d(?:[0-5]\d)?)?)?(?:\.0)?"
)
"""A date in digits alone, which looks like an epoch: ``2024010100``."""
ZONELESS: Final = "times are text without a zone, read as UTC"


def epoch_ms(column: Column) -> tuple[IntArray, tuple[str, ...]]:
    """Return *column* as UTC milliseconds, with notes about conversions.

    Times are instants, an epoch, or text of ISO 8601. Raises ``CellInvalidError``, also for
    fractions of a millisecond.
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
    if rest.any():
        raise CellInvalidError(int(rest.argmax()), "is not a whole millisecond")
    return times, notes


def instant(text: str) -> int:
    """Return the UTC milliseconds of a command-line time: ISO text, or an epoch of any unit.

    Raises ``ConfigInvalid``.
    """
    try:
        times, _ = epoch_ms(np.array([text.strip().encode()], dtype=np.bytes_))
    except CellInvalidError as error:
        what = error.what.partition(" but ")[0]
        raise ConfigInvalid(
            f"The time {text!r} {what}: write it as 2025-01-31T12:00 (UTC)."
        ) from None
    return int(times[0])


def _from_numbers(column: Column) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """Convert each number by its magnitude, since Binance changed its unit within a month."""
    ends = texts_of(column[[0, -1]])
    if all(map(DIGITS.fullmatch, ends)) and all(map(DIGITS.fullmatch, texts_of(column))):
        raise CellInvalidError(0, f"is a date in digits alone, {ends[0]}")
    decimals = parse(column)
    numbers, fractions = np.divmod(decimals.mantissa, 10**decimals.places)
    if (too_small := numbers < UNITS["seconds"]).any():
        row = int(too_small.argmax())
        raise CellInvalidError(row, f"is {numbers[row]}, which is before 1973 in every unit")
    powers = np.searchsorted([*UNITS.values()], numbers, side="right") - 1
    times, rest = np.divmod(numbers, IN_A_MILLISECOND[powers])
    times[powers == 0] *= 1000
    used = np.unique(powers).tolist()
    names = " and ".join([*UNITS][power] for power in used)
    notes = () if used == [1] else (f"times are in {names}, converted to milliseconds",)
    return times, rest + fractions, notes


def _from_texts(texts: list[str]) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """Convert text of ISO 8601; without a zone it is UTC."""
    times, zone = [], None
    for row, text in enumerate(texts):
        try:
            moment = _iso(text)
        except ValueError:
            what = f"is not a time of ISO 8601 but {text[:40]!r}" if text else "is empty"
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
