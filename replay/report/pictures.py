"""Small pictures as inline SVG: a trade's price with the attention of its decision under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tracepaper.replay.report.explained import Explained

WIDTH: Final = 720
PRICE_HEIGHT: Final = 120
MASS_HEIGHT: Final = 48
GAP: Final = 10
EDGE: Final = 4
SEAM: Final = 0.6


def trade_picture(explained: Explained) -> str:
    """Return an SVG of the price around a trade; numbers alone go into it, no text of the run."""
    times, closes = explained.times_ms.tolist(), explained.closes.tolist()
    if len(times) < 2:  # noqa: PLR2004 (a line takes two points)
        return ""
    across = _Scale(times[0], times[-1], EDGE, WIDTH - EDGE)
    trade = explained.trade
    prices = [*closes, trade.entry_price, trade.exit_price]
    down = _Scale(max(prices), min(prices), EDGE, PRICE_HEIGHT - EDGE)
    points = " ".join(
        f"{across(time):.1f},{down(close):.1f}" for time, close in zip(times, closes, strict=True)
    )
    entry = (across(trade.entered_ms), down(trade.entry_price))
    leave = (across(trade.left_ms), down(trade.exit_price))
    height = PRICE_HEIGHT + (GAP + MASS_HEIGHT if explained.rollout else 0)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="price and attention">'
        f'<rect class="held" x="{entry[0]:.1f}" y="0" height="{height}" '
        f'width="{max(leave[0] - entry[0], 1.0):.1f}"/>'
        f'<polyline class="price" points="{points}"/>'
        f'<line class="path" x1="{entry[0]:.1f}" y1="{entry[1]:.1f}" x2="{leave[0]:.1f}" '
        f'y2="{leave[1]:.1f}"/>'
        f'<circle class="entry" cx="{entry[0]:.1f}" cy="{entry[1]:.1f}" r="4"/>'
        f'<circle class="exit" cx="{leave[0]:.1f}" cy="{leave[1]:.1f}" r="4"/>'
        f"{_mass(explained.rollout, across(times[0]), across)}</svg>"
    )


def _mass(rollout: Sequence[tuple[int, int, float]], least: float, across: _Scale) -> str:
    """Return the rollout as bars over the same time as the price."""
    if not rollout:
        return ""
    most = max(weight for *_, weight in rollout) or 1.0
    base = PRICE_HEIGHT + GAP + MASS_HEIGHT
    path = ""
    for start, until, weight in rollout:
        left, right = max(across(start), least), across(until) - SEAM
        if right > left:
            tall = MASS_HEIGHT * weight / most
            path += f"M{left:.1f} {base}v{-tall:.1f}h{right - left:.1f}v{tall:.1f}z"
    return f'<path class="mass" d="{path}"/>'


class _Scale:
    """A straight map from one range to another; a range without length maps to its middle."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self._low, self._first = low, first
        self._slope = (last - first) / (high - low) if high != low else 0.0
        self._offset = 0.0 if high != low else (last - first) / 2

    def __call__(self, value: float) -> float:
        """Return where *value* lies."""
        return self._first + self._offset + (value - self._low) * self._slope
