"""Trees do not depend on the number of threads; trees that cannot be stored are rejected."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

import numpy as np
import pytest

from tracepaper.replay.learning.boosting import (
    BoostingOptions,
    LabelledRows,
    boost,
    import_lightgbm,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.trees import Scorer

TINY = BoostingOptions(rounds=30, leaves=6, patience=4)


def table(seed: int, count: int = 2_000) -> LabelledRows:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 4)).astype(np.float32)
    spread = np.exp(0.6 * rows[:, :2])
    return LabelledRows(rows, spread * rng.gamma(2.0, 0.5, (count, 2)), np.ones((count, 2)))


def test_the_fit_is_the_same_for_any_number_of_threads_and_finds_the_variance() -> None:
    trees, two = (boost(table(0), table(1), TINY, target="variance", threads=n) for n in (1, 2))
    for name, array in trees.arrays().items():
        np.testing.assert_array_equal(array, two.arrays()[name])
    probe = table(2)
    scores = Scorer(trees).scores(probe.rows)
    for horizon in range(2):
        assert np.corrcoef(scores[:, horizon], probe.rows[:, horizon])[0, 1] > 0.9


def test_it_stops_early_where_there_is_nothing_to_find() -> None:
    noise = np.random.default_rng(3).normal(size=(2_000, 1))
    rows, other = (LabelledRows(t.rows, noise, np.ones_like(noise)) for t in (table(4), table(5)))
    assert boost(rows, other, TINY, target="mean", threads=1).trees[0] < TINY.rounds


def test_rows_of_no_weight_are_not_learnt_from() -> None:
    rows = table(6)
    wild = np.where(np.arange(2_000)[:, None] % 2, rows.values, 1e6)
    weights = np.where(np.arange(2_000)[:, None] % 2, rows.weights, 0.0)
    trees = boost(LabelledRows(rows.rows, wild, weights), rows, TINY, target="variance", threads=1)
    assert Scorer(trees).scores(rows.rows).max() < np.log(1e3)


class NoLightGbm(MetaPathFinder):
    """Stands for a machine on which LightGBM cannot be imported."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, *_: object) -> None:
        if name == "lightgbm":
            raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'lightgbm'"), r"pip install 'tracepaper\[train\]"),
        (OSError("libgomp.so.1: cannot open shared object file"), "libgomp1 by Debian"),
    ],
)
def test_what_lightgbm_lacks_is_named(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "lightgbm")
    monkeypatch.setattr(sys, "meta_path", [NoLightGbm(error), *sys.meta_path])
    with pytest.raises(ConfigInvalid, match=message):
        import_lightgbm()
