"""From candle files to a checkpoint, its forecaster and its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from learning import (
    DAY_BARS,
    HORIZONS,
    choose,
    learnable,
    minutes_of,
    quiet,
    split,
    tiny,
    write_csv,
)
from typer.testing import CliRunner

from tracepaper.replay.commands.evaluate import evaluate
from tracepaper.replay.commands.models import check, list_models
from tracepaper.replay.commands.train import train as train_command
from tracepaper.replay.learning.baselines import BASELINES, stored_baselines
from tracepaper.replay.learning.card import REGIME_SHARES
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import FitOptions, Observe
from tracepaper.replay.learning.fitted import FitRun, Say
from tracepaper.replay.learning.holdouts import read_uses
from tracepaper.replay.learning.recipe import Recipe, kinds
from tracepaper.replay.learning.splits import split_of
from tracepaper.replay.learning.training import UNJUDGED, _is_finished, train
from tracepaper.storage.checkpoints import Checkpoint, load
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.build import RunOptions, build
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.units import iso

DAYS = 8
SPLIT = split(4, 5, 6.5)
OPTIONS = FitOptions(
    steps=6, batch=2, length=512, learning_rate=3e-3, validate_every=3, average=0.5
)


RECIPE = Recipe(kinds()["flash"], tiny(), OPTIONS, 30, name="tiny", explained_bars=2_000)


def trained(
    material: Dataset,
    folder: Path,
    recipe: Recipe = RECIPE,
    *,
    observe: Observe = quiet,
    say: Say = quiet,
    resume: bool = False,
) -> Checkpoint:
    return train(recipe, material, FitRun(folder, "", 1_700_000_000_000, observe, say, resume))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with candles of two symbols."""
    root = tmp_path_factory.mktemp("candles")
    write_csv(learnable(DAYS * DAY_BARS), root)
    write_csv(learnable(DAYS * DAY_BARS, seed=1, symbol="BBBUSDT"), root)
    return root


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    """Return their paths."""
    return sorted(str(path) for path in folder.glob("*.csv.gz"))


@pytest.fixture(scope="module")
def checkpoint(folder: Path, paths: list[str]) -> Checkpoint:
    """Return a checkpoint trained on them."""
    torch.set_num_threads(1)
    material = Dataset.read(paths, lambda _: SPLIT, HORIZONS)
    return trained(material, folder / "tiny")


def test_the_card_says_what_was_done_with_what(checkpoint: Checkpoint) -> None:
    card = checkpoint.card
    assert card["model"]["kind"] == "flash"
    assert card["model"]["id"] == checkpoint.id
    assert card["architecture"]["horizons"] == list(HORIZONS)
    assert card["features"]["schema_id"] == "v2-1m"
    symbols, horizons = ["AAAUSDT", "BBBUSDT"], ["5m", "30m"]
    assert card["market"] == {"interval": "1", "symbols": symbols, "horizons": horizons}
    assert [file["bars"] for file in card["data"]["files"]] == [DAYS * DAY_BARS] * 2
    assert all(len(file["sha256"]) == 64 for file in card["data"]["files"])
    assert card["split"]["train_until"] == iso(SPLIT.train_until_ms)
    assert split_of(card) == SPLIT
    assert "torch" in card["versions"]
    flow = {row["part"]: row for row in card["gradients"]["parts"]}
    assert [*flow][:2] == ["embed", "blocks.0"]
    assert [*flow][-1] == "heads.project"
    assert all(row[name] > 0 for row in flow.values() for name in row if name != "part")
    assert any("paper trading only" in sentence for sentence in card["honesty"]["sentences"])


def test_the_card_carries_99_rising_quantiles_of_every_measure(checkpoint: Checkpoint) -> None:
    quantiles = checkpoint.card["calibration"]["quantiles"]
    gates = {gate.calibrated_as for gate in GATES.values()} - {""}
    assert set(quantiles) == gates | {*REGIME_SHARES}
    for values in quantiles.values():
        assert len(values) == 99
        assert values == sorted(values)
    assert set(checkpoint.card["calibration"]["slope"]) == {str(h) for h in HORIZONS}


def test_the_figures_stand_beside_every_baseline(checkpoint: Checkpoint) -> None:
    for horizon in HORIZONS:
        figure = checkpoint.card["figures"][str(horizon)]
        for key, measure, more in (("ic", "mean", {"random"}), ("qlike", "variance", set())):
            of = {name for name, each in BASELINES.items() if each.measure == measure}
            assert set(figure[key]) == {"network", *of, *more}
        assert abs(figure["sign_accuracy"]["random"][0] - 0.5) < 0.05
    gates = checkpoint.card["figures"]["gates"]
    assert "entropy" in gates["selective"]
    assert gates["traded"]["bars"] > 500


def test_where_no_untouched_price_moves_the_card_says_so_and_is_written_before_the_judgement(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(5)
    moves = rng.normal(0, 5e-4, DAYS * DAY_BARS)
    moves[int(6.4 * DAY_BARS) :] = 0.0  # the test part begins at 6.5 days
    file = write_csv(minutes_of(moves, rng), tmp_path)
    material = Dataset.read([str(file)], lambda _: SPLIT, HORIZONS)
    folder, before = tmp_path / "still", list[tuple[list[str], bool]]()

    def say(text: str) -> None:
        if text.startswith("Judging"):
            card = load(folder).card
            before.append((card["honesty"]["sentences"], _is_finished(RECIPE, folder, material)))

    card = trained(material, folder, say=say).card
    assert before == [([UNJUDGED], False)]
    said = " ".join(card["honesty"]["sentences"])
    assert "moved within 30 bars: no sign was judged" in said
    assert "no attention" not in said
    assert card["figures"]["30"]["sign_accuracy"]["network"] == [None, None]
    assert "sign" not in card["figures"]["paired"]["30"]
    assert _is_finished(RECIPE, folder, material)


def run(command: Any, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_train_judge_and_list(folder: Path, paths: list[str]) -> None:
    data = [word for path in paths for word in ("--data", path)]
    out = folder / "by-command"
    output = run(
        train_command,
        *data,
        "--out",
        str(out),
        *choose(
            f"split.train_until={iso(SPLIT.train_until_ms)}",
            f"split.validation_until={iso(SPLIT.validation_until_ms)}",
            f"split.calibration_until={iso(SPLIT.calibration_until_ms)}",
            "horizons=5,30",
            "window=32",
            "layers=2",
            "dim=16",
            "heads=2",
            "training.steps=2",
            "quantiles=0.1,0.9",
            "allocation=true",
            "training.length=512",
            "training.explained_bars=1000",
            "training.threads=1",
        ),
        "--json",
    )
    trained = json.loads(output)
    assert trained["id"] == load(out).id
    assert trained["card"]["architecture"]["quantiles"] == [0.1, 0.9]
    judged = json.loads(
        run(
            evaluate,
            str(out),
            *data,
            *choose("evaluation.explained_bars=1000", "evaluation.threads=1"),
            "--json",
        )
    )
    assert judged["figures"] == trained["card"]["figures"]
    assert judged["findings"] == []
    examined = [
        "--inspect",
        "deletion=3",
        "--inspect",
        "context=4",
        "--inspect",
        "attribution=1",
        "--inspect",
        "intervals",
    ]
    few = [*choose("evaluation.explained_bars=1000", "evaluation.threads=1")]
    page = run(evaluate, str(out), *data, *few, *examined)
    for title in ("Deletion and insertion", "Context ablation", "Rank correlation", "Intervals of"):
        assert title in page
    assert "reversed persistence" in page
    assert "decided bar" in page
    assert all(sentence[:40] in page for sentence in judged["sentences"])
    uses = read_uses(folder / "holdout_uses.toml")
    assert {use.model for use in uses} == {trained["id"]}
    assert judged["holdouts"][0]["uses"] == 1
    listed = json.loads(run(list_models, str(folder), "--json"))
    assert str(out) in [model["folder"] for model in listed["models"]]
    text = run(list_models, str(out))
    assert trained["id"] in text
    assert "paper trading only" in text
    checked = json.loads(run(check, str(out), *data, "--json"))
    assert checked["gradients_in_training"] == trained["card"]["gradients"]
    assert "Norm of the gradient in training" in run(check, str(out), *data)


def seeds(out: Path, path: str, *words: str) -> str:
    """Train several seeds of a small network by the command."""
    return run(
        train_command,
        "--data",
        path,
        "--out",
        str(out),
        *words,
        *choose(
            f"split.train_until={iso(SPLIT.train_until_ms)}",
            f"split.validation_until={iso(SPLIT.validation_until_ms)}",
            f"split.calibration_until={iso(SPLIT.calibration_until_ms)}",
            "training.seed=3",
            "horizons=30",
            "window=16",
            "layers=1",
            "dim=8",
            "heads=2",
            "training.steps=1",
            "training.length=512",
            "training.explained_bars=600",
            "training.threads=1",
        ),
    )


def test_several_seeds_give_several_checkpoints_and_their_spread(
    folder: Path, paths: list[str]
) -> None:
    out = folder / "seeds"
    document = json.loads(seeds(out, paths[0], "--seeds", "2", "--json"))
    ids = [checkpoint["id"] for checkpoint in document["checkpoints"]]
    assert ids == [load(out / f"seed-{seed}").id for seed in (3, 4)]
    first, second = (
        c["card"]["figures"]["30"]["ic"]["network"][0] for c in document["checkpoints"]
    )
    card = load(out / "seed-4").card
    weights = [c["card"]["model"]["weights_sha256"] for c in document["checkpoints"]]
    assert card["seeds"]["weights_sha256"] == weights
    assert "From 2 seeds" in card["honesty"]["sentences"][-1]
    mean, deviation = card["seeds"]["30"]["ic"]
    assert mean == pytest.approx((first + second) / 2, abs=1e-5)
    assert deviation == pytest.approx(abs(first - second) / 2**0.5, abs=1e-5)


def test_a_study_of_seeds_is_the_same_in_processes_and_goes_on_with_what_is_whole(
    folder: Path, paths: list[str]
) -> None:
    """Weights and figures equal those of one process bit for bit."""
    out, alone = folder / "study", folder / "alone"
    seeds(alone, paths[0], "--seeds", "2")
    output = seeds(out, paths[0], "--seeds", "2", "--jobs", "2", "--json")
    document = json.loads(output)
    for seed in (3, 4):
        name = f"seed-{seed}"
        study, other = load(out / name), load(alone / name)
        assert study.card["model"]["weights_sha256"] == other.card["model"]["weights_sha256"]
        assert study.card["figures"] == other.card["figures"]
        assert (out / name / "baselines.safetensors").read_bytes() == (
            alone / name / "baselines.safetensors"
        ).read_bytes()
    rows = {(row["bars"], row["figure"]): row for row in document["seeds"]}
    mean, deviation = load(out / "seed-3").card["seeds"]["30"]["ic"]
    row = rows["30", "ic"]
    assert (row["mean"], row["standard deviation"]) == pytest.approx((mean, deviation), abs=1e-5)
    assert row["lowest"] < row["mean"] < row["highest"]
    before = {seed: load(out / f"seed-{seed}").card["model"] for seed in (3, 4)}
    more = ("--seeds", "3", "--jobs", "1", "--resume")
    table = seeds(out, paths[0], *more)
    assert "Figures of 3 seeds: 3, 4, 5" in table
    assert "what separates seeds is luck" in table
    for seed in (3, 4):  # not trained again: a card names the moment of its training
        card = load(out / f"seed-{seed}").card
        assert card["model"]["created"] == before[seed]["created"]
        assert card["model"]["weights_sha256"] == before[seed]["weights_sha256"]
        assert [text for text in card["honesty"]["sentences"] if text.startswith("From ")] == [
            card["honesty"]["sentences"][-1]
        ]
        assert card["honesty"]["sentences"][-1].startswith("From 3 seeds")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--jobs", "2"), "say where seeds are trained; give --seeds N too"),
        (("--on", "local"), "say where seeds are trained; give --seeds N too"),
        (("--seeds", "2", "--on", "mars"), "on is 'mars'; give one of local, ray"),
    ],
)
def test_a_study_that_is_none_is_refused_before_anything_is_read(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        seeds(tmp_path / "out", "none.csv", *words)
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; import tracepaper.replay.commands.train, tracepaper.replay.commands.evaluate;"
        " import tracepaper.replay.commands.models; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_bundled_checkpoints_are_listed_and_whole() -> None:
    listed = json.loads(run(list_models, "--json"))["models"]
    contexts = {}
    for place, card in ((Path(row["folder"]), row["card"]) for row in listed):
        model = load(place)
        contexts[place.name] = build(model.card, model.tensors, RunOptions(threads=1)).context
        assert sum(path.stat().st_size for path in place.iterdir()) < 4_000_000
        assert stored_baselines(place, card) is not None
    assert contexts == {"flash-15m": 700, "flash-1m": 7_201, "informer-1m": 991, "trading-15m": 384}
