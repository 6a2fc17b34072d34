"""``--ablate``: the effect of a planted change is found; a change without effect is rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli
from learning import DAY_BARS, HORIZONS, by_forecaster, choose, learnable, split, write_csv

from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.judge.folds import Refits, ablated, ablation_tables, refit
from tracepaper.replay.learning.judge.forecasts import MODEL
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.statistics import qlike_of
from tracepaper.replay.learning.training import train
from tracepaper.storage.checkpoints import load, locate
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array

SPLIT = split(6, 7, 8)


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_csv(learnable(9 * DAY_BARS), tmp_path_factory.mktemp("candles")))


@pytest.fixture(scope="module")
def material(candles: str) -> Dataset:
    return Dataset.read([candles], lambda _: SPLIT, HORIZONS)


@pytest.fixture(scope="module")
def checkpoint(material: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = recipe_of(
        {
            "architecture": {
                "dim": 8, "layers": 1, "heads": 2, "window": 16, "horizons": list(HORIZONS)
            },
            "training": {
                "steps": 3, "validate_every": 3, "length": 256, "threads": 1,
                "explained_bars": 600,
            },
        }
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "flash"
    train(recipe, material, FitRun(folder))
    return folder


def test_a_change_is_fitted_anew_and_stands_beside_the_recipe_as_it_is(
    checkpoint: Path, candles: str, cli: Cli
) -> None:
    words = [
        "evaluate",
        str(checkpoint),
        "--data",
        candles,
        "--folds",
        "walk:1",
        *choose("evaluation.threads=1"),
    ]
    changes = ["clock=week,sessions", "training.steps=1"]
    options = [word for change in changes for word in ("--ablate", change)]
    tables = cli.json(*words, *options)["tables"]
    [_, *rows] = by_forecaster(tables["instead_qlike"]["rows"], 5).values()
    assert [row["forecaster"] for row in rows] == changes
    for row in rows:
        assert row["days"] >= 2
        assert row["difference"]["value"] != 0.0
        assert row["difference"]["error"] is None  # of so few days
        assert row["verdict"] in {"better", "level", "worse"}
    assert len(by_forecaster(tables["instead_sign"]["rows"], 5)) == 1 + len(changes)


def test_a_planted_change_is_found_and_its_size_is_the_difference_of_the_losses(
    checkpoint: Path, material: Dataset
) -> None:
    refits = refit(load(checkpoint).card, material, "walk:1", say=lambda _: None)
    horizon = HORIZONS[0]
    first = refits.tests[0].at(horizon)
    # Bars of the fold's few days as if they were of a month.
    opened = np.arange(len(first)) * (30 * DAY_BARS * 60_000 // len(first))
    first = replace(first, open_ms=opened)
    refits = replace(refits, tests=[first])
    realised, forecast = first.labels["variance"], first.value("variance")

    def others(variance: Array) -> Refits:
        changed = first.holding(MODEL, variance=variance)
        return replace(refits, tests=[changed])

    changes = {"oracle": realised.clip(1e-3), "worse": 8.0 * forecast, "same": forecast}
    [table, _] = ablation_tables(refits, {name: others(of) for name, of in changes.items()})
    rows = by_forecaster(table.documents(), horizon)
    verdicts = {name: row["verdict"] for name, row in rows.items()}  # of the recipe as it is
    assert verdicts == {"model": None, "oracle": "worse", "worse": "better", "same": "level"}
    assert rows["same"]["difference"]["value"] == 0.0
    losses = qlike_of(forecast, realised) - qlike_of(changes["worse"], realised)
    assert rows["worse"]["difference"]["value"] == pytest.approx(float(losses.mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("encoding", "sets no key"),
        ("=rope", "sets no key"),
        ("split.train_until=2024-01-01", "is no change"),
        ("encoding=rope", "changes nothing"),
        ("window=16", "changes nothing"),
        ("encoding=moon", "choose one of"),
        ("clock=moon", "choose from week"),
        ("depth=3", "has no architecture.depth"),
        ("training.stepz=3", "stepz"),
        ("horizons=5,10,60", "they keep architecture.horizons"),
        ("interval_minutes=5", "they keep architecture.interval_minutes"),
        ("features=29", "they keep architecture.features"),
        ("training.threads=2", "they keep training.threads"),
        ("training.explained_bars=9", "they keep training.explained_bars"),
        ("window=wide", "must be a whole number"),
    ],
)
def test_what_is_no_change_is_refused_in_one_sentence(
    checkpoint: Path, change: str, sentence: str
) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        ablated(load(checkpoint).card, change)


def test_a_change_needs_folds(checkpoint: Path, candles: str, cli: Cli) -> None:
    words = ["evaluate", str(checkpoint), "--data", candles, "--ablate", "encoding=none"]
    assert "give --folds walk:1" in cli.err(*words, code=2)


def test_a_value_is_read_as_the_recipe_writes_it(checkpoint: Path) -> None:
    card = load(checkpoint).card
    cases = {
        "clock=week,funding": ("clock", ["week", "funding"]),
        "gated=true": ("gated", True),
        "encoding=alibi": ("encoding", "alibi"),
        "window=8": ("window", 8),
        "architecture.dropout=0.3": ("dropout", 0.3),
    }
    for text, (key, value) in cases.items():
        assert ablated(card, text)["architecture"][key] == value
    assert ablated(card, "training.steps=9")["training"]["steps"] == 9


def test_of_an_ensemble_the_network_is_changed_and_the_rows_stay() -> None:
    card = load(locate("flash-15m")).card
    before, after = (recipe_of(source) for source in (card, ablated(card, "encoding=alibi")))
    base, architecture = (
        recipe.members[0].document()["architecture"] for recipe in (before, after)
    )
    assert base["encoding"] == "rope"
    assert architecture == {**base, "encoding": "alibi"}
    assert after.members[1] == before.members[1]
    changed = ablated(card, "training.entropy_weight=0.25")
    assert recipe_of(changed).options.entropy_weight == 0.25
    with pytest.raises(ConfigInvalid, match="changes nothing"):
        ablated(card, "encoding=rope")
