"""A network and a tree as one checkpoint: shares that are the best, halves kept, both explained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import DAY_BARS, HORIZONS, choose, learnable, rows_recipe, split, tiny, write_csv

from tracepaper.daemon import cli
from tracepaper.replay.learning.boosting import BoostingOptions
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimators.ensemble import network_share
from tracepaper.replay.learning.fit import FitOptions
from tracepaper.replay.learning.fitted import DataRequest
from tracepaper.replay.learning.judge.explained import bars_of
from tracepaper.replay.learning.recipe import Recipe, kinds
from tracepaper.replay.learning.training import combine, train
from tracepaper.storage.checkpoints import Checkpoint, load, save
from tracepaper.strategies.attention import compiled
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.forecasters.build import build, choose_backend
from tracepaper.strategies.forecasters.tabular import EnsembleForecaster, halves

SPLIT = split(3, 3.7, 4.7)
AT_MS = 1_700_000_000_000


def quiet(_: object) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with candles of six days."""
    made = tmp_path_factory.mktemp("ensemble")
    write_csv(learnable(6 * DAY_BARS), made)
    return made


@pytest.fixture(scope="module")
def candles(folder: Path) -> str:
    return str(next(folder.glob("*.csv.gz")))


@pytest.fixture(scope="module")
def material(candles: str) -> Dataset:
    return Dataset.read([candles], lambda _: SPLIT, HORIZONS)


@pytest.fixture(scope="module")
def made(folder: Path, candles: str, material: Dataset) -> Checkpoint:
    """Return the ensemble of a tiny network and a tiny tree."""
    torch.set_num_threads(1)
    options = FitOptions(steps=4, batch=2, length=512, learning_rate=3e-3, validate_every=2)
    recipe = Recipe(kinds()["flash"], tiny(), options, 30, name="net", explained_bars=500)
    train(
        recipe,
        material,
        folder / "net",
        created_ms=AT_MS,
        observe=quiet,
        say=quiet,
        resume=False,
    )
    trees = BoostingOptions(rounds=15, patience=5, leaves=7, learning_rate=0.3)
    train(rows_recipe("tree", 300, trees), material, folder / "tree", created_ms=AT_MS)
    return both(folder / "net", folder / "tree", candles, folder / "both")


def both(network: Path, rows: Path, candles: str, folder: Path) -> Checkpoint:
    """Combine the checkpoints in two folders."""
    request = DataRequest([candles])
    return combine((network, rows), request, folder, created_ms=AT_MS, name="x", bars=500)


def test_the_share_is_the_minimum_of_qlike_and_its_gain_is_told_by_day() -> None:
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(40), 100)
    log_variance = rng.normal(size=len(days))
    value = np.exp(log_variance) * rng.gamma(4.0, 0.25, len(days))
    one, other = (log_variance + 0.4 * rng.normal(size=len(days)) for _ in range(2))
    found = network_share(one, other, value, days)

    def qlike(share: float) -> float:
        score = share * one + (1 - share) * other
        return float((np.maximum(value, 0.01) * np.exp(-score) + score).mean())

    grid = [qlike(share) for share in np.linspace(0, 1, 201)]
    assert qlike(found.share) <= min(grid) + 1e-12
    assert 0.3 < found.share < 0.7  # equal halves with errors of their own
    assert found.gain.value < -4 * (found.gain.error or 0.0) < 0
    assert found.gain.value == pytest.approx(qlike(found.share) - min(qlike(0), qlike(1)))


def test_a_half_that_only_adds_noise_has_no_share() -> None:
    rng = np.random.default_rng(1)
    days = np.repeat(np.arange(10), 50)
    good = rng.normal(size=len(days))
    value = np.exp(good)
    bad = good + 3.0
    assert network_share(good, bad, value, days) == (1.0, (0.0, 0.0))
    assert network_share(bad, good, value, days) == (0.0, (0.0, 0.0))


def ensemble_of(checkpoint: Checkpoint, mode: str = "step") -> EnsembleForecaster:
    found = build(checkpoint.card, checkpoint.tensors, mode=mode)
    assert isinstance(found, EnsembleForecaster)
    return found


def test_it_mixes_what_both_halves_say_and_keeps_it(
    made: Checkpoint, folder: Path, material: Dataset
) -> None:
    bars = bars_of(material.segments[0], 0, 640)
    mix = ensemble_of(made)
    network, tree = (
        build(found.card, found.tensors) for found in (load(folder / "net"), load(folder / "tree"))
    )
    for bar in bars:
        mixed, one, other = (each.step(bar) for each in (mix, network, tree))
        if mixed is None:
            assert one is None
            continue
        assert one is not None
        assert other is not None
        assert mixed.mean_return == one.mean_return
        assert mixed.explanation == one.explanation
        assert mixed.model_id == made.id
        shares = np.array(mix.shares)
        logs = shares * np.log(one.volatility) + (1 - shares) * np.log(other.volatility)
        assert mixed.volatility == pytest.approx(np.exp(logs), rel=1e-12)
        said = halves(mixed)
        assert said[0] == pytest.approx(np.array([one.mean_return, one.volatility]), rel=1e-6)
        assert said[1] == pytest.approx(np.array([other.mean_return, other.volatility]), rel=1e-6)
        assert halves(one).shape == (0, 2, 2)
    scanned = ensemble_of(made, "scan").scan(bars)
    stepped = mixed
    last = scanned[-1]
    assert last is not None
    assert stepped is not None
    assert last.volatility == pytest.approx(stepped.volatility, rel=1e-4)
    assert [one is None for one in scanned] == [at < mix.context - 1 for at in range(640)]


def test_its_card_shows_both_halves_and_is_repeated_by_evaluate(
    made: Checkpoint, folder: Path, candles: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "evaluate",
        str(folder / "both"),
        "--data",
        candles,
        *choose("evaluation.explained_bars=500"),
        "--json",
    )
    assert cli.invoke(words) == cli.DONE
    told = json.loads(capsys.readouterr().out)
    assert told["figures"] == json.loads(json.dumps(made.card["figures"]))
    qlike = told["figures"]["30"]["qlike"]
    assert {"model", "network_half", "row_half", "tree", "gamma_glm"} <= set(qlike)
    assert any("share of" in sentence for sentence in told["sentences"])
    assert all(0 <= share <= 1 for share in made.card["ensemble"]["network_share"].values())
    fastest = (*compiled.available(), "tiles")[0]
    assert choose_backend(made.card, "auto", device="cpu") == fastest


def test_a_run_stores_both_halves_and_explains_both(
    made: Checkpoint,
    folder: Path,
    candles: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def invoke(*words: str) -> str:
        assert cli.invoke(words) == cli.DONE
        return capsys.readouterr().out

    database = tmp_path / "both.db"
    config = tmp_path / "both.toml"
    config.write_text(f'[model]\ncheckpoint = "{folder / "both"}"\n')
    words = ("replay", "--data", candles, "--config", str(config), "--to", "2023-11-15T10:30")
    invoke(*words, "--db", str(database))
    invoke("verify", "last", "--db", str(database))
    invoke("audit", "verify", "last", "--db", str(database))
    told = json.loads(invoke("explain", "last:630", "--full", "--json", "--db", str(database)))
    assert told["full"]["moves"]["gap"] < 1
    assert told["by_feature"]["gap"] < 1e-8
    assert made.id == told["decision"]["model_id"]
    shown = invoke("explain", "last:630", "--full", "--db", str(database))
    assert "Added by each feature" in shown
    assert "Bar by bar" in shown


def test_halves_that_do_not_belong_together_are_refused(
    made: Checkpoint, folder: Path, candles: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointMismatch, match="a network and a tree or a glm"):
        both(folder / "tree", folder / "net", candles, tmp_path)
    tree = load(folder / "tree")
    moved = {**tree.card, "split": {**tree.card["split"], "train_until": "2023-11-17T12:00:00Z"}}
    save(tmp_path / "moved", tree.tensors, moved)
    with pytest.raises(ConfigInvalid, match=r"differ in \[split\]"):
        both(folder / "net", tmp_path / "moved", candles, tmp_path)
    ensemble = {**made.card["ensemble"], "network_share": {"5": 0.5, "30": 1.5}}
    with pytest.raises(ConfigInvalid, match="one share from 0 to 1"):
        build({**made.card, "ensemble": ensemble}, made.tensors)
