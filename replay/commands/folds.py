"""``tracepaper evaluate --folds``: where recipes are trained again, and how they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracepaper.daemon.commands.options import CommandAnswer, tell

if TYPE_CHECKING:
    from tracepaper.replay.learning.fitted import Each
    from tracepaper.replay.learning.judge.folds import FoldTables


def each_on(on: str | None, jobs: int | None) -> Each:
    """Return how units of work are run: in this process by default, else on an executor."""
    from tracepaper.replay.learning.fitted import one_by_one
    from tracepaper.replay.sweep.executor import Spread, executor_on

    if on is None and jobs is None:
        return one_by_one
    return Spread(executor_on(on, jobs), ("tracepaper.replay.learning.judge.folds",))


def answer_of_folds(folds: FoldTables, html: Path | None) -> CommandAnswer:
    """Return the answer of the folds; write it as a page if *html* is given."""
    from tracepaper.daemon.terminal.console import for_tables
    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.document.values import TitledParts, documents

    if html is not None:
        from tracepaper.replay.page.export import write_document_page

        write_document_page(TitledParts(f"Folds of {folds.model_id}", tuple(folds.tables)), html)
        tell(f"The page is {html}.")
    document = {"id": folds.model_id, "recipe": folds.recipe, "folds": folds.text}
    return CommandAnswer(
        {**document, "tables": documents(folds.tables)}, lambda: show(for_tables(), folds.tables)
    )
