"""``tracepaper.train`` and ``tracepaper.evaluate``: the commands' own work, on frames."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from command_line import Cli
from learning import DAY_BARS, HORIZONS, START_MS, learnable, write_csv

import tracepaper
from tracepaper.replay import notebook
from tracepaper.replay.archive import Candles
from tracepaper.replay.learned import Findings
from tracepaper.replay.learning.baselines import FILE_NAME
from tracepaper.replay.learning.card import card_tables
from tracepaper.storage.checkpoints import dump, load, save
from tracepaper.storage.covariates import read_covariates
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, TracepaperError
from tracepaper.strategies.units import iso

CANDLES = learnable(10 * DAY_BARS)
RECIPE: dict[str, Any] = {
    "model": {"kind": "glm"},
    "architecture": {"horizons": list(HORIZONS)},
    "training": {"explained_bars": 500},
}
SPANS = ",".join(
    f"{name}={iso(START_MS + day * DAY_BARS * 60_000)[:10]}:"
    f"{iso(START_MS + (day + 1) * DAY_BARS * 60_000)[:10]}"
    for name, day in (("A", 8), ("B", 9))
)


def frame_of(candles: Candles) -> pl.DataFrame:
    """Return *candles* as a frame that names no symbol."""
    columns: dict[str, Any] = {"time": candles.open_time_ms}
    for name in ("open", "high", "low", "close"):
        columns[name] = getattr(candles, name) / 10**candles.price_decimals
    return pl.DataFrame({**columns, "volume": candles.volume / 10**candles.volume_decimals})


FRAME = frame_of(CANDLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the candles and the recipe as files."""
    folder = tmp_path_factory.mktemp("learned")
    write_csv(CANDLES, folder).rename(folder / "AAAUSDT_1m.csv.gz")
    (folder / "glm.toml").write_text(dump(RECIPE))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Findings:
    return tracepaper.train(RECIPE, {"AAAUSDT": FRAME}, out=folder / "python")


def test_a_frame_is_trained_on_and_judged_as_the_file_of_it(
    folder: Path, trained: Findings, cli: Cli
) -> None:
    file = folder / "AAAUSDT_1m.csv.gz"
    out = folder / "command"
    text = cli.out("train", folder / "glm.toml", "--data", file, "--out", out)
    command, python = load(out), load(folder / "python")
    different = {name for name in command.card if command.card[name] != python.card[name]}
    assert different == {"data", "model"}  # a file and a frame have other digests
    assert command.card["model"]["weights_sha256"] == python.card["model"]["weights_sha256"]
    assert command.card["figures"] == trained["card"]["figures"] == python.card["figures"]
    assert trained["id"] == python.id
    ours = trained.text.replace(python.id, command.id).replace(str(folder / "python"), str(out))
    assert ours == text.rstrip()
    judged = tracepaper.evaluate(out, {"AAAUSDT": FRAME.to_pandas()}, holdout=SPANS)
    document = cli.json("evaluate", out, "--data", file, "--holdout", SPANS)
    assert json.loads(json.dumps(judged.document)) == document
    paired = judged.table("paired_qlike")
    assert isinstance(paired, pd.DataFrame)
    rows = [row for span in document["holdouts"] for row in span["tables"]["paired_qlike"]["rows"]]
    assert paired.value.tolist() == pytest.approx([row["value"]["value"] for row in rows])
    assert paired.holdout.tolist() == ["A"] * (len(rows) // 2) + ["B"] * (len(rows) // 2)
    with pytest.raises(ConfigInvalid, match="no table nonsense; choose from sign_accuracy, "):
        judged.table("nonsense")


def test_a_finished_checkpoint_is_replaced_on_demand_and_a_kept_one_never(
    folder: Path, trained: Findings, cli: Cli
) -> None:
    del trained
    words = ("train", folder / "glm.toml", "--data", folder / "AAAUSDT_1m.csv.gz", "--out")
    before = load(folder / "python").id
    assert "--overwrite" in cli.err(*words, folder / "python", code=2)
    cli.out(*words, folder / "python", "--set", "features.schema_id=v2", "--overwrite")
    assert load(folder / "python").id != before
    kept = folder / "run.db.checkpoints" / before
    shutil.copytree(folder / "python", kept)
    assert "is kept by a record" in cli.err(*words, kept, "--overwrite", code=2)


def test_the_card_is_a_frame_and_its_figures_another(trained: Findings) -> None:
    figures, card = trained.table("figures"), trained.table("card")
    for bars, figure, forecaster, value in figures.select(
        "bars", "figure", "forecaster", "value"
    ).iter_rows():
        section = trained["card"]["figures"][str(bars)]
        pair = section[figure] if figure in section else section["direction"][figure[10:]]
        assert value == (pair[forecaster] if isinstance(pair, dict) else pair)[0]
    assert set(figures["forecaster"]) >= {"model", "har", "ewma", "log_linear"}
    texts = {(section, key): value for _, section, key, value in card.iter_rows()}
    assert texts["model", "id"] == trained["id"]
    assert json.loads(texts["architecture", "horizons"]) == list(HORIZONS)
    assert set(trained["card"]) - {"figures"} == set(card["section"])


def test_figures_without_a_value_are_empty_cells() -> None:
    card = {"figures": {"4": {"r_squared": {"network": [None, None]}, "bars": 9}, "gates": {}}}
    figures, _ = card_tables({"a": card})
    (row,) = figures.documents()
    assert row["figure"] == "r_squared"
    assert row["value"] == {"value": None, "error": None}


def test_without_a_folder_the_data_are_shown(folder: Path, cli: Cli) -> None:
    seen = tracepaper.train(RECIPE, {"AAAUSDT": FRAME})
    shown = cli.json("train", folder / "glm.toml", "--data", folder / "AAAUSDT_1m.csv.gz")
    assert seen["labels"] == shown["labels"]
    assert (
        seen.table("files")
        .drop("file")
        .equals(
            pl.DataFrame(shown["files"])
            .drop("file")
            .select(seen.table("files").drop("file").columns)
        )
    )


def test_seeds_are_compared_in_a_frame(folder: Path) -> None:
    recipe = {**RECIPE, "model": {"kind": "tree"}}
    settings = {"training.rounds": 5}
    data = {"AAAUSDT": FRAME}
    of_seeds = tracepaper.train(recipe, data, out=folder / "seeds", settings=settings, seeds=2)
    assert "Calibrating." in of_seeds.notes
    figures = of_seeds.table("figures").filter(
        pl.col("bars") == 5, pl.col("figure") == "qlike", pl.col("forecaster") == "model"
    )
    row, *_ = (
        of_seeds.table("seeds")
        .filter(pl.col("bars") == "5", pl.col("figure") == "qlike")
        .iter_rows(named=True)
    )
    assert figures["checkpoint"].to_list() == [str(folder / f"seeds/seed-{n}") for n in (0, 1)]
    assert (row["lowest"], row["highest"]) == (figures["value"].min(), figures["value"].max())
    assert row["lowest"] < row["highest"]


def test_a_notebook_shows_how_far_a_fit_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    class Drawn:
        def update(self, content: dict[str, str], **_given: object) -> None:
            lines.append(content["text/plain"])

    def display(content: dict[str, str], **_given: object) -> Drawn:
        lines.append(content["text/plain"])
        return Drawn()

    monkeypatch.setattr(notebook, "display_here", lambda: display)
    architecture = {"horizons": "5m,30m", "dim": 8, "heads": 2, "layers": 1, "window": 16}
    fit = {"steps": 2, "length": 256, "validate_every": 1, "threads": 1, "explained_bars": 500}
    recipe: dict[str, Any] = {
        "features": {"schema_id": "v2-1m"},
        "architecture": architecture,
        "training": fit,
    }
    tracepaper.train(recipe, {"AAAUSDT": FRAME}, out=folder / "net", progress=True)
    assert lines[0] == "steps: 1 of 2"
    assert lines[-1].startswith("steps: 2 in ")
    lines.clear()
    settings = {"evaluation.explained_bars": 500, "evaluation.threads": 1}
    tracepaper.evaluate(
        folder / "net", {"AAAUSDT": FRAME}, holdout=SPANS, settings=settings, progress=True
    )
    assert lines[0] == "judgements: 1 of 2"
    assert lines[-1].startswith("judgements: 2 in ")


# --- covariates


COVARIATES = {"time": [1_700_006_400_000, 1_700_010_000_000], "mood": [0.25, -1.5]}


@pytest.mark.parametrize("made", [dict, pl.DataFrame, pd.DataFrame])
def test_covariates_of_a_frame_are_those_of_the_file(
    made: Callable[[Any], Any], tmp_path: Path
) -> None:
    pl.DataFrame(COVARIATES).write_csv(tmp_path / "mood.csv")
    file, held = read_covariates(tmp_path / "mood.csv"), read_covariates(made(COVARIATES))
    assert held.columns == file.columns == ("mood",)
    np.testing.assert_array_equal(held.rows[""].values, file.rows[""].values)
    np.testing.assert_array_equal(held.rows[""].time_ms, file.rows[""].time_ms)
    other = read_covariates(made({**COVARIATES, "mood": [0.25, 1.5]}))
    assert len({held.sha256, other.sha256, file.sha256}) == 3


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ({"mood": [1.0]}, "^the frame of covariates has no column time;"),
        ({"time": [1.7e12], "mood": [1.0, 2.0]}, "^the frame of covariates is damaged"),
        (5, "^the frame of covariates is damaged"),
        (pl.DataFrame({"time": [1], "mood": [1.0]}), "row 1: the time 1 is no milliseconds"),
    ],
)
def test_a_frame_that_holds_no_covariates_is_refused(frame: Any, sentence: str) -> None:
    with pytest.raises(DataInvalid, match=sentence):
        read_covariates(frame)


# --- what is refused


def plain(sentence: str, folder: Path) -> str:
    """Return *sentence* about a file as one about a frame."""
    sentence = sentence.rstrip("\n").replace(str(folder / "bad.csv"), "the frame")
    of_file = r"pandas\.read_csv\('the frame', dtype=str\); (frame\.\w+\(.*?\))\.to_csv\(.*?\)"
    sentence = re.sub(of_file, r"frame.to_pandas(); frame = \1", sentence)
    sentence = re.sub(r"--columns (\w+)=(?=\W)", r'columns={"\1": None}', sentence)
    return re.sub(r"--columns (\w+)=(\w+)", r'columns={"\1": "\2"}', sentence)


def bad(frame: pl.DataFrame, folder: Path) -> tuple[str, str]:
    """Write *frame* as a file; return the words that name it."""
    frame.write_csv(folder / "bad.csv")
    return "--data", f"AAAUSDT={folder / 'bad.csv'}"


@pytest.mark.parametrize(
    ("recipe", "frame", "part"),
    [
        ({**RECIPE, "training": {"step": 5}}, FRAME, "training.step is unknown"),
        ({**RECIPE, "trainings": {}}, FRAME, "has no section [trainings]"),
        ({**RECIPE, "split": 5}, FRAME, "[split] of the recipe is no table"),
        ({**RECIPE, "architecture": {"horizon": 5}}, FRAME, "architecture.horizon is unknown"),
        (RECIPE, FRAME.drop("close"), "the frame has no column close"),
        (RECIPE, FRAME.head(20), "No candles have 480 bars"),
        ({"model": {"kind": "portfolio"}}, FRAME, "at least two symbols"),
    ],
    ids=["key", "section", "number", "architecture", "column", "bars", "symbol"],
)
def test_what_cannot_be_trained_is_refused_in_the_sentence_of_the_command(
    recipe: dict[str, Any], frame: pl.DataFrame, part: str, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "recipe.toml").write_text(dump(recipe))
    out = tmp_path / "out"
    answer = cli("train", tmp_path / "recipe.toml", *bad(frame, tmp_path), "--out", out)
    with pytest.raises(TracepaperError) as refused:
        tracepaper.train(recipe, {"AAAUSDT": frame}, out=out)
    assert answer.code in (1, 2)
    assert plain(answer.err, tmp_path) == str(refused.value)
    assert part in str(refused.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("features", "frame", "options", "part"),
    [
        ({"schema_id": "v9-1m"}, FRAME, {}, "No feature schema is called 'v9-1m'"),
        ({}, FRAME.drop("volume"), {}, "the frame has no volume, which"),
        ({}, FRAME.head(20), {}, "No candles have 480 bars"),
        ({}, FRAME, {"holdout": "A=2023-11-23"}, "--holdout is 'A=2023-11-23'"),
        ({}, FRAME, {"start": "2023-11-15"}, "begins before 2023-11-23"),
        ({}, FRAME, {"inspect": "context"}, "needs a model that sees several bars"),
    ],
    ids=["schema", "column", "bars", "dates", "early", "inspect"],
)
def test_what_cannot_be_judged_is_refused_in_the_sentence_of_the_command(
    features: dict[str, str],
    frame: pl.DataFrame,
    options: dict[str, Any],
    part: str,
    trained: Findings,
    tmp_path: Path,
    cli: Cli,
) -> None:
    folder = Path(trained["folder"])
    stored = load(folder)
    card = {**stored.card, "features": {**stored.card["features"], **features}}
    other = {FILE_NAME: (folder / FILE_NAME).read_bytes()}
    save(tmp_path / "other", stored.tensors, card, extra=other)
    flags = {"start": "from"}
    words = [f"--{flags.get(name, name)}={value}" for name, value in options.items()]
    answer = cli("evaluate", tmp_path / "other", *bad(frame, tmp_path), *words)
    with pytest.raises(TracepaperError) as refused:
        tracepaper.evaluate(tmp_path / "other", {"AAAUSDT": frame}, **options)
    assert answer.code in (1, 2)
    assert plain(answer.err, tmp_path) == str(refused.value)
    assert part in str(refused.value)


def test_a_book_is_no_frame() -> None:
    recipe = {"model": {"kind": "orderbook"}}
    with pytest.raises(ConfigInvalid, match="Order books come from files of `tracepaper data rec"):
        tracepaper.train(recipe, {"AAAUSDT": FRAME})
    with pytest.raises(ConfigInvalid, match="no encoder for covariates or order books"):
        tracepaper.train(RECIPE, {"AAAUSDT": FRAME}, covariates=pl.DataFrame(COVARIATES))


@pytest.mark.parametrize("recipe", [5, ["glm"]])
def test_a_recipe_is_a_file_or_sections(recipe: Any) -> None:
    with pytest.raises(ConfigInvalid, match=r"^recipe is .*; give a TOML file, or a dictionary of"):
        tracepaper.train(recipe, {"AAAUSDT": FRAME})
