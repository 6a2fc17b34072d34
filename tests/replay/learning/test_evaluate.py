"""``evaluate`` on holdouts; results of trading need a second holdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from learning import (
    DAY_BARS,
    HORIZONS,
    START_MS,
    by_forecaster,
    judge_checkpoint,
    learnable,
    split,
    tiny,
    write_csv,
)
from pages import said_in

from tracepaper.daemon.cli import invoke
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import FitOptions
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.holdouts import FILE_NAME, read_uses
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.recipe import Recipe, kinds, recipe_of
from tracepaper.replay.learning.splits import Holdout
from tracepaper.replay.learning.training import train
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.strategies.units import iso

DAY_MS = DAY_BARS * 60_000
SPLIT = split(4, 4.6, 5.3)
SPANS = [
    Holdout("A", START_MS + 6 * DAY_MS, START_MS + 8 * DAY_MS),
    Holdout("B", START_MS + 8 * DAY_MS, START_MS + 10 * DAY_MS),
]
AS_TEXT = ",".join(
    f"{s.name}={iso(s.from_ms or 0)[:10]}:{iso(s.until_ms or 0)[:10]}" for s in SPANS
)


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_csv(learnable(10 * DAY_BARS), tmp_path_factory.mktemp("candles")))


@pytest.fixture(scope="module")
def material(candles: str) -> Dataset:
    return Dataset.read([candles], lambda _: SPLIT, HORIZONS)


@pytest.fixture(scope="module")
def glm(material: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "glm"
    recipe = recipe_of(
        {
            "model": {"kind": "glm", "name": "glm"},
            "architecture": {"horizons": list(HORIZONS)},
            "training": {"explained_bars": 300},
        },
    )
    train(recipe, material, FitRun(folder))
    return folder


@pytest.fixture(scope="module")
def network(material: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    options = FitOptions(steps=1, batch=1, length=256, validate_every=1)
    recipe = Recipe(kinds()["flash"], tiny(), options, 30, name="tiny", explained_bars=600)
    return train(recipe, material, FitRun(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def judgements(network: Checkpoint, material: Dataset) -> list[Judgement]:
    return [judge_checkpoint(network, material, span, bars=700) for span in SPANS]


def test_spans_are_judged_each_by_itself_and_counted(
    glm: Path, candles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    words = ["evaluate", str(glm), "--data", candles, "--holdout", AS_TEXT]
    assert invoke([*words, "--json", "--html", str(page)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [span["name"] for span in report["holdouts"]] == ["A", "B"]
    assert [span["days"] for span in report["holdouts"]] == [2, 2]
    for span, wanted in zip(report["holdouts"], SPANS, strict=True):
        assert (span["from_ms"], span["until_ms"]) == wanted[1:]
        assert span["uses"] == 1
        rows = span["tables"]["paired_qlike"]["rows"]
        assert {row["forecaster"] for row in rows} >= {"har", "ewma", "log linear"}
        assert [row["horizon"] for row in rows if row["forecaster"] == "har"] == list(HORIZONS)
        assert set(rows[1]["difference"]) == {"value", "error"}
        qlike = {r["forecaster"]: r["5"]["value"] for r in span["tables"]["qlike"]["rows"]}
        for name, row in by_forecaster(rows, 5).items():
            assert row["value"]["value"] == pytest.approx(qlike[name], abs=2e-5)
            if name != "model":
                difference = qlike["model"] - qlike[name]
                assert row["difference"]["value"] == pytest.approx(difference, abs=2e-5)
        nine = next(r for r in span["tables"]["intervals"]["rows"] if r["interval"] == "90 %")
        assert list(nine["5"].values()) == pytest.approx(
            span["figures"]["5"]["coverage_90"], abs=1e-5
        )
    first, second = (span["tables"]["qlike"]["rows"] for span in report["holdouts"])
    assert first != second
    counted = read_uses(glm.parent / FILE_NAME)
    assert [use.recipe for use in counted] == [report["recipe"]] * 2
    assert said_in(page).count("Risk of the most confident bars") == 2


def test_the_terminal_says_what_the_document_says(
    glm: Path, candles: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["evaluate", str(glm), "--data", candles, "--from", iso(SPANS[1][1] or 0)]) == 0
    text = capsys.readouterr().out
    assert "the model minus each baseline" in text
    assert "how many recipes were judged" in text
    assert "basis points each" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--from", "2023-11-15"], "begins before 2023-11-20"),
        (["--from", "2030-01-01"], "no bar of the span"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(
    glm: Path, candles: str, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["evaluate", str(glm), "--data", candles, *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
