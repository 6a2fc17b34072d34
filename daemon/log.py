"""``Logger``: structured lines under the name of what writes them."""

from __future__ import annotations

from typing import Any


class Logger:
    """Writes lines by structlog, which the first of them imports: a backtest writes none."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Any:  # noqa: ANN401 - a method of structlog's logger
        import structlog

        return getattr(structlog.get_logger(self._name), level)
