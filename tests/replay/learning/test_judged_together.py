"""Networks over several assets on holdouts and against other models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

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
    table,
    write_csv,
)
from pages import said_in
from scipy.stats import spearmanr

from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive import Candles
from tracepaper.replay.learning.dataset import Dataset, close_by_close
from tracepaper.replay.learning.estimators.cross_sectional import (
    cross_section,
    predicted,
    typical_return,
)
from tracepaper.replay.learning.fit import FitOptions, Progress
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.holdouts import FILE_NAME, read_uses
from tracepaper.replay.learning.judge.forecasts import MODEL, Forecasts
from tracepaper.replay.learning.judge.gates import Judgement
from tracepaper.replay.learning.judge.metrics import (
    FEW,
    PORTFOLIOS,
    MetricView,
    compare,
    ranks,
    verdict_of,
)
from tracepaper.replay.learning.judge.tables import tables_of
from tracepaper.replay.learning.recipe import Recipe, kinds, recipe_of
from tracepaper.replay.learning.samples import EVERY_HEAD, FLAT_BAND
from tracepaper.replay.learning.splits import Holdout, Part
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR, DayDifference, difference
from tracepaper.replay.learning.training import train
from tracepaper.replay.report.honesty import FEW_DAYS
from tracepaper.storage.checkpoints import load, save
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.forecasters.cross_asset import TogetherModel
from tracepaper.strategies.networks.cross_asset import CrossAssetNetwork
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.units import iso

pytestmark = pytest.mark.long

SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
DAYS = 6
DAY_MS = DAY_BARS * 60_000
ONE_THREAD = choose("evaluation.threads=1")
SPLIT = split(2, 2.75, 3.25)
SPANS = [
    Holdout(name, START_MS + first * DAY_MS, START_MS + (first + 1) * DAY_MS)
    for name, first in (("A", 4), ("B", 5))
]
AS_TEXT = ",".join(
    f"{s.name}={iso(s.from_ms or 0)[:10]}:{iso(s.until_ms or 0)[:10]}" for s in SPANS
)


def candles(*, changed_from: int | None = None) -> list[Candles]:
    """Return the candles of every symbol; from the bar *changed_from* on, prices differ."""
    series = [
        learnable(DAYS * DAY_BARS, seed=seed, symbol=symbol) for seed, symbol in enumerate(SYMBOLS)
    ]
    if changed_from is None:
        return series
    return [_changed(bars, changed_from) for bars in series]


def _changed(bars: Candles, start: int) -> Candles:
    rng = np.random.default_rng(9)
    factor = np.ones(len(bars))
    factor[start:] = np.exp(0.002 * rng.standard_normal(len(bars) - start).cumsum())
    names = ("open", "high", "low", "close")
    moved = {n: np.round(getattr(bars, n) * factor).astype(np.int64) for n in names}
    low = np.minimum.reduce(list(moved.values()))
    high = np.maximum.reduce(list(moved.values()))
    return replace(bars, **{**moved, "low": low, "high": high})


def material_of(paths: Sequence[str]) -> Dataset:
    return Dataset.read(list(paths), lambda _: SPLIT, HORIZONS)


def recipe(kind: str, **more: Any) -> Recipe:
    section = {"dim": 8, "layers": 1, "heads": 2, "window": 16, "horizons": list(HORIZONS)}
    return recipe_of(
        {
            "model": {"kind": kind},
            "architecture": section | more,
            "training": {
                "explained_bars": 400,
                "steps": 3, "validate_every": 3, "length": 256, "batch": 2, "threads": 1,
            },
            "calibration": {"horizon": 5},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[str]:
    return [str(write_csv(candle, folder)) for candle in candles()]


@pytest.fixture(scope="module")
def material(paths: list[str]) -> Dataset:
    torch.set_num_threads(1)
    return material_of(paths)


@pytest.fixture(scope="module")
def aligned(material: Dataset) -> Dataset:
    return close_by_close(material, lambda _: SPLIT)


@pytest.fixture(scope="module")
def models(folder: Path, material: Dataset, aligned: Dataset) -> dict[str, Path]:
    """Return a checkpoint of each kind over several assets, and one of a single instrument."""
    document = {name: folder / name for name in ("crossasset", "portfolio", "flash")}
    for kind in ("crossasset", "portfolio"):
        train(recipe(kind), aligned, FitRun(document[kind]))
    config = FlashConfig(dim=8, layers=1, heads=2, window=16, horizons=HORIZONS)
    options = FitOptions(steps=1, batch=1, length=256, validate_every=1)
    flash = Recipe(kinds()["flash"], config, options, 30, name="flash", explained_bars=500)
    train(flash, material, FitRun(document["flash"]))
    return document


@pytest.fixture(scope="module")
def judged(models: dict[str, Path], material: Dataset) -> Judgement:
    checkpoint = load(models["portfolio"])
    return judge_checkpoint(checkpoint, material, SPANS[0])


def given(paths: Sequence[str]) -> list[str]:
    return [word for path in paths for word in ("--data", path)]


def test_spans_are_judged_apart_and_stand_beside_models_of_any_kind(
    models: dict[str, Path], paths: list[str], tmp_path: Path, cli: Cli
) -> None:
    page = tmp_path / "page.html"
    words = ["evaluate", models["portfolio"], *given(paths), "--holdout", AS_TEXT, "--html", page]
    others = [str(models[kind]) for kind in ("crossasset", "flash")]
    document = cli.json(*words, *ONE_THREAD, "--compare", others[0], "--compare", others[1])
    assert [(span["name"], span["days"]) for span in document["holdouts"]] == [("A", 1), ("B", 1)]
    assert [span["symbols"] for span in document["holdouts"]] == [list(SYMBOLS)] * 2
    assert {span["uses"] for span in document["holdouts"]} == {1}
    counted = {model.model for model in read_uses(models["flash"].parent / FILE_NAME)}
    assert {document["id"], *(row["id"] for row in document["beside"])} <= counted
    weights = []
    for span in document["holdouts"]:
        tables = span["tables"]
        for key in ("beside_qlike", "beside_sign", "beside_across"):
            assert list(by_forecaster(tables[key]["rows"], 30)) == ["model", *others]
        # What has no weights of its own is not held to them.
        [_, row] = tables["beside_weights"]["rows"]
        assert (row["forecaster"], row["days"], row["verdict"]) == (others[0], 1, FEW)
        names = [{r["forecaster"] for r in tables[key]["rows"]} for key in ("weights", "across")]
        assert {"model", "equal", "inverse"} <= names[0]
        assert {"model", "persistence"} <= names[1]
        weights.append(tables["weights"]["rows"][0])
        assert span["figures"]["weights"]["days"] == 1
    assert weights[0]["value"] != weights[1]["value"]
    assert "Rank correlation across the assets" in said_in(page)
    whole = document["tables"]["beside_holdouts"]["rows"]
    assert [row["model"] for row in whole[:2]] == others


def test_a_single_instruments_model_stands_beside_one_of_several(
    models: dict[str, Path], paths: list[str], cli: Cli
) -> None:
    """Both orders of a comparison have the same difference with opposite signs."""
    dates = ["--from", iso(SPANS[0].from_ms or 0), "--to", iso(SPANS[0].until_ms or 0)]
    pair = [models["flash"], models["crossasset"]]
    values = []
    for model, other in (pair, pair[::-1]):
        words = ["evaluate", model, *given(paths), *dates, "--compare", other]
        more = [*choose("evaluation.explained_bars=500")] if model == models["flash"] else []
        tables = cli.json(*words, *ONE_THREAD, *more)["holdouts"][0]["tables"]
        values.append(
            [
                by_forecaster(tables[f"beside_{loss}"]["rows"], horizon)[str(other)]["difference"][
                    "value"
                ]
                for loss in ("qlike", "sign", "across")
                for horizon in HORIZONS
            ]
        )
    assert all(value != 0.0 for value in values[0])
    np.testing.assert_allclose(values[0], -np.array(values[1]), rtol=2e-3, atol=1e-6)


def test_ranks_are_those_of_scipy_and_an_oracle_has_all(judged: Judgement) -> None:
    forecasts = judged.forecasts.at(HORIZONS[1])
    relative = forecasts.value("relative")
    value, unit = forecasts.labels["returns"], forecasts.labels["unit"]
    values = ranks(MetricView(forecasts), relative)
    values = values[np.isfinite(values)]
    times = forecasts.keys >> 32
    expected = []
    for time in np.unique(times)[:50]:
        rows = np.flatnonzero(times == time)
        assert len(rows) == len(SYMBOLS)
        pair = (of[rows] * unit[rows] for of in (relative, value))
        expected.append(spearmanr(*pair).statistic)
    np.testing.assert_allclose(values[:50], expected, atol=1e-12)
    shuffled = np.random.default_rng(0).permutation(len(forecasts))  # in any order of its rows
    oracle = forecasts.with_fields(MODEL, relative=value).where(shuffled)
    against = ranked(judged.compared_with("oracle", oracle))
    less = by_forecaster(against, HORIZONS[1])["oracle"]["difference"]
    assert less["value"] == pytest.approx(values.mean() - 1.0)
    fields = {name: of for name, of in forecasts.values[MODEL].items() if name != "relative"}
    blind = replace(forecasts, values={MODEL: fields})
    assert ranked(judged.compared_with("blind", blind))


def ranked(judged: Judgement) -> list[dict[str, Any]]:
    """Return the comparison of the model with others by rank correlation."""
    [table] = [table for table in tables_of(judged) if table.key == "beside_across"]
    return table.documents()


def test_relative_returns_stand_at_the_rows_of_their_symbols(
    judged: Judgement, aligned: Dataset, models: dict[str, Path]
) -> None:
    model = load(models["portfolio"])
    network = TogetherModel.read(model.card, model.tensors).network
    [panel] = aligned.panels
    times = panel.segments[0].open_time_ms
    rows = np.searchsorted(times, (SPANS[0].from_ms or 0) + np.array([100, 700, 1_300]) * 60_000)
    relative = predicted(network, panel, rows).heads["relative"]  # [asset, row, horizon]
    for column, (_, forecasts) in enumerate(judged.forecasts.by_horizon()):
        for asset, segment in enumerate(panel.segments):
            places = [int(np.flatnonzero(forecasts.keys == key)[0]) for key in segment.keys[rows]]
            wanted = relative[asset, :, column]
            np.testing.assert_allclose(forecasts.value("relative")[places], wanted, atol=1e-6)
            assert len(set(wanted.tolist())) == 3


def test_weights_are_compared_by_day_and_never_by_few_days() -> None:
    def held(net: np.ndarray, first_day: int) -> Forecasts:
        days = (first_day + np.arange(len(net))) * DAY_MS
        return table(days, {}, {MODEL: {"net": net}}, horizon=DAY_BARS)

    net = 1e-3 * np.random.default_rng(0).standard_normal(40)
    better, worse = held(net + 1e-3, 0), held(net, 5)
    both = better.join(worse, "worse")
    day_difference = compare(both, PORTFOLIOS["net"], others=("worse",))["worse"]
    sums = [forecasts.value("net") * 1e4 for forecasts in (better, worse)]
    wanted = difference(sums[0][5:], sums[1][:-5], np.arange(5, 40))
    assert day_difference.days == 35
    assert day_difference.value == pytest.approx(wanted.value)
    assert day_difference.error == pytest.approx(wanted.error)
    gains = [DayDifference(5.0, 0.1, days, 1e-9) for days in (FEW_DAYS - 1, FEW_DAYS)]
    assert [verdict_of(PORTFOLIOS["net"], gain) for gain in gains] == [FEW, "better"]


def test_a_span_holds_what_its_own_days_made(judged: Judgement) -> None:
    held = judged.forecasts.held
    assert held is not None
    assert set(held.day) == {(SPANS[0].from_ms or 0) // DAY_MS}
    tables = {table.key: table for table in tables_of(judged)}
    [row, *_] = tables["weights"].documents()
    assert (row["figure"], row["forecaster"]) == ("Net of fees, bp a day", "model")
    assert row["value"]["value"] == pytest.approx(1e4 * float(held.value("net").sum()))


class CutOffError(Exception):
    pass


def test_a_fit_that_was_cut_off_ends_as_if_it_had_not_been(
    aligned: Dataset, tmp_path: Path
) -> None:
    chosen = recipe("portfolio", dropout=0.2)
    chosen = replace(chosen, options=replace(chosen.options, steps=6, validate_every=2))

    def cut(progress: Progress) -> None:
        if progress.step == 5:
            raise CutOffError

    whole = train(chosen, aligned, FitRun(tmp_path / "whole"))
    with pytest.raises(CutOffError):
        train(chosen, aligned, FitRun(tmp_path / "cut", observe=cut))
    lines: list[str] = []
    rest = train(chosen, aligned, FitRun(tmp_path / "cut", say=lines.append, resume=True))
    assert "Resuming the fit at step 4." in lines
    train(chosen, aligned, FitRun(tmp_path / "none", say=lines.append, resume=True))
    assert "There is no state of this fit to resume; it begins at step 0." in lines
    for name, tensor in whole.tensors.items():
        assert torch.equal(rest.tensors[name], tensor)
    other = replace(chosen, options=replace(chosen.options, learning_rate=1e-4))
    with pytest.raises(CheckpointMismatch, match="written with other options"):
        train(other, aligned, FitRun(tmp_path / "cut", resume=True))


def test_the_card_says_what_was_learnt_and_on_which_device(models: dict[str, Path]) -> None:
    training = {kind: load(models[kind]).card["training"] for kind in ("crossasset", "portfolio")}
    assert {row["device"] for row in training.values()} == {"cpu"}
    assert {(row["flat_band"], row["variance_floor"]) for row in training.values()} == {
        (FLAT_BAND, VARIANCE_FLOOR)
    }
    assert training["crossasset"]["losses"].endswith("QLIKE, Huber of the relative return")
    assert training["portfolio"]["losses"].endswith("return, negative utility net of fees")


def test_a_device_that_is_not_there_is_refused_before_the_fit(
    aligned: Dataset, tmp_path: Path
) -> None:
    for name, sentence in {"cuda": "No CUDA device was found", "tpu": "choose cpu or cuda"}.items():
        if name == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(ConfigInvalid, match=sentence):
            train(replace(recipe("crossasset"), device=name), aligned, FitRun(tmp_path))


def test_batches_that_are_accumulated_make_one_step_of_their_mean(aligned: Dataset) -> None:
    closes = replace(aligned, heads=EVERY_HEAD | {"relative"}).samples(Part.TRAIN)
    options = recipe("crossasset").options

    def gradient(accumulate: int, at: Sequence[int]) -> torch.Tensor:
        torch.manual_seed(0)
        config = recipe("crossasset", dropout=0.0).architecture
        features = closes[0].segment.values.shape[1]
        network = CrossAssetNetwork(replace(config, symbols=SYMBOLS, features=features))
        learnt = cross_section(network, closes, closes, replace(options, accumulate=accumulate))
        batches = list(islice(learnt.batches(0), 2))
        for index in at:
            learnt.gradient(batches[index])
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    first, second = gradient(1, [0]), gradient(1, [1])
    torch.testing.assert_close(gradient(2, [0, 1]), (first + second) / 2)


def test_no_held_out_bar_moves_a_fit(aligned: Dataset, tmp_path: Path) -> None:
    start = (SPLIT.validation_until_ms - START_MS) // 60_000
    files = [str(write_csv(candle, tmp_path)) for candle in candles(changed_from=start)]
    other = close_by_close(material_of(files), lambda _: SPLIT)

    def weights(of: Dataset) -> torch.Tensor:
        chosen = recipe("portfolio")
        fitted = chosen.kind.fit(of, chosen, FitRun(tmp_path / "fit"))
        return torch.cat([tensor.flatten() for tensor in fitted.tensors.values()])

    assert torch.equal(weights(aligned), weights(other))


def test_the_unit_of_the_weights_loss_knows_nothing_after_its_part(
    material: Dataset, tmp_path: Path
) -> None:
    """Its last decision is 10 minutes before a part's end, and weights are held for 30."""
    cut = split(2 + 10 / DAY_BARS, 2.75, 3.25)
    start = (cut.train_until_ms - START_MS) // 60_000
    files = [str(write_csv(candle, tmp_path)) for candle in candles(changed_from=start)]
    both = [close_by_close(data, lambda _: cut) for data in (material, material_of(files))]
    for part, is_same in ((Part.TRAIN, True), (Part.VALIDATION, False)):
        units = [typical_return(data.samples(part), 30) for data in both]
        assert (units[0] == units[1]) is is_same


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--holdout", "A=2023-11-15:2023-11-20"], "the model was fitted on data until then"),
        (
            [*choose("evaluation.explained_bars=600")],
            "--set evaluation.explained_bars examines what a model",
        ),
        (["--inspect", "intervals"], "--inspect intervals examines what a model says of one"),
    ],
)
def test_what_cannot_be_asked_of_several_is_refused_in_one_sentence(
    more: list[str],
    sentence: str,
    models: dict[str, Path],
    paths: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "evaluate",
        str(models["portfolio"]),
        *given(paths),
        *choose("evaluation.threads=1"),
        *more,
    ]
    assert invoke(words) != 0
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_another_without_these_symbols_is_refused_beside(
    models: dict[str, Path], paths: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(models["crossasset"])
    card = {name: of for name, of in model.card.items() if name != "baselines"}
    card["architecture"] = {**card["architecture"], "symbols": [*SYMBOLS[:2], "DDDUSDT"]}
    save(folder / "other", model.tensors, card)
    words = [
        "evaluate",
        str(models["portfolio"]),
        *given(paths),
        "--compare",
        str(folder / "other"),
    ]
    assert invoke([*words, *choose("evaluation.threads=1")]) != 0
    assert "and not CCCUSDT; train it with its candles" in capsys.readouterr().err
