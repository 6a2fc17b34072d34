"""The benchmark of learning asks what it says it asks; its figures are no test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import etth1
import numpy as np
import pytest
import torch

HORIZON = 24


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of the form of ETTh1.csv: cycles, noise, and another level in the test."""
    hour = np.arange(etth1.TEST)
    rng = np.random.default_rng(0)
    phases = rng.uniform(0, 24, 7)
    values = np.sin(2 * np.pi * (hour[:, None] + phases) / 24) + 0.1 * rng.normal(
        size=(len(hour), 7)
    )
    values[etth1.CHOOSE :] += 100.0
    begin = datetime(2016, 7, 1, tzinfo=UTC)
    rows = [
        ",".join((f"{begin + timedelta(hours=int(at)):%Y-%m-%d %H:%M:%S}", *map(str, row)))
        for at, row in zip(hour, values, strict=True)
    ]
    path = tmp_path_factory.mktemp("ett") / "ETTh1.csv"
    path.write_text("\n".join(["date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT", *rows]))
    return path


def test_the_parts_are_the_papers_and_the_scale_is_that_of_training(path: Path) -> None:
    series = etth1.Series.read(path, 48, HORIZON)
    train = series.values[: etth1.TRAIN].double()
    assert torch.allclose(train.mean(dim=0), torch.zeros(7).double(), atol=1e-6)
    assert torch.allclose(train.std(dim=0, correction=0), torch.ones(7).double(), atol=1e-6)
    assert [len(series.ends(part)) for part in ("train", "choose", "test")] == [8_569, 2_857, 2_857]
    x, hours, wanted = next(series.batches("test"))
    assert torch.equal(wanted[0], series.values[etth1.CHOOSE : etth1.CHOOSE + HORIZON])
    assert torch.equal(x[1, -1], series.values[etth1.CHOOSE])
    first = datetime(2016, 7, 1, tzinfo=UTC).timestamp() // 3600 + etth1.CHOOSE
    assert int(hours[0, -1]) == first - 1


def test_a_fit_learns_and_a_ridge_is_near_the_noise(path: Path) -> None:
    series = etth1.Series.read(path, 48, HORIZON)
    model, _ = etth1.ridge(series)
    noise = 0.1**2 / (0.5 + 0.1**2)
    assert noise < etth1.errors(model, series, "choose").mse < 1.4 * noise
    linear = etth1.DLinear(series)
    begins = etth1.errors(linear, series, "choose").mse
    told = etth1.fitted(linear, series, epochs=1, rate=1e-3, halves=False)
    assert told == "epoch 1 of 1"
    assert etth1.errors(linear, series, "choose").mse < 0.2 * begins


@pytest.mark.parametrize("subtracts", [False, True])
def test_an_informer_that_subtracts_the_last_value_follows_the_level(
    path: Path, *, subtracts: bool
) -> None:
    torch.manual_seed(0)
    series = etth1.Series.read(path, 48, HORIZON)
    model = etth1.Informer(series, etth1.PUBLISHED[HORIZON], 16, subtracts=subtracts).eval()
    x, hours, _ = next(series.batches("train"))
    with torch.no_grad():
        moved = model(x + 5.0, hours) - model(x, hours)
    assert torch.allclose(moved, torch.full_like(moved, 5.0), atol=1e-4) is subtracts
