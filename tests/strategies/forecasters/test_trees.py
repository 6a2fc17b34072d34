"""Stored trees score and explain as LightGBM does, and refuse to be anything but whole trees."""

from __future__ import annotations

from dataclasses import replace

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tracepaper.replay.learning.boosting import trees_of
from tracepaper.strategies.errors import CheckpointMismatch
from tracepaper.strategies.forecasters.tabular import GlmModel, TreeModel
from tracepaper.strategies.forecasters.trees import Scorer, contributions, joined

COLUMNS = 5


def rows_of(seed: int, count: int, *, missing: float = 0.0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    rows = np.round(rng.normal(size=(count, COLUMNS)), 2)  # values meet thresholds
    rows[rng.random(rows.shape) < missing] = np.nan
    return rows


def booster(
    seed: int, *, leaves: int = 12, missing: float = 0.0, rounds: int = 8, objective: str = "gamma"
) -> lightgbm.Booster:
    rows = rows_of(seed, 400, missing=missing)
    noise = np.random.default_rng(seed + 1).gamma(2.0, 1.0, len(rows))
    filled = np.nan_to_num(rows, nan=0.7)
    values = np.exp(0.5 * filled[:, 0] + filled[:, 1] * filled[:, 2]) * noise
    settings = {
        "objective": objective,
        "num_leaves": leaves,
        "min_data_in_leaf": 2,
        "seed": seed,
        "feature_fraction": 0.7,
        "num_threads": 1,
        "verbosity": -1,
    }
    return lightgbm.train(settings, lightgbm.Dataset(rows, values), rounds)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    leaves=st.sampled_from([2, 7, 32, 33, 64]),
    missing=st.sampled_from([0.0, 0.2]),
    objective=st.sampled_from(["gamma", "regression"]),
)
def test_random_models_score_and_explain_as_lightgbm_does(
    seed: int, leaves: int, missing: float, objective: str
) -> None:
    model = booster(seed, leaves=leaves, missing=missing, objective=objective)
    trees = trees_of(model.model_to_string())
    probe = rows_of(seed + 2, 300, missing=0.15)
    ours = Scorer(trees).scores(probe)[:, 0]
    theirs = model.predict(probe, raw_score=True, num_threads=1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    added = contributions(trees, probe[:20])
    expected = np.asarray(model.predict(probe[:20], pred_contrib=True, num_threads=1))
    np.testing.assert_allclose(added.by_feature[:, 0], expected[:, :-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(added.base[0], expected[:, -1], rtol=0, atol=1e-9)
    total = added.by_feature[:, 0].sum(axis=1) + added.base[0]
    np.testing.assert_allclose(total, ours[:20], rtol=0, atol=1e-13 * (1 + np.abs(ours).max()))


def test_a_row_is_scored_alike_in_any_company() -> None:
    parts = [trees_of(booster(seed, leaves=9).model_to_string()) for seed in range(3)]
    scorer = Scorer(joined(parts))
    probe = rows_of(9, 600, missing=0.1)
    many = scorer.scores(probe)
    assert many.shape == (600, 3)
    alone = np.concatenate([scorer.scores(probe[at : at + 1]) for at in range(600)])
    np.testing.assert_array_equal(many, alone)
    np.testing.assert_array_equal(many[:, :1], Scorer(parts[0]).scores(probe))


def test_trees_that_found_nothing_to_split_are_their_constant() -> None:
    rows = rows_of(0, 50)
    quiet = {"objective": "regression", "verbosity": -1, "min_data_in_leaf": 40}
    model = lightgbm.train(quiet, lightgbm.Dataset(rows, rows[:, 0] + 3.0), 1)
    trees = trees_of(model.model_to_string())
    assert trees.leaves.tolist() == [1]
    for count in (1, 4):
        assert Scorer(trees).scores(rows[:count]) == pytest.approx(model.predict(rows[:count])[0])
    added = contributions(trees, rows[:2])
    assert not added.by_feature.any()
    assert added.base == pytest.approx(model.predict(rows[:1]))


KNOWN = trees_of(booster(3, leaves=6, rounds=3).model_to_string())


def test_a_tree_answers_each_horizon() -> None:
    pair = joined([KNOWN, KNOWN])
    assert TreeModel(pair.arrays()).answer(rows_of(0, 2))[0].shape == (2, 1)


def test_a_tree_that_comes_back_to_a_node_is_refused() -> None:
    with pytest.raises(CheckpointMismatch, match="reaches a node twice"):
        Scorer(replace(KNOWN, left=KNOWN.left * 0))


def test_the_shares_of_training_rows_matter_to_contributions_alone() -> None:
    halved = replace(KNOWN, leaf_rows=np.ones_like(KNOWN.leaf_rows))
    probe = rows_of(1, 5)
    np.testing.assert_array_equal(Scorer(halved).scores(probe), Scorer(KNOWN).scores(probe))
    assert contributions(halved, probe).base != pytest.approx(contributions(KNOWN, probe).base)


def glm(horizons: int = 2) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return {
        "centre": rng.normal(size=COLUMNS),
        "log_variance_weights": rng.normal(size=(horizons, COLUMNS)),
        "mean_weights": rng.normal(size=(horizons, COLUMNS)),
        "log_variance_base": rng.normal(size=horizons),
        "mean_base": rng.normal(size=horizons),
    }


def test_a_glm_answers_a_row_alike_in_any_company_and_takes_it_apart() -> None:
    model = GlmModel(glm())
    probe = rows_of(4, 5_000).astype(np.float32)
    mean, log_variance = model.answer(probe)
    for at in (0, 4_999):
        for whole, row in zip((mean, log_variance), model.answer(probe[at : at + 1]), strict=True):
            np.testing.assert_array_equal(whole[at], row[0])
        added = model.contributions(probe[at])
        assert added.mean.sum(axis=1) + added.mean_base == pytest.approx(mean[at])
        total = added.log_variance.sum(axis=1) + added.log_variance_base
        assert total == pytest.approx(log_variance[at])
