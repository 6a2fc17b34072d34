"""``evaluate`` on holdouts and folds; results of trading need a second holdout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import (
    DAY_BARS,
    HORIZONS,
    START_MS,
    by_forecaster,
    judge_checkpoint,
    learnable,
    quiet,
    split,
    tiny,
    write_csv,
)
from pages import document_in, said_in

from tracepaper.daemon.cli import invoke
from tracepaper.replay.document.charts import LineLayer, RuleLayer
from tracepaper.replay.learning import statistics
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import FitOptions
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.holdouts import FILE_NAME, Holdout, read_uses
from tracepaper.replay.learning.judge.forecasts import MODEL
from tracepaper.replay.learning.judge.gates import RULES, Judgement
from tracepaper.replay.learning.judge.judge import ModelJudgement
from tracepaper.replay.learning.judge.metrics import MEASURES, RISKS, Metric
from tracepaper.replay.learning.judge.tables import (
    bins_of,
    confidence_areas,
    coverage_by_week,
    curves_of,
    found_of,
    qlike_by_day,
    reliability,
    risk_coverage,
    tables_across,
)
from tracepaper.replay.learning.recipe import Recipe, kind_of, kinds, recipe_of
from tracepaper.replay.learning.training import train
from tracepaper.storage.checkpoints import Checkpoint, load
from tracepaper.strategies.errors import ConfigInvalid
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
    assert said_in(page).count("QLIKE by day:") == 2
    lines = [
        layer["name"]
        for part in document_in(page)["parts"]
        if part["kind"] == "chart" and part["caption"].startswith("QLIKE by day:")
        for layer in part["panels"][0]["layers"]
        if layer["type"] == "line"
    ]
    assert {"har", "ewma", "log linear"} <= set(lines)


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
        (["--folds", "walk:2", "--from", "2023-11-15"], "and leave out holdouts"),
        (["--folds", "combinatorial:40/2"], "cannot be cut"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(
    glm: Path, candles: str, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["evaluate", str(glm), "--data", candles, *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_folds_fit_anew_open_no_span_and_say_what_choice_is_luck(
    glm: Path, candles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = read_uses(glm.parent / FILE_NAME)
    words = ["evaluate", str(glm), "--data", candles, "--html", str(tmp_path / "folds.html")]
    assert invoke([*words, "--folds", "combinatorial:4/2", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    qlike = by_forecaster(tables["folds_qlike"]["rows"], 5)
    assert set(qlike) >= {"model", "har", "gamma glm"}
    # A glm is the gamma regression that is a baseline: fitted on the same bars, the same.
    assert qlike["model"]["value"]["value"] == pytest.approx(
        qlike["gamma glm"]["value"]["value"], rel=1e-3
    )
    assert qlike["gamma glm"]["verdict"] == "level"
    luck = tables["overfitting_qlike"]["rows"]
    assert [row["paths"] for row in luck] == [3, 3]
    assert all(0.0 <= row["mean"] <= row["most"] <= 1.0 for row in luck)
    assert read_uses(glm.parent / FILE_NAME) == counted


def test_a_network_is_fitted_anew_on_folds_that_walk_alone(
    network: Checkpoint, material: Dataset, candles: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracepaper.replay.learning.judge.folds import refit, tables

    refitted = refit(network.card, material, "walk:1", say=quiet)
    kept = {table.key: table.documents() for table in tables(refitted)}
    assert kept["folds_qlike"][0]["forecaster"] == "model"
    for text in ("combinatorial:4/2", "walk:4"):
        with pytest.raises(ConfigInvalid, match="at most 3 walk-forward folds"):
            refit(network.card, material, text, say=quiet)


def test_folds_in_processes_are_those_of_this_one(glm: Path, material: Dataset) -> None:
    from tracepaper.replay.learning.judge.folds import refit, tables
    from tracepaper.replay.sweep.executor import LocalProcesses, Spread

    card, lines = load(glm).card, list[str]()
    here = refit(card, material, "walk:2", say=quiet)
    there = refit(card, material, "walk:2", say=lines.append, each=Spread(LocalProcesses))
    assert there.folds == here.folds
    assert [t.documents() for t in tables(there)] == [t.documents() for t in tables(here)]
    assert {"Fold 1 of 2.", "Fold 2 of 2.", "2 of 2 done."} <= set(lines)


def test_an_ensemble_is_fitted_anew_with_shares_of_the_fold_alone(
    network: Checkpoint, glm: Path, material: Dataset, tmp_path: Path
) -> None:
    from tracepaper.replay.learning.estimators.ensemble import NAMES, join, network_share
    from tracepaper.replay.learning.judge.folds import refit, tables

    of_rows = load(glm)
    halves = [kind_of(half.card).load(half.card, half.tensors) for half in (network, of_rows)]
    run = FitRun(tmp_path, "both")
    joined = join(halves[0], halves[1], material, run).calibrated(material, bars=600)
    both = joined.evaluated(material, bars=600).save(tmp_path / "both", material)
    refitted = refit(both.card, material, "walk:2", say=quiet)
    assert [bool(fold.calibration) for fold in refitted.folds] == [True, True]
    for fold in refitted.tests:
        for _, rows in fold.by_horizon():
            mix, first, second = (np.log(rows.value("variance", n)) for n in (MODEL, *NAMES))
            differs = np.abs(first - second) > 0.1
            shares = ((mix - second) / (first - second))[differs]
            assert np.ptp(shares) < 1e-3  # one share for every bar, and not that of the test
            best = network_share(first, second, rows.labels["variance"], rows.day).share
            assert shares.mean() != pytest.approx(best, abs=1e-4)
    kept = {table.key: table.documents() for table in tables(refitted)}
    names = {row["forecaster"] for row in kept["folds_qlike"]}
    assert names >= {"model", "network member", "row member", "har", "gamma glm"}
    with pytest.raises(ConfigInvalid, match="at most 3 walk-forward folds"):
        refit(both.card, material, "combinatorial:4/2", say=quiet)


def test_trades_are_shown_with_a_second_holdout_alone(judgements: list[Judgement]) -> None:
    (alone,) = [t for t in tables_across(judgements[:1]) if t.key == "trades"]
    assert alone.rows == ()
    assert "need a second holdout" in alone.notes[0]
    (both,) = [t for t in tables_across(judgements) if t.key == "trades"]
    rows = both.documents()
    assert [row["holdout"] for row in rows[:2]] == ["A", "B"]
    traded = [row for row in rows if row["trades"]]
    assert traded
    for row in traded:
        assert row["days"] >= 1
        assert set(row["net"]) == {"value", "error"}
    # Under thirty days no ratio is said.
    assert {row["deflated_sharpe"] for row in rows} == {None}


def test_a_result_that_turns_is_not_repeated(judgements: list[Judgement]) -> None:
    def with_net(judgement: Judgement, net: list[float], days: int) -> Judgement:
        rule = {"bars_per_1000": 1.0, "trades": 99, "days": days, "net_bp": net}
        traded = {"bars": 9, **dict.fromkeys(RULES, rule)}
        gates = {**judgement.figures["gates"], "traded": traded}
        return replace(judgement, figures={**judgement.figures, "gates": gates})

    def verdicts(first: list[float], second: list[float], days: int = 30) -> set[Any]:
        nets = zip(judgements, (first, second), strict=True)
        pair = [with_net(judgement, net, days) for judgement, net in nets]
        (trades,) = [t for t in tables_across(pair) if t.key == "trades"]
        return {row["repeated"] for row in trades.documents()}

    assert verdicts([39.3, 13.5], [-1.6, 12.0]) == {"no"}
    assert verdicts([39.3, 13.5], [30.0, 12.0]) == {"yes"}
    assert verdicts([39.3, 13.5], [30.0, 12.0], 29) == {"too few days"}
    assert verdicts([39.3, 13.5], [-30.0, 12.0]) == {"no"}


def test_a_planted_measure_is_found_on_every_span_and_noise_is_not(
    judgements: list[Judgement],
) -> None:
    rng = np.random.default_rng(3)
    risk = RISKS["sign"].terms
    try:
        for name, terms in (
            ("oracle", lambda view: rng.random(len(view.rows)) - risk(view)),
            ("noise", lambda view: np.sin(1e6 * view.labels["returns"])),
        ):
            MEASURES[name] = Metric(name, "", (), terms)
        areas = confidence_areas(judgements[0])["sign"]
        assert areas["oracle"].value < -0.1
        assert abs(areas["noise"].value) < 0.05
        (table,) = [t for t in tables_across(judgements) if t.key == "confidence_holdouts"]
        assert {"oracle", "noise", "entropy"} <= {row["measure"] for row in table.documents()}
    finally:
        for name in ("oracle", "noise"):
            del MEASURES[name]


def test_one_function_adds_a_figure_to_terminal_document_and_page(
    judgements: list[Judgement], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracepaper.replay.document.values import Figure, table
    from tracepaper.replay.learning.judge import tables

    def planted(judgement: Judgement) -> list[Any]:
        column: Figure[Judgement] = Figure("days", "days", "count", lambda of: of.days)
        return [table("planted", "Planted", [column], [judgement])]

    monkeypatch.setattr(tables, "SHOWN", (*tables.SHOWN, tables.HoldoutFigure(planted)))
    document = found_of(ModelJudgement("id", "recipe", 0, judgements, ())).document
    assert document["holdouts"][0]["tables"]["planted"]["rows"] == [{"days": judgements[0].days}]


def test_candles_without_the_training_are_judged_by_what_is_stored(glm: Path, candles: str) -> None:
    from tracepaper.replay.learning.baselines import stored_baselines

    checkpoint = load(glm)
    whole = Dataset.read([candles], lambda _: SPLIT, HORIZONS)
    later = replace(whole, split=split(0.1, 0.2, 0.3), stored=None)
    assert judge_checkpoint(checkpoint, later, SPANS[0]).missing
    kept = replace(later, stored=stored_baselines(glm, checkpoint.card))
    judged = judge_checkpoint(checkpoint, kept, SPANS[0])
    assert judged.missing == ()
    assert "har" in judged.forecasts.values


def test_the_charts_of_a_judgement_show_what_it_measured(judgements: list[Judgement]) -> None:
    judgement = judgements[0]
    curves = curves_of(judgement)
    panel = risk_coverage(curves)
    assert panel is not None
    assert panel.x.is_reversed
    lines = [layer for layer in panel.layers if isinstance(layer, LineLayer)]
    assert len(lines) == len(curves)
    for line, ((risk, name), curve) in zip(lines, curves.items(), strict=True):
        assert line.name == f"{name.replace('_', ' ')}: {RISKS[risk].title}"
        assert line.y == pytest.approx(curve.excess, rel=1e-5)
    assert len({(line.role, line.dash) for line in lines}) == len(lines)

    weekly = coverage_by_week(judgement)
    assert weekly is not None
    claim, *by_horizon = weekly.layers
    assert isinstance(claim, RuleLayer)
    assert claim.at == 0.9
    for layer, (_, rows) in zip(by_horizon, judgement.forecasts.by_horizon(), strict=True):
        assert isinstance(layer, LineLayer)
        mean, scale, dof = (rows.value(field) for field in ("mean", "scale", "dof"))
        hit = statistics.inside(mean, scale, dof, rows.labels["returns"], 0.9)
        weeks = rows.day // 7
        assert layer.x == [week * 7 * DAY_BARS * 60_000 for week in np.unique(weeks)]
        first = float(hit[weeks == weeks[0]].mean())
        assert layer.y[0] == pytest.approx(first, rel=1e-5)

    horizon = HORIZONS[len(HORIZONS) // 2]
    middle = judgement.forecasts.at(horizon)
    summed = qlike_by_day(judgement)
    assert summed is not None
    assert f"at {horizon} bars" in summed.y.title
    [har] = (layer for layer in summed.layers if getattr(layer, "name", "") == "har")
    assert isinstance(har, LineLayer)
    model, other = (
        statistics.qlike_of(middle.value("variance", name), middle.labels["variance"])
        for name in (MODEL, "har")
    )
    daily = [float((model - other)[middle.day == day].mean()) for day in np.unique(middle.day)]
    assert har.y == pytest.approx(np.cumsum(daily), rel=1e-4)

    chart = reliability(judgement)
    assert chart is not None
    reliable = chart.layers[1]
    assert isinstance(reliable, LineLayer)
    bins = bins_of(judgement)
    assert reliable.x == [each["forecast"] for each in bins]
    assert reliable.y == [each["realised"] for each in bins]
