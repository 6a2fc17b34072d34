"""Tables and paragraphs for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rich import table as rich_table
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from tracepaper.replay.document.charts import Chart
from tracepaper.replay.document.values import (
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


def _cell(value: Value, form: Form) -> Text:
    match form:
        case "bar":
            style = "cyan"
        case "mark":
            style = COLOURS["gain" if value else "loss"]
        case _:
            style = COLOURS[tone(value, form)]
    return Text(visible(written(value, form)), style=style)
