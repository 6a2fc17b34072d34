"""Tables and paragraphs for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from rich import table as rich_table
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from tracepaper.replay.document.charts import (
    BandLayer,
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    EdgeLayer,
    FlowLayer,
    HeatLayer,
    LineLayer,
    MarkLayer,
    Numbers,
    RuleLayer,
    cell_text,
    cells_of,
    numbers,
)
from tracepaper.replay.document.renderer import Renderer
from tracepaper.replay.document.values import (
    TEXTS,
    FoldedParts,
    Form,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    bar_of,
    tone,
    written,
)
from tracepaper.strategies.units import minute_text, visible

ROWS_SHOWN: Final = 12
SIDE_BY_SIDE: Final = 4
"""Rows of a turned table in one grid; the next ones start another grid below."""
COLOURS: Final = {"": "", "gain": "green", "loss": "red"}


def head(console: Console, title: str, text: str) -> None:
    """Print *text* in a frame with *title*."""
    lines, heading = Text(text), Text(title)
    console.print(Panel(lines, title=heading, title_align="left", border_style="dim"))


def show_document(console: Console, document: TitledParts, *, blank_lines: bool = True) -> None:
    """Print *document*, its first paragraph in a frame under the title."""
    first, *parts = document.parts
    assert isinstance(first, Paragraph)
    head(console, document.title, first.text)
    show(console, parts, blank_lines=blank_lines)


def show(console: Console, parts: Iterable[Part], *, blank_lines: bool = True) -> None:
    """Print *parts*, with *blank_lines* before tables and charts; only pages show folds.

    A last line names what a terminal cannot draw.
    """
    undrawn: dict[str, None] = {}
    for place, part in enumerate(parts):
        if place and blank_lines and isinstance(part, Table | Chart):
            console.print()
        match part:
            case Table():
                console.print(renderable(part))
            case Paragraph():
                console.print(_paragraph(part), soft_wrap=part.style == "code")  # to be copied
            case Chart():
                rows = list(_chart_rows(part, console.width, undrawn))
                console.print(Text(part.title or part.caption, style="bold"))
                if rows:
                    console.print(_UnpaddedGrid(_chart_grid(rows)))
            case FoldedParts():
                pass
    if undrawn:
        names = "; ".join(undrawn)
        console.print(Text(f"A terminal does not draw: {names}. A page does.", style="dim"))


def renderable(table: Table) -> RenderableType:
    """Return *table* with its title and notes; only these if it has no rows."""
    parts: list[RenderableType] = []
    if table.look == "pairs":
        pairs = (f"{row['name']} {row['value']}" for row in table.records())
        parts.append(Text(visible(f"{table.title}: {', '.join(pairs)}.")))
    elif table.title:
        aside = f", {table.aside}" if table.aside else ""
        parts.append(Text(table.title + aside + _shown_rows_text(table), style="bold"))
    if table.rows and table.look != "pairs":
        parts += map(_UnpaddedGrid, _grids(table))
    parts += [_paragraph(Paragraph(note, "note")) for note in table.notes]
    return Group(*parts)


def _paragraph(part: Paragraph) -> RenderableType:
    match part.style:
        case "plain" | "lead" | "code" | "detail":
            return Text(part.text)
        case "heading":
            return Text(part.text, style="bold reverse")
        case "strong":
            return Text(part.text, style="bold")
        case "warning":
            return Text(part.text, style="yellow")
        case "item":
            return Padding(Text(part.text), (0, 0, 0, 2))
        case "note":
            return Padding(Text(part.text, style="dim"), (0, 0, 0, 2))


def _shown_rows_text(table: Table) -> str:
    """Return which rows are shown, or nothing if all are."""
    count = _rows_shown(table)
    if table.turned or len(table.rows) <= count:
        return ""
    return f" (the {'last' if table.newest else 'first'} {count} of {len(table.rows):,})"


def _rows_shown(table: Table) -> int:
    return len(table.rows) if table.whole else min(ROWS_SHOWN, table.shown or ROWS_SHOWN)


def _grids(table: Table) -> Iterator[rich_table.Table]:
    """Yield *table* as one grid; a turned table as several that fit the width."""
    if not table.turned:
        yield _upright(table)
        return
    for start in range(0, len(table.rows), SIDE_BY_SIDE):
        yield _turned(table, table.rows[start : start + SIDE_BY_SIDE])


class _UnpaddedGrid:
    """A grid whose lines end with their text, not with the spaces of the last column."""

    def __init__(self, grid: rich_table.Table) -> None:
        self._grid = grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self._grid, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            yield from line[:-1]
            yield from (Segment(last.text.rstrip(), last.style) for last in line[-1:])
            yield Segment.line()


def _upright(table: Table) -> rich_table.Table:
    shown = [(place, figure) for place, figure in enumerate(table.figures) if not figure.wide]
    has_head = table.look not in ("stack", "timeline")
    grid = rich_table.Table(box=None, pad_edge=False, show_header=has_head)
    for place, figure in shown:
        is_text = figure.form in TEXTS
        grid.add_column(
            table.heading(place),
            justify="left" if is_text else "right",
            no_wrap=not is_text or figure.form in ("minute", "second"),
        )
    count = _rows_shown(table)
    for row in table.rows[-count:] if table.newest else table.rows[:count]:
        grid.add_row(*(_cell(row[place], figure.form) for place, figure in shown))
    return grid


def _turned(table: Table, rows: tuple[tuple[Value, ...], ...]) -> rich_table.Table:
    """Return the figures as rows, without those that are None in every row."""
    grid = rich_table.Table(box=None, pad_edge=False)
    grid.add_column("")
    for row in rows:
        grid.add_column(Text(str(row[0])), justify="right")
    for place, figure in enumerate(table.figures[1:], start=1):
        if not figure.wide and any(row[place] is not None for row in table.rows):
            grid.add_row(table.heading(place), *(_cell(row[place], figure.form) for row in rows))
    return grid


# ---------------------------------------------------------------- charts in characters


class ChartRow(NamedTuple):
    """One row of a chart in characters: its name, its drawing, and the range drawn."""

    name: str
    drawing: str
    scale: str


CELLS_MOST: Final = 60
"""Most characters of a drawing."""
CELLS_LEAST: Final = 10
HEAT_ROWS_MOST: Final = 12
NAMES_ROOM: Final = 60
"""Characters of a line that names and scales of a chart may take."""
HEIGHTS: Final = "▁▂▃▄▅▆▇█"
SHADES: Final = "·░▒▓█"


def _chart_grid(rows: Sequence[ChartRow]) -> rich_table.Table:
    grid = rich_table.Table(box=None, pad_edge=False, show_header=False)
    grid.add_column()
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    for row in rows:
        grid.add_row(Text(visible(row.name)), Text(row.drawing, style="cyan"), Text(row.scale))
    return grid


def _chart_rows(chart: Chart, width: int, undrawn: dict[str, None]) -> Iterator[ChartRow]:
    """Yield *chart* in characters; add to *undrawn* the names of layers without any.

    A chart with ``lines_first`` shows only the lines of the run.
    """
    cells = min(max(width - NAMES_ROOM, CELLS_LEAST), CELLS_MOST)
    for panel in chart.panels:
        for layer in panel.layers:
            is_other = isinstance(layer, LineLayer) and layer.role != "accent"
            is_later = is_other and chart.lines_first is not None
            rows = None if is_later else CHARACTERS.draw(cells, panel, layer)
            if rows is not None:
                yield from rows
            elif name := getattr(layer, "name", chart.title):
                undrawn[name] = None


def _sampled(x: Numbers, y: Numbers, cells: int, *, ends: tuple[float, float]) -> list[float]:
    """Return the last value in each of *cells* equal parts between *ends*; NaN without one."""
    low, high = ends
    share = (numbers(x) - low) / (high - low if high > low else 1.0)
    places = np.round(share * (cells - 1)).astype(np.int64)
    sampled = [float("nan")] * cells
    for place, value in zip(places.tolist(), numbers(y).tolist(), strict=True):
        if not np.isnan(value):
            sampled[place] = value
    return sampled


def _ends(panel: ChartPanel) -> tuple[float, float]:
    """Return the ends of the x axis."""
    every = [x for layer in panel.layers for x in getattr(layer, "x", ()) if x is not None]
    return min(every, default=0.0), max(every, default=1.0)


def _levels(values: Sequence[float], low: float, high: float, signs: str) -> str:
    span = high - low
    return "".join(
        " "
        if np.isnan(value)
        else signs[min(int((value - low) / span * len(signs)), len(signs) - 1) if span else 0]
        for value in values
    )


def _number(value: float, axis: ChartAxis) -> str:
    match axis.kind:
        case "time":
            return minute_text(int(value))
        case "category":
            return axis.names[round(value)]
        case "number":
            digits = "z,.6g" if axis.digits is None else f"z,.{axis.digits}f"
            return f"{value:{digits}}{axis.unit}"


def _line(cells: int, panel: ChartPanel, layer: LineLayer) -> list[ChartRow] | None:
    values = numbers(layer.y)
    values = values[~np.isnan(values)]
    if not values.size:
        return []
    low, high, last = (
        _number(float(value), panel.y) for value in (values.min(), values.max(), values[-1])
    )
    sampled = _sampled(layer.x, layer.y, min(cells, len(layer.x)), ends=_ends(panel))
    drawing = _levels(sampled, float(values.min()), float(values.max()), HEIGHTS)
    title = panel.y.title
    name = title if title.startswith(layer.name) else f"{layer.name}, {title}".removesuffix(", ")
    return [ChartRow(name, drawing, f"{low} to {high}, last {last}")]


def _bars(cells: int, panel: ChartPanel, layer: BarLayer) -> list[ChartRow] | None:
    if layer.base:
        return None  # a bar that begins elsewhere than at zero
    if panel.y.kind != "category":
        return _heights(cells, panel, layer)
    lengths = numbers(layer.x)
    most = float(np.nanmax(np.abs(lengths), initial=0.0)) or 1.0
    return [
        ChartRow(
            _number(float(place or 0.0), panel.y),
            bar_of(abs(length) / most, cells),
            f"{_number(length, panel.x)} {layer.name}",
        )
        for place, length in zip(layer.y, lengths.tolist(), strict=True)
    ]


def _heights(cells: int, panel: ChartPanel, layer: BarLayer) -> list[ChartRow]:
    """Return upright bars as one row."""
    heights = np.nan_to_num(numbers(layer.y))
    low, high = min(float(heights.min()), 0.0), float(heights.max())
    heights[heights == 0] = np.nan  # drawn as nothing
    sampled = _sampled(layer.x, heights.tolist(), min(cells, heights.size), ends=_ends(panel))
    ends = (_number(at, panel.x) for at in _ends(panel))
    scale = f"{_number(low, panel.y)} to {_number(high, panel.y)}, at {' to '.join(ends)}"
    return [ChartRow(layer.name, _levels(sampled, low, high, HEIGHTS), scale)]


def _marks(cells: int, panel: ChartPanel, layer: MarkLayer) -> list[ChartRow] | None:
    if panel.y.kind != "category" or layer.errors:
        return None  # points at a height
    rows = []
    low, high = _ends(panel)
    for place in dict.fromkeys(layer.y):
        x = [at for at, row in zip(layer.x, layer.y, strict=True) if row == place]
        ones = _sampled(x, [1.0] * len(x), cells, ends=(low, high))
        drawing = "".join("•" if value == 1.0 else " " for value in ones)
        count = f"{len(x):,}"
        rows.append(ChartRow(panel.y.names[round(place or 0)], drawing, count))
    return rows


def _heat(cells: int, panel: ChartPanel, layer: HeatLayer) -> list[ChartRow] | None:
    if len(layer.y) > HEAT_ROWS_MOST:
        return None
    scale = f"{cell_text(layer, layer.low)} to {cell_text(layer, layer.high)} {layer.name}"
    rows = []
    for place, row in zip(layer.y, cells_of(layer), strict=True):
        sampled = row.tolist()
        if len(sampled) > cells:
            sampled = _sampled(layer.x, sampled, cells, ends=_ends(panel))
        rows.append(
            ChartRow(
                _number(float(place or 0.0), panel.y),
                _levels(sampled, layer.low, layer.high, SHADES),
                scale,
            )
        )
    return rows


def _nothing(
    _cells: int, _panel: ChartPanel, _layer: BandLayer | RuleLayer | EdgeLayer | FlowLayer
) -> list[ChartRow] | None:
    return None


CHARACTERS: Final[Renderer[int, list[ChartRow] | None]] = Renderer(
    line=_line,
    band=_nothing,
    bars=_bars,
    marks=_marks,
    rule=_nothing,
    heat=_heat,
    edges=_nothing,
    flow=_nothing,
)
"""Layers as rows of at most so many characters; None if characters cannot draw one."""


def _cell(value: Value, form: Form) -> Text:
    match form:
        case "bar":
            style = "cyan"
        case "mark":
            style = COLOURS["gain" if value else "loss"]
        case _:
            style = COLOURS[tone(value, form)]
    return Text(visible(written(value, form)), style=style)
