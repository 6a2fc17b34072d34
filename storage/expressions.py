"""Numbers and times as SQL shows them: exact text, REAL, ISO; built-in functions only; pure."""

from __future__ import annotations


def power_of_ten(decimals: str) -> str:
    """Return 10^decimals as an integer; text such as ``1e3`` is a number only by way of REAL."""
    return f"CAST(CAST('1e' || ({decimals}) AS REAL) AS INTEGER)"


def real(number: str, decimals: str) -> str:
    """Return *number* (an integer of 10^-decimals) as REAL, correctly rounded."""
    return f"({number}) / CAST('1e' || {decimals} AS REAL)"


def text(number: str, decimals: str) -> str:
    """Return *number* as exact decimal text with all its decimals."""
    power = power_of_ten(decimals)
    whole = f"abs({number}) / {power}"
    sign = f"CASE WHEN ({number}) < 0 THEN '-' ELSE '' END"
    rest = f"printf('.%0*d', {decimals}, abs({number}) % {power})"
    return (
        f"CASE WHEN ({number}) IS NULL THEN NULL ELSE {sign} || ({whole}) || "
        f"CASE WHEN {decimals} = 0 THEN '' ELSE {rest} END END"
    )


def iso(number: str) -> str:
    """Return *number*, UTC milliseconds, as ``2025-06-01T00:05:00.000Z``."""
    seconds = f"strftime('%Y-%m-%dT%H:%M:%S', ({number}) / 1000, 'unixepoch')"
    return f"{seconds} || printf('.%03dZ', ({number}) % 1000)"
