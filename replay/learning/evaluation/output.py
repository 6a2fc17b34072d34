"""A judgement of spans, or of folds, for a terminal, as one JSON document, and as one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tracepaper.replay.archive.columns import iso
from tracepaper.replay.document import terminal
from tracepaper.replay.document.page import Charts, Markup, element, joined, whole_page, write_text
from tracepaper.replay.document.values import Chart, Paragraph, Part, Table, documents
from tracepaper.replay.learning.evaluation.evaluate import SpanJudgement
from tracepaper.replay.learning.evaluation.order_books import (
    BookJudgement,
    tables_across_books,
    tables_of_books,
)
from tracepaper.replay.learning.evaluation.tables import SHOWN, tables_across, tables_of


def show(console: Console, every: Sequence[SpanJudgement], examined: Sequence[Table] = ()) -> None:
    """Print every table of each span, then those of all together, and what was *examined*."""
    parts: list[Part] = []
    for one in every:
        sentences = [Paragraph(f"• {sentence}") for sentence in one.sentences]
        parts += [Paragraph(heading(one), "heading"), *tables_of(one), *sentences]
    terminal.show(console, [*parts, *tables_across(every), *examined])


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


def show_books(console: Console, every: Sequence[BookJudgement]) -> None:
    """Print the tables of each span of order books, then those of all together."""
    parts: list[Part] = []
    for one in every:
        sentences = [Paragraph(f"• {sentence}") for sentence in one.sentences]
        parts += [Paragraph(heading(one), "heading"), *tables_of_books(one), *sentences]
    terminal.show(console, [*parts, *tables_across_books(every)])


def books_document(model_id: str, every: Sequence[BookJudgement]) -> dict[str, Any]:
    """Return the judgement of a network of order books as plain values."""
    return {
        "id": model_id,
        "says": every[0].sentences,
        "figures": every[0].figures,
        "spans": [
            {
                "name": one.span.name,
                "from_ms": one.from_ms,
                "until_ms": one.until_ms,
                "days": one.days,
                "openings": one.openings,
                "figures": one.figures,
                "sentences": one.sentences,
                "tables": documents(tables_of_books(one)),
            }
            for one in every
        ],
        "tables": documents(tables_across_books(every)),
    }


def write_page(model_id: str, every: Sequence[SpanJudgement], path: Path) -> None:
    """Write the page of all spans; raise ``ConfigInvalid`` where that cannot be."""
    charts = Charts()
    content = [charts.parts([Paragraph("All spans", "heading"), *tables_across(every)])]
    for one in every:
        said = element("ul", joined(element("li", sentence) for sentence in one.sentences))
        content.append(
            element("section", element("h2", heading(one)), said, charts.parts(_parts(one)))
        )
    _write(f"Judgement of {model_id}", content, charts, path)


def write_tables(title: str, tables: Sequence[Table], path: Path) -> None:
    """Write a page of *tables* alone."""
    charts = Charts()
    _write(title, [charts.parts(tables)], charts, path)


def _write(title: str, content: Sequence[Markup], charts: Charts, path: Path) -> None:
    write_text(whole_page(title, element("h1", title), content, charts), path)


def _parts(one: SpanJudgement) -> Iterator[Part]:
    for known in SHOWN.values():
        yield from (table for table in known.tables(one) if table.rows or table.notes)
        if known.chart is not None and (chart := known.chart(one)) is not None:
            yield Chart(chart, known.caption)
