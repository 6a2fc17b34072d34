"""Log lines of a test, after which logging is as it was."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from tracepaper.daemon.terminal.console import configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Put back the handlers, the level and the settings of all loggers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def log() -> io.StringIO:
    """Return where log lines are written."""
    stream = io.StringIO()
    configure(stream=stream)
    return stream
