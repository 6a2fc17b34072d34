"""The ETT benchmarks: every network end to end on a generated file, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from ett_data import (
    Answer,
    DirectModel,
    Rows,
    Task,
    Values,
    compared,
    prepare,
    read_table,
    recursive,
)
from run_ett import NETWORKS, measure_ett

pytestmark = pytest.mark.long

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


@pytest.mark.parametrize("network", NETWORKS)
def test_a_shorter_network_is_rolled_on_beside_the_direct_one(path: Path, network: str) -> None:
    found = measure_ett(path, network, horizon=4, epochs=1, step=2, tell=lambda _: None)
    rolled = found["recursive"]
    by = rolled["by_rows_ahead"]
    assert list(by) == ["1 to 2", "3 to 4"]
    assert np.mean([one["mse"] for one in by.values()]) == pytest.approx(rolled["mse"])
    assert np.mean([one["direct_mse"] for one in by.values()]) == pytest.approx(found["mse"])
    for one in by.values():
        assert one["difference"] == pytest.approx(one["mse"] - one["direct_mse"])
        assert one["error"] > 0.0


def test_a_recursive_forecast_reads_its_own_and_nothing_that_came_later(path: Path) -> None:
    """By hand: an autoregression of one row, three times over, from one origin."""
    task = prepare(path, read_table(path), horizon=3)
    weights = np.array([[0.25], [0.5]])

    def over(rows: Task) -> Answer:
        def answer(origins: Rows) -> Values:
            seen = rows.windows(origins, 2).seen
            forecast: Values = np.einsum("nwv,wh->nhv", seen, weights)
            return forecast

        return answer

    model = DirectModel(task, over, 2, 2, "by hand")
    origins = np.array([1_930, 2_100])
    found = recursive(model, task, 1)(origins)
    for origin, forecast in zip(origins.tolist(), found, strict=True):
        past = [task.values[origin - 2], task.values[origin - 1]]
        for step in range(3):
            past.append(0.25 * past[-2] + 0.5 * past[-1])
            assert forecast[step] == pytest.approx(past[-1])
    changed = task.values.copy()
    changed[1_930:1_933] = 1e6
    again = recursive(model, replace(task, values=changed), 1)(origins[:1])
    assert np.array_equal(again, found[:1])


def test_paired_errors_are_over_stretches_that_share_no_answers(path: Path) -> None:
    task = prepare(path, read_table(path), horizon=6)  # longer than a day of four rows
    origins = task.origins(task.test, 0)
    last = lambda at: np.repeat(task.values[at - 1][:, None], 6, axis=1)  # noqa: E731
    none = lambda at: np.zeros((len(at), 6, 2))  # noqa: E731
    [whole] = compared(task, origins, last, none, 6)
    truth = task.windows(origins, 0).answers
    first, second = (((of(origins) - truth) ** 2).mean(axis=(1, 2)) for of in (last, none))
    assert (whole.first, whole.second) == pytest.approx((first.mean(), second.mean()))
    count = len(origins) // 6
    stretches = (first - second)[: 6 * count].reshape(count, 6).mean(axis=1)
    assert whole.error == pytest.approx(stretches.std(ddof=1) / np.sqrt(count))
