"""``evaluate --compare``: other models on the same bars, with the labels of the judged model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli
from learning import (
    DAY_BARS,
    HORIZONS,
    START_MS,
    by_forecaster,
    choose,
    judge_checkpoint,
    learnable,
    split,
    tiny,
    write_csv,
)
from pages import said_in
from user_strategies import importable

from tracepaper.daemon.cli import invoke
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import FitOptions
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.holdouts import FILE_NAME, read_uses
from tracepaper.replay.learning.judge.forecasts import MODEL
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.metrics import LOSSES, compare
from tracepaper.replay.learning.judge.tables import tables_across, tables_of
from tracepaper.replay.learning.recipe import Recipe, kinds, recipe_of
from tracepaper.replay.learning.splits import Holdout, Split
from tracepaper.replay.learning.statistics import DayDifference, holm
from tracepaper.replay.learning.training import train
from tracepaper.storage.checkpoints import load
from tracepaper.strategies.units import iso

DAY_MS = DAY_BARS * 60_000
SPLIT = split(4, 4.6, 5.3)
SPANS = [
    Holdout(name, START_MS + first * DAY_MS, START_MS + (first + 2) * DAY_MS)
    for name, first in (("A", 6), ("B", 8))
]
LAST_DAY = 16
AS_TEXT = ",".join(
    f"{s.name}={iso(s.from_ms or 0)[:10]}:{iso(s.until_ms or 0)[:10]}" for s in SPANS
)
CLASS = """
from tracepaper.strategies.api.model import Model

class Mine(Model):
    horizons = (5, 30)
    measures = ("volatility",)
    context = 61
    trained_until = "2023-11-18"

    def predict(self, seen):
        close = seen.past.close[-61:]
        steps = [(b / a - 1.0) ** 2 for a, b in zip(close, close[1:])]
        variance = sum(steps) / len(steps) or 1e-12
        return {"volatility": [(variance * bars) ** 0.5 for bars in self.horizons]}
"""


def glm(
    folder: Path,
    candles: str,
    parts: Split = SPLIT,
    *,
    schema_id: str = "v2-1m",
    horizons: tuple[int, ...] = HORIZONS,
) -> Path:
    """Train a glm on features of the schema; return its folder."""
    material = Dataset.read([candles], lambda _: parts, horizons, schema_id)
    document = {
        "model": {"kind": "glm", "name": folder.name},
        "architecture": {"horizons": list(horizons)},
        "training": {"explained_bars": 300},
    }
    train(recipe_of(document), material, FitRun(folder))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder of models, next to a custom class that can be imported."""
    root = tmp_path_factory.mktemp("beside")
    (root / "beside_mine.py").write_text(CLASS, encoding="utf-8")
    with ExitStack() as stack:
        stack.enter_context(importable(root))
        yield root


@pytest.fixture(scope="module")
def candles(folder: Path) -> str:
    return str(write_csv(learnable(LAST_DAY * DAY_BARS), folder))


@pytest.fixture(scope="module")
def first(folder: Path, candles: str) -> Path:
    return glm(folder / "first", candles)


@pytest.fixture(scope="module")
def other(folder: Path, candles: str) -> Path:
    """Return a model that was trained on fewer bars."""
    return glm(folder / "other", candles, split(3, 4.6, 5.3))


@pytest.fixture(scope="module")
def network(folder: Path, candles: str) -> Path:
    torch.set_num_threads(1)
    options = FitOptions(steps=1, batch=1, length=256, validate_every=1)
    material = Dataset.read([candles], lambda _: SPLIT, HORIZONS)
    recipe = Recipe(kinds()["flash"], tiny(), options, 30, name="tiny", explained_bars=600)
    train(recipe, material, FitRun(folder / "net"))
    return folder / "net"


def judged(path: Path, candles: str, span: Holdout) -> Judgement:
    checkpoint = load(path)
    material = Dataset.read([candles], lambda _: SPLIT, HORIZONS)
    return judge_checkpoint(checkpoint, material, span, bars=600)


def test_models_of_every_kind_are_held_to_the_same_bars(
    first: Path, other: Path, network: Path, candles: str, tmp_path: Path, cli: Cli
) -> None:
    page = tmp_path / "page.html"
    words = ["evaluate", str(network), "--data", candles, "--holdout", AS_TEXT, "--json"]
    words += [*choose("evaluation.threads=1", "evaluation.explained_bars=600"), "--html", str(page)]
    others = [str(first), str(other), "beside_mine:Mine"]
    for name in others:
        words += ["--compare", name]
    document = json.loads(cli.out(*words))
    assert [row["name"] for row in document["beside"]] == others
    assert len({document["id"], *(row["id"] for row in document["beside"])}) == 4
    for span in document["holdouts"]:
        _, *rows = by_forecaster(span["tables"]["beside_qlike"]["rows"], 5).values()
        assert [row["forecaster"] for row in rows] == others
        assert {row["days"] for row in rows} == {2}
        qlike = {row["forecaster"]: row["5"]["value"] for row in span["tables"]["qlike"]["rows"]}
        for name, row in by_forecaster(span["tables"]["paired_qlike"]["rows"], 5).items():
            assert row["value"]["value"] == pytest.approx(qlike[name], abs=2e-5)
            if name != "model":
                difference = qlike["model"] - qlike[name]
                assert row["difference"]["value"] == pytest.approx(difference, abs=2e-5)
        nine = next(r for r in span["tables"]["intervals"]["rows"] if r["interval"] == "90 %")
        assert list(nine["5"].values()) == pytest.approx(
            span["figures"]["5"]["coverage_90"], abs=1e-5
        )
        # A class that says nothing of the return is not held to its sign.
        signs = by_forecaster(span["tables"]["beside_sign"]["rows"], 5)
        assert set(signs) == {"model", *others[:2]}
    # Each opened both spans, and the judged model counts those of its own file.
    counted = {use.model for use in read_uses(first.parent / FILE_NAME)}
    assert counted >= {document["id"], *(row["id"] for row in document["beside"][:2])}
    whole = document["tables"]["beside_holdouts"]["rows"]
    assert [row["model"] for row in whole[:3]] == others
    assert [row["horizon"] for row in whole] == [5] * 3 + [30] * 3 + [5] * 2 + [30] * 2
    assert "the model minus each other model" in said_in(page)
    assert said_in(page).count("Risk of the most confident bars") == 2


def test_what_is_the_same_is_level_and_what_knows_the_future_is_better(
    first: Path, candles: str
) -> None:
    judgement = judged(first, candles, SPANS[0])
    rows = judgement.forecasts
    oracle = rows.with_fields(MODEL, variance=np.maximum(rows.labels["variance"], 0.01))
    first_alone = judgement.compared_with("oracle", oracle)
    planted = first_alone.compared_with("same", rows)

    def compared_with(of: Judgement) -> dict[str, DayDifference]:
        each = of.forecasts.at(30)
        return compare(each, LOSSES["qlike"], others=each.compared)

    document = compared_with(planted)
    assert document["same"].value == pytest.approx(0.0, abs=1e-12)
    assert document["oracle"].value > 0.1  # the model loses so much more
    alone = compared_with(first_alone)["oracle"]
    values = holm([alone.p, document["same"].p])
    assert document["oracle"].p == pytest.approx(values[0])
    kept = {table.key for table in tables_of(planted)}
    assert {"beside_qlike", "beside_sign"} <= kept
    assert not any(key.startswith("beside") for key in (t.key for t in tables_of(judgement)))
    (both,) = [t for t in tables_across([planted, planted]) if t.key == "beside_holdouts"]
    same = [row for row in both.documents() if row["model"] == "same"]
    assert {row["verdict"] for row in same} == {"level"}


def test_what_cannot_be_compared_is_refused_in_one_sentence(
    first: Path, folder: Path, candles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = glm(folder / "later", candles, split(4, 5, 7))
    far = glm(folder / "far", candles, horizons=(7,))
    slow = glm(folder / "slow", candles, schema_id="v2-15m", horizons=(2,))
    whole = ["--from", iso(SPANS[0].from_ms or 0)]
    cases = [
        (["--compare", str(first)], "is a model that is judged already"),
        (["--compare", str(later), *whole], f"--compare {later}: The span untouched"),
        (["--compare", str(far)], "it forecasts 7 bars ahead, and the judged model 5, 30"),
        (["--compare", str(slow)], "it forecasts bars of 15m, and the judged model bars of 1m"),
        (["--compare", str(tmp_path / "none")], "none"),
    ]
    for words, case in cases:
        assert invoke(["evaluate", str(first), "--data", candles, *words]) != 0, words
        error = capsys.readouterr().err
        assert case in error
        assert error.count("\n") == 1
    # Without a date the later one is asked about the bars after both had learnt.
    words = ["evaluate", str(first), "--data", candles, "--compare", str(later), "--json"]
    assert invoke(words) == 0
    rows = json.loads(capsys.readouterr().out)["holdouts"][0]["tables"]["beside_qlike"]["rows"]
    assert by_forecaster(rows, 5)[str(later)]["days"] == LAST_DAY - 7
