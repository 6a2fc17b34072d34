"""The command ``explain``: text, JSON, a picture and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import explained_runs
import pytest
from command_line import Cli
from explained_runs import CONTEXT, LAST, SMALL
from pages import document_in, said_in

from tracepaper.strategies.units import percent

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explained_runs.replayed(tmp_path_factory.mktemp("telling"), edge="1000")


@pytest.fixture(scope="module")
def modelless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modelless")
    return explained_runs.replayed(folder, strategy="sma_cross", bars=60)


def texts(cli: Cli, of: Path, sequence: int, *options: str, code: int = 0) -> tuple[str, str]:
    """Return stdout as single-spaced text, and stderr."""
    answer = cli("explain", f"last:{sequence}", "--db", of, *options)
    assert answer.code == code
    return " ".join(answer.out.split()), answer.err


def document_of(cli: Cli, of: Path, sequence: int, *options: str, code: int = 0) -> tuple[Any, str]:
    out, err = texts(cli, of, sequence, *options, "--json", code=code)
    return json.loads(out), err


def test_the_stored_part_names_the_verdict_and_what_would_flip_it(database: Path, cli: Cli) -> None:
    text, _ = texts(cli, database, LAST)
    assert "HOLD (refused by edge)" in text
    assert "It would have passed, had edge been" in text
    assert "round-trip costs" in text
    assert "not why the price will move" in text
    assert "Deletion test" not in text


def test_full_adds_attribution_features_and_the_deletion_test(database: Path, cli: Cli) -> None:
    text, _ = texts(cli, database, LAST, "--full")
    assert text.startswith("linear:AAAUSDT at ")
    for words in (
        "Recomputed from the stored bars, 30 bars ahead",
        "the stored buckets differ by at most",
        "What moved the mean, by feature in bp",
        "bp that the model forecasts for neutral rows",
        "random (mean of",
    ):
        assert words in text


def test_json_is_one_document_with_everything(database: Path, cli: Cli) -> None:
    document, complaint = document_of(cli, database, LAST, "--full")
    assert complaint == ""
    assert document["decision"]["sequence"] == LAST
    assert document["counterfactuals"]["must_pass"] == ["edge"]
    assert document["counterfactuals"]["nearest"] == "edge"
    (edge,) = [row for row in document["gates"] if row["gate"] == "edge"]
    assert edge["margin"] == edge["measure"] - edge["threshold"] < 0
    assert sum(row["weight"] for row in document["buckets"]) == pytest.approx(1.0, abs=1e-6)
    full = document["full"]
    assert len(full["attribution"]["weights"]) == len(full["moves"]["by_bar"])
    assert {trial["order"] for trial in full["deletion"]["trials"]} == {
        "rollout", "relevance", "newest", "random", "decided", "past",
    }  # fmt: skip
    assert (document["full_missing"], document["no_attribution"]) == (None, None)


@pytest.mark.parametrize(
    ("options", "bars"),
    [
        (("--method", "norm"), SMALL.receptive_field),
        (("--method", "gradient", "--residual", "0.2"), SMALL.receptive_field),
        (("--method", "flow"), SMALL.receptive_field),
        (("--fusion", "max", "--discard", "0.5"), SMALL.receptive_field),
        (("--head-weights", "1,0/0,1", "--start-layer", "0"), SMALL.receptive_field),
    ],
)
def test_another_method_is_shown_beside_the_stored_rollout(
    options: tuple[str, ...], bars: int, database: Path, cli: Cli
) -> None:
    document, _ = document_of(cli, database, LAST, *options)
    other = document["by_method"]
    weights = other["attribution"]["weights"]
    assert other["method"] == (options[1] if options[0] == "--method" else "rollout")
    assert (len(weights), document["full"]) == (bars, None)
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)
    assert 0.0 < other["common"] < 0.9999
    text, _ = texts(cli, database, LAST, *options)
    assert f"By the method {other['method']}" in text
    assert f"and {percent(other['common'], 0)} of the weight on the same bars" in text


def test_the_method_as_stored_is_what_was_stored(database: Path, cli: Cli) -> None:
    document, _ = document_of(cli, database, LAST, "--method", "rollout")
    assert document["by_method"]["common"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--method", "lime"), "There is no method 'lime'; choose one of"),
        (("--method", "norm", "--fusion", "max"), "norm takes no fusion; leave it out"),
        (("--fusion", "median"), "There is no head fusion 'median'; choose one of mean, max, min"),
        (("--head-weights", "1,x"), "give one number a head"),
        (("--head-weights", "1,0/1"), "must give each layer as many numbers"),
        (("--residual", "1.5"), "residual_weight must be between 0 and 1"),
        (("--discard", "1"), "discard_ratio must be at least 0 and below 1"),
    ],
)
def test_a_method_that_there_is_none_of_is_refused_before_anything_is_said(
    options: tuple[str, ...], sentence: str, database: Path, cli: Cli
) -> None:
    text, complaint = texts(cli, database, LAST, *options, code=2)
    assert text == ""
    assert sentence in complaint
    assert complaint.count("\n") == 1


def test_a_decision_before_the_warm_up_says_so(database: Path, cli: Cli) -> None:
    text, _ = texts(cli, database, 7)
    assert f"not yet warm: 7 of the {CONTEXT} bars" in text
    text, complaint = texts(cli, database, 7, "--full", code=1)
    assert "refused by warm" in text
    assert "has no forecast of a model" in complaint
    assert complaint.count("\n") == 1


def test_a_run_without_a_model_shows_the_stored_part_and_says_why_not_more(
    modelless: Path, cli: Cli
) -> None:
    text, _ = texts(cli, modelless, 40)
    assert "The strategy sma_cross uses no model" in text
    document, complaint = document_of(cli, modelless, 40, "--full", code=1)
    assert document["full"] is None
    assert "has no forecast of a model" in document["full_missing"]
    assert document["full_missing"] in complaint


def test_a_run_without_a_model_has_a_page_and_a_picture_of_its_decisions(
    modelless: Path, tmp_path: Path, cli: Cli
) -> None:
    page, picture = tmp_path / "decision.html", tmp_path / "decision.png"
    texts(cli, modelless, 40, "--page", str(page), "--png", str(picture))
    assert picture.read_bytes().startswith(PNG)
    (chart,) = (part for part in document_in(page)["parts"] if part["kind"] == "chart")
    (panel,) = chart["panels"]
    assert [len(layer["x"]) for layer in panel["layers"]] == [40, 1]
    assert "The strategy sma_cross uses no model" in said_in(page)


@pytest.mark.parametrize("options", [(), ("--full",)])
def test_a_picture_is_drawn(
    database: Path, tmp_path: Path, options: tuple[str, ...], cli: Cli
) -> None:
    path = tmp_path / "decision.png"
    assert (
        texts(cli, database, LAST, "--png", str(path), *options)[1] == f"The picture is {path}.\n"
    )
    content = path.read_bytes()
    assert content.startswith(PNG)
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    assert width > 1_000
    assert height > (1_000 if options else 700)
