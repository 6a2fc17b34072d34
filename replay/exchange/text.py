"""Numbers as the exchange writes them: integers of 10⁻ᵏ as decimal text.

Candles and all of spot drop trailing zeros (``65114.2``); books, trades and tickers of linear pad
to the decimals of the tick (``65114.20``). Both were measured on the exchange's own frames.
"""

from __future__ import annotations


def padded(value: int, decimals: int) -> str:
    """Return *value* x 10⁻ᵏ with exactly k = *decimals* decimals."""
    if decimals == 0:
        return str(value)
    digits = str(abs(value)).rjust(decimals + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def plain(value: int, decimals: int) -> str:
    """Return *value* x 10⁻ᵏ without trailing zeros."""
    text = padded(value, decimals)
    return text.rstrip("0").rstrip(".") if decimals else text


def rescaled(value: int, decimals: int, wanted: int) -> int:
    """Return *value* of 10⁻ᵏ at another k, rounding half away from zero where digits are lost."""
    factor: int = 10 ** abs(decimals - wanted)
    if wanted >= decimals:
        return value * factor
    half = factor // 2
    return (value + half) // factor if value >= 0 else -((-value + half) // factor)


def parsed(text: str) -> tuple[int, int]:
    """Return ``(value, decimals)`` of plain decimal text such as ``0.10`` -> ``(10, 2)``."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction), len(fraction)
