"""The runs and the server that the tests of the page share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from page_cases import shown_of
from report_cases import BTC, SOL, cross, replayed

from tracepaper.replay.page.databases import ShownRun
from tracepaper.replay.page.server import serving


@pytest.fixture(scope="session")
def cross_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay long and short by moving averages over 1,500 minutes."""
    return replayed(tmp_path_factory.mktemp("cross"), cross(), "--data", BTC)


@pytest.fixture(scope="session")
def pair_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay two instruments in one account."""
    folder = tmp_path_factory.mktemp("pair")
    config = cross(symbols=("BTCUSDT", "SOLUSDT"))
    return replayed(folder, config, "--data", BTC, "--data", SOL)


@pytest.fixture
def shown(cross_database: Path) -> ShownRun:
    return shown_of(cross_database)


@pytest.fixture
async def url(cross_database: Path) -> AsyncIterator[str]:
    async with serving([cross_database], host="127.0.0.1", port=0) as address:
        yield address


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
