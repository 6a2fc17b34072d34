"""``tracepaper bench ett``: every network end to end on a generated file, and what it refuses."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tracepaper.replay.bench.ett_data import prepare, read_table
from tracepaper.replay.bench.networks import NETWORKS, measure_ett
from tracepaper.replay.commands.bench import app
from tracepaper.strategies.errors import ConfigInvalid

pytestmark = pytest.mark.slow

ROWS = 2_400
STEP = timedelta(hours=6)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 20 months at four rows a day: a daily wave, a slow walk, noise."""
    generator = np.random.default_rng(2)
    walk = generator.normal(size=(ROWS, 2)).cumsum(axis=0) / 15
    wave = np.sin(np.pi * np.arange(ROWS) / 2)[:, None] * [1.0, 2.0]
    values = walk + wave + 0.3 * generator.normal(size=(ROWS, 2))
    start = datetime(2020, 1, 1, tzinfo=UTC)
    lines = ["date,a,b"]
    for row, (first, second) in enumerate(values.tolist()):
        lines.append(f"{(start + row * STEP).strftime('%Y-%m-%d %H:%M:%S')},{first},{second}")
    found = tmp_path_factory.mktemp("ett") / "series.csv"
    found.write_text("\n".join(lines) + "\n")
    return found


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_measured_beside_ridge_and_naive(path: Path, network: str) -> None:
    told: list[str] = []
    found = measure_ett(path, network, horizon=4, epochs=1, tell=told.append)
    assert found["test_windows"] == 4 * 30 * 4 - 4 + 1
    assert found["variables"] == 2
    assert 0.0 < found["mse"] < 1e3
    assert found["mae"] > 0.0
    assert found["cpu_minutes"] > 0.0
    assert found["parameters"] > 0
    assert found["mse_over_ridge"] == found["mse"] / found["ridge"]["mse"]
    above = found["mse"] > found["ridge"]["mse"]
    assert ("ABOVE ridge" in found["verdict"]) is above
    assert told[0].startswith("seasonal naive MSE")


def test_the_command_prints_one_json_document(path: Path) -> None:
    done = CliRunner().invoke(
        app, ["ett", "--data", str(path), "--network", "ridge", "--univariate", "--json"]
    )
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["network"], found["horizon"], found["variables"]) == ("ridge", 24, 1)
    assert found["mse"] == found["ridge"]["mse"]


def test_an_unknown_network_is_one_sentence(path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="use flash, informer, lstm, ridge, tree"):
        measure_ett(path, "gru", horizon=4, tell=print)


def test_the_file_that_figures_were_taken_on_has_its_published_windows() -> None:
    shared = Path(__file__).parents[4] / "shared" / "data" / "ett" / "ETTh2.csv"
    if not shared.exists():
        pytest.skip("ETTh2.csv is not here")
    made = prepare(shared, read_table(shared), horizon=24)
    assert (len(made.origins(made.test, 96)), made.values.shape[1]) == (2_857, 7)
