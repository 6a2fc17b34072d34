"""Numbers as people read them: durations, gates' measures, and figures without an exponent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import floor, isfinite, log10
from typing import Final

from tracepaper.strategies.types import Gate

NOTHING: Final = "–"
DECIMALS_MOST: Final = 8
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

UNITS: Final[Mapping[Gate, str]] = {
    Gate.OPERATOR: "yes or no",
    Gate.WARM: "bars",
    Gate.LATE: "ms",
    Gate.GAP: "bars",
    Gate.PLAUSIBLE: "usual ranges",
    Gate.STALE: "ms",
    Gate.DEADLINE: "yes or no",
    Gate.FINITE: "yes or no",
    Gate.CONFIDENCE: "of full entropy",
    Gate.COLLAPSED: "of full entropy",
    Gate.SHIFTED: "JS distance",
    Gate.REGIME: "yes or no",
    Gate.DIRECTION: "probability",
    Gate.EDGE: "round-trip costs",
    Gate.RISK_NOTIONAL: "quote currency",
    Gate.RISK_DRAWDOWN: "share of the peak",
    Gate.RISK_DAILY_LOSS: "quote currency",
    Gate.RISK_DAILY_TRADES: "trades",
}
"""The unit of each gate's measure and threshold, as they are stored."""

_DURATIONS: Final = (
    # below so many ms: written in units of so many ms, with decimals
    (999.5, 1, 0, "ms"),
    (119_950, 1_000, 1, "s"),
    (7_197_000, 60_000, 1, "min"),
    (172_620_000, 3_600_000, 1, "h"),
    (float("inf"), 86_400_000, 1, "days"),
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


def visible(text: str) -> str:
    r"""Return *text* with control characters written out as ``\x1b``; only lines and tabs stay.

    Those that turn the direction of writing are among them.
    """
    return _CONTROL.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # noqa: PLR2004 - a byte


def measured(gate: Gate, value: float | None, *, signed: bool = False) -> str:
    """Return a measure, a threshold or a margin of *gate* as people read it.

    A duration has its unit and a share its per cent; other units stand in ``UNITS``.
    """
    if value is None or not isfinite(value):
        return NOTHING
    sign = "+" if signed else ""
    match UNITS[gate]:
        case "ms":
            return duration(value, signed=signed)
        case "yes or no":
            return {1.0: "yes", 0.0: "no"}.get(value, number(value)) if not signed else NOTHING
        case "share of the peak":
            return f"{100 * value:{sign}.1f} %"
        case "quote currency":
            return f"{value:{sign},.2f}"
        case _:
            return number(value, signed=signed)


def unit_beside(gate: Gate) -> str:
    """Return what stands beside a measure of *gate* that :func:`measured` wrote."""
    unit = UNITS[gate]
    return {"ms": "", "yes or no": "", "share of the peak": "of the peak"}.get(unit, unit)


def with_unit(gate: Gate, value: float) -> str:
    """Return a measure of *gate* with its unit, as it is written inside a sentence."""
    return f"{measured(gate, value)} {unit_beside(gate)}".rstrip()
