"""``evaluate`` and ``explain`` of order book networks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import typer

from tracepaper.daemon.commands.options import print_json
from tracepaper.strategies.errors import ConfigInvalid

if TYPE_CHECKING:
    from tracepaper.replay.learning.evaluation.order_books import BookCheckpoint
    from tracepaper.replay.learning.openings import NamedSpan

_ZONE: Final = re.compile(r"(Z|[+-]\d\d:?\d\d)$")
_NUMBER: Final = re.compile(r"\d+")
THREADS: Final = 1


class BooksAsked(NamedTuple):
    """What ``evaluate`` is asked of a network of order books."""

    spans: Sequence[NamedSpan]
    beside: Sequence[str]
    folds: str | None
    instead: Sequence[str]
    html: Path | None


def evaluate_books(
    name: str, data: Sequence[str], asked: BooksAsked, *, threads: int, as_json: bool
) -> None:
    """Judge a network of order books on *data*, or say why nothing can be said of it.

    A model that is called untrained stays so, and gets no figure, whatever *data* are.
    """
    from tracepaper.replay.learning.evaluation.order_books import BookCheckpoint, asked_of_books
    from tracepaper.replay.learning.evaluation.walk_forward import ablated
    from tracepaper.replay.learning.fit import use_threads

    use_threads(threads)
    model = BookCheckpoint.read(name)
    # First, for they refuse what cannot be had before minutes have passed.
    if asked.folds is not None:
        asked_of_books(asked.folds)
    cards = {change: ablated(model.card, change) for change in asked.instead}
    if model.untrained:
        _tell_untrained(model.untrained, as_json=as_json)
    elif asked.folds is not None:
        _refit_books(model, data, asked, cards, as_json=as_json)
    else:
        _judge_books(model, data, asked, as_json=as_json)


def _tell_untrained(said: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"says": list(said), "figures": {}})
        return
    for sentence in said:
        typer.echo(sentence)


def _judge_books(
    model: BookCheckpoint, data: Sequence[str], asked: BooksAsked, *, as_json: bool
) -> None:
    """Judge *model* on each span, and others beside it; each counts as an opening."""
    from tracepaper.daemon.terminal.console import for_tables
    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.document.values import Paragraph, Part, documents
    from tracepaper.replay.learning.evaluation.order_books import (
        judge_books,
        tables_across_books,
        tables_of_books,
        with_rival,
    )
    from tracepaper.replay.learning.evaluation.output import heading, write_tables
    from tracepaper.replay.learning.openings import counted

    material = model.material(data)
    every = [judge_books(model, material, span) for span in asked.spans]
    others = []
    for name in asked.beside:
        every, rival = with_rival(every, model, name, data)
        others.append(rival)
    for rival in others:
        counted(every, rival.folder, rival.recipe, rival.model_id)
    every = counted(every, model.folder, model.recipe, model.model_id)
    across = tables_across_books(every)
    if asked.html is not None:
        made = [table for one in every for table in tables_of_books(one)]
        write_tables(f"Judgement of {model.model_id}", [*across, *made], asked.html)
    if as_json:
        spans = [
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
        ]
        print_json(
            {
                "id": model.model_id,
                "says": every[0].sentences,
                "figures": every[0].figures,
                "spans": spans,
                "tables": documents(across),
                "beside": [{"name": one.name, "id": one.model_id} for one in others],
            }
        )
        return
    parts: list[Part] = []
    for one in every:
        sentences = [Paragraph(f"• {sentence}") for sentence in one.sentences]
        parts += [Paragraph(heading(one), "heading"), *tables_of_books(one), *sentences]
    show(for_tables(), [*parts, *across])
    if asked.html is not None:
        typer.echo(f"The page is {asked.html}.")


def _refit_books(
    model: BookCheckpoint,
    data: Sequence[str],
    asked: BooksAsked,
    cards: Mapping[str, Mapping[str, Any]],
    *,
    as_json: bool,
) -> None:
    """Fit the recipe of *model* anew on folds, and that of each of *cards*, by its change."""
    from rich.console import Console

    from tracepaper.daemon.terminal.console import for_tables
    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.document.values import documents
    from tracepaper.replay.learning.evaluation.order_books import (
        book_fold_tables,
        chosen_for,
        refit_books,
    )
    from tracepaper.replay.learning.evaluation.output import write_tables

    text = asked.folds
    assert text is not None
    material = model.material(data)
    for card in cards.values():
        chosen_for(card, material)
    say = Console(stderr=True).print
    own = refit_books(model, model.card, material, text, say=say)
    others = {}
    for change, card in cards.items():
        say(f"With {change}.")
        others[change] = refit_books(model, card, material, text, say=say)
    made = book_fold_tables(own, others)
    if asked.html is not None:
        write_tables(f"Folds of {model.model_id}", made, asked.html)
    if as_json:
        document = {"id": model.model_id, "recipe": model.recipe, "folds": text}
        print_json({**document, "tables": documents(made)})
        return
    show(for_tables(), made)
    if asked.html is not None:
        typer.echo(f"The page is {asked.html}.")


def refuse_for_books(name: str, given: Mapping[str, object]) -> None:
    """Raise ``ConfigInvalid`` for an option of ``evaluate`` that means nothing to order books."""
    for option, value in given.items():
        if value:
            raise ConfigInvalid(
                f"--{option} is for models of bars, and {name} reads order books; leave it out, "
                f"and see where it looked by `tracepaper explain --depth FILE --checkpoint {name}`."
            )


def explain_book(
    depth: Path | None, checkpoint: str | None, at: str | None, *, threads: int, as_json: bool
) -> None:
    """Print the map of level and time of one answer."""
    from rich.console import Console

    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.explain.order_book import book_map
    from tracepaper.replay.explain.picture import map_document, map_parts
    from tracepaper.storage.checkpoints import locate

    if depth is None or checkpoint is None:
        raise ConfigInvalid("Give --depth FILE and --checkpoint FOLDER together, or a RUN alone.")
    at_ms = None if at is None else _instant(at)
    found = book_map(locate(checkpoint), depth, at_ms, threads=threads)
    if as_json:
        print_json(map_document(found))
        return
    console = Console()
    show(console if console.is_terminal else Console(width=WIDE), map_parts(found))


WIDE: Final = 132
"""A pipe has no width, and a map cut to 80 columns would hide shares."""


def _instant(text: str) -> int:
    """Return the UTC milliseconds of a time with its zone; raise ``ConfigInvalid``."""
    from tracepaper.replay.archive.columns import instant

    if not _NUMBER.fullmatch(text) and not _ZONE.search(text):
        raise ConfigInvalid(
            f"--at is {text!r}, a time without a zone; write it as 2026-08-09T21:27:30Z."
        )
    return instant(text)
