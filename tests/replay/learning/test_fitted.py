"""Baselines are stored with a checkpoint bit for bit, and are used on any candles."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning import DAY_BARS, HORIZONS, learnable, rows_recipe, split, write_csv
from page_cases import shown_of
from scenarios import SCENARIOS

import tracepaper
from tracepaper.daemon import cli
from tracepaper.replay.learning.baselines import (
    BASELINES,
    FILE_NAME,
    NO_TREES,
    fit_baselines,
    save_judged,
    stored_baselines,
)
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.training import train
from tracepaper.replay.page import runs
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.strategies.errors import CheckpointMismatch

SPLIT = split(3, 3.7, 4.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with candles of six days, and of the last day and a half alone."""
    root = tmp_path_factory.mktemp("fitted")
    write_csv(learnable(6 * DAY_BARS), root)
    (root / "late").mkdir()
    write_csv(learnable(2 * DAY_BARS, seed=3, start=5 * DAY_BARS), root / "late")
    return root


@pytest.fixture(scope="module")
def material(folder: Path) -> Dataset:
    return Dataset.read(sorted(map(str, folder.glob("*.csv.gz"))), lambda _: SPLIT, HORIZONS)


@pytest.fixture(scope="module")
def checkpoint(folder: Path, material: Dataset) -> Checkpoint:
    return train(rows_recipe("glm", 300), material, FitRun(folder / "glm"))


def test_what_was_fitted_is_read_back_in_every_bit(
    checkpoint: Checkpoint, material: Dataset, folder: Path, tmp_path: Path
) -> None:
    fitted_baselines = stored_baselines(folder / "glm", checkpoint.card)
    assert fitted_baselines is not None
    assert set(fitted_baselines) == set(material.fitted) == set(BASELINES)
    for name, arrays in material.fitted.items():
        assert set(fitted_baselines[name]) == set(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(fitted_baselines[name][key], array)
    refitted = fit_baselines(material.samples(Part.TRAIN))
    for key, array in refitted["tree_seasonal"].items():
        np.testing.assert_array_equal(fitted_baselines["tree_seasonal"][key], array)
    saved = save_judged(tmp_path / "again", checkpoint.tensors, checkpoint.card, refitted)
    assert saved.sha256 == checkpoint.sha256  # and so are the bytes of the file
    without = {key: value for key, value in checkpoint.card.items() if key != "baselines"}
    assert stored_baselines(folder / "glm", without) is None


def test_evaluate_needs_no_candle_of_the_training_span(
    checkpoint: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = str(next((folder / "late").glob("*.csv.gz")))
    assert cli.invoke(["evaluate", str(folder / "glm"), "--data", late, "--json"]) == cli.DONE
    document = json.loads(capsys.readouterr().out)
    names = set(document["figures"]["30"]["qlike"])
    assert names == {"model", *(n for n, of in BASELINES.items() if of.measure == "variance")}
    assert document["figures"]["30"]["qlike"] != checkpoint.card["figures"]["30"]["qlike"]
    assert all(error is None for _, error in document["figures"]["30"]["qlike"].values())


def test_trees_and_the_gamma_regression_bite(checkpoint: Checkpoint) -> None:
    qlike = checkpoint.card["figures"]["5"]["qlike"]
    assert qlike["gamma_glm"][0] == pytest.approx(qlike["model"][0], abs=0.01)  # the same fit
    assert max(qlike["tree"][0], qlike["tree_seasonal"][0]) < qlike["ewma"][0]


def test_changed_or_lost_bytes_are_refused(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder / "glm", tmp_path / "copy"))
    file = copy / FILE_NAME
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    late = str(next((folder / "late").glob("*.csv.gz")))
    assert cli.invoke(["evaluate", str(copy), "--data", late]) == cli.FAILED
    assert "restore the file from where it came" in capsys.readouterr().err
    file.unlink()
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        stored_baselines(copy, checkpoint.card)


def test_without_lightgbm_the_card_says_that_trees_are_missing(
    checkpoint: Checkpoint, material: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    fitted = fit_baselines(material.samples(Part.TRAIN))
    assert set(BASELINES) - set(fitted) == {"tree", "tree_seasonal"}
    saved = save_judged(tmp_path / "made", checkpoint.tensors, checkpoint.card, fitted)
    assert saved.card["honesty"]["sentences"][-1] == NO_TREES
    assert NO_TREES not in checkpoint.card["honesty"]["sentences"]


def test_the_page_of_its_run_has_no_rows_of_attention_and_regime(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    sections: dict[str, dict[str, Any]] = {
        "strategy": {"name": "attention"},
        "model": {"checkpoint": str(folder / "glm"), "threads": 1},
        "gate": {"horizon": 30},
    }
    (candles,), database = (folder / "late").glob("*.csv.gz"), tmp_path / "run.db"
    with tracepaper.backtest(None, candles, config=sections, db=database, progress=False):
        answer = runs.run(shown_of(database))
    assert (answer.has_model, answer.has_attention, answer.has_regime) == (True, False, False)
    explained = runs.run(shown_of(SCENARIOS["a model with gates"].recorded()))
    assert (explained.has_attention, explained.has_regime) == (True, True)
