"""A tree and a glm from candles to a checkpoint, and every command that takes one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from learning import DAY_BARS, HORIZONS, learnable, rows_recipe, split, write_csv

from tracepaper.daemon import cli
from tracepaper.replay.learning.boosting import BoostingOptions
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.recipe_data import DataRequest
from tracepaper.replay.learning.training import train, train_seeds
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.forecasters.build import RunOptions, build, choose_backend
from tracepaper.strategies.forecasters.tabular import ROW_MEASURES, RowForecaster
from tracepaper.strategies.types.decisions import Forecast

KINDS = ("tree", "glm")
SPLIT = split(3, 3.7, 4.7)
OPTIONS = BoostingOptions(rounds=15, patience=5, leaves=7, learning_rate=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with six days of candles."""
    root = tmp_path_factory.mktemp("rows")
    write_csv(learnable(6 * DAY_BARS), root)
    return root


@pytest.fixture(scope="module")
def candles(folder: Path) -> str:
    return str(next(folder.glob("*.csv.gz")))


@pytest.fixture(scope="module")
def material(candles: str) -> Dataset:
    return Dataset.read([candles], lambda _: SPLIT, HORIZONS)


@pytest.fixture(scope="module")
def models(folder: Path, material: Dataset) -> dict[str, Checkpoint]:
    lines: list[str] = []
    fitted = {
        kind: train(
            rows_recipe(kind, 300, OPTIONS),
            material,
            FitRun(folder / kind, created_ms=1_700_000_000_000, say=lines.append),
        )
        for kind in KINDS
    }
    assert lines[:2] == ["Fitting the tree.", "Calibrating."]
    return fitted


@pytest.fixture(params=KINDS)
def checkpoint(models: dict[str, Checkpoint], request: pytest.FixtureRequest) -> Checkpoint:
    return models[request.param]


def forecaster_of(checkpoint: Checkpoint, **chosen: str) -> RowForecaster:
    forecaster = build(checkpoint.card, checkpoint.tensors, RunOptions(**chosen))  # type: ignore[arg-type]
    assert isinstance(forecaster, RowForecaster)
    return forecaster


def without_none(forecasts: list[Forecast | None]) -> list[Forecast]:
    return [forecast for forecast in forecasts if forecast is not None]


def test_one_bar_and_many_are_answered_alike_in_every_bit(
    checkpoint: Checkpoint, material: Dataset
) -> None:
    bars = material.segments[0].candles.bars()[:700]
    stepped, scanned = forecaster_of(checkpoint), forecaster_of(checkpoint, mode="scan")
    forecasts = [stepped.step(bar) for bar in bars]
    assert forecasts == scanned.scan(bars)
    assert forecasts[478] is None
    first = forecasts[479]
    assert first is not None
    assert first.p_up == ()
    assert first.explanation is None
    assert np.isfinite([*first.mean_return, *first.stdev_return, *first.volatility]).all()
    fresh = forecaster_of(checkpoint)
    fresh.warm(bars[0].instrument, bars[100:699])
    assert fresh.step(bars[699]) == forecasts[699]
    assert (fresh.context, fresh.measures, fresh.causal) == (480, ROW_MEASURES, True)


def test_it_learns_what_the_candles_hold(checkpoint: Checkpoint) -> None:
    figures = checkpoint.card["figures"]["5"]
    assert figures["qlike"]["model"][0] < figures["qlike"]["ewma"][0]
    assert "direction" not in figures  # it names no probabilities
    assert 0.8 < figures["coverage_90"][0] < 0.97
    sentences = checkpoint.card["honesty"]["sentences"]
    assert any("It has no attention" in sentence for sentence in sentences)
    assert set(checkpoint.card["calibration"]["quantiles"]) == {"edge"}


def test_contributions_sum_to_the_forecast(checkpoint: Checkpoint, material: Dataset) -> None:
    bars = material.segments[0].candles.bars()[:600]
    forecaster = forecaster_of(checkpoint)
    instrument = bars[0].instrument
    with pytest.raises(InvariantBroken, match="no decision to explain yet"):
        forecaster.explain(instrument)
    last = without_none([forecaster.step(bar) for bar in bars])[-1]
    row, sigma, added = forecaster.explain(instrument)
    np.testing.assert_array_equal(row, material.segments[0].values[599])
    root = sigma * np.sqrt(HORIZONS)
    mean = (added.mean.sum(axis=1) + added.mean_base) * root
    assert mean == pytest.approx(last.mean_return, rel=1e-12)
    total = added.log_variance.sum(axis=1) + added.log_variance_base
    assert np.exp(0.5 * total) * root == pytest.approx(last.volatility, rel=1e-12)


def test_the_card_counts_what_its_gates_let_through(models: dict[str, Checkpoint]) -> None:
    for checkpoint in models.values():
        section = checkpoint.card["calibration"]
        (counted,) = section["coverage"]
        assert section["bars"] > 0
        assert 0.0 <= counted["share"] < 1.0
        assert set(counted["thresholds"]) == {"edge"}


def test_a_backend_or_horizon_that_it_has_not_is_refused(
    checkpoint: Checkpoint, material: Dataset, tmp_path: Path
) -> None:
    kind = checkpoint.card["model"]["kind"]
    assert choose_backend(checkpoint.card, "auto", device="cpu") == kind
    with pytest.raises(ConfigInvalid, match=f"set it to auto or {kind}"):
        choose_backend(checkpoint.card, "sdpa", device="cpu")
    with pytest.raises(ConfigInvalid, match="none of the model's"):
        recipe_of({"model": {"kind": kind}, "calibration": {"horizon": 7}})


def test_it_is_replayed_verified_and_taken_apart(
    models: dict[str, Checkpoint],
    folder: Path,
    candles: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def invoke(*words: str) -> str:
        assert cli.invoke(words) == cli.DONE
        return capsys.readouterr().out

    database = tmp_path / "rows.db"
    config = tmp_path / "rows.toml"
    config.write_text(f'[model]\ncheckpoint = "{folder / "tree"}"\n[gate]\nedge = 0.0\n')
    words = ("replay", "--data", candles, "--config", str(config), "--to", "2023-11-15T10:00")
    assert json.loads(invoke(*words, "--db", str(database), "--json"))["bars"] == 600
    invoke("verify", "last", "--db", str(database))
    document = json.loads(invoke("explain", "last:600", "--full", "--json", "--db", str(database)))
    assert {gate["gate"] for gate in document["gates"]}.isdisjoint(
        {"collapse", "regime", "direction"}
    )
    full = document["by_feature"]
    assert full["gap"] < 1e-15
    means = [feature["mean_return"] for feature in full["features"]]
    assert full["mean_base"] + sum(means) == pytest.approx(full["mean_return"])
    page = invoke("explain", "last:600", "--full", "--db", str(database))
    assert "Added by each feature, over 30 bars" in page
    assert models["tree"].id in invoke("models", str(folder / "tree"))
    assert "context 480 bars" in invoke("models", str(folder / "tree"))


def test_a_row_model_is_examined_by_column_and_interval(
    models: dict[str, Checkpoint], folder: Path, candles: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--inspect",
        "permutation=300",
        "--inspect",
        "attribution=1",
        "--inspect",
        "intervals",
        "--json",
    ]
    assert cli.invoke(["evaluate", str(folder / "glm"), "--data", candles, *options]) == 0
    document = {table["name"]: table for table in json.loads(capsys.readouterr().out)["findings"]}
    assert list(document) == ["permutation", "attributions", "intervals"]
    assert document["permutation"]["rows"][0]["QLIKE 30m"][0] > 0
    covered = {row["interval"]: row["coverage"][0] for row in document["intervals"]["rows"]}
    figures = models["glm"].card["figures"]["30"]
    assert covered["own"] == pytest.approx(figures["coverage_90"][0], abs=1e-4)
    assert (
        cli.invoke(["evaluate", str(folder / "glm"), "--data", candles, "--inspect", "context=5"])
        != 0
    )
    assert "leave --inspect context out" in capsys.readouterr().err
    assert cli.invoke(["evaluate", "any:Model", "--data", candles, "--inspect", "context=5"]) != 0
    assert "which a class does not show" in capsys.readouterr().err


def test_seeds_of_a_tree_compare_each_other_on_their_cards(candles: str, tmp_path: Path) -> None:
    """A regression has no randomness, so its cards compare no seeds."""
    cards = {}
    for kind in ("tree", "glm"):
        recipes = [rows_recipe(kind, 300, replace(OPTIONS, rounds=3, seed=seed)) for seed in (1, 2)]
        for folder, train_seed in train_seeds(
            recipes, DataRequest([candles]), FitRun(tmp_path / kind)
        ):
            cards[kind, folder.name] = train_seed.card
    trees = [cards["tree", name] for name in ("seed-1", "seed-2")]
    assert trees[0]["seeds"] == trees[1]["seeds"]
    assert trees[0]["seeds"]["seeds"] == [1, 2]
    assert "what separates seeds is luck" in trees[0]["honesty"]["sentences"][-1]
    assert "seeds" not in cards["glm", "seed-1"]
