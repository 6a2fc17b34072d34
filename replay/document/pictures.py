"""Draw a ``Chart`` with matplotlib. Equal charts give equal files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tracepaper.replay.document.charts import (
    BandLayer,
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    ChartRole,
    HeatLayer,
    Layer,
    LineLayer,
    MarkLayer,
    Numbers,
    RuleLayer,
    cell_text,
    cells_of,
    numbers,
)
from tracepaper.storage.paths import path_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

Axes = Any  # matplotlib's
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
_PALETTES: Final = {
    "sequential": ("#f6f4ef", "#8fbfc9", "#06404e"),
    "steps": ("#e6e3dd", "#8fbfc9", "#0f6e84"),
}
_DASHES: Final = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_SHAPES: Final = {"dot": "o", "ring": "o", "cross": "x", "up": "^", "down": "v", "tick": "|"}
_LETTER: Final = 0.075
"""Width of a small letter in inches."""
_LEGEND_SIGN: Final = 5
"""Width of a legend's sign and gap, in letters."""
CELLS: Final = 800
"""Most cells of a side of a written matrix."""


def figure_of(chart: Chart) -> Figure:
    """Draw *chart* under its title."""
    rows = [
        chart.panels[start : start + chart.columns]
        for start in range(0, len(chart.panels), chart.columns)
    ]
    heights = [max(panel.height for panel in row) for row in rows]
    figure: Figure = import_module("matplotlib.figure").Figure(
        figsize=(WIDTH, 0.8 + 0.3 * len(rows) + sum(heights) / PIXELS), layout="constrained"
    )
    grid = figure.subplots(
        len(rows),
        chart.columns,
        sharex=chart.is_aligned,
        gridspec_kw={"height_ratios": heights},
        squeeze=False,
    )
    for axes in grid.flat[len(chart.panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, chart.panels, strict=False):
        is_last = not chart.is_aligned or panel is chart.panels[-1]
        _draw(axes, panel, WIDTH / chart.columns, is_last=is_last)
    figure.suptitle(chart.title, x=0.01, ha="left", fontsize=11, color=_ROLES["ink"])
    return figure


def check_picture_file(path: Path, option: str) -> None:
    """Raise ``ConfigInvalid`` if no picture can be written to *path*, which *option* names."""
    if path.suffix.lower() not in KINDS:
        raise ConfigInvalid(f"{path} is not a picture; give a .png or .svg file.")
    require("matplotlib", option)


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


def write_matrix(matrix: ArrayLike, path: str | Path, times_ms: Sequence[float] = ()) -> None:
    """Write a *matrix* [row, column], such as ``attention_map`` gives, as a heat map to *path*.

    *times_ms* are the UTC times of the columns, and of the rows if these are as many; otherwise
    they are numbered from 0. Beyond ``CELLS`` cells a side, means of blocks are drawn. The colours
    end at the quantile of 99.5 %. Raises ``ConfigInvalid`` like ``check_picture_file`` and
    ``write_picture``, ``DataInvalid`` without finite numbers [row, column] and a time per column.
    """
    check_picture_file(file := path_of(path), "write_matrix")
    cells = np.asarray(matrix, dtype=np.float64)
    is_matrix = cells.ndim == 2 and bool(cells.size) and bool(np.isfinite(cells).all())
    if not is_matrix or len(times_ms) not in (0, cells.shape[1]):
        raise DataInvalid(
            f"The matrix is {list(cells.shape)}, with {len(times_ms)} times; give finite numbers "
            "[row, column], and a time for each column or none."
        )
    step, places, axes = -(-max(cells.shape) // CELLS), [], []
    for axis, name in enumerate(("row", "column")):
        starts = np.arange(0, count := cells.shape[axis], step)
        sizes = np.diff(starts, append=count)
        cells = np.add.reduceat(cells, starts, axis) / (sizes if axis else sizes[:, None])
        is_time = len(times_ms) == count
        places.append([float(times_ms[at]) if is_time else float(at) for at in starts])
        axes.append(ChartAxis(name, "time" if is_time else "number", is_reversed=not axis))
    most = float(np.quantile(cells, 0.995)) or float(cells.max())
    low, high = min(0.0, float(cells.min())), max(0.0, most)
    heat = HeatLayer("cell", places[1], places[0], low, high, cells.tolist())
    write_picture(Chart("", "", [ChartPanel([heat], axes[1], axes[0], 600)]), file)


# ---------------------------------------------------------------- one panel


def _draw(axes: Axes, panel: ChartPanel, width: float, *, is_last: bool) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.05 if panel.y.kind == "category" and panel.x.kind == "number" else 0.0)
    if not any(isinstance(layer, HeatLayer) for layer in panel.layers):
        axes.grid(visible=True, alpha=0.2)
    axes.set_axisbelow(True)
    _label(axes, "x", panel.x, is_last=is_last)
    _label(axes, "y", panel.y)
    for layer in panel.layers:
        _DRAW[type(layer)](axes, panel, layer)
    for which, axis in (("x", panel.x), ("y", panel.y)):
        if axis.has_zero:
            low, high = sorted(getattr(axes, f"get_{which}lim")())
            getattr(axes, f"set_{which}bound")(min(low, 0.0), max(high, 0.0))
    titles = [panel.title, *(_scale_text(each) for each in panel.layers)]
    title = "; ".join(filter(None, titles))
    axes.set_title(title, loc="left", fontsize=9, color=_ROLES["muted"])
    _legend(axes, width, has_title=bool(title))


def _scale_text(layer: object) -> str:
    """Return what the colours of a heat map mean; nothing for other layers."""
    if not isinstance(layer, HeatLayer):
        return ""
    if layer.palette == "steps":
        return f"{layer.name}, from pale to full: {', '.join(layer.names)}"
    return (
        f"{layer.name}, from pale to full: {cell_text(layer, layer.low)} to "
        f"{cell_text(layer, layer.high)}"
    )


def _legend(axes: Axes, width: float, *, has_title: bool) -> None:
    """Write the legend above the panel, so that it hides no data."""
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if not named or (len(named) == 1 and axes.get_ylabel().startswith(next(iter(named)))):
        return
    letters = max(map(len, named)) + _LEGEND_SIGN
    columns = max(1, min(len(named), int(width * 0.9 / (_LETTER * letters))))
    if has_title and columns < len(named):
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=9, pad=18)
    side, at = ("right", 1.0) if has_title else ("left", 0.0)
    axes.legend(
        named.values(),
        named,
        loc=f"lower {side}",
        bbox_to_anchor=(at, 1.0),
        ncols=columns,
        fontsize=8,
        frameon=False,
        borderaxespad=0.1,
        columnspacing=1.2,
    )


def _label(axes: Axes, which: str, axis: ChartAxis, *, is_last: bool = True) -> None:
    drawn_axis = getattr(axes, f"{which}axis")
    title = axis.title or ("UTC" if axis.kind == "time" and which == "x" else "")
    getattr(axes, f"set_{which}label")(title if is_last else "", fontsize=9)
    match axis.kind:
        case "time":
            dates = import_module("matplotlib.dates")
            locator = dates.AutoDateLocator()
            drawn_axis.set_major_locator(locator)
            drawn_axis.set_major_formatter(dates.ConciseDateFormatter(locator))
        case "category":
            names = [name if axis.has_labels else "" for name in axis.names]
            step = -(-len(names) // (40 if which == "y" else 24))
            drawn_axis.set_ticks(range(0, len(names), step), names[::step], fontsize=8)
            getattr(axes, f"set_{which}lim")(-0.5, len(names) - 0.5)
        case "number":
            if axis.ticks:
                drawn_axis.set_ticks(*zip(*axis.ticks, strict=True))
            else:
                drawn_axis.set_major_formatter("{x:,g}")
    drawn_axis.set_tick_params(labelsize=8)
    drawn_axis.get_offset_text().set_size(8)
    if not axis.has_labels:
        drawn_axis.set_ticklabels([])
    if axis.is_reversed:
        drawn_axis.set_inverted(True)


def _places(values: Numbers, axis: ChartAxis) -> Floats:
    """Return *values* in matplotlib's units: times in days."""
    return numbers(values) / (DAY_MS if axis.kind == "time" else 1)


# ---------------------------------------------------------------- its layers


def _line(axes: Axes, panel: ChartPanel, layer: LineLayer) -> None:
    x, y, colour = _places(layer.x, panel.x), numbers(layer.y), _ROLES[layer.role]
    style = "steps-post" if layer.is_step else "default"
    if layer.is_filled:
        step = "post" if layer.is_step else None
        axes.fill_between(x, y, step=step, color=colour, alpha=0.3, linewidth=0)
    axes.plot(
        x, y, _DASHES[layer.dash], color=colour, linewidth=layer.width, drawstyle=style,
        label=layer.name, marker="o" if layer.has_points else "", markersize=4,
    )  # fmt: skip


def _band(axes: Axes, panel: ChartPanel, layer: BandLayer) -> None:
    low, high, colour = numbers(layer.low), numbers(layer.high), _ROLES[layer.role]
    x = _places(layer.x, panel.x)
    axes.fill_between(x, low, high, color=colour, linewidth=0, label=layer.name)


def _bars(axes: Axes, panel: ChartPanel, layer: BarLayer) -> None:
    colours = [_ROLES[role] for role in layer.roles]
    is_flat = panel.y.kind == "category"
    places = numbers(layer.y) if is_flat else _places(layer.x, panel.x)
    lengths = numbers(layer.x if is_flat else layer.y)
    room = float(np.median(np.diff(places))) if len(places) > 1 else 1.0
    room *= 0.66 if is_flat else 0.94
    bars = [each for each in panel.layers if isinstance(each, BarLayer)]
    if panel.is_grouped:
        room /= len(bars)
        places = places + room * (bars.index(layer) - (len(bars) - 1) / 2)
    base = numbers(layer.base) if layer.base else np.zeros(len(lengths))
    if not layer.base and not panel.is_grouped:
        base = _piled(bars[: bars.index(layer)], lengths, is_flat=is_flat)
    draw = axes.barh if is_flat else axes.bar
    sides = {"left" if is_flat else "bottom": base}
    name = layer.name if len(set(layer.roles)) == 1 else ""
    draw(places, lengths, room, color=colours, label=name, **sides)


def _piled(below: list[BarLayer], lengths: Floats, *, is_flat: bool) -> Floats:
    """Return where stacked bars begin: at the end of those of their sign *below* them."""
    base = np.zeros(len(lengths))
    for layer in below:
        if layer.base:
            continue
        others = np.nan_to_num(numbers(layer.x if is_flat else layer.y))
        if others.size == base.size:
            base += np.where((others > 0) == (lengths > 0), others, 0.0)
    return base


def _marks(axes: Axes, panel: ChartPanel, layer: MarkLayer) -> None:
    x, y = _places(layer.x, panel.x), _places(layer.y, panel.y)
    colours = [_ROLES[layer.roles[at % len(layer.roles)]] for at in range(len(x))]
    if layer.errors:
        errors = numbers(layer.errors)
        axes.errorbar(x, y, xerr=errors, fmt="none", ecolor=colours, elinewidth=1.2)
    marks = axes.scatter(
        x, y, 26, c=colours, marker=_SHAPES[layer.shape], zorder=3, clip_on=False, label=layer.name
    )
    if layer.shape == "ring":
        marks.set(facecolor="none", edgecolor=colours)


def _rule(axes: Axes, panel: ChartPanel, layer: RuleLayer) -> None:
    axis = panel.x if layer.axis == "x" else panel.y
    (at,) = _places([layer.at], axis)
    draw = axes.axvline if layer.axis == "x" else axes.axhline
    dash = "--" if layer.name and layer.role != "faint" else "-"
    width = 4 if layer.role == "faint" else 1
    draw(at, color=_ROLES[layer.role], linestyle=dash, linewidth=width, label=layer.name)


def _heat(axes: Axes, panel: ChartPanel, layer: HeatLayer) -> None:
    cells = cells_of(layer)
    across, down = _edges(_places(layer.x, panel.x)), _edges(_places(layer.y, panel.y))
    colours = import_module("matplotlib.colors").LinearSegmentedColormap.from_list(
        layer.palette, _PALETTES[layer.palette]
    )
    low, high = sorted((layer.low, layer.high))
    shown = cells if layer.low <= layer.high else low + high - cells
    shown = np.full_like(shown, (low + high) / 2) if low == high else shown
    shown = np.ma.masked_invalid(np.where(np.isnan(cells), np.nan, shown))
    is_few = cells.size <= 400 and panel.x.kind == "category"  # lines between cells
    axes.pcolormesh(
        across, down, shown, cmap=colours, vmin=low, vmax=high if high > low else low + 1.0,
        edgecolors="white" if is_few else "none", linewidth=1.5 if is_few else 0, rasterized=True,
    )  # fmt: skip
    if layer.is_written:
        _write_cells(axes, layer, cells)


def _write_cells(axes: Axes, layer: HeatLayer, cells: Floats) -> None:
    """Write each number into its cell, in white on the darker half of the scale."""
    span = layer.high - layer.low
    for (row, column), value in np.ndenumerate(cells):
        if np.isnan(value):
            continue
        text = layer.texts[row][column] if layer.texts else cell_text(layer, float(value))
        is_dark = span != 0 and (value - layer.low) / span > 0.6
        axes.text(
            layer.x[column], layer.y[row], text, ha="center", va="center", fontsize=8,
            color="white" if is_dark else _ROLES["ink"],
        )  # fmt: skip


def _edges(middles: Floats) -> Floats:
    """Return the edges of cells with the centres *middles*."""
    if middles.size < 2:
        return np.array([middles[0] - 0.5, middles[0] + 0.5])
    inner = 0.5 * (middles[1:] + middles[:-1])
    return np.concatenate(([2 * middles[0] - inner[0]], inner, [2 * middles[-1] - inner[-1]]))


_DRAW: Final[Mapping[type[Layer], Callable[[Axes, ChartPanel, Any], None]]] = {
    LineLayer: _line,
    BandLayer: _band,
    BarLayer: _bars,
    MarkLayer: _marks,
    RuleLayer: _rule,
    HeatLayer: _heat,
}
"""Edges and flows of attention are drawn by pages alone."""
