"""A console that escapes the control characters of stored text; structured logging."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TextIO

from rich.console import Console
from rich.segment import Segment

from tracepaper.strategies.units import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    import structlog
    from rich.console import ConsoleOptions, RenderableType


class Terminal(Console):
    """Rich's console with the control characters of a text escaped."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments to print; the console's own control sequences are kept."""
        for segment in super().render(renderable, options):
            text = visible(segment.text)
            if segment.control or text == segment.text:
                yield segment
            else:
                yield Segment(text, segment.style)


WIDE_COLUMNS = 160
"""Width of tables in a pipe or a file, where the default of 80 would hide figures."""


def for_tables() -> Terminal:
    """Return a console on stdout as wide as the terminal, or ``WIDE_COLUMNS`` without one."""
    console = Terminal()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Terminal(width=WIDE_COLUMNS)


UNWRAPPED_COLUMNS = 100_000


def unwrapped() -> Terminal:
    """Return a console on stdout that wraps lines only on a terminal, not for a program."""
    width = None if sys.stdout.isatty() else UNWRAPPED_COLUMNS
    return Terminal(highlight=False, width=width)


LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
LIBRARIES: Final = logging.WARNING
"""The least level at which lines of libraries are logged."""
HEAD: Final = ("timestamp", "level", "logger", "event")


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to the current ``sys.stderr``, which a live view replaces while it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    output: Literal["auto", "json", "console"] = "auto",
    stream: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Send the log lines of tracepaper and of libraries to *stream* (stderr), one line each.

    *output* ``auto`` is a console on a terminal and JSON lines elsewhere. ``NO_COLOR`` is honoured.
    """
    import structlog  # slow to import, and not every command logs

    target = stream if stream is not None else sys.stderr
    is_console = output == "console" or (output == "auto" and target.isatty())
    has_colors = is_console and target.isatty() and not environment.get("NO_COLOR")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if is_console else "iso", utc=True),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=partial(_our_logger, LEVELS[level]),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream) if stream is not None else _CurrentStderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(is_console=is_console, has_colors=has_colors),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(LEVELS[level], LIBRARIES))


def _our_logger(level: int, name: str = "tracepaper") -> logging.Logger:
    """Return the logger *name* with *level*; the root logger's level is for libraries."""
    logger = logging.getLogger(name)
    logger.setLevel(level)
    return logger


def _renderers(*, is_console: bool, has_colors: bool) -> list[structlog.typing.Processor]:
    import structlog

    if is_console:
        plain = structlog.dev.plain_traceback
        return [
            _escaped,
            structlog.dev.ConsoleRenderer(
                colors=has_colors, pad_event_to=28, exception_formatter=plain
            ),
        ]
    return [
        structlog.processors.format_exc_info,
        _head_first,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]


def _escaped(
    _logger: object, _method: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape control characters, so that the terminal does not execute them."""
    return {name: visible(text) if isinstance(text, str) else text for name, text in line.items()}


def _head_first(
    _logger: object, _method: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Begin every line with time, level, logger and event, for people who read JSON."""
    head = {name: line.pop(name) for name in HEAD if name in line}
    return {**head, **line}
