"""``tracepaper evaluate --folds``: recipes fitted anew, here, in processes or on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from tracepaper.daemon.commands.options import print_json
from tracepaper.strategies.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracepaper.replay.document.values import Table
    from tracepaper.replay.learning.fitted import DataRequest, Each
    from tracepaper.storage.checkpoints import Checkpoint


def each_on(on: str | None, jobs: int | None) -> Each:
    """Return where units of work are carried out; here, one by one, unless something is said."""
    from tracepaper.replay.learning.fitted import one_by_one
    from tracepaper.replay.sweep.executor import Spread, executor_on

    if on is None and jobs is None:
        return one_by_one
    return Spread(executor_on(on, jobs), ("tracepaper.replay.learning.judge.folds",))


class Folds(NamedTuple):
    """What folds say of the recipe of a checkpoint."""

    model_id: str
    recipe: str  # its hash
    text: str  # which folds
    tables: Sequence[Table]


def folds_of(
    checkpoint: Checkpoint,
    request: DataRequest,
    text: str,
    changes: Sequence[str],
    each: Each,
) -> Folds:
    """Fit the recipe of a checkpoint anew on folds, and that with each of *changes* in turn."""
    from rich.console import Console

    from tracepaper.replay.learning.fitted import read_dataset
    from tracepaper.replay.learning.judge.folds import (
        ablated,
        ablation_tables,
        refit,
        tables,
    )
    from tracepaper.replay.learning.recipe import recipe_of

    card: Mapping[str, Any] = checkpoint.card
    # First, for they refuse what cannot be had before minutes have passed.
    recipe = recipe_of(card)
    recipe.check("--folds")
    cards = {change: ablated(card, change) for change in changes}
    material = read_dataset(recipe, request, card)
    if untrained := material.untrained():
        raise ConfigInvalid(untrained[0])
    for other in cards.values():
        recipe.kind.suits(recipe_of(other), material)
    say = Console(stderr=True).print
    own_folds = refit(card, material, text, say=say, each=each)
    fold_tables = tables(own_folds)
    others = {}
    for change, other in cards.items():
        say(f"With {change}.")
        others[change] = refit(other, material, text, say=say, each=each)
    if others:
        fold_tables += ablation_tables(own_folds, others)
    return Folds(checkpoint.id, recipe.hash, text, fold_tables)


def print_folds(folds: Folds, html: Path | None, *, as_json: bool) -> None:
    """Print what folds say, and write it as a page where *html* is given."""
    from tracepaper.daemon.terminal.console import for_tables
    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.document.values import TitledParts, documents

    if html is not None:
        from tracepaper.replay.page.export import write_document_page

        write_document_page(TitledParts(f"Folds of {folds.model_id}", tuple(folds.tables)), html)
    if as_json:
        document = {"id": folds.model_id, "recipe": folds.recipe, "folds": folds.text}
        print_json({**document, "tables": documents(folds.tables)})
        return
    show(for_tables(), folds.tables)
    if html is not None:
        typer.echo(f"The page is {html}.")
