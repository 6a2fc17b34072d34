"""Decimal text to exact integers of 10⁻ᵏ: the only door through which numbers come in."""

from __future__ import annotations

from typing import Final

from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types import MONEY_LIMIT

DIGITS_MAX: Final = 40
"""Longest number text that is read at all; the exchange's longest has some twenty digits."""
POWERS: Final[tuple[int, ...]] = tuple(10**exponent for exponent in range(DIGITS_MAX + 1))


def exact(text: str, decimals: int) -> int:
    """Return the non-negative decimal *text* as an integer of 10^-*decimals*.

    Only ASCII digits with at most one inner dot are a number here: signs, exponents, blanks,
    ``NaN`` and the empty text are refused, and so are non-zero digits beyond *decimals* and
    values that do not fit 64 bits. Raises ``MessageMalformed``.
    """
    whole, dot, fraction = text.partition(".")
    digits = whole + fraction
    if not (
        digits.isascii()
        and digits.isdigit()
        and len(text) <= DIGITS_MAX
        and whole
        and bool(dot) == bool(fraction)
    ):
        raise MessageMalformed(
            f"{text[:DIGITS_MAX]!r} is not a plain decimal number; the message was dropped, "
            "compare it with the exchange's documentation if this repeats."
        )
    missing = decimals - len(fraction)
    if missing >= 0:
        value = int(digits) * POWERS[missing]
    else:
        value, rest = divmod(int(digits), POWERS[-missing])
        if rest:
            raise MessageMalformed(
                f"{text} has more than the {decimals} decimals that are kept; the message was "
                "dropped, re-read the instrument's filters if this repeats."
            )
    if value > MONEY_LIMIT:
        raise MessageMalformed(
            f"{text} with {decimals} decimals does not fit 64 bits; the message was dropped, "
            "keep fewer decimals of this instrument."
        )
    return value


def exact_signed(text: str, decimals: int) -> int:
    """Return *text* as ``exact`` does, but allow one leading minus (rates, changes)."""
    if text.startswith("-"):
        return -exact(text[1:], decimals)
    return exact(text, decimals)


def _divided(text: str, decimals: int) -> tuple[int, int, int]:
    """Return *text* in units of 10^-*decimals*, the rest, and what the rest is a part of."""
    finer = max(decimals, min(len(text.partition(".")[2]), DIGITS_MAX))
    unit = POWERS[finer - decimals]
    whole, rest = divmod(exact(text, finer), unit)
    return whole, rest, unit


def rounded(text: str, decimals: int) -> int:
    """Return *text* rounded half-even to 10^-*decimals*.

    For mark prices alone: they are averages, often finer than the tick, and nobody trades at
    them. Raises ``MessageMalformed`` as ``exact`` does.
    """
    whole, rest, unit = _divided(text, decimals)
    return whole + int(2 * rest > unit or (2 * rest == unit and whole % 2 == 1))


def floored(text: str, decimals: int) -> int:
    """Return *text* rounded down to 10^-*decimals*; for upper limits. Raises as ``exact``."""
    return _divided(text, decimals)[0]


def ceiled(text: str, decimals: int) -> int:
    """Return *text* rounded up to 10^-*decimals*; for lower limits. Raises as ``exact``."""
    whole, rest, _ = _divided(text, decimals)
    return whole + int(rest > 0)


def decimals_needed(text: str) -> int:
    """Return how many decimals *text* needs: 1 for ``0.10``, 0 for ``5``, 6 for ``0.000001``.

    Raises ``MessageMalformed`` where *text* is no number.
    """
    fraction = text.partition(".")[2]
    exact(text, len(fraction))
    return len(fraction.rstrip("0"))
