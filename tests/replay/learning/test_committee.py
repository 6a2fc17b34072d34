"""Committees: fitted walking forward, mixed by closed targets, replayed, explained, fitted anew."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from learning import DAY_BARS, FORMS, MINUTE_MS, START_MS, choose, learnable, recipe, write_csv
from page_cases import shown_of
from programs import BIN, Program, pointing_at, run

from tracepaper.daemon import cli
from tracepaper.daemon.session.retraining import CandidateJudgement
from tracepaper.replay.explain.attribution import members_of
from tracepaper.replay.explain.recompute import open_any
from tracepaper.replay.learning import committee_fits
from tracepaper.replay.learning.committee_fits import (
    CommitteeOptions,
    fit_at,
    fit_times,
    refitted,
    rows_before,
)
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimator import recipe_of
from tracepaper.replay.learning.estimators.committee import (
    CommitteeModel,
    pooled_differences,
    pooled_sentence,
)
from tracepaper.replay.learning.evaluation import retraining
from tracepaper.replay.learning.evaluation.explained import bars_of
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.evaluation.retraining import RefitCheck, refit_checks
from tracepaper.replay.learning.samples import targets
from tracepaper.replay.learning.splits import split_of
from tracepaper.replay.page import derivations
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.forecasters.committee import CommitteeForecaster, member_forecasts
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar, Retrained, RetrainOutcome
from tracepaper.strategies.units import DAY_MS

DAYS = 7
SHORT = ("every=1d", "window=1d", "memory=1d", "half_life=1d", "members=har,glm")


def settings(base: Path, *further: str) -> tuple[str, ...]:
    chosen = (f"of={base}", *SHORT, *further)
    return choose("model.kind=committee", *(f"committee.{one}" for one in chosen))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with candles of seven days and the checkpoint of a small network, ``net``."""
    made = tmp_path_factory.mktemp("committee")
    torch.set_num_threads(1)
    candles = write_csv(learnable(DAYS * DAY_BARS), made)
    words = ["train", recipe(FORMS["flash"], made), "--data", candles, "--out", made / "net"]
    assert cli.invoke(list(map(str, words))) == 0
    words = ["train", *settings(made / "net"), "--data", candles, "--out", made / "committee"]
    assert cli.invoke(list(map(str, words))) == 0
    return made


@pytest.fixture(scope="module")
def candles(folder: Path) -> str:
    return str(next(folder.glob("*.csv.gz")))


@pytest.fixture(scope="module")
def made(folder: Path) -> checkpoints.Checkpoint:
    return checkpoints.load(folder / "committee")


@pytest.fixture(scope="module")
def data(made: checkpoints.Checkpoint, candles: str) -> Dataset:
    card = made.card
    return Dataset.read(
        [candles], lambda _: split_of(card), tuple(card["architecture"]["horizons"])
    )


@pytest.fixture(scope="module")
def bars(data: Dataset) -> list[Bar]:
    return bars_of(data.segments[0], 0, len(data.segments[0]))


def forecaster(found: checkpoints.Checkpoint, **options: Any) -> CommitteeForecaster:
    made = build(found.card, found.tensors, **options)
    assert isinstance(made, CommitteeForecaster)
    return made


@pytest.fixture(scope="module")
def said(made: checkpoints.Checkpoint, bars: list[Bar]) -> list[Forecast | None]:
    return forecaster(made, mode="scan").scan(bars)


# ---------------------------------------------------------------- the fits


def test_a_fit_knows_no_target_that_closes_later(data: Dataset) -> None:
    options = CommitteeOptions(of="net", window="1d", members=("glm",))
    until_ms = START_MS + 4 * DAY_MS
    known = rows_before(data, until_ms - DAY_MS, until_ms)
    # Rows are those of a day, but for the longest horizon of either target at its end.
    assert len(known.variance.rows) == DAY_BARS + 1 - min(data.horizons)
    for at, horizon in enumerate(data.horizons):
        assert int((known.variance.weights[:, at] > 0).sum()) == DAY_BARS + 1 - horizon
    moved = learnable(DAYS * DAY_BARS)
    close = moved.close.copy()
    close[4 * DAY_BARS :] *= 2
    later = replace(moved, close=close, high=np.maximum(moved.high, close))
    from tracepaper.replay.learning.splits import segments_of
    from tracepaper.strategies.features.rows import schema

    other = replace(data, segments=segments_of(later, schema("v1")))
    first, second = (fit_at(one, options, until_ms, threads=1) for one in (data, other))
    assert first[1] == second[1]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    third = fit_at(other, options, until_ms + DAY_MS, threads=1)
    assert (
        third[1]["data_sha256"]
        != fit_at(data, options, until_ms + DAY_MS, threads=1)[1]["data_sha256"]
    )


def test_fits_stand_at_multiples_with_a_whole_window_before(
    data: Dataset, made: checkpoints.Checkpoint
) -> None:
    options = CommitteeOptions(of="net", every="1d", window="1d")
    times = fit_times(data, options)
    assert [at % DAY_MS for at in times] == [0] * len(times)
    assert times[0] - DAY_MS >= int(data.segments[0].close_time_ms[data.segments[0].first])
    assert times[0] - 2 * DAY_MS < int(data.segments[0].close_time_ms[data.segments[0].first])
    assert [fit["from_ms"] for fit in made.card["committee"]["fits"]] == times
    with pytest.raises(ConfigInvalid, match="shorter window"):
        fit_times(data, replace(options, window="40d"))


def test_har_reads_past_volatilities_alone(made: checkpoints.Checkpoint, data: Dataset) -> None:
    weights = made.tensors["0.har.log_variance_weights"].numpy()
    reads = [name for name, of in zip(data.schema.names, weights.T, strict=True) if of.any()]
    assert reads == ["realised_8", "realised_32"]


# ---------------------------------------------------------------- the forecasts


def test_a_bar_is_answered_by_the_fit_that_was_known_then(
    made: checkpoints.Checkpoint, data: Dataset, said: list[Forecast | None]
) -> None:
    model, segment = forecaster(made), data.segments[0]
    starts = [fit.from_ms for fit in model.fits]
    seen = set()
    for row in range(model.context, len(segment), 97):
        if (one := said[row]) is None:
            assert segment.close_time_ms[row] < starts[0]
            continue
        place = max(at for at, start in enumerate(starts) if start <= segment.close_time_ms[row])
        seen.add(place)
        mean, log_variance = model.fits[place].models[1].answer(segment.values[row : row + 1])
        root = segment.sigma[row] * np.sqrt(data.horizons)
        told = member_forecasts(one)
        assert told.volatility[2] == pytest.approx(np.exp(0.5 * log_variance[0]) * root, rel=1e-5)
        assert told.mean_return[2] == pytest.approx(mean[0] * root, rel=1e-4, abs=1e-9)
    assert len(seen) >= 4


def test_the_mix_is_the_weighted_mean_of_logs_and_the_rest_is_the_bases(
    made: checkpoints.Checkpoint, folder: Path, bars: list[Bar], said: list[Forecast | None]
) -> None:
    net = checkpoints.load(folder / "net")
    base = build(net.card, net.tensors, mode="scan").scan(bars)
    for row in range(len(bars) - 200, len(bars)):
        one, own = said[row], base[row]
        assert one is not None
        assert own is not None
        told = member_forecasts(one)
        assert told.weight.sum(axis=0) == pytest.approx([1.0, 1.0], abs=1e-6)
        assert told.volatility[0] == pytest.approx(own.volatility, rel=1e-5)
        mixed = np.exp((told.weight * np.log(told.volatility)).sum(axis=0))
        # Up to the level, which is common to all bars of the fold at a time.
        assert np.abs(np.log(np.array(one.volatility) / mixed)).max() < 0.5
        assert (one.mean_return, one.p_up) == (own.mean_return, own.p_up)
        assert one.explanation is not None
        assert own.explanation is not None
        assert one.explanation.buckets == own.explanation.buckets
        assert one.model_id == made.id != own.model_id


def test_a_restart_on_its_context_says_the_same_in_every_bit_of_the_mix(
    made: checkpoints.Checkpoint, bars: list[Bar], said: list[Forecast | None]
) -> None:
    model = forecaster(made)
    last = len(bars) - 7
    model.warm(bars[0].instrument, bars[last - model.context + 1 : last])
    again, whole = model.step(bars[last]), said[last]
    assert again is not None
    assert whole is not None
    one, two = member_forecasts(again), member_forecasts(whole)
    # The base's pass over other chunks rounds otherwise; members of one row do not.
    assert np.array_equal(one.volatility[1:], two.volatility[1:])
    assert one.weight == pytest.approx(two.weight, abs=1e-4)
    assert again.volatility == pytest.approx(whole.volatility, rel=1e-4)
    short = forecaster(made)
    short.warm(bars[0].instrument, bars[last - model.context + 2 : last])
    assert short.step(bars[last]) is None, "one bar less than the context is no context"


def test_a_group_is_answered_as_each_instrument_by_itself(
    made: checkpoints.Checkpoint, bars: list[Bar]
) -> None:
    def renamed(part: list[Bar]) -> list[Bar]:
        return [msgspec.structs.replace(bar, instrument="linear:BBBUSDT") for bar in part]

    both, alone = forecaster(made, instruments=2), forecaster(made)
    context = both.context
    one, other = bars[-context - 40 :], renamed(bars[-context - 90 : -50])
    for part in (one, other):
        both.warm(part[0].instrument, part[:context])
    for at in range(context, context + 40):
        found = both.predict_many([one[at], other[at]])
        for part, answer in zip((one, other), found, strict=True):
            if at == context:
                alone.warm(part[0].instrument, part[:context])
            expected = alone.step(part[at])
            assert answer is not None
            assert expected is not None
            assert answer.volatility == pytest.approx(expected.volatility, rel=1e-4)
            mine, theirs = member_forecasts(answer), member_forecasts(expected)
            assert np.array_equal(mine.volatility[1:], theirs.volatility[1:])


def test_before_the_first_fit_there_is_no_forecast(
    made: checkpoints.Checkpoint, bars: list[Bar]
) -> None:
    late = [
        {**fit, "from_ms": fit["from_ms"] + 30 * DAY_MS} for fit in made.card["committee"]["fits"]
    ]
    card = {**made.card, "committee": {**made.card["committee"], "fits": late}}
    assert set(build(card, made.tensors, mode="scan").scan(bars)) == {None}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"members": ["base", "ridge"]}, "committee.members must be base and some of"),
        ({"members": ["har", "glm"]}, "committee.members must be base and some of"),
        ({"fits": []}, "must list 1 to"),
        ({"fits": [{"from_ms": 2}, {"from_ms": 1}]}, "rising times"),
        ({"memory_ms": 0}, "memory_ms, half_life_ms and share"),
        ({"share": 2.0}, "memory_ms, half_life_ms and share"),
        ({"floors": {"5": 0.0, "30": 1.0}}, "must be above 0"),
        ({"widths": {"5": 1.0}}, "one number for each of the horizons"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(
    made: checkpoints.Checkpoint, change: Mapping[str, Any], sentence: str
) -> None:
    card = {**made.card, "committee": {**made.card["committee"], **change}}
    with pytest.raises(CheckpointMismatch, match=sentence):
        build(card, made.tensors)


# ---------------------------------------------------------------- commands


def invoked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.invoke([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_card_compares_it_with_members_equal_weights_and_the_last_winner(
    made: checkpoints.Checkpoint,
) -> None:
    figures = made.card["figures"]
    told = figures["30"]["qlike"]
    others = {"base", "refitted_har", "refitted_glm", "equal_weights", "last_winner"}
    assert others < set(told)
    pooled = figures["committee"]
    assert set(pooled) == {*others, "best_in_hindsight", "coverage_by_fifth", "pinball"}
    assert set(pooled["pinball"]) == {"base", "equal_weights"}
    for name in others:
        changes = [figures[key]["qlike"] for key in ("5", "30")]
        worst = max(one["model"][0] / one[name][0] - 1 for one in changes)
        assert pooled[name]["worst_percent"] == pytest.approx(100 * worst, abs=0.2)
        # Of one symbol its cells are the horizons.
        assert pooled[name]["worst_cell_percent"] == pooled[name]["worst_percent"]
    assert any("over all horizons" in one.lower() for one in made.card["honesty"]["sentences"])


def said_of_two_symbols(horizon: int) -> HorizonForecasts:
    """Return forecasts of two symbols whose mix is right of one and twice too high of the other."""
    rng = np.random.default_rng(horizon)
    rows, zeros = 4_000, np.zeros(4_000)
    scale = np.exp(0.2 * rng.normal(size=rows))
    variance = scale**2
    second = np.arange(rows) % 2
    mix = np.where(second, 2.0, 1.0) * variance
    return HorizonForecasts(
        horizon=horizon,
        keys=(np.arange(rows) // 2 << 32) + 7 + second,
        days=np.arange(rows) // 40,
        value=scale * rng.normal(size=rows),
        classes=np.zeros(rows, dtype=np.int64),
        variance=variance,
        unit=zeros + 1.0,
        mean=zeros,
        scale=np.sqrt(mix),
        dof=zeros + 1e6,
        logits=np.zeros((rows, 3), dtype=np.float32),
        means={},
        variances={
            "network": mix,
            "base": 1.5 * variance,
            "equal_weights": 1.1 * variance,
            "last_winner": 1.2 * variance,
        },
    )


def scale_of(name: str, one: HorizonForecasts) -> np.ndarray:
    return np.asarray(np.sqrt(one.variances[name]))


def test_a_cell_is_a_symbol_at_a_horizon_and_quantiles_have_their_loss() -> None:
    every = [said_of_two_symbols(horizon) for horizon in (4, 16)]
    found = pooled_differences(every, ["base"], {"4": 1.6449, "16": 1.6449})
    # QLIKE of c times too much is 1/c + log c - 1.
    loss = {times: 1 / times + np.log(times) - 1 for times in (1.5, 2.0)}
    mean = loss[2.0] / 2
    assert found["base"]["difference"][0] == pytest.approx(mean - loss[1.5], rel=1e-3)
    assert found["base"]["worst_percent"] == pytest.approx(100 * (mean / loss[1.5] - 1), abs=0.01)
    worst = 100 * (loss[2.0] / loss[1.5] - 1)
    assert found["base"]["worst_cell_percent"] == pytest.approx(worst, abs=0.01)

    def pinball(scales: Callable[[HorizonForecasts], np.ndarray]) -> float:
        told = []
        for one in every:
            for value, scale in zip(one.value.tolist(), scales(one).tolist(), strict=True):
                for level, end in ((0.05, -1.6449 * scale), (0.95, 1.6449 * scale)):
                    told.append((level - (value < end)) * (value - end))
        return float(np.mean(told))

    own = pinball(lambda one: one.scale)
    for name in ("base", "equal_weights"):
        less = own - pinball(partial(scale_of, name))
        assert found["pinball"][name][0] == pytest.approx(less, abs=2e-5)
        assert less > 0  # twice too wide for half of the bars
    assert f"at worst {worst:+.2f} %" in pooled_sentence(found)


def test_it_is_replayed_verified_and_explained(
    folder: Path, candles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, database = tmp_path / "config.toml", tmp_path / "run.db"
    config.write_text(
        '[market]\nsymbols = ["AAAUSDT"]\n[strategy]\nname = "attention"\n'
        f'[model]\ncheckpoint = "{folder / "committee"}"\nthreads = 1\n'
        '[gate]\nhorizon = 30\ndirection = "0.3"\nedge = "0.001"\n'
        '[sizing]\nmode = "volatility"\nnotional = "1000"\ntarget_volatility = "0.01"\n',
        encoding="utf-8",
    )
    code, _, err = invoked(capsys, "replay", "-c", config, "--data", candles, "--db", database)
    assert code == 0, err
    first = "the committee's first fit is of "
    assert first in recorded(database, "SELECT warnings FROM v_runs")
    code, out, err = invoked(capsys, "verify", "last", "--db", database)
    assert code == 0, out + err
    code, out, err = invoked(capsys, "explain", "last:9000", "--db", database, "--full", "--json")
    assert code == 0, err
    members = json.loads(out)["members"]
    assert [(one["member"], one["horizon"]) for one in members] == [
        (name, horizon) for horizon in (5, 30) for name in ("base", "har", "glm")
    ]
    for horizon in (5, 30):
        own = [one for one in members if one["horizon"] == horizon]
        assert sum(one["weight"] for one in own) == pytest.approx(1.0, abs=1e-6)
    code, out, err = invoked(capsys, "explain", "last:9000", "--db", database, "--full")
    assert code == 0, err
    assert "Members of the committee" in out
    newest = recorded(database, "SELECT max(open_time_iso) FROM v_decisions")[:10]
    later = ("--from", newest, "--db", tmp_path / "later.db")
    assert invoked(capsys, "replay", "-c", config, "--data", candles, *later)[0] == 0
    assert first not in recorded(tmp_path / "later.db", "SELECT warnings FROM v_runs")


def recorded(database: Path, query: str) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute(query).fetchone()[0])


def test_what_can_be_no_committee_is_refused_in_a_sentence(
    folder: Path, candles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*chosen: str) -> str:
        words = ["train", *chosen, "--data", candles, "--out", tmp_path / "x"]
        code, _, err = invoked(capsys, *words)
        assert code == 2, err
        assert not (tmp_path / "x").exists()
        return err

    assert "no checkpoint 'nowhere'" in refused(*settings(Path("nowhere")))
    assert "no base of a committee" in refused(*settings(folder / "committee"))
    assert "some of har, glm, tree" in refused(*settings(folder / "net", "members=har,har"))
    assert "time of a day" in refused(*settings(folder / "net", "memory=2h"))
    assert "shorter window" in refused(*settings(folder / "net", "window=60d"))
    assert "folds say nothing of it" in invoked(
        capsys, "evaluate", folder / "committee", "--data", candles, "--folds", "walk:2"
    )[2]  # fmt: skip


def test_it_is_evaluated_as_it_was_judged(
    folder: Path, candles: str, made: checkpoints.Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = invoked(capsys, "evaluate", folder / "committee", "--data", candles, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert "equal_weights" in json.dumps(told)
    assert made.id in json.dumps(told)


# ---------------------------------------------------------------- fitted anew


def test_a_later_fit_is_the_one_that_a_whole_training_makes(
    folder: Path, tmp_path: Path, made: checkpoints.Checkpoint
) -> None:
    longer = write_csv(learnable((DAYS + 2) * DAY_BARS), tmp_path)
    data = recipe_data(made, str(longer))
    found = refitted(made, data, None, threads=1)
    assert not isinstance(found, str)
    fits, known = found.card["committee"]["fits"], made.card["committee"]["fits"]
    assert fits[: len(known)] == known
    assert [fit["from_ms"] for fit in fits] == fit_times(data, options_of(made))
    assert found.until_ms == fits[-1]["from_ms"] > known[-1]["from_ms"]
    anew, said = fit_at(data, options_of(made), fits[-2]["from_ms"], threads=1)
    assert said == fits[-2]
    for name, tensor in anew.items():
        assert torch.equal(found.tensors[f"{len(fits) - 2}.{name}"], tensor)
    assert all(torch.equal(found.tensors[name], of) for name, of in made.tensors.items())
    model = CommitteeModel(found.card, found.tensors)
    assert model.forecaster.context == forecaster(made).context


def test_nothing_is_fitted_before_its_time(made: checkpoints.Checkpoint, data: Dataset) -> None:
    said = refitted(made, data, None, threads=1)
    assert isinstance(said, str)
    assert "hold no later time, a multiple of 1d" in said
    early = made.card["committee"]["fits"][2]["from_ms"]
    kept = {**made.card["committee"], "fits": made.card["committee"]["fits"][:2]}
    cut = replace(made, card={**made.card, "committee": kept})
    assert isinstance(refitted(cut, data, early - 1, threads=1), str)
    one = refitted(cut, data, early, threads=1)
    assert not isinstance(one, str)
    assert one.card["committee"]["fits"] == made.card["committee"]["fits"][:3]


def test_without_lightgbm_the_tree_is_left_out_and_the_card_says_so(
    folder: Path, made: checkpoints.Checkpoint, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str = "") -> None:
        raise ConfigInvalid("no lightgbm")

    monkeypatch.setattr(committee_fits, "import_lightgbm", missing)
    members, sentence = committee_fits.members_here(CommitteeOptions(of="net"))
    assert members == ("har", "glm")
    assert sentence == "It has no tree: no lightgbm"
    asked = {**made.card["committee"], "members": ["base", "har", "tree"]}
    said = refitted(replace(made, card={**made.card, "committee": asked}), data, None, threads=1)
    assert isinstance(said, str)
    assert said == "It has no tree: no lightgbm"


def options_of(found: checkpoints.Checkpoint) -> CommitteeOptions:
    given = found.card["committee"]["recipe"]
    return CommitteeOptions(**{**given, "members": tuple(given["members"])})


def recipe_data(found: checkpoints.Checkpoint, path: str) -> Dataset:
    card = found.card
    made = Dataset.read([path], lambda _: split_of(card), tuple(card["architecture"]["horizons"]))
    assert recipe_of(card).horizons == made.horizons
    assert targets(made.segments[0], made.horizons)["variance"].shape[1] == len(made.horizons)
    assert made.interval_ms == MINUTE_MS
    return made


@pytest.fixture(scope="module")
def replayed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the database of a run of the committee over two days more than it learnt from."""
    made = tmp_path_factory.mktemp("replayed")
    longer = write_csv(learnable((DAYS + 2) * DAY_BARS), made)
    config, database = made / "config.toml", made / "run.db"
    config.write_text(
        '[market]\nsymbols = ["AAAUSDT"]\n[strategy]\nname = "attention"\n'
        f'[model]\ncheckpoint = "{folder / "committee"}"\nthreads = 1\n[gate]\nhorizon = 30\n',
        encoding="utf-8",
    )
    words = ["replay", "-c", config, "--data", longer, "--db", database]
    assert cli.invoke(list(map(str, words))) == 0
    return database


def test_a_refit_from_the_record_is_an_event_that_can_be_made_again(
    replayed: Path,
    made: checkpoints.Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = ("--db", replayed, "--folder", tmp_path / "work")
    code, out, err = invoked(capsys, "retrain", "last", *work, "--json")
    assert code == 0, err
    judged = msgspec.json.decode(out, type=CandidateJudgement)
    assert judged.is_refit
    assert not judged.is_judged
    candidate = checkpoints.load(Path(judged.candidate))
    known = made.card["committee"]["fits"]
    assert candidate.card["committee"]["fits"][: len(known)] == known
    newest = candidate.card["committee"]["fits"][-1]
    assert (newest["data_sha256"], newest["rows"]) == (judged.data_sha256, judged.bars)
    assert judged.reason.endswith(f"data {judged.data_sha256[:12]}")
    code, out, err = invoked(capsys, "retrain", "last", *work)
    assert code == 0, err
    assert out.startswith("Refitted: a fit of har, glm to ")

    event = Retrained(
        RetrainOutcome.REFITTED, judged.reason, made.sha256, made.sha256, candidate.sha256,
        judged.recipe, judged.until_ms, judged.from_ms, judged.until_ms, 30, judged.bars,
        judged.days, None, None, None, 0, None, judged.until_ms, judged.until_ms,
    )  # fmt: skip
    checkpoints.keep(Path(judged.candidate), replayed)
    (run,) = Reader.open(replayed).run_ids()
    monkeypatch.setattr(Reader, "retrained", lambda *_: [event])
    (check,) = refit_checks(replayed, run)
    assert (check.holds, check.is_same) == (True, True)

    def planted(card: dict[str, Any], **tensors: torch.Tensor) -> RefitCheck:
        """Return the diagnosis of a candidate that was forged."""
        folder = tmp_path / "forged"
        saved = checkpoints.save(folder, {**candidate.tensors, **tensors}, card)
        checkpoints.keep(folder, replayed)
        forged = msgspec.structs.replace(event, candidate_sha256=saved.sha256)
        monkeypatch.setattr(Reader, "retrained", lambda *_: [forged])
        (found,) = refit_checks(replayed, run)
        return found

    place = len(candidate.card["committee"]["fits"]) - 1
    name = f"{place}.glm.log_variance_weights"
    rounded = planted(candidate.card, **{name: candidate.tensors[name] * (1 + 1e-9)})
    assert (rounded.holds, rounded.is_same) == (True, False)
    moved = planted(candidate.card, **{name: candidate.tensors[name] * 1.01})
    assert "differs by more than" in moved.reason
    fits = [*candidate.card["committee"]["fits"][:-1], {**newest, "data_sha256": "ab" * 32}]
    other = {**candidate.card, "committee": {**candidate.card["committee"], "fits": fits}}
    assert "learnt from other rows" in planted(other).reason
    short = {**candidate.card["committee"], "fits": candidate.card["committee"]["fits"][:-1]}
    assert "other times" in planted({**candidate.card, "committee": short}).reason


def test_the_page_says_what_members_said_when_the_model_is_asked(replayed: Path) -> None:
    found = shown_of(replayed)
    answer = derivations.ask(found, 9_000, lambda *_: None)
    names, weights, volatilities, regrets = zip(*answer.members, strict=True)
    assert names == ("base", "har", "glm")
    assert sum(weights) == pytest.approx(1.0, abs=1e-6)
    assert min(volatilities) > 0
    past = open_any(replayed, found.run_id, 9_000)
    told = {(one.member, one.horizon): one.regret for one in members_of(past)}
    assert any(regrets)
    assert dict(zip(names, regrets, strict=True)) == {name: told[name, 30] for name in names}


def test_verify_says_whether_refits_follow(
    replayed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = invoked(capsys, "verify", "last", "--db", replayed, "--refit")
    assert code == 0, err
    assert "No refit of a committee is in this run." in out
    checks = [
        RefitCheck(START_MS, "ab" * 32, True, ""),
        RefitCheck(START_MS, "cd" * 32, False, "x"),
    ]
    monkeypatch.setattr(retraining, "refit_checks", lambda *_: checks)
    code, out, _ = invoked(capsys, "verify", "last", "--db", replayed, "--refit")
    assert code == 1
    assert "follows from the record, bit for bit" in out
    assert "to cdcdcdcdcdcd does not follow: x." in out


@pytest.mark.slow
def test_a_daemon_refits_its_committee_and_the_record_says_so(folder: Path, tmp_path: Path) -> None:
    """Live: the process behind the daemon fits the members, and later bars are decided by them."""
    longer = write_csv(learnable((DAYS + 2) * DAY_BARS), tmp_path)
    (tmp_path / "config.toml").write_text(
        '[market]\nsymbols = ["AAAUSDT"]\n[strategy]\nname = "attention"\n[gate]\nhorizon = 30\n'
        "late_ms = 300_000\n"
        f'[model]\ncheckpoint = "{folder / "committee"}"\nthreads = 1\nretrain = "1h"\n'
        f'[retrain]\ndata = ["{longer}"]\nnice = 0\ntime_limit = "2h"\n',
        encoding="utf-8",
    )
    served = ("exchange", "--data", str(longer), "--speed", "300", "--hold")
    begins = ("--start", str((DAYS + 1) * DAY_BARS))
    programs = [Program((str(BIN / "tracepaper"), *served, *begins), tmp_path, name="exchange")]
    decided = (
        "SELECT count(*) FROM v_decisions WHERE mean_return IS NOT NULL AND sequence > (SELECT"
        " max(sequence) FROM v_events WHERE kind = 'model_change' HAVING count(*) = 2)"
    )
    try:
        programs[0].wait_until(lambda: "\n" in programs[0].out)
        command = (str(BIN / "tracepaper"), "run", "-c", "config.toml", "--db", "run.db")
        beside = pointing_at(programs[0].out)
        programs.append(running := Program(command, tmp_path, name="run", extra=beside))
        running.wait_until(lambda: '"refitted"' in running.err)
        running.wait_until(lambda: one_of(tmp_path / "run.db", decided) >= 3)
        assert running.stop().code == 0
    finally:
        for program in programs:
            program.kill()
    verified = run(["verify", "last", "--db", "run.db", "--refit"], tmp_path)
    assert verified.code == 0, verified.out + verified.err
    assert "No refit" not in verified.out
    assert re.search(r"The refit at .* to [0-9a-f]{12} ", verified.out)


def one_of(database: Path, question: str) -> int:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        (found,) = db.execute(question).fetchone()
    return int(found)
