"""``Logger``: structured lines under the name of what writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tracepaper.strategies.units import iso

MS: Final = "_ms"
"""The end of the name of a field that is a time in UTC milliseconds."""


class Logger:
    """Writes lines by structlog, which the first of them imports: a backtest writes none.

    A field ``open_time_ms`` is written as ``open_time``, an ISO time.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Callable[..., Any]:
        import structlog

        write = getattr(structlog.get_logger(self._name), level)

        def write_line(*message: object, **fields: object) -> None:
            write(*message, **dict(map(_field, fields, fields.values())))

        return write_line


def _field(name: str, value: object) -> tuple[str, object]:
    """Return a field of a line; a time as ISO text."""
    if not name.endswith(MS) or not isinstance(value, int):
        return name, value
    try:
        return name.removesuffix(MS), iso(value)
    except (OverflowError, ValueError):  # an exchange may send any number
        return name, value
