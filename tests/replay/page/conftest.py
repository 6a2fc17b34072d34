"""The runs and the server that the tests of the page share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from browser import browsing, chromium
from page_cases import shown_of
from report_cases import BTC, SAMPLE, SOL, STRICT, cross, replayed

from tracepaper.replay.page.databases import OpenRun
from tracepaper.replay.page.server import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay the default model over 1,040 minutes after its warm-up."""
    chromium()
    folder = tmp_path_factory.mktemp("model")
    return replayed(folder, STRICT, "--data", SAMPLE, "--to", "2025-06-01T00:53:00Z")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


@pytest.fixture
def run(cross_database: Path) -> OpenRun:
    return shown_of(cross_database)


@pytest.fixture
async def url(cross_database: Path) -> AsyncIterator[str]:
    async with serving([cross_database], host="127.0.0.1", port=0) as address:
        yield address


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
