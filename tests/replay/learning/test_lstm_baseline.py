"""An LSTM stands beside a model where its recipe asks for it, and nowhere else."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from learning import DAY_BARS, HORIZONS, choose, learnable, split, tiny, write_csv

from tracepaper.daemon import cli
from tracepaper.replay.learning import baselines
from tracepaper.replay.learning.baselines import (
    BaselineQuestion,
    FittedBaselines,
    Measure,
    fit_baselines,
    past_variances,
)
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimators.networks import network_forecasts
from tracepaper.replay.learning.judge.metrics import figures
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.windows import predict
from tracepaper.storage.checkpoints import load
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.units import iso

SPLIT = split(2.5, 3, 3.7)


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Fit for seconds."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        options = replace(baselines.LSTM_OPTIONS, steps=60, windows=64, validate_every=30)
        patched.setattr(baselines, "LSTM_OPTIONS", options)
        yield


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_csv(learnable(5 * DAY_BARS), tmp_path_factory.mktemp("candles")))


@pytest.fixture(scope="module")
def material(candles: str) -> Dataset:
    dataset = Dataset.read([candles], lambda _: SPLIT, HORIZONS)
    return replace(dataset, requested=("lstm",))


@pytest.fixture(scope="module")
def fitted(material: Dataset) -> FittedBaselines:
    return material.fitted


def test_it_learns_what_the_last_hour_says(material: Dataset, fitted: FittedBaselines) -> None:
    table = network_forecasts(
        FlashNetwork(tiny()), replace(material, stored=fitted), Part.TEST
    ).cooled({})
    for row in figures(table).values():
        assert row["qlike"]["lstm"][0] < row["qlike"]["ewma"][0]
        assert row["qlike"]["lstm"][0] < row["qlike"]["network"][0]
        assert set(row["sign_accuracy"]["lstm"]) != set(row["sign_accuracy"]["ridge"])
        assert "lstm" in row["r_squared"]


def test_a_fit_repeats_in_every_bit_and_leaves_the_generator_as_it_was(
    material: Dataset, fitted: FittedBaselines
) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    training, stopping = (material.samples(part) for part in (Part.TRAIN, Part.VALIDATION))
    again = fit_baselines(training, stopping, ["lstm"])["lstm"]
    assert torch.equal(torch.get_rng_state(), before)
    assert set(again) == set(fitted["lstm"])
    for name, array in fitted["lstm"].items():
        np.testing.assert_array_equal(array, again[name])


def test_what_was_said_of_other_rows_is_not_said_again(
    material: Dataset, fitted: FittedBaselines
) -> None:
    segment = material.segments[0]
    lstm = baselines.read_lstm(fitted["lstm"])
    network = baselines.lstm_of(fitted["lstm"])

    def query(rows: np.ndarray, column: int, of: Measure) -> BaselineQuestion:
        past = past_variances(segment)[:, rows]
        return BaselineQuestion(segment, rows, past, HORIZONS[column], column, of)

    for rows in (np.arange(2_000, 2_100), np.arange(2_050, 2_150)):
        wanted = predict(network, segment, rows)
        for column in (0, 1):
            for of in get_args(Measure):
                np.testing.assert_array_equal(lstm(query(rows, column, of)), wanted[of][:, column])


def test_a_command_fits_it_and_any_candles_are_judged_beside_it(
    candles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *choose("model.kind=glm", "horizons=5,30"), "--data", candles, "--json"]
    dates = ("train_until", "validation_until", "calibration_until")
    ends = (SPLIT.train_until_ms, SPLIT.validation_until_ms, SPLIT.calibration_until_ms)
    for name, at in zip(dates, ends, strict=True):
        words += choose(f"split.{name}={iso(at)}")
    words += [
        *choose("training.explained_bars=500", "training.threads=1"),
        "--cache",
        str(tmp_path / "cache"),
    ]
    assert (
        cli.invoke([*words, *choose("training.baselines=lstm"), "--out", str(tmp_path / "with")])
        == cli.DONE
    )
    assert cli.invoke([*words, "--out", str(tmp_path / "without")]) == cli.DONE
    capsys.readouterr()
    card, plain = (load(tmp_path / name).card for name in ("with", "without"))
    assert card["training"]["baselines"] == ["lstm"]
    assert set(card["baselines"]["names"]) - set(plain["baselines"]["names"]) == {"lstm"}
    assert {*card["figures"]["5"]["qlike"]} - {*plain["figures"]["5"]["qlike"]} == {"lstm"}
    assert recipe_of(card).hash == recipe_of(plain).hash  # no choice of the model's
    for name, wanted in (("with", True), ("without", False)):
        words = [
            "evaluate",
            str(tmp_path / name),
            "--data",
            candles,
            "--json",
            *choose("evaluation.threads=1"),
        ]
        assert cli.invoke(words) == cli.DONE
        tables = json.loads(capsys.readouterr().out)["spans"][0]["tables"]
        for key in ("qlike", "sign_accuracy", "ic"):
            rows = {row["forecaster"] for row in tables[key]["rows"]}
            assert ("lstm" in rows) is wanted, key
        assert ("lstm" in {row["forecaster"] for row in tables["paired_qlike"]["rows"]}) is wanted


def test_a_card_asks_for_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (["flash"], ["tree"], ["flash", *choose("ensemble.kind=tree")]):
        words = ["train", "--init", *kind]
        assert cli.invoke([*words, *choose("training.baselines=lstm")]) == cli.DONE
        document = tomllib.loads(capsys.readouterr().out)
        assert document["training"]["baselines"] == ["lstm"]
        assert "baselines" not in document.get("ensemble", {})
        assert cli.invoke(words) == cli.DONE
        assert "baselines" not in tomllib.loads(capsys.readouterr().out)["training"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gru", "names 'gru', which is not fitted on request; choose of lstm"),
        ("tree", "names 'tree'"),
    ],
)
def test_others_cannot_be_asked_for(
    given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--init", "glm", *choose(f"training.baselines={given}")]
    assert cli.invoke(words) == cli.WRONG_USAGE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_recipe_names_them_in_a_list() -> None:

    with pytest.raises(ConfigInvalid, match="must be a list of names"):
        recipe_of({"training": {"baselines": "lstm"}})
