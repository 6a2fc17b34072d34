"""A console that shows control characters of stored text as text and executes none of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.console import Console
from rich.segment import Segment

from tracepaper.strategies.words import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType


class Terminal(Console):
    """Rich's console, which writes out the control characters that stand in a text."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is to be printed; the console's own control sequences stay."""
        for segment in super().render(renderable, options):
            text = visible(segment.text)
            if segment.control or text == segment.text:
                yield segment
            else:
                yield Segment(text, segment.style)


WIDE_COLUMNS = 160
"""Of tables in a pipe or a file: it has no width, and 80 columns would hide figures."""


def for_tables() -> Terminal:
    """Return a console on stdout that is as wide as its terminal, and wide where there is none."""
    console = Terminal()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Terminal(width=WIDE_COLUMNS)
