"""The live view of ``tracepaper run``: the daemon's status below its log lines.

The rules are docs/operations.md, O29 and O30.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tracepaper.daemon.http.client import ask
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.daemon.terminal.status import WHOLE_INSTRUMENTS, Status, status_text
from tracepaper.strategies.errors import TracepaperError

UPDATE_EVERY_S: Final = 0.5
ENDS_WITHIN_S: Final = 2.0
"""Seconds after which a thread that a blocked terminal holds is left behind."""
STARTING: Final = "starting"
LINES_KEPT: Final = 1_000
"""Newest log lines that wait while the terminal takes none."""


class LiveView:
    """Repeats the status on a terminal, in a thread, so that no step waits for the terminal.

    *status* returns the daemon's status, and raises ``TracepaperError`` while there is none; until
    the first one the view shows what ``outage`` returns. The thread prints the lines written to
    stdout and stderr above it, so they stay after the view.
    """

    def __init__(self, console: Console, status: Callable[[], Status]) -> None:
        self._console = console
        self._status = status
        self.outage: Callable[[], str | None] = lambda: None
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="view", daemon=True)

    @property
    def is_drawn(self) -> bool:
        """Whether the view still draws; a closed terminal ends it."""
        return self._thread.is_alive()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw in the block, and pass on what is written to the terminal in it."""
        with ExitStack() as stack:
            for redirect, stream in (
                (redirect_stdout, sys.stdout),
                (redirect_stderr, sys.stderr),
            ):
                if stream.isatty():
                    stack.enter_context(redirect(_Lines(stream, self._lines)))
            self._thread.start()
            try:
                yield
            finally:
                self._ended.set()
                self._thread.join(ENDS_WITHIN_S)

    def _repeat(self) -> None:
        with (
            suppress(OSError),  # the terminal is closed
            Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
                transient=True,
            ) as live,
        ):
            # A killed daemon leaves nothing on the terminal that would have to be restored.
            self._console.show_cursor()
            status: Status | None = None
            has_ended = False
            while not has_ended:
                has_ended = self._ended.wait(UPDATE_EVERY_S)
                while self._lines:
                    self._console.print(Text.from_ansi(self._lines.popleft()), soft_wrap=True)
                try:
                    status, problem = self._status(), ""
                except TracepaperError as error:
                    problem = str(error)
                if status is None:
                    live.update(Text(self.outage() or STARTING, "yellow"), refresh=True)
                else:
                    live.update(self._fitted(status, problem), refresh=True)

    def _fitted(self, status: Status, problem: str) -> Text:
        """Return *status* below *problem*; if it is too high, instruments have one line each."""
        head = Text(f"{problem}\n" if problem else "", "yellow")
        for whole in (WHOLE_INSTRUMENTS, 0):
            text = head + status_text(status, whole=whole)
            if len(text.wrap(self._console, self._console.width)) <= self._console.height:
                break
        return text


class _Lines(io.TextIOBase):
    """Keeps each complete line for the view; otherwise acts as *stream*."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO, lines: deque[str]) -> None:
        self._stream = stream
        self._lines = lines
        self._pending = ""

    def write(self, text: str, /) -> int:
        *whole, self._pending = (self._pending + text).split("\n")
        self._lines.extend(whole)
        return len(text)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()


def view_of(database: Path) -> LiveView | None:
    """Return a view of the daemon of *database*; None where stdout is no terminal to draw on.

    It is none if it is dumb, or if this process runs in its background.
    """
    console = Terminal(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    with suppress(OSError):  # not the session's controlling terminal
        if os.tcgetpgrp(sys.stdout.fileno()) != os.getpgrp():
            return None
    console.file = sys.stdout  # also while stdout is redirected to the view
    return LiveView(console, lambda: ask(database, "/status"))
