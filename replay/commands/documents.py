"""The answer of a command that shows a document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracepaper.daemon.commands.options import CommandAnswer, tell

if TYPE_CHECKING:
    from tracepaper.replay.document.values import TitledParts


def answer_of(
    document: TitledParts, values: object, *, page: Path | None = None, code: int = 0
) -> CommandAnswer:
    """Return the answer that shows *document*, or its *values* as JSON; write it to *page*."""
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.document.terminal import show_document

    if page is not None:
        from tracepaper.replay.page.export import write_document_page

        write_document_page(document, page)
        tell(f"The page is {page}.")
    return CommandAnswer(values, lambda: show_document(Terminal(), document), code)
