"""Ensembles of a network and a tree, which reads more features: training, runs, judgement."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import DAY_BARS, choose, learnable, write_csv
from records import rows

from tracepaper.daemon import cli
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.splits import segments_of
from tracepaper.storage.checkpoints import Checkpoint, load
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import columns, compute, compute_part, schema, wider
from tracepaper.strategies.forecasters.build import RunOptions, build, part_of, tensors_of
from tracepaper.strategies.forecasters.tabular import EnsembleForecaster, figures_of_rows
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

pytestmark = pytest.mark.long

NARROW, WIDE = schema("v2-15m"), schema("tree-15m")
WINDOW, LAYERS = 16, 2
CHOSEN = (
    *choose("model.kind=flash", f"window={WINDOW}", f"layers={LAYERS}", "dim=16"),
    *choose(
        "heads=2",
        "training.steps=4",
        "training.length=128",
        "training.batch=2",
        "training.threads=1",
    ),
    *choose("features.schema_id=v2-15m", "horizons=30m,2h", "training.explained_bars=500"),
)
BOTH = choose("ensemble.kind=tree", "ensemble.schema_id=tree-15m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with candles of 22 days and an ensemble of a tiny network and a tree."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("schemas")
    write_csv(learnable(22 * DAY_BARS), root)
    train(root, "both", *CHOSEN, *BOTH)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Checkpoint:
    return load(folder / "both")


@pytest.fixture(scope="module")
def bars() -> list[Bar]:
    """Return the candles of 15 minutes."""
    minutes = learnable(22 * DAY_BARS)
    [segment] = segments_of(minutes, schema("v2-1m"))
    whole = segment.candles.bars()
    step = 15
    return [
        Bar(
            instrument=part[0].instrument,
            open_time_ms=part[0].open_time_ms,
            interval_ms=step * part[0].interval_ms,
            open=part[0].open,
            high=max(bar.high for bar in part),
            low=min(bar.low for bar in part),
            close=part[-1].close,
            volume=sum(bar.volume for bar in part),
            turnover=None,
            market_ms=part[-1].market_ms,
            seen_ms=part[-1].seen_ms,
            source=part[0].source,
        )
        for start in range(0, len(whole), step)
        if len(part := whole[start : start + step]) == step
    ]


def data(folder: Path) -> str:
    return str(next(folder.glob("*.csv.gz")))


def train(folder: Path, name: str, *words: str) -> Checkpoint:
    files = ("--data", data(folder), "--out", str(folder / name))
    assert cli.invoke(["train", *words, *files]) == cli.DONE
    return load(folder / name)


def ensemble(checkpoint: Checkpoint, mode: str = "step") -> EnsembleForecaster:
    built = build(checkpoint.card, checkpoint.tensors, RunOptions(mode=mode))
    assert isinstance(built, EnsembleForecaster)
    return built


def test_the_wider_schema_holds_the_other_from_its_first_bar_on(bars: list[Bar]) -> None:
    assert wider(NARROW, WIDE) is WIDE
    assert wider(WIDE, NARROW) is WIDE
    assert wider(NARROW, NARROW) is NARROW
    for stranger in ("v2-5m", "tree-1h"):
        with pytest.raises(ConfigInvalid, match="not part of"):
            wider(NARROW, schema(stranger))
    table = columns(bars[: WIDE.lookback + 40])
    part, narrow, wide = (
        compute_part(WIDE, NARROW, table),
        compute(NARROW, table),
        compute(WIDE, table),
    )
    count = len(NARROW.names)
    assert part.first == NARROW.lookback - 1
    assert part.values[:, :count].tobytes() == narrow.values.tobytes()
    assert part.sigma.tobytes() == narrow.sigma.tobytes()
    assert part.values[wide.first :].tobytes() == wide.values[wide.first :].tobytes()
    assert np.isnan(part.values[part.first : wide.first, count:]).all()


def test_the_context_is_the_longer_of_both_and_not_their_sum(
    model: Checkpoint, bars: list[Bar]
) -> None:
    forecaster = ensemble(model)
    field = LAYERS * (WINDOW - 1) + 1
    assert forecaster.context == max(field + NARROW.lookback - 1, WIDE.lookback) == WIDE.lookback
    silent = [forecaster.step(bar) is None for bar in bars[: forecaster.context + 3]]
    assert silent == [at < forecaster.context - 1 for at in range(len(silent))]
    longer = {**model.card["parts"]["network"]["architecture"], "window": 400}
    parts = model.card["parts"]
    wide = {**parts, "network": {**parts["network"], "architecture": longer}}
    assert ensemble(replace(model, card={**model.card, "parts": wide})).context == (
        LAYERS * 399 + 1 + NARROW.lookback - 1
    )


def test_each_half_says_what_it_says_alone(model: Checkpoint, bars: list[Bar]) -> None:
    both = ensemble(model)
    network, rows = (
        build(part_of(model.card, half), tensors_of(model.tensors, half))
        for half in ("network", "rows")
    )
    for bar in bars[: both.context + 20]:
        mixed, forecast, other = (each.step(bar) for each in (both, network, rows))
        if mixed is None:
            assert other is None
            continue
        assert forecast is not None
        assert other is not None
        assert mixed.mean_return == forecast.mean_return
        assert mixed.explanation == forecast.explanation
        logs = [
            share * np.log(a) + (1 - share) * np.log(b)
            for share, a, b in zip(both.shares, forecast.volatility, other.volatility, strict=True)
        ]
        assert mixed.volatility == pytest.approx(np.exp(logs), rel=1e-12)
        wide = [s * v for s, v in zip(both.spread, mixed.volatility, strict=True)]
        assert mixed.stdev_return == tuple(wide)
        wanted = np.array([other.mean_return, other.volatility])
        assert figures_of_rows(mixed) == pytest.approx(wanted, rel=1e-6)
        assert forecast.auxiliary == b""


def test_a_restart_from_exactly_the_context_goes_on(model: Checkpoint, bars: list[Bar]) -> None:
    endless, fresh, again = (ensemble(model) for _ in range(3))
    start, name = 900, bars[0].instrument
    for bar in bars[:start]:
        endless.step(bar)
    for forecaster in (fresh, again):
        forecaster.warm(name, bars[start - forecaster.context : start])
    for bar in bars[start : start + 70]:
        whole, restarted, repeated = (present(run.step(bar)) for run in (endless, fresh, again))
        assert restarted == repeated  # in every bit
        assert restarted.auxiliary == whole.auxiliary  # the tree: no rounding
        assert restarted.volatility == pytest.approx(whole.volatility, rel=1e-4)
        assert restarted.mean_return == pytest.approx(whole.mean_return, rel=1e-3, abs=1e-7)
    fresh.warm(name, bars[start - fresh.context + 1 : start])
    assert present(fresh.step(bars[start]))
    fresh.warm(name, bars[start - fresh.context + 2 : start])
    assert fresh.step(bars[start]) is None


def present(forecast: Forecast | None) -> Forecast:
    """Return *forecast*, which must not be None."""
    assert forecast is not None
    return forecast


def test_known_bars_in_parts_agree_with_steps(model: Checkpoint, bars: list[Bar]) -> None:
    scanning, stepping = ensemble(model, "scan"), ensemble(model)
    cuts = (0, 100, 300, 481, 700, 1_000)
    scanned = [forecast for a, b in pairwise(cuts) for forecast in scanning.scan(bars[a:b])]
    for bar, forecast in zip(bars, scanned, strict=False):
        other = stepping.step(bar)
        assert (forecast is None) == (other is None)
        if forecast is not None and other is not None:
            assert forecast.volatility == pytest.approx(other.volatility, rel=1e-4)
            assert forecast.mean_return == pytest.approx(other.mean_return, rel=1e-3, abs=1e-7)


def test_its_card_makes_the_same_weights_again(model: Checkpoint, folder: Path) -> None:
    again = train(folder, "again", str(folder / "both" / "card.toml"))
    assert again.card["model"]["weights_sha256"] == model.card["model"]["weights_sha256"]
    assert again.card["figures"] == model.card["figures"]
    assert again.card["ensemble"] == model.card["ensemble"]
    chosen = recipe_of(model.card)
    read = recipe_of(chosen.document())
    assert read.document() == chosen.document()
    assert tuple(member.schema_id for member in chosen.members) == ("v2-15m", "tree-15m")


def test_what_cannot_be_had_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--data", data(folder), "--out", str(folder / "no")]

    def refused(*words: str) -> str:
        assert cli.invoke(["train", *words, *files]) != cli.DONE
        return " ".join(capsys.readouterr().err.split())

    assert "not with 'forest'" in refused(*CHOSEN, *choose("ensemble.kind=forest"))
    assert "tree-5m are not of bars of 15m; choose tree" in refused(
        *CHOSEN, *choose("ensemble.kind=tree", "ensemble.schema_id=tree-5m")
    )
    assert not (folder / "no").exists()


def test_a_run_is_derived_again_and_shows_both_halves(
    model: Checkpoint, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def invoke(*words: str) -> str:
        assert cli.invoke(words) == cli.DONE
        return capsys.readouterr().out

    config, database = tmp_path / "both.toml", str(tmp_path / "both.db")
    config.write_text(
        f'[model]\ncheckpoint = "{folder / "both"}"\n'
        '[market]\ninterval = "15m"\n[gate]\nhorizon = 8\n'
    )
    words = ("replay", "--data", data(folder), "--config", str(config))
    invoke(*words, "--to", "2023-11-20T20:00", "--db", database)
    invoke("verify", "last", "--db", database)
    document = json.loads(invoke("explain", "last:500", "--full", "--json", "--db", database))
    assert rows(tmp_path / "both.db", "SELECT model_id FROM v_runs") == [(model.id,)]
    assert document["full"]["agreement"]["stored"][0] == pytest.approx(
        document["full"]["agreement"]["recomputed"][0], abs=1e-7
    )
    assert document["by_feature"]["gap"] < 1e-8
    assert document["full"]["moves"]["gap"] < 1
    assert len(document["by_feature"]["features"]) == len(WIDE.names)
    share = model.card["ensemble"]["network_share"]["8"]
    assert document["by_feature"]["share"] == pytest.approx(1 - share)
    full = invoke("explain", "last:500", "--full", "--db", database)
    assert "Bar by bar" in full
    assert f"a share of {1 - share:.2f} in the log variance; the network has the rest" in " ".join(
        full.split()
    )
    listing = invoke("models", str(folder / "both"))
    assert f"{share:.2f} at 8" in listing


def test_the_checkpoint_is_judged_again_and_examined_with_both_members(
    model: Checkpoint, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--inspect",
        "deletion=2",
        "--inspect",
        "context=4",
        "--inspect",
        "permutation=40",
        "--inspect",
        "intervals",
    )
    words = (
        "evaluate",
        str(folder / "both"),
        "--data",
        data(folder),
        *choose("evaluation.explained_bars=500"),
    )
    assert cli.invoke([*words, *options, *choose("evaluation.threads=1"), "--json"]) == cli.DONE
    out = json.loads(capsys.readouterr().out)
    assert out["figures"] == json.loads(json.dumps(model.card["figures"]))
    assert {"model", "network_member", "row_member", "gamma_glm"} <= set(
        out["figures"]["8"]["qlike"]
    )
    assert any("share of" in sentence for sentence in out["sentences"])
    document = {finding["name"]: finding for finding in out["findings"]}
    assert "the ensemble's network" in document["explanations"]["title"]
    features = {row["feature"] for row in document["permutation"]["rows"]}
    assert features & set(WIDE.names[len(NARROW.names) :])  # what the tree alone sees
    interval = next(row for row in document["intervals"]["rows"] if row["interval"] == "own")
    assert interval["coverage"][0] == pytest.approx(out["figures"]["8"]["coverage_90"][0], abs=1e-4)
