"""Results for people: a text, a picture, a page; and a progress bar in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from html import escape
from importlib import import_module
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tracepaper.daemon.clock import SystemClock
from tracepaper.storage.paths import path_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from tracepaper.replay.document.values import TitledParts

SHOWN_AFTER_S: Final = 1.0
EVERY_S: Final = 0.2
DPI: Final = 130
PAGE_HEIGHT: Final = 800
"""Height of a page in a notebook, in pixels."""
WIDTH: Final = 100
"""Width of returned texts, in characters."""


class Picture:
    """A matplotlib ``figure``, drawn by a notebook as a cell's last value."""

    def __init__(self, figure: Figure, text: str) -> None:
        self.figure = figure
        self._text = text

    def save(self, path: str | Path) -> None:
        """Write the picture to *path*; its ending chooses the format."""
        self.figure.savefig(path_of(path), dpi=DPI)

    def __repr__(self) -> str:
        return self._text

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


class RunPage:
    """A run's page as HTML, shown by a notebook as a cell's last value."""

    def __init__(self, html: str, text: str, write: Callable[[str, Path], None]) -> None:
        self.html = html
        self._text = text
        self._write = write

    def save(self, path: str | Path) -> None:
        """Write the page to *path*; raise ``ConfigInvalid`` if that fails."""
        self._write(self.html, path_of(path))

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        # Sandboxed, so that its content lacks the notebook's origin.
        return (
            f'<iframe title="{escape(self._text)}" width="100%" height="{PAGE_HEIGHT}" '
            'sandbox="allow-scripts allow-popups" frameborder="0" '
            f'srcdoc="{escape(self.html)}"></iframe>'
        )


class Text:
    """A result that *draw* prints on a terminal; ``document`` holds it as in JSON."""

    def __init__(self, draw: Callable[[Console], None], document: Mapping[str, Any]) -> None:
        self.draw = draw
        self.document = document

    @classmethod
    def of(cls, titled: TitledParts, document: Mapping[str, Any]) -> Self:
        """Return what *titled* shows."""
        from tracepaper.replay.document.terminal import show_document

        return cls(lambda console: show_document(console, titled), document)

    @cached_property
    def text(self) -> str:
        """What a terminal shows."""
        return text_of(self.draw)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - any value of JSON
        return self.document[key]

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text)}</pre>"


def text_of(draw: Callable[[Console], None]) -> str:
    """Return the text that *draw* prints on a terminal without colours."""
    from tracepaper.daemon.terminal.console import Terminal

    output = StringIO()
    # In Jupyter Rich's consoles draw cells of their own and write nothing to their file.
    draw(Terminal(file=output, width=WIDTH, color_system=None, force_jupyter=False))
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


Advance = Callable[[int, "int | None"], None]
"""Called with the work done and the total, None if unknown."""


@contextmanager
def progress(doing: str, *, wanted: bool | None = None) -> Iterator[Advance]:
    """Show a progress bar in a notebook, once a call has worked for a second.

    Elsewhere, and with *wanted* False, show nothing; with True show it at once.
    """
    display = None if wanted is False else display_here()
    if display is None:
        yield lambda _done, _total: None
        return
    clock = SystemClock()
    began_s = clock.network_s()
    next_s = began_s + (0.0 if wanted else SHOWN_AFTER_S)
    handle: Any = None
    newest: tuple[int, int | None] = (0, None)

    def draw(text: str) -> None:
        nonlocal handle
        done, total = newest
        share = f' value="{done}" max="{total}"' if total else ""
        line = f"{doing}: {text}"
        content = {
            "text/plain": line,
            "text/html": f"<progress{share}></progress> {escape(line)}",
        }
        if handle is None:
            handle = display(content, raw=True, display_id=True)
        else:
            handle.update(content, raw=True)

    def advance(done: int, total: int | None) -> None:
        nonlocal newest, next_s
        newest = done, total
        if (now_s := clock.network_s()) >= next_s:
            next_s = now_s + EVERY_S
            draw(f"{done:,}" if total is None else f"{done:,} of {total:,}")

    yield advance
    if handle is not None:  # replace the drawn bar by a line
        draw(f"{newest[0]:,} in {clock.network_s() - began_s:,.1f} s")


def display_here() -> Any:  # noqa: ANN401 - IPython is not typed
    """Return IPython's ``display`` in a notebook kernel, else None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or getattr(shell, "kernel", None) is None:
        return None
    return import_module("IPython.display").display
