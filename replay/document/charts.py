"""Charts as values: panels of lines, bars, marks, heat maps, edges and flows.

A chart holds unscaled numbers and their meaning; the renderer chooses positions and colours.
Colours are roles, times are UTC milliseconds, and a missing number is None. On an axis of kind
``category`` a number is the index of one of its names.
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
"""``accent`` is for the run, ``shadow-1`` to ``shadow-3`` for its shadow accounts, ``ink`` and
``muted`` for everything else; ``soft`` and ``faint`` fill areas."""
LineDash = Literal["solid", "dash", "dot", "dashdot"]
MarkShape = Literal["dot", "ring", "cross", "up", "down", "tick"]
LEVELS: Final = 254
"""Byte of a packed cell at the end ``high``; 0 is the end ``low``, 255 a missing value."""


class ChartAxis(Struct, frozen=True, omit_defaults=True):
    """One axis of a panel; ``title`` names the quantity and its unit."""

    title: str = ""
    kind: Literal["number", "time", "category"] = "number"
    unit: str = ""  # written after a number, such as " %"
    digits: int | None = None  # decimals; None: as many as each number needs
    names: Sequence[str] = ()  # of a category axis
    ticks: Sequence[tuple[float, str]] = ()  # (position, label); empty: the renderer chooses
    is_reversed: bool = False
    has_zero: bool = False  # the axis includes zero
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
    texts: Sequence[str] = ()  # one label of x per point


class BandLayer(Struct, frozen=True, omit_defaults=True, tag="band"):
    """An area between two lines."""

    name: str
    x: Numbers
    low: Numbers
    high: Numbers
    role: ChartRole = "soft"


class BarLayer(Struct, frozen=True, omit_defaults=True, tag="bars"):
    """Bars from ``base`` (0 if empty), perpendicular to the category axis or upwards."""

    name: str
    x: Numbers
    y: Numbers
    roles: Sequence[ChartRole] = ("accent",)  # one per bar, or one for all
    base: Numbers = ()
    texts: Sequence[str] = ()


class MarkLayer(Struct, frozen=True, omit_defaults=True, tag="marks"):
    """Single points; ``errors`` are half the lengths of error bars along x."""

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
    """A heat map: cells as ``rows`` [y, x], or ``packed`` into bytes if they are many.

    ``x`` and ``y`` are the cells' centres, or their indices on a category axis. With a logarithmic
    ``scale``, ``rows``, ``low`` and ``high`` are logarithms, and labels show the number itself.
    With the palette ``steps``, a cell is an index into ``names``.
    """

    name: str  # of the quantity in the cells
    x: Numbers
    y: Numbers
    low: float  # end of the scale without colour; above high if less is better
    high: float
    rows: Sequence[Numbers] = ()
    packed: str = ""  # base64
    scale: Literal["linear", "log2", "log10"] = "linear"
    palette: Literal["sequential", "steps"] = "sequential"
    names: Sequence[str] = ()
    unit: str = ""
    times: float = 1.0  # labels show the number times this
    digits: int | None = None
    texts: Sequence[Sequence[str]] = ()  # [y][x], shown in place of a cell's number
    is_written: bool = False  # each cell shows its number


class EdgeLayer(Struct, frozen=True, omit_defaults=True, tag="edges"):
    """Attention of each head from decided bars (above) to earlier bars (below)."""

    firsts: Sequence[int]  # [cell] age of its newest bar, in bars
    bars: int  # age of the oldest bar, plus one
    scale: int  # the integer that stands for a share of 1
    times: Sequence[int]  # open times of the decided bars, oldest first
    shares: Sequence[Sequence[Sequence[Sequence[int]]]]  # [layer][head][decided bar][cell]


class FlowLayer(Struct, frozen=True, omit_defaults=True, tag="flow"):
    """Shares that flow between groups from column to column."""

    columns: Sequence[str]
    groups: Sequence[str]
    held: Sequence[Numbers]  # [column][group]
    flows: Sequence[Sequence[Numbers]]  # [column, without the last][from group][to group]


Layer = LineLayer | BandLayer | BarLayer | MarkLayer | RuleLayer | HeatLayer | EdgeLayer | FlowLayer


class ChartPanel(Struct, frozen=True, omit_defaults=True):
    """Layers on one pair of axes, drawn in order."""

    layers: Sequence[Layer]
    x: ChartAxis = ChartAxis()
    y: ChartAxis = ChartAxis()
    height: int = 240  # pixels
    title: str = ""
    is_grouped: bool = False  # bars at one position stand side by side, not stacked


class Chart(Struct, frozen=True, omit_defaults=True):
    """Panels in reading order, ``columns`` per row, and a caption under them.

    With ``is_aligned``, the panels are stacked and share the x axis of the last.
    """

    title: str
    caption: str
    panels: Sequence[ChartPanel]
    columns: int = 1
    is_aligned: bool = False
    lines_first: int | None = None  # so many of the last lines are drawn; the legend adds others


RUN_LINE: Final = LineLayer("", (), (), "accent", 2.2)
FULL_HOLD_LINE: Final = LineLayer("", (), (), "ink", 1.2, "dot")
BENCHMARK_LINE: Final = LineLayer("", (), (), "muted", 1.3)
"""Styles of the run's account, of buy and hold with all the money, and of other benchmarks."""
SHADOW_STYLES: Final[tuple[tuple[ChartRole, float, LineDash], ...]] = (
    ("shadow-1", 1.3, "dash"),
    ("shadow-2", 1.3, "dashdot"),
    ("shadow-3", 1.6, "dot"),
)


def shadow_line(index: int) -> LineLayer:
    """Return the style of the shadow account at *index*; no two are equal.

    The colours repeat after three, with other dashes; the dashes after nine, with wider lines.
    """
    turn, at = divmod(index, len(SHADOW_STYLES))
    _, width, dash = SHADOW_STYLES[(at + turn) % len(SHADOW_STYLES)]
    return LineLayer("", (), (), SHADOW_STYLES[at][0], width + turn // len(SHADOW_STYLES), dash)


def rounded(values: NDArray[np.float64] | Sequence[float], digits: int = 6) -> list[float | None]:
    """Return *values* to *digits* significant digits, to keep pages small; NaN becomes None."""
    return [None if math.isnan(value) else float(f"{value:.{digits}g}") for value in values]


def packed(cells: NDArray[np.float64], low: float, high: float) -> str:
    """Return *cells* as base64, a byte each, scaled from *low* to *high*; NaN becomes 255."""
    with np.errstate(invalid="ignore"):
        places = (cells - low) / (high - low) * LEVELS
    levels = np.where(np.isnan(places), 255, np.clip(np.round(places), 0, LEVELS))
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def numbers(values: Numbers) -> NDArray[np.float64]:
    """Return *values* as an array; None becomes NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def cells_of(heat: HeatLayer) -> NDArray[np.float64]:
    """Return the cells of *heat* [y, x] on its scale; a missing one is NaN."""
    if not heat.packed:
        return np.array([numbers(row) for row in heat.rows])
    levels = np.frombuffer(base64.b64decode(heat.packed), dtype=np.uint8).astype(np.float64)
    levels[levels > LEVELS] = np.nan
    return (heat.low + (heat.high - heat.low) * levels / LEVELS).reshape(len(heat.y), -1)


def cell_text(heat: HeatLayer, value: float) -> str:
    """Return the text of a *value* on the scale of *heat*."""
    if heat.palette == "steps":
        return heat.names[round(value)]
    base = {"linear": 0.0, "log2": 2.0, "log10": 10.0}[heat.scale]
    shown = heat.times * (base**value if base else value)
    digits = ",.4g" if heat.digits is None else f",.{heat.digits}f"
    return f"{shown:{digits}}{heat.unit}"


def percent_axis(title: str, digits: int = 2, *, has_zero: bool = True) -> ChartAxis:
    """Return an axis of percentages."""
    return ChartAxis(title, unit=" %", digits=digits, has_zero=has_zero)


def close_panel(
    times: Numbers, closes: NDArray[np.float64] | Sequence[float], height: int
) -> ChartPanel:
    """Return a panel of the price."""
    close = LineLayer("close", times, rounded(closes, 8), "ink", 1.2)
    return ChartPanel([close], time_axis(), ChartAxis("close"), height)


def step_line(name: str, starts: Sequence[float], end: float, values: Numbers) -> LineLayer:
    """Return a filled step line; each value holds from its start to the next, or to *end*."""
    x, y = [*starts, end], [*values, None]
    return LineLayer(name, x, y, width=1.0, is_step=True, is_filled=True)


def time_axis(title: str = "") -> ChartAxis:
    """Return an axis of times."""
    return ChartAxis(title, kind="time")


def category_axis(names: Sequence[str], title: str = "", *, is_reversed: bool = False) -> ChartAxis:
    """Return a category axis; the first of *names* is at 0."""
    return ChartAxis(title, kind="category", names=names, is_reversed=is_reversed)
