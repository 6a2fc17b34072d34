"""Numbers and choices as people read them, and visible text: durations, figures, names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from math import floor, isfinite, log10
from typing import Final

from tracepaper.strategies.market import DAY_MS, HOUR_MS

NOTHING: Final = "–"
DECIMALS_MOST: Final = 8
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_DURATIONS: Final = (
    # below so many ms: written in units of so many ms, with decimals
    (999.5, 1, 0, "ms"),
    (119_950, 1_000, 1, "s"),
    (7_197_000, 60_000, 1, "min"),
    (172_620_000, HOUR_MS, 1, "h"),
    (float("inf"), DAY_MS, 1, "days"),
)


def number(value: float | None, *, digits: int = 4, signed: bool = False) -> str:
    """Return *value* with some *digits* that count and commas, never with an exponent."""
    if value is None or not isfinite(value):
        return NOTHING
    sign = "+" if signed else ""
    if value == 0:
        return "0"
    places = digits - 1 - floor(log10(abs(value)))
    text = f"{value:{sign},.{max(0, min(places, DECIMALS_MOST))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(ms: float | None, *, signed: bool = False) -> str:
    """Return milliseconds in the unit that people would choose: ``42.6 s``, ``1.5 h``."""
    if ms is None or not isfinite(ms):
        return NOTHING
    for below, length, decimals, unit in _DURATIONS:
        if abs(ms) < below:
            return f"{ms / length:{'+' if signed else ''},.{decimals}f} {unit}"
    raise AssertionError  # the last limit is infinite


def minute_text(time_ms: int) -> str:
    """Return a time, UTC milliseconds, to the minute: ``2025-05-26T07:32Z``."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")


def any_of(names: Iterable[str]) -> str:
    """Return two or more *names* as a choice in Markdown: ```a`, `b` or `c```."""
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} or {last}"


def visible(text: str) -> str:
    r"""Return *text* with control characters written out as ``\x1b``; only lines and tabs stay.

    Those that turn the direction of writing are among them.
    """
    return _CONTROL.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # a byte
