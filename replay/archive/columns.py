"""Columns of text, floats and instants to exact integers of 10⁻ᵏ and to UTC milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
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
            raise CellTooLongError(
                int(too_big.argmax()), f"has more than 64 bits at {places} decimals"
            )
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
        return _parse_floats(column.astype(np.float64))
    return _parse_text(column.astype(np.bytes_))


def _parse_floats(values: npt.NDArray[np.float64]) -> Decimals:
    """Find the fewest decimals at which every double is the nearest to its decimal."""
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        raise CellInvalidError(row, "is empty" if np.isnan(values[row]) else "is not finite")
    largest, places = float(np.abs(values).max(initial=0.0)), 0
    while largest * 10.0**places < FLOAT_LIMIT and places < 16:
        mantissa = np.rint(values * 10.0**places)
        # A quotient of two exact doubles is rounded once, so equality proves the round trip.
        if np.array_equal(mantissa / 10.0**places, values):
            return Decimals(mantissa.astype(np.int64), places)
        places += 1
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
    too_big = (lift > SAFE_DIGITS) | (
        np.abs(value) > INT64_MAX // POWERS[lift.clip(0, SAFE_DIGITS)]
    )
    if too_big.any():
        row = int(too_big.argmax())
        raise CellTooLongError(row, f"has more than 64 bits at {finest} decimals")
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


def round_to_fit(column: Column, digits_after: int) -> Decimals:
    """Return *column* rounded half-even to *digits_after* decimals, through exact Decimals.

    Only for volumes whose extra digits come from sums of doubles.
    """
    unit = Decimal(1).scaleb(-digits_after)
    rounded = [str(Decimal(text).quantize(unit)) for text in texts_of(column)]
    return _parse_text(np.array(rounded, dtype=np.bytes_))


# ---------------------------------------------------------------- times

UNITS: Final = {
    "seconds": 10**8,
    "milliseconds": 10**11,
    "microseconds": 10**14,
    "nanoseconds": 10**17,
}
"""The smallest number of each unit; it implies the unit, as they overlap outside 1973 to 5138."""
TIME_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
CLOCK: Final = (
    r"(?:[T ,]+(?P<hour>\d\d?)(?::(?P<minute>\d\d))?(?::(?P<second>\d\d)(?:\.(?P<part>\d+))?)?"
    r"(?:[ -]?(?P<half>[AaPp])\.?[Mm]\.?)?"
    r"(?P<zone> ?(?:Z|UTC|GMT)|(?: ?(?:UTC|GMT))?(?P<ahead>[+-]\d\d):?(?P<more>\d\d)?)?)?"
)
COMPACT: Final = re.compile(
    r"(?P<year>(?:19|20)\d\d)(?P<a>0[1-9]|1[0-2])(?P<b>0[1-9]|[12]\d|3[01])"
    r"(?:[ T]?(?P<hour>[01]\d|2[0-3])(?::?(?P<minute>[0-5]\d))?(?::?(?P<second>[0-5]\d))?)?"
)
SLASHED: Final = re.compile(r"(?P<a>\d\d?)/(?P<b>\d\d?)/(?P<year>\d{4})" + CLOCK)
STYLES: Final = (
    re.compile(r"(?P<year>\d{4})([-./])(?P<a>\d\d?)\2(?P<b>\d\d?)" + CLOCK),
    re.compile(r"(?P<b>\d\d?)\.(?P<a>\d\d?)\.(?P<year>\d{4})" + CLOCK),
    SLASHED,
    COMPACT,
)
"""Styles of a date (*a* is the month, *b* the day) and its clock; a file has one of them."""
ZONELESS: Final = "times are text without a zone, read as UTC"


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
        return float(column[0]) >= UNITS["seconds"]
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


def _whole(values: IntArray, per_ms: int | IntArray, *, whole: bool) -> IntArray:
    broken = np.flatnonzero(values % per_ms)
    if whole and broken.size:
        raise CellInvalidError(int(broken[0]), "is not a whole millisecond")
    return values // per_ms


def _from_numbers(decimals: Decimals, *, whole: bool) -> tuple[IntArray, tuple[str, ...]]:
    """Convert each number by its magnitude, since Binance changed its unit within a month."""
    scale = 10**decimals.places
    integral = decimals.mantissa // scale
    if (too_small := integral < UNITS["seconds"]).any():
        row = int(too_small.argmax())
        raise CellInvalidError(row, f"is {integral[row]}, which is before 1973 in every unit")
    unit = np.searchsorted([*UNITS.values()], integral, side="right") - 1
    # Nanoseconds that are written as seconds overflow if they are multiplied.
    times = np.where(unit == 0, max(1000 // scale, 1), 1)
    per_ms = np.where(unit == 0, max(scale // 1000, 1), scale * 1000 ** (unit - 1).clip(0))
    result = _whole(decimals.mantissa * times, per_ms, whole=whole)
    names = [[*UNITS][place] for place in np.unique(unit).tolist()]
    if names == ["milliseconds"]:
        return result, ()
    return result, (f"times are in {' and '.join(names)}, converted to milliseconds",)


def _style(text: str) -> re.Match[str] | None:
    """Return the match of *text* with a style of dates."""
    return next((match for style in STYLES if (match := style.fullmatch(text))), None)


def _from_texts(texts: list[str], *, whole: bool) -> tuple[IntArray, tuple[str, ...]]:
    """Convert text in the one style of its first cell; without a zone it is UTC."""
    first = _style(texts[0])
    style = first.re if first else COMPACT
    is_day_first = style is SLASHED and _is_day_first(texts)
    kind, times = None, []
    for row, text in enumerate(texts):
        parts = match.groupdict("") if (match := style.fullmatch(text)) else {}
        kind = kind or (bool(parts.get("zone")), bool(parts.get("half")))
        if not parts or (bool(parts.get("zone")), bool(parts.get("half"))) != kind:
            like = f" like {texts[0][:40]!r}" if row else ""
            what = f"is not a time{like} but {text[:40]!r}" if text else "is empty"
            raise CellInvalidError(row, what)
        try:
            times.append(round(_moment(parts, is_day_first=is_day_first).timestamp() * 1_000_000))
        except ValueError:
            raise CellInvalidError(row, f"is not a time but {text[:40]!r}") from None
    has_zone = kind is not None and kind[0]
    microseconds = np.array(times, dtype=np.int64)
    return _whole(microseconds, 1000, whole=whole), () if has_zone else (ZONELESS,)


def _is_day_first(texts: list[str]) -> bool:
    """Return whether the day comes first in dates with slashes, of which one must show it."""
    dates = [match for text in texts if (match := SLASHED.fullmatch(text))]
    first, second = (max(int(match[part]) for match in dates) for part in ("a", "b"))
    if first <= 12 and second <= 12:
        raise CellInvalidError(0, "is a date whose day and month cannot be told apart")
    return first > 12


def _moment(parts: dict[str, str], *, is_day_first: bool) -> datetime:
    """Return the moment of the *parts* of one time; raise ``ValueError`` if there is none."""
    month, day = (parts["b"], parts["a"]) if is_day_first else (parts["a"], parts["b"])
    hour = int(parts["hour"] or 0)
    if half := parts.get("half"):
        hour = hour % 12 + (12 if half in "Pp" else 0)
    clock = f"{hour:02}:{parts['minute'] or '00'}:{parts['second'] or '00'}"
    zone = f"{parts['ahead']}{parts['more'] or '00'}" if parts.get("ahead") else "Z"
    fraction = f".{parts['part'][:6]:0<6}" if parts.get("part") else ""
    return datetime.fromisoformat(f"{parts['year']}-{month:0>2}-{day:0>2}T{clock}{fraction}{zone}")
