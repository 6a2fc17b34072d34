"""What the tests of checks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import explained_runs
import pytest

from tracepaper.replay.checks.isolation import FreshProcesses


@pytest.fixture(scope="module")
def fresh() -> Iterator[FreshProcesses]:
    """Yield what starts processes in which nothing was imported."""
    with FreshProcesses() as server:
        yield server


@pytest.fixture(scope="module")
def modelled() -> Path:
    """Return a run of a small model with trades and shadows, and its checkpoint beside it."""
    return explained_runs.recorded()
