"""Decimal columns to exact integers of 10⁻ᵏ, vectorised; k is the fewest that holds every value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Column = npt.NDArray[np.bytes_] | npt.NDArray[np.float64] | npt.NDArray[np.int64]
"""One column as it came from a file: text, floats (NaN where empty) or integers."""

INT64_MAX: Final = 2**63 - 1
SAFE_DIGITS: Final = 18  # any number of so many digits fits into 64 bits
FLOAT_LIMIT: Final = 10**15  # below it one decimal of so many digits names one double
FLOAT_DECIMALS_MAX: Final = 15
NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
NOT_FINITE: Final = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
POWERS: Final = 10 ** np.arange(SAFE_DIGITS + 1, dtype=np.int64)


class CellInvalidError(ValueError):
    """A cell that is not a finite decimal of at most 64 bits; the reader adds file and line."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row = row
        self.what = what


@dataclass(frozen=True, eq=False)
class Decimals:
    """A column of exact decimals: ``mantissa[i] * 10 ** -places``."""

    mantissa: IntArray
    places: int

    def rescale(self, places: int) -> Decimals:
        """Return the same values with *places* decimals, which must not be fewer.

        Raises ``CellInvalidError`` where 64 bits do not hold a value at that scale.
        """
        if places == self.places:
            return self
        factor = 10 ** (places - self.places)
        too_big = np.flatnonzero(np.abs(self.mantissa) > INT64_MAX // factor)
        if too_big.size:
            raise CellInvalidError(int(too_big[0]), f"has more than 64 bits at {places} decimals")
        return Decimals(self.mantissa * factor, places)


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
    """Find the fewest decimals at which every double is the nearest one to its integer."""
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
    """Read digits column by column of characters; odd cells one by one through Decimal."""
    value, places, odd = _scan_characters(cells)
    for row in np.flatnonzero(odd).tolist():
        value[row], places[row] = _parse_cell(row, bytes(cells[row]))
    _drop_trailing_zeros(value, places)
    finest = int(places.max(initial=0))
    lift = finest - places
    if int(lift.max(initial=0)) > SAFE_DIGITS:
        raise CellInvalidError(int(np.argmax(places)), "has too many decimals beside the others")
    too_big = np.flatnonzero(np.abs(value) > INT64_MAX // POWERS[lift])
    if too_big.size:
        raise CellInvalidError(int(too_big[0]), f"has more than 64 bits at {finest} decimals")
    return Decimals(value * POWERS[lift], finest)


def _scan_characters(
    cells: npt.NDArray[np.bytes_],
) -> tuple[IntArray, IntArray, npt.NDArray[np.bool_]]:
    """Return value and decimals of every plain cell, and which cells are not plain."""
    rows, width = cells.size, cells.dtype.itemsize
    # A file has many rows and few characters a cell, so it is read across all rows at once.
    characters = np.ascontiguousarray(cells.view(np.uint8).reshape(rows, width).T)
    value = np.zeros(rows, dtype=np.int64)
    places = np.zeros(rows, dtype=np.int64)
    digits = np.zeros(rows, dtype=np.int64)
    dotted = np.zeros(rows, dtype=np.bool_)
    minus = characters[0] == ord("-") if width else dotted.copy()
    odd = np.zeros(rows, dtype=np.bool_)
    for position, character in enumerate(characters):
        digit = character - np.uint8(ord("0"))  # wraps above 9 for everything else
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
    """Return the value and decimals of one cell that is not plain, such as ``1e-05``."""
    text = cell.decode("utf-8", "replace").strip()
    if not text or text.lower() in {"null", "none", "na"}:
        raise CellInvalidError(row, "is empty")
    if NOT_FINITE.fullmatch(text):
        raise CellInvalidError(row, f"is not finite but {text!r}")
    if not NUMBER.fullmatch(text):  # Decimal would take 1_000 and other alphabets' digits
        raise CellInvalidError(row, f"is not a number but {text[:40]!r}")
    sign, digits, exponent = Decimal(text).as_tuple()
    # Before any power of ten is taken: that of 1e9999 would not end.
    if not isinstance(exponent, int) or abs(exponent) > 2 * SAFE_DIGITS:
        raise CellInvalidError(row, f"has an exponent that is out of range in {text[:40]!r}")
    mantissa = int("".join(map(str, digits)))
    # Trailing zeros are no decimals: one 1.500 must not give a whole column three.
    while exponent < 0 and mantissa and mantissa % 10 == 0:
        mantissa, exponent = mantissa // 10, exponent + 1
    if mantissa == 0:
        return 0, 0
    mantissa *= 10 ** max(exponent, 0)
    if mantissa > INT64_MAX:
        raise CellInvalidError(row, f"has more digits than 64 bits hold in {text[:40]!r}")
    return -mantissa if sign else mantissa, max(-exponent, 0)


def _drop_trailing_zeros(value: IntArray, places: IntArray) -> None:
    """Lower decimals in place as far as the value stays whole."""
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

    For volumes alone, where sums of doubles left digits that no exchange ever sent.
    """
    texts = (
        [repr(value) for value in column.tolist()]
        if column.dtype.kind == "f"
        else [bytes(cell).decode("utf-8", "replace") for cell in column.tolist()]
    )
    unit = Decimal(1).scaleb(-digits_after)
    rounded = [str(Decimal(text).quantize(unit)) for text in texts]
    return _parse_text(np.array(rounded, dtype=np.bytes_))
