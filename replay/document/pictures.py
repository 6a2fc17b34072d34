"""Draw a ``Chart`` with matplotlib, its panels stacked over one time axis.

Equal charts give equal files. Only lines, bands, bars and marks are drawn; pages draw all layers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tracepaper.replay.document.charts import (
    BandLayer,
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    ChartRole,
    LineLayer,
    MarkLayer,
    Numbers,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

KINDS: Final = {".png": "png", ".svg": "svg"}
DPI: Final = 130
WIDTH: Final = 12.0
PIXELS: Final = 60
"""Pixels of a panel's height per inch."""
_ROLES: Final[dict[ChartRole, str]] = {
    "accent": "#0f6e84", "shadow-1": "#6a4fa3", "shadow-2": "#8a5a00", "shadow-3": "#a83a77",
    "soft": "#0f6e8433", "ink": "#1c2024", "muted": "#666b72", "faint": "#e6e3dd",
    "gain": "#15803d", "loss": "#b3352c",
}  # fmt: skip
_DASHES: Final = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_SHAPES: Final = {"dot": "o", "ring": "o", "cross": "x", "up": "^", "down": "v", "tick": "|"}
_LEGEND_MOST: Final = 8


def figure_of(chart: Chart) -> Figure:
    """Draw *chart* under its title."""
    heights = [panel.height for panel in chart.panels]
    figure: Figure = import_module("matplotlib.figure").Figure(
        figsize=(WIDTH, 0.8 + sum(heights) / PIXELS), layout="constrained"
    )
    panels = figure.subplots(
        len(heights),
        1,
        sharex=chart.is_aligned,
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
    )[:, 0]
    for axes, panel in zip(panels, chart.panels, strict=True):
        _draw(axes, panel)
    figure.suptitle(chart.title, x=0.01, ha="left", fontsize=11, color=_ROLES["ink"])
    return figure


def write_picture(chart: Chart, path: Path) -> None:
    """Write *chart* as SVG if *path* ends in ``.svg``, else as PNG.

    Raises ``ConfigInvalid`` if the file cannot be written.
    """
    kind = KINDS.get(path.suffix.lower(), "png")
    undated = {"Date": None} if kind == "svg" else {}
    fixed = {"svg.hashsalt": "tracepaper", "svg.fonttype": "none"}
    figure = figure_of(chart)
    with import_module("matplotlib").rc_context(fixed):
        try:
            figure.savefig(path, format=kind, dpi=DPI, metadata=undated)
        except OSError as error:
            raise ConfigInvalid(
                f"The picture cannot be written to {path}: {error.strerror}; choose another file."
            ) from error


def _draw(axes: Any, panel: ChartPanel) -> None:  # noqa: ANN401 - matplotlib's
    for layer in panel.layers:
        _layer(axes, panel, layer)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0)
    axes.grid(visible=True, alpha=0.2)
    axes.set_title(panel.title, loc="left", fontsize=9, color=_ROLES["muted"])
    for which, axis in (("x", panel.x), ("y", panel.y)):
        _label(axes, which, axis)
    if 0 < len(axes.get_legend_handles_labels()[1]) <= _LEGEND_MOST:
        axes.legend(loc="upper left", fontsize=8, frameon=False)


def _label(axes: Any, which: str, axis: ChartAxis) -> None:  # noqa: ANN401 - matplotlib's
    getattr(axes, f"set_{which}label")(axis.title, fontsize=9)
    drawn_axis = getattr(axes, f"{which}axis")
    if axis.kind == "time":
        dates = import_module("matplotlib.dates")
        locator = dates.AutoDateLocator()
        drawn_axis.set_major_locator(locator)
        drawn_axis.set_major_formatter(dates.ConciseDateFormatter(locator))
    else:
        drawn_axis.set_major_formatter("{x:,g}")


def _layer(
    axes: Any,  # noqa: ANN401 - matplotlib's
    panel: ChartPanel,
    layer: object,
) -> None:
    match layer:
        case LineLayer():
            x, y, colour = _places(layer.x, panel.x), _numbers(layer.y), _ROLES[layer.role]
            style = "steps-post" if layer.is_step else "default"
            if layer.is_filled:
                step = "post" if layer.is_step else None
                axes.fill_between(x, y, step=step, color=colour, alpha=0.3, linewidth=0)
            axes.plot(
                x, y, _DASHES[layer.dash], color=colour, linewidth=layer.width, drawstyle=style,
                label=layer.name,
            )  # fmt: skip
        case BandLayer():
            low, high = _numbers(layer.low), _numbers(layer.high)
            colour = _ROLES[layer.role]
            axes.fill_between(_places(layer.x, panel.x), low, high, color=colour, linewidth=0)
        case BarLayer():
            colours = [_ROLES[role] for role in layer.roles]
            x, y = _places(layer.x, panel.x), _numbers(layer.y)
            width = float(np.median(np.diff(x))) if len(x) > 1 else 1.0
            axes.bar(x, y, width, color=colours)
        case MarkLayer():
            colours = [_ROLES[role] for role in layer.roles]
            x, y = _places(layer.x, panel.x), _numbers(layer.y)
            shape = _SHAPES[layer.shape]
            marks = axes.scatter(x, y, 26, c=colours, marker=shape, zorder=3, clip_on=False)
            if layer.shape == "ring":
                marks.set(facecolor="none", edgecolor=colours)
        case _:
            raise TypeError(f"{type(layer).__name__} is drawn only on pages")


def _numbers(values: Numbers) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _places(values: Numbers, axis: ChartAxis) -> NDArray[np.float64]:
    """Return *values* in matplotlib's units: times in days."""
    return _numbers(values) / (DAY_MS if axis.kind == "time" else 1)
