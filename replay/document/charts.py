"""Charts as values: panels of lines, bars, marks, heat maps, edges and flows.

A chart holds numbers as they are and says what they mean; whoever draws it chooses places and
colours. Colours are roles, times UTC milliseconds, a missing number is None. On an axis of kind
``category`` a number is the place of one of its names.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Numbers = Sequence[float | None]
ChartRole = Literal[
    "accent", "shadow-1", "shadow-2", "shadow-3", "soft", "ink", "muted", "faint", "gain", "loss"
]
"""``accent`` is the run's own, ``shadow-1`` to ``shadow-3`` its shadow accounts, ``ink`` and
``muted`` others; ``soft`` and ``faint`` fill areas."""
LineDash = Literal["solid", "dash", "dot", "dashdot"]
MarkShape = Literal["dot", "ring", "cross", "up", "down", "tick"]
LEVELS: Final = 254
"""A packed cell is one byte: its place between the ends of the scale, and 255 for none."""


class ChartAxis(Struct, frozen=True, omit_defaults=True):
    """One axis of a panel; ``title`` names what it shows, with the unit."""

    title: str = ""
    kind: Literal["number", "time", "category"] = "number"
    unit: str = ""  # written after a number, such as " %"
    digits: int | None = None  # decimals of a number; None: as many as it takes
    names: Sequence[str] = ()  # of a category axis
    ticks: Sequence[tuple[float, str]] = ()  # labels and their places; empty: chosen when drawn
    is_reversed: bool = False
    has_zero: bool = False  # zero is in view
    has_labels: bool = True


class LineLayer(Struct, frozen=True, omit_defaults=True, tag="line"):
    """A line, broken where ``y`` is None."""

    name: str
    x: Numbers
    y: Numbers
    role: ChartRole = "accent"
    width: float = 1.6
    dash: LineDash = "solid"
    is_step: bool = False  # each value holds until the next
    is_filled: bool = False  # down to zero
    has_points: bool = False
    texts: Sequence[str] = ()  # names of the places on x, one a point


class BandLayer(Struct, frozen=True, omit_defaults=True, tag="band"):
    """An area between two lines."""

    name: str
    x: Numbers
    low: Numbers
    high: Numbers
    role: ChartRole = "soft"


class BarLayer(Struct, frozen=True, omit_defaults=True, tag="bars"):
    """Bars from ``base`` (0 where empty) by their length, across the category axis or upwards."""

    name: str
    x: Numbers
    y: Numbers
    roles: Sequence[ChartRole] = ("accent",)  # one for each bar, or one for all
    base: Numbers = ()
    texts: Sequence[str] = ()


class MarkLayer(Struct, frozen=True, omit_defaults=True, tag="marks"):
    """Single points; ``errors`` are half lengths of their error bars along x."""

    name: str
    x: Numbers
    y: Numbers
    shape: MarkShape = "dot"
    roles: Sequence[ChartRole] = ("accent",)
    texts: Sequence[str] = ()
    errors: Numbers = ()


class RuleLayer(Struct, frozen=True, omit_defaults=True, tag="rule"):
    """A line across the whole panel: a threshold, or zero."""

    at: float
    axis: Literal["x", "y"] = "y"
    name: str = ""
    role: ChartRole = "muted"


class HeatLayer(Struct, frozen=True, omit_defaults=True, tag="heat"):
    """Cells by colour: ``rows`` of [y, x], or ``packed`` bytes of them where they are many.

    ``x`` and ``y`` are the cells' middles, or their places on a category axis. Where ``scale`` is a
    logarithm, rows and ends are logarithms, and people read the number itself. Of the palette
    ``steps`` a cell is the place of one of ``names``.
    """

    name: str  # what a cell's number is called
    x: Numbers
    y: Numbers
    low: float  # end of the scale without colour; above high, where less is better
    high: float
    rows: Sequence[Numbers] = ()
    packed: str = ""  # base64
    scale: Literal["linear", "log2", "log10"] = "linear"
    palette: Literal["sequential", "steps"] = "sequential"
    names: Sequence[str] = ()
    unit: str = ""
    times: float = 1.0  # people read the number times this
    digits: int | None = None
    texts: Sequence[Sequence[str]] = ()  # [y][x], what a cell says in place of its number
    is_written: bool = False  # each cell bears its number


class EdgeLayer(Struct, frozen=True, omit_defaults=True, tag="edges"):
    """What each decided bar's heads looked at: decided bars above, bars looked at below."""

    firsts: Sequence[int]  # [cell] bars back of its newest bar
    bars: int  # bars back of the oldest one, and one
    scale: int  # shares are whole parts of so many
    times: Sequence[int]  # open times of the decided bars, oldest first
    shares: Sequence[Sequence[Sequence[Sequence[int]]]]  # [layer][head][decided bar][cell]


class FlowLayer(Struct, frozen=True, omit_defaults=True, tag="flow"):
    """Shares that flow between groups from column to column."""

    columns: Sequence[str]
    groups: Sequence[str]
    held: Sequence[Numbers]  # [column][group]
    flows: Sequence[Sequence[Numbers]]  # [column but the last][from group][to group]


Layer = LineLayer | BandLayer | BarLayer | MarkLayer | RuleLayer | HeatLayer | EdgeLayer | FlowLayer


class ChartPanel(Struct, frozen=True, omit_defaults=True):
    """Layers over one pair of axes, the first the lowest."""

    layers: Sequence[Layer]
    x: ChartAxis = ChartAxis()
    y: ChartAxis = ChartAxis()
    height: int = 240  # pixels
    title: str = ""
    is_grouped: bool = False  # bars of one place stand side by side, not on each other


class Chart(Struct, frozen=True, omit_defaults=True):
    """Panels in reading order, ``columns`` a row, and the sentence under them.

    Panels that are ``is_aligned`` stand under each other over one x axis, that of the last.
    """

    title: str
    caption: str
    panels: Sequence[ChartPanel]
    columns: int = 1
    is_aligned: bool = False
    lines_first: int | None = None  # of the lines drawn last; others by a tap on the legend


OWN_LINE: Final = LineLayer("", (), (), "accent", 2.2)
WHOLE_LINE: Final = LineLayer("", (), (), "ink", 1.2, "dot")
OTHER_LINE: Final = LineLayer("", (), (), "muted", 1.3)
"""How the run's account, buy and hold with all the money, and other benchmarks are drawn."""
SHADOW_STYLES: Final[tuple[tuple[ChartRole, float, LineDash], ...]] = (
    ("shadow-1", 1.3, "dash"),
    ("shadow-2", 1.3, "dashdot"),
    ("shadow-3", 1.6, "dot"),
)


def shadow_line(place: int) -> LineLayer:
    """Return how the shadow account of that place is drawn: each in a tone and a dash of its own.

    Past the first three other dashes of the tones follow, then wider lines.
    """
    turn, at = divmod(place, len(SHADOW_STYLES))
    _, width, dash = SHADOW_STYLES[(at + turn) % len(SHADOW_STYLES)]
    return LineLayer("", (), (), SHADOW_STYLES[at][0], width + turn // len(SHADOW_STYLES), dash)


def rounded(values: NDArray[np.float64] | Sequence[float], digits: int = 6) -> list[float | None]:
    """Return *values* to so many significant digits, to keep a page small; NaN becomes None."""
    return [None if math.isnan(value) else float(f"{value:.{digits}g}") for value in values]


def packed(cells: NDArray[np.float64], low: float, high: float) -> str:
    """Return *cells* as base64 of a byte each, between *low* and *high*; NaN is none."""
    with np.errstate(invalid="ignore"):
        places = (cells - low) / (high - low) * LEVELS
    levels = np.where(np.isnan(places), 255, np.clip(np.round(places), 0, LEVELS))
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def percent_axis(title: str, digits: int = 2, *, has_zero: bool = True) -> ChartAxis:
    """Return an axis of percentages, 0 among them."""
    return ChartAxis(title, unit=" %", digits=digits, has_zero=has_zero)


def close_panel(
    times: Numbers, closes: NDArray[np.float64] | Sequence[float], height: int
) -> ChartPanel:
    """Return a panel of the price."""
    close = LineLayer("close", times, rounded(closes, 8), "ink", 1.2)
    return ChartPanel([close], time_axis(), ChartAxis("close"), height)


def held_steps(name: str, starts: Sequence[float], end: float, values: Numbers) -> LineLayer:
    """Return a filled line of *values*, each from one of *starts* until the next, or the *end*."""
    x, y = [*starts, end], [*values, None]
    return LineLayer(name, x, y, width=1.0, is_step=True, is_filled=True)


def time_axis(title: str = "") -> ChartAxis:
    """Return an axis of times."""
    return ChartAxis(title, kind="time")


def named(names: Sequence[str], title: str = "", *, is_reversed: bool = False) -> ChartAxis:
    """Return an axis of *names*, the first at place 0."""
    return ChartAxis(title, kind="category", names=names, is_reversed=is_reversed)
