"""Folds with covariates of the user: what standardises them is known when the fold's fit ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from learning import DAY_BARS, MINUTE_MS, START_MS, learnable, write_csv

from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.side_inputs import CovariateInputs
from tracepaper.replay.learning.splits import Fold, Split
from tracepaper.storage.covariates import read_covariates
from tracepaper.strategies.covariates import CovariateRows, CovariateScale

COUNT = 2 * DAY_BARS
AT = START_MS + MINUTE_MS * np.arange(100, COUNT, 7)
NUMBERS = np.random.default_rng(3).normal(size=(len(AT), 2))
OF_CARD = CovariateScale(("heat", "mood"), (40.0, 50.0), (6.0, 7.0))


def at(bar: int) -> int:
    return START_MS + MINUTE_MS * bar


LEARNT = at(1_400)
FOLD = Fold(((at(0), LEARNT),), ((LEARNT, at(1_600)),), ((at(1_600), at(2_000)),), embargo_ms=0)
SPLIT = Split(at(2_100), at(2_200), at(2_300), embargo_bars=30)


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_csv(learnable(COUNT), tmp_path_factory.mktemp("candles")))


def on_fold(candles: str, path: Path, numbers: np.ndarray) -> Dataset:
    """Return what a fold learns from, where a file of covariates holds *numbers*."""
    pairs = zip(AT.tolist(), numbers.tolist(), strict=True)
    rows = [f"{time},{mood!r},{heat!r}" for time, (mood, heat) in pairs]
    path.write_text("\n".join(["time,mood,heat", *rows]), encoding="utf-8")
    supplied = CovariateInputs(read_covariates(path), OF_CARD)
    material = Dataset.read([candles], lambda _: SPLIT, (5, 30), vectors=supplied)
    return material.folded(FOLD)


def learnt(material: Dataset) -> np.ndarray:
    """Return the features of the bars that close before the fold's fit ends."""
    (own,) = material.segments
    return own.values[own.close_time_ms < LEARNT]


def with_other_rows_later() -> np.ndarray:
    return np.where((AT >= LEARNT)[:, None], 9.0 - 40.0 * NUMBERS, NUMBERS)


def test_a_fold_is_standardised_by_what_it_learns_from_alone(candles: str, tmp_path: Path) -> None:
    material = on_fold(candles, tmp_path / "v.csv", NUMBERS)
    before = NUMBERS[AT < LEARNT][:, ::-1]  # in the card's order
    assert isinstance(material.vectors, CovariateInputs)
    assert material.vectors.scale == CovariateScale(
        OF_CARD.columns, tuple(before.mean(axis=0).tolist()), tuple(before.std(axis=0).tolist())
    )
    (own,) = material.segments
    assert own.values.shape[1] == len(material.schema.names)
    given = own.values[own.first :, 78]
    assert np.abs(given[own.close_time_ms[own.first :] < LEARNT].mean()) < 0.2  # not the card's


def test_rows_after_a_folds_fit_move_nothing_that_it_learns(candles: str, tmp_path: Path) -> None:
    one = on_fold(candles, tmp_path / "v.csv", NUMBERS)
    two = on_fold(candles, tmp_path / "v.csv", with_other_rows_later())
    assert np.array_equal(learnt(one), learnt(two), equal_nan=True)
    assert not np.array_equal(one.segments[0].values, two.segments[0].values, equal_nan=True)


def test_a_scale_of_all_rows_is_found_to_look_ahead(
    candles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CovariateScale.fitted

    def leaking(
        columns: Sequence[str], every: Sequence[CovariateRows], until_ms: int
    ) -> CovariateScale:
        return honest(columns, every, until_ms + MINUTE_MS * COUNT)

    monkeypatch.setattr(CovariateScale, "fitted", leaking)
    one = on_fold(candles, tmp_path / "v.csv", NUMBERS)
    two = on_fold(candles, tmp_path / "v.csv", with_other_rows_later())
    assert not np.array_equal(learnt(one), learnt(two), equal_nan=True)
