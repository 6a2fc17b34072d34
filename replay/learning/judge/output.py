"""A judgement of spans, or of folds, for a terminal, as JSON, and as a document of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from tracepaper.replay.document import terminal
from tracepaper.replay.document.charts import Chart
from tracepaper.replay.document.values import Paragraph, Part, Table, TitledParts, documents
from tracepaper.replay.learning.judge.judge import SpanJudgement
from tracepaper.replay.learning.judge.tables import SHOWN, tables_across, tables_of


def show(console: Console, every: Sequence[SpanJudgement], findings: Sequence[Table]) -> None:
    """Print the tables and caveats of each span, those of all together, and the *findings*."""
    parts: list[Part] = []
    for one in every:
        sentences = [Paragraph(f"• {sentence}") for sentence in one.sentences]
        parts += [Paragraph(one.heading, "heading"), *tables_of(one), *sentences]
    terminal.show(console, [*parts, *tables_across(every), *findings])


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
                "figures": one.figures,
                "sentences": one.sentences,
                "tables": documents(tables_of(one)),
            }
            for one in every
        ],
        "tables": documents(tables_across(every)),
    }


def judgement_document(model_id: str, every: Sequence[SpanJudgement]) -> TitledParts:
    """Return the judgement of all spans as a document."""
    parts: list[Part] = [Paragraph("All spans", "heading"), *tables_across(every)]
    for one in every:
        parts.append(Paragraph(one.heading, "heading"))
        parts += [Paragraph(sentence, "item") for sentence in one.sentences]
        parts += _parts(one)
    return TitledParts(f"Judgement of {model_id}", tuple(parts))


def _parts(one: SpanJudgement) -> Iterator[Part]:
    for known in SHOWN.values():
        yield from (table for table in known.tables(one) if table.rows or table.notes)
        if known.chart is not None and (panel := known.chart(one)) is not None:
            yield Chart("", known.caption, [panel])
