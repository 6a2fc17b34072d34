"""The runs that the tests of the report share: each is replayed once."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_cases import (
    BTC,
    SAMPLE,
    SOL,
    STRICT,
    build_report_of,
    cross,
    funding_file,
    replayed,
    report_of,
)

from tracepaper.replay.report.report import Report


@pytest.fixture(scope="session")
def cross_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay long and short by moving averages over 1,500 minutes."""
    return replayed(tmp_path_factory.mktemp("cross"), cross(), "--data", BTC)


@pytest.fixture(scope="session")
def cross_report(cross_database: Path) -> Report:
    return build_report_of(cross_database)


@pytest.fixture(scope="session")
def pair_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Replay two instruments in one account."""
    folder = tmp_path_factory.mktemp("pair")
    return report_of(folder, cross(symbols=("BTCUSDT", "SOLUSDT")), "--data", BTC, "--data", SOL)


@pytest.fixture(scope="session")
def attention_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay the default model over 1,040 minutes after its warm-up."""
    folder = tmp_path_factory.mktemp("attention")
    return replayed(folder, STRICT, "--data", SAMPLE, "--to", "2025-06-01T00:53:00Z")


@pytest.fixture(scope="session")
def funded_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Replay eight days, with funding."""
    folder = tmp_path_factory.mktemp("funded")
    return report_of(folder, cross(), "--data", SAMPLE, "--funding", funding_file(folder))


@pytest.fixture(scope="session")
def attention_report(attention_database: Path) -> Report:
    return build_report_of(attention_database)
