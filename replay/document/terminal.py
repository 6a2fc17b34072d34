"""Tables and paragraphs for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich import table as rich_table
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from tracepaper.replay.document.charts import Chart
from tracepaper.replay.document.values import (
    BARS,
    TEXTS,
    FoldedParts,
    Form,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    tone,
    written,
)
from tracepaper.strategies.units import visible

ROWS_SHOWN: Final = 12
SIDE_BY_SIDE: Final = 4
"""Rows of a turned table in one grid; the next ones start another grid below."""
WIDEST: Final = 10_000
"""Characters within which any table is measured."""
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
    """Print *parts*, with *blank_lines* before tables; only pages show folds.

    A last line names the charts, which a page draws.
    """
    undrawn: dict[str, None] = {}
    for place, part in enumerate(parts):
        if place and blank_lines and isinstance(part, Table):
            console.print()
        match part:
            case Table():
                console.print(renderable(part))
            case Paragraph():
                console.print(_paragraph(part), soft_wrap=part.style == "code")  # to be copied
            case Chart():
                undrawn[part.title or part.caption] = None
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
        parts += map(_UnpaddedGrid, _grids(table)) if table.turned else [_Upright(table)]
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
    """Yield a turned *table* as several grids that fit the width."""
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


class _Upright:
    """A table whose figures are columns; drawn bars go first where the width does not suffice."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        figures = self._table.figures
        shown = [place for place, figure in enumerate(figures) if not figure.wide]
        grid = _upright(self._table, shown)
        unbounded = options.update(max_width=WIDEST)
        if Measurement.get(console, unbounded, grid).maximum > options.max_width:
            shown = [place for place in shown if figures[place].form not in BARS]
            grid = _upright(self._table, shown)
        yield _UnpaddedGrid(grid)


def _upright(table: Table, shown: Sequence[int]) -> rich_table.Table:
    """Return the figures *shown* as columns. Headings wrap, numbers do not.

    In a list of the newest rows each row is one line: a text that is too long is cut.
    """
    count = _rows_shown(table)
    rows = table.rows[-count:] if table.newest else table.rows[:count]
    has_head = table.look not in ("stack", "timeline")
    grid = rich_table.Table(box=None, pad_edge=False, show_header=has_head)
    columns = list[list[Text]]()
    for place in shown:
        form = table.figures[place].form
        cells = [_cell(row[place], form) for row in rows]
        is_text = form in TEXTS and form not in ("minute", "second")
        widest = max(cell.cell_len for cell in cells)
        heading = table.heading(place)
        grid.add_column(
            heading,
            justify="left" if form in TEXTS else "right",
            min_width=None if is_text else widest,
            no_wrap=not is_text and len(heading) <= widest,
        )
        if table.newest and is_text:
            for cell in cells:
                cell.no_wrap, cell.overflow = True, "ellipsis"
        columns.append(cells)
    for row_cells in zip(*columns, strict=True):
        grid.add_row(*row_cells)
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


def _cell(value: Value, form: Form) -> Text:
    match form:
        case "bar":
            style = "cyan"
        case "mark":
            style = COLOURS["gain" if value else "loss"]
        case _:
            style = COLOURS[tone(value, form)]
    return Text(visible(written(value, form)), style=style)
