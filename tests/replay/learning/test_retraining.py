"""A candidate is trained on the bars before the judged time, and compared with the old model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from learning import DAY_BARS, HORIZONS, START_MS, learnable, rows_recipe, split, write_csv
from retrain_cases import full_disk

import tracepaper
from tracepaper.daemon import cli
from tracepaper.daemon.session.retraining import CandidateJudgement, level_of
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimators.tabular import RowKeys
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.holdouts import read_uses
from tracepaper.replay.learning.retraining import Retraining, retrain
from tracepaper.replay.learning.splits import split_of
from tracepaper.replay.learning.training import train
from tracepaper.storage.checkpoints import load, save
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.units import DAY_MS

DAYS = 6
RECIPE = rows_recipe("glm", 500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run on six days, a model that fits them, and one that does not."""
    root = tmp_path_factory.mktemp("retraining")
    candles = write_csv(learnable(DAYS * DAY_BARS), root)
    material = Dataset.read([str(candles)], lambda _: split(2, 2.4, 3.0), HORIZONS)
    good = train(RECIPE, material, FitRun(root / "good"))
    off = {**good.tensors, "log_variance_base": good.tensors["log_variance_base"] + 1.0}
    save(root / "off", off, {k: v for k, v in good.card.items() if k != "baselines"})
    tracepaper.backtest("sma_cross", str(candles), db=root / "run.db")
    return root


@pytest.fixture
def retraining(folder: Path, tmp_path: Path) -> Retraining:
    with Reader.open(folder / "run.db") as reader:
        run_id = reader.find("last")
    return Retraining(
        database=folder / "run.db",
        run_id=run_id,
        running=folder / "off",
        folder=tmp_path / "work",
        judge_ms=2 * DAY_MS,
        min_days=2,
        min_bars=2_000,
        candidate=folder / "good",
    )


def judged(retraining: Retraining) -> CandidateJudgement:
    return retrain(retraining, say=lambda _: None)


def test_a_better_an_equal_and_a_worse_candidate_are_told_apart(
    folder: Path, retraining: Retraining
) -> None:
    better = judged(retraining)
    assert better.is_judged
    assert (better.days, better.horizon) == (2, 30)
    assert better.bars > 2.8 * DAY_BARS / 1.5
    assert better.difference is not None
    assert better.difference < -0.2
    worse = judged(replace(retraining, running=folder / "good", candidate=folder / "off"))
    assert worse.difference == pytest.approx(-better.difference)
    assert better.p is not None
    assert worse.p == pytest.approx(1 - better.p)
    equal = judged(replace(retraining, candidate=folder / "off"))
    assert (equal.difference, equal.error) == (0.0, None)
    assert equal.p == 0.5


def test_a_candidate_is_trained_on_what_comes_before_and_its_span_is_counted(
    retraining: Retraining, folder: Path
) -> None:
    left = retraining.folder / "candidate.training"
    left.mkdir(parents=True)
    judgement = judged(replace(retraining, candidate=None, until_ms=START_MS + 5 * DAY_MS))
    assert judgement.until_ms == START_MS + 5 * DAY_MS
    assert judgement.from_ms == START_MS + 3 * DAY_MS
    checkpoint = load(Path(judgement.candidate))
    assert judgement.candidate_sha256 == checkpoint.sha256
    assert split_of(checkpoint.card).calibration_until_ms == judgement.from_ms
    assert checkpoint.card["data"]["files"][0]["bars"] == 5 * DAY_BARS
    assert checkpoint.card["architecture"] == load(folder / "good").card["architecture"]
    assert not left.exists()
    (use,) = read_uses(retraining.folder / "holdout_uses.toml")
    assert (use.recipe, use.model) == (judgement.recipe, checkpoint.id)
    assert judgement.difference is not None
    assert judgement.difference < -0.2


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"min_bars": 6_000}, "AAAUSDT has 5,760 bars before the judged time"),
        ({"min_days": 3}, "so 2.0 days are untouched, and retrain.min_days is 3"),
        ({"judge_ms": 5 * DAY_MS, "min_days": 4}, "so 3.0 days are untouched"),
        ({"until_ms": START_MS + 3 * DAY_MS + 60_000}, "AAAUSDT has 4,320 bars"),
    ],
)
def test_too_few_bars_or_days_are_said_and_nothing_is_trained(
    retraining: Retraining, changed: dict[str, Any], reason: str
) -> None:
    if "until_ms" in changed:
        changed = {**changed, "min_bars": 5_000}
    judgement = judged(replace(retraining, candidate=None, **changed))
    assert reason in judgement.reason
    assert not judgement.is_judged
    assert not (retraining.folder / "candidate").exists()


def test_a_candidate_that_saw_the_judged_time_is_not_judged(
    folder: Path, retraining: Retraining, tmp_path: Path
) -> None:
    good = load(folder / "good")
    section = {**good.card["split"], "calibration_until": "2023-11-20T00:00:00Z"}
    card = {k: v for k, v in good.card.items() if k != "baselines"} | {"split": section}
    save(tmp_path / "seen", good.tensors, card)
    judgement = judged(replace(retraining, candidate=tmp_path / "seen"))
    assert "the candidate was trained on data until 2023-11-20" in judgement.reason
    assert not judgement.is_judged


def test_a_candidate_of_other_horizons_is_not_judged(
    folder: Path, retraining: Retraining, tmp_path: Path
) -> None:
    (candles,) = folder.glob("*.csv.gz")
    material = Dataset.read([str(candles)], lambda _: split(2, 2.4, 3.0), HORIZONS[1:])
    recipe = replace(RECIPE, architecture=RowKeys(HORIZONS[1:]))
    train(recipe, material, FitRun(tmp_path / "other"))
    judgement = judged(replace(retraining, candidate=tmp_path / "other"))
    assert "horizons [30] differs from the running model's [5, 30]" in judgement.reason
    assert not judgement.is_judged


def test_the_command_prints_what_a_daemon_would_do(
    folder: Path, retraining: Retraining, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[retrain]\njudge = "2d"\nmin_days = 2\nmin_bars = 2000\nalpha = "0.05"\n')
    words = ["retrain", "last", "--db", str(folder / "run.db"), "-c", str(config)]
    more = ["--folder", str(retraining.folder), "--candidate", str(folder / "good"), "--json"]
    assert cli.invoke([*words, *more]) == 2
    assert "has no model to train" in capsys.readouterr().err
    assert cli.invoke([*words, *more, "--against", str(folder / "off"), "--test", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["test"], document["level"]) == (2, level_of(0.05, 2))
    assert document["reason"].endswith("the share of test 2 in 0.05")


def test_a_full_disk_is_one_sentence_and_nothing_of_the_training_is_left(
    folder: Path,
    retraining: Retraining,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candidate = retraining.folder / "candidate"
    config = tmp_path / "c.toml"
    config.write_text('[retrain]\njudge = "2d"\nmin_days = 2\nmin_bars = 2000\n')
    words = ["retrain", "last", "--db", str(folder / "run.db"), "-c", str(config)]
    words += ["--folder", str(retraining.folder), "--against", str(folder / "off")]
    retraining.folder.mkdir()
    (retraining.folder / ".candidate-killed").mkdir()  # of a training killed while it wrote
    with full_disk(monkeypatch, candidate):
        assert cli.invoke(words) == cli.FAILED
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"{candidate} has no room (No space left on device); free some of the disk."
    assert list(retraining.folder.iterdir()) == []
    assert cli.invoke(words) == cli.DONE
    assert {path.name for path in retraining.folder.iterdir()} == {"candidate", "holdout_uses.toml"}
