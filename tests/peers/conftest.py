"""Other people's backtesters; collected only by ``-m peers``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from other_backtesters import Peer, ask_peer


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out unless its marker is asked for."""
    del collection_path
    return None if "peers" in config.option.markexpr else True


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    """Return what runs a peer's program on a task, in an environment made at its first use."""
    return partial(ask_peer, tmp_path)
