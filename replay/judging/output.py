"""A judgement of spans, or of folds, for a terminal, as one JSON document, and as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tracepaper.replay.archive.columns import iso
from tracepaper.replay.judging.books import BookJudgement
from tracepaper.replay.judging.figures import SHOWN, tables_across, tables_of
from tracepaper.replay.judging.judgement import SpanJudgement
from tracepaper.replay.report.document import Markup, Table, element, figures, joined, printed
from tracepaper.replay.report.page import Charts, whole_page, write_text


def show(console: Console, every: Sequence[SpanJudgement]) -> None:
    """Print every table of each span, then those of all together."""
    for one in every:
        console.print(Text(heading(one), style="bold reverse"))
        show_tables(console, tables_of(one))
        for sentence in one.sentences:
            console.print(f"• {sentence}", markup=False)
    show_tables(console, tables_across(every))


def show_tables(console: Console, tables: Sequence[Table]) -> None:
    """Print *tables*, a line between; one without rows is what it says instead."""
    for table in tables:
        console.print()
        if table.rows:
            console.print(printed(table))
            continue
        console.print(Text(table.title, style="bold"))
        for note in table.notes:
            console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))


def heading(one: SpanJudgement | BookJudgement) -> str:
    """Return what was judged, from when until when."""
    return (
        f"{one.span.name}: {', '.join(one.symbols)}, {iso(one.from_ms)[:10]} until "
        f"{iso(one.until_ms)[:10]}, {one.days} days"
    )


def as_document(model_id: str, recipe: str, every: Sequence[SpanJudgement]) -> dict[str, Any]:
    """Return the judgement as plain values; estimates are ``{"value", "error"}``.

    ``figures`` and ``sentences`` are the first span's; every table is a list of rows by its key.
    """
    return {
        "id": model_id,
        "recipe": recipe,
        "figures": every[0].judged.figures,
        "sentences": every[0].sentences,
        "spans": [
            {
                "name": one.span.name,
                "from_ms": one.from_ms,
                "until_ms": one.until_ms,
                "days": one.days,
                "symbols": list(one.symbols),
                "openings": one.openings,
                "figures": one.judged.figures,
                "sentences": one.sentences,
                "tables": documents(tables_of(one)),
            }
            for one in every
        ],
        "tables": documents(tables_across(every)),
    }


def documents(tables: Sequence[Table]) -> dict[str, Any]:
    """Return each table's rows and notes by its key."""
    return {table.key: {"rows": table.documents(), "notes": list(table.notes)} for table in tables}


def write_page(model_id: str, every: Sequence[SpanJudgement], path: Path) -> None:
    """Write the page of all spans; raise ``ConfigInvalid`` where that cannot be."""
    charts = Charts()
    sections = [_section(one, charts) for one in every]
    body = [element("h2", "All spans"), *map(_titled, tables_across(every)), *sections]
    _write(f"Judgement of {model_id}", body, charts, path)


def write_tables(title: str, tables: Sequence[Table], path: Path) -> None:
    """Write a page of *tables* alone."""
    _write(title, [_titled(table) for table in tables], Charts(), path)


def _write(title: str, body: Sequence[Markup], charts: Charts, path: Path) -> None:
    button = element("button", "light / dark", class_="theme", type="button")
    whole = element("main", element("header", element("h1", title), button), *body)
    write_text(whole_page(f"tracepaper · {title}", whole, charts.figures), path)


def _section(one: SpanJudgement, charts: Charts) -> Markup:
    parts: list[Markup] = [element("h2", heading(one))]
    parts.append(element("ul", joined(element("li", said) for said in one.sentences)))
    for known in SHOWN.values():
        parts += [_titled(table) for table in known.tables(one) if table.rows or table.notes]
        if known.chart is not None:
            parts.append(charts.put(known.chart(one), known.caption))
    return element("section", *parts)


def _titled(table: Table) -> Markup:
    title = element("h3", table.title)
    if table.rows:
        return joined([title, figures(table)])
    return joined([title, *(element("p", note, class_="note") for note in table.notes)])
