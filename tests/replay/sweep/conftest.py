"""What every test of sweeps shares: candles, and a registry of trials of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tracepaper.replay.samples import DEMO_CANDLES

BARS = 600


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Count the trials of a test in a file of its own, not in the user's."""
    path = tmp_path / "trials.db"
    monkeypatch.setenv("TRACEPAPER_TRIALS", str(path))
    return path


@pytest.fixture(scope="session")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten hours of minutes."""
    path = tmp_path_factory.mktemp("candles") / "BTCUSDT-1m.csv"
    pl.read_csv(str(DEMO_CANDLES)).head(BARS).write_csv(path)
    return path


@pytest.fixture(scope="session")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty days of hours: a random walk."""
    path = tmp_path_factory.mktemp("days") / "BTCUSDT-60.csv"
    moves = np.random.default_rng(4).normal(0.0, 0.01, size=960)
    close = np.round(50_000 * np.exp(moves.cumsum()), 1)
    opened = np.concatenate(([50_000.0], close[:-1]))
    pl.DataFrame(
        {
            "open_time": 1_735_689_600_000 + 3_600_000 * np.arange(960),
            "open": opened,
            "high": np.maximum(opened, close),
            "low": np.minimum(opened, close),
            "close": close,
            "volume": np.ones(960),
        }
    ).write_csv(path)
    return path
