"""The ETT benchmarks' protocol on a generated file: parts, z-scores, windows, leaks, baselines."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ett import (
    DirectOptions,
    DirectRecipe,
    Epoch,
    fit,
    ridge,
    seasonal,
)
from ett_data import (
    SeriesTable,
    Task,
    errors,
    prepare,
    read_table,
    time_marks,
)
from published_networks import (
    DirectConfig,
    DirectFlash,
    PublishedInformer,
    PublishedInformerConfig,
)
from run_ett import NETWORKS, measure_ett

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

pytestmark = pytest.mark.long

ANYWHERE = Path("series.csv")
START = datetime(2016, 7, 1, tzinfo=UTC)
DAYS = 600


def series(day_rows: int = 4, variables: int = 3, extra: int = 0) -> SeriesTable:
    """Return 20 months and *extra* rows: a wave of a day over a slow walk, and some noise."""
    generator = np.random.default_rng(4)
    rows = DAYS * day_rows + extra
    walk = generator.normal(size=(rows, variables)).cumsum(axis=0) / 15
    wave = np.sin(2 * np.pi * np.arange(rows) / day_rows)[:, None] * [1.0, 2.0, 0.5][:variables]
    times = [START + row * timedelta(days=1) / day_rows for row in range(rows)]
    values = 5.0 + walk + wave + 0.3 * generator.normal(size=(rows, variables))
    return SeriesTable(tuple("abcdefg"[:variables]), times, values, day_rows)


def task(horizon: int = 4, **options: Any) -> Task:
    return prepare(ANYWHERE, series(**options), horizon=horizon)


def write(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def cells(table: SeriesTable) -> list[list[str]]:
    body = [
        [time.strftime("%Y-%m-%d %H:%M:%S"), *map(repr, map(float, row))]
        for time, row in zip(table.times, table.values, strict=True)
    ]
    return [["date", *table.names], *body]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = series(day_rows=24)
    found = read_table(write(tmp_path / "h.csv", cells(table)))
    assert found.names == table.names
    assert found.day_rows == 24
    assert found.times == table.times
    np.testing.assert_array_equal(found.values, table.values)


def test_rows_with_a_hole_are_refused(tmp_path: Path) -> None:
    rows = cells(series())
    del rows[100]
    with pytest.raises(DataInvalid, match="not at even steps"):
        read_table(write(tmp_path / "bad.csv", rows))


def test_hourly_rows_give_the_published_number_of_test_windows() -> None:
    rows = np.random.default_rng(1).normal(size=(17_420, 7))
    times = [START + row * timedelta(hours=1) for row in range(len(rows))]
    hourly = SeriesTable(tuple("abcdefg"), times, rows, 24)
    for horizon, windows in ((24, 2857), (48, 2833), (96, 2785), (168, 2713)):
        made = prepare(ANYWHERE, hourly, horizon=horizon)
        assert (made.training, made.validation, made.test) == (
            (0, 8_640), (8_640, 11_520), (11_520, 14_400),
        )  # fmt: skip
        for window in (0, 96, 336, 720):
            origins = made.origins(made.test, window)
            assert (len(origins), origins[0], origins[-1]) == (windows, 11_520, 14_400 - horizon)
            assert len(made.origins(made.training, window)) == 8_640 - window - horizon + 1


def test_scales_come_from_the_training_part_alone() -> None:
    table = series()
    made = task()
    part = table.values[: 360 * 4]
    np.testing.assert_allclose(made.values, (table.values - part.mean(0)) / part.std(0))
    np.testing.assert_allclose(made.values[: 360 * 4].std(0), 1.0)
    assert abs(made.values[360 * 4 :].mean()) > 0.05


def test_a_window_is_what_came_before_its_answers() -> None:
    made = task(horizon=3)
    seen, answers = made.windows(np.array([700, 901]), 5)
    np.testing.assert_array_equal(seen[1], made.values[896:901])
    np.testing.assert_array_equal(answers[0], made.values[700:703])


def test_marks_are_of_hour_week_month_and_year() -> None:
    marks = time_marks([datetime(2016, 7, 3, 23, tzinfo=UTC), datetime(2018, 1, 1, tzinfo=UTC)])
    np.testing.assert_allclose(marks[0], [0.5, 0.5, 2 / 30 - 0.5, 184 / 365 - 0.5])
    np.testing.assert_allclose(marks[1], [-0.5, -0.5, -0.5, -0.5])


def test_the_naive_answer_is_the_last_day_repeated() -> None:
    made = task(horizon=6)
    found = seasonal(made).answer(np.array([900]))
    np.testing.assert_array_equal(found[0], made.values[[896, 897, 898, 899, 896, 897]])


def test_ridge_equals_least_squares_where_it_is_not_penalised() -> None:
    made = task()
    fitted = ridge(made)
    window = int(fitted.chosen.split()[0])
    penalty = float(fitted.chosen.split()[-1])
    origins = made.origins(made.training, window)
    seen, answers = made.windows(origins, window)
    rows = np.concatenate([seen[:, :, i] - seen[:, -1:, i] for i in range(3)])
    moves = np.concatenate([answers[:, :, i] - seen[:, -1:, i] for i in range(3)])
    extra = np.sqrt(penalty * len(rows)) * np.eye(window)
    weights = np.linalg.lstsq(
        np.concatenate([rows, extra]), np.concatenate([moves, np.zeros((window, 4))]), rcond=None
    )[0]
    last = made.values[1_999]
    expected = (made.values[2_000 - window : 2_000] - last).T @ weights
    np.testing.assert_allclose(
        fitted.answer(np.array([2_000]))[0], expected.T + last, rtol=1e-6, atol=1e-6
    )
    assert errors(made, made.origins(made.test, 0), fitted.answer).mse < 0.8 * (
        errors(made, made.origins(made.test, 0), seasonal(made).answer).mse
    )


def test_errors_are_means_over_every_window_step_and_variable() -> None:
    made = task()
    origins = made.origins(made.test, 0)
    found = errors(made, origins, lambda at: np.zeros((len(at), 4, 3)))
    truth = made.windows(origins, 0).answers
    np.testing.assert_allclose(found, (np.mean(truth**2), np.mean(np.abs(truth))))


QUICK = DirectOptions(epochs=2, batch=64, learning_rate=3e-3, average=0.9, warm_up=5)
TINY = DirectConfig(window=24, horizon=4, patch=4, dim=16, layers=1, heads=2, dropout=0.1)
SPARSE = PublishedInformerConfig(
    variables=3, window=24, horizon=4, start=8, dim=16, heads=2, hidden=16, factor=2
)
TINIES = {
    "flash": DirectRecipe(lambda: DirectFlash(TINY), 24, QUICK),
    "causal flash": DirectRecipe(lambda: DirectFlash(replace(TINY, mask="window")), 24, QUICK),
    "informer": DirectRecipe(lambda: PublishedInformer(SPARSE), 24, QUICK),
}


def ignore(_: Epoch) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize("name", TINIES)
def test_every_network_learns_from_training_alone(name: str) -> None:
    """A test part that was changed moves no answer to what came before it, in any bit."""
    torch.set_num_threads(1)
    honest = task()
    planted = honest.values.copy()
    planted[honest.test.start :] = 7.0
    seen: list[Epoch] = []
    fitted = fit(honest, TINIES[name], seen.append)
    again = fit(replace(honest, values=planted), TINIES[name], ignore)
    before = honest.origins(honest.validation, 24)
    np.testing.assert_array_equal(fitted.answer(before), again.answer(before))
    assert seen[-1].training_mse < seen[0].training_mse


def test_the_ridge_learns_from_training_alone() -> None:
    made = task()
    before = made.origins(made.validation, 0)
    answers = ridge(made).answer(before)
    made.values[made.test.start :] = 7.0
    np.testing.assert_array_equal(answers, ridge(made).answer(before))
    made.values[:400] = made.values[:400][::-1].copy()
    assert not np.array_equal(answers, ridge(made).answer(before))


def test_no_answer_depends_on_what_it_forecasts() -> None:
    made = task()
    at = np.array([2_000])
    fitted = [seasonal(made), ridge(made)]
    before = [each.answer(at) for each in fitted]
    made.values[2_000:] += 1.0
    for each, answer in zip(fitted, before, strict=True):
        np.testing.assert_array_equal(answer, each.answer(at))
    made.values[1_999] += 1.0
    for each, answer in zip(fitted, before, strict=True):
        assert not np.array_equal(answer, each.answer(at))


def test_a_horizon_without_a_window_is_refused() -> None:
    assert prepare(ANYWHERE, series(), horizon=480).origins(task().test, 0).tolist() == [1_920]
    with pytest.raises(ConfigInvalid, match="481 rows is longer than the 480 rows"):
        prepare(ANYWHERE, series(), horizon=481)
    with pytest.raises(ConfigInvalid, match="shorter"):
        fit(replace(task(), horizon=1_430), TINIES["flash"], ignore)
    with pytest.raises(ConfigInvalid, match="shorter"):
        ridge(replace(task(), horizon=1_430))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_measured_beside_ridge_and_naive(network: str, tmp_path: Path) -> None:
    told: list[str] = []
    path = write(tmp_path / "series.csv", cells(series(variables=2)))
    found = measure_ett(path, network, horizon=4, epochs=1, tell=told.append)
    assert (found["test_windows"], found["variables"]) == (4 * 30 * 4 - 4 + 1, 2)
    for of in (found, found["ridge"], found["seasonal_naive"]):
        assert 0.0 < of["mse"] < 1e3
        assert of["mae"] > 0.0
    assert found["parameters"] > 0
    assert found["mse_over_ridge"] == found["mse"] / found["ridge"]["mse"]
    assert told[0].startswith("seasonal naive MSE")
