"""Attention between symbols: identity if each sees itself alone, or the leader if one leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import instrument
from command_line import Cli
from learning import learnable
from msgspec import structs
from recordings import record
from torch import Tensor

from tracepaper.daemon.config.loading import load
from tracepaper.replay.document.charts import HeatLayer
from tracepaper.replay.explain.attribution import influence
from tracepaper.replay.report.attention import COLUMNS_SHOWN, InfluenceReport, read_influence
from tracepaper.replay.report.attention_charts import influence_chart, influence_quarters_chart
from tracepaper.replay.report.report import Report, build_report
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.replay.run_columns import NoteColumns
from tracepaper.storage.checkpoints import save
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.networks.cross_asset import CrossAssetConfig, CrossAssetNetwork
from tracepaper.strategies.networks.keys import listed

SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
BARS = 620
SHARP = 200.0


def alone(weights: dict[str, Tensor]) -> None:
    """Let each asset attend to itself alone: its key equals its query."""
    for head in range(2):
        for place in range(3):
            for of in (0, 8):  # query and key
                weights["over_assets.0.project_in.weight"][of + 4 * head + place, place] = SHARP


def led(weights: dict[str, Tensor]) -> None:
    """Let every asset attend to the first one."""
    for head in range(2):
        weights["over_assets.0.project_in.bias"][4 * head] = SHARP
        weights["over_assets.0.project_in.weight"][8 + 4 * head, 0] = SHARP


PLANTED: dict[str, tuple[Callable[[dict[str, Tensor]], None], list[list[float]]]] = {
    "alone": (alone, np.eye(3).tolist()),
    "led": (led, [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]),
}


def _quantiles() -> dict[str, list[float]]:
    """Return quantiles of every measure with which all gates pass."""
    low, high = [-1.0 + place / 100 for place in range(1, 100)], [1.0] * 99
    mass = [place / 100 for place in range(1, 100)]
    return {"confidence_entropy": low, "collapsed": low, "shift": high, "recent_mass": mass}


def planted(folder: Path, plant: Callable[[dict[str, Tensor]], None]) -> Path:
    """Write a network with the assets' embeddings as states and planted attention."""
    torch.manual_seed(0)
    config = CrossAssetConfig(
        symbols=SYMBOLS, features=len(schema("v2-1m").names), dim=8, layers=1, heads=2, window=16,
        horizons=(5, 30), every=5,
    )  # fmt: skip
    weights = dict(CrossAssetNetwork(config).state_dict())
    for name, tensor in weights.items():
        if name.startswith(("embed.", "asset.", "over_time.0.project_out", "over_time.0.mlp.fall",
                            "over_assets.0.project_in")):  # fmt: skip
            tensor.zero_()
    weights["asset.weight"][range(3), range(3)] = 1.0
    plant(weights)
    card = {
        "model": {"kind": "crossasset", "name": "planted"},
        "architecture": listed(config),
        "features": {"schema_id": "v2-1m"},
        "market": {"interval": "1"},
        "calibration": {"horizon": 5, "quantiles": _quantiles()},
    }
    save(folder, weights, card)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """Return a function that replays a planted network once and returns its database and run."""
    data = [learnable(BARS, seed=seed, symbol=symbol) for seed, symbol in enumerate(SYMBOLS)]

    @cache
    def of(name: str) -> tuple[Path, str]:
        folder = planted(tmp_path_factory.mktemp(name) / "net", PLANTED[name][0])
        config = load(
            None,
            {
                "market": {"symbols": list(SYMBOLS)},
                "strategy": {"name": "crossasset"},
                "sizing": {"mode": "equity", "fraction": "1"},
                "model": {"checkpoint": str(folder), "threads": 1},
            },
        )
        path = folder.parent / "run.db"
        return path, record(path, config, data)

    return of


@pytest.fixture(scope="module")
def report(run: Callable[[str], tuple[Path, str]]) -> Report:
    return build_report(*run("led"))


@pytest.fixture(scope="module")
def swayed(report: Report) -> InfluenceReport:
    influence_report = read_influence(report.record, report.trades[report.shown])
    assert influence_report is not None
    return influence_report


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_the_matrix(
    name: str, run: Callable[[str], tuple[Path, str]], cli: Cli
) -> None:
    path, _ = run(name)
    answer = cli.json("report", "last", "--db", path, "--heads")["influence"]
    assert answer["symbols"] == list(SYMBOLS)
    assert min(answer["decisions"]) == max(answer["decisions"]) >= 10
    np.testing.assert_allclose(answer["mean"], PLANTED[name][1], atol=1e-6)
    np.testing.assert_allclose(answer["spread"], np.zeros((3, 3)), atol=1e-5)
    np.testing.assert_allclose(answer["quarters"], [PLANTED[name][1]] * 4, atol=1e-6)
    assert answer["quarter_from_ms"] == sorted(set(answer["quarter_from_ms"]))


def test_the_mean_is_that_of_what_explain_says_of_each_decision(
    report: Report, swayed: InfluenceReport, run: Callable[[str], tuple[Path, str]]
) -> None:
    """The expected values are recomputed by the network, decision by decision."""
    path, run_id = run("led")
    notes = report.record.notes["linear:BBBUSDT"]["from_AAAUSDT"]
    decisions = report.record.decisions
    chosen = np.isin(decisions.open_time_ms, notes.open_time_ms)
    chosen &= decisions.instrument == "linear:BBBUSDT"
    sequences = decisions.sequence[chosen][:3].tolist()
    rows = [influence(path, run_id, sequence).row for sequence in sequences]
    np.testing.assert_allclose(rows, [swayed.mean[1]] * 3, atol=1e-6)
    assert swayed.decisions[1] == chosen.sum()


def test_winners_and_losers_stand_beside_each_other(report: Report) -> None:
    """Entries of the leader attend to it alone, others to it and to themselves, half each."""
    decisions = report.record.decisions
    notes = report.record.notes["linear:AAAUSDT"]["from_AAAUSDT"]

    def trade(symbol: str, at: int, profit: float) -> ClosedTrade:
        chosen = decisions.instrument == f"linear:{symbol}"
        chosen &= decisions.open_time_ms == notes.open_time_ms[at]
        [sequence] = decisions.sequence[chosen].tolist()
        return ClosedTrade(
            f"linear:{symbol}",
            "LONG",
            1.0,
            0,
            1,
            1.0,
            1.0,
            profit,
            0.0,
            1.0,
            "",
            "",
            "",
            sequence,
            0,
        )

    trades = [
        trade("AAAUSDT", 0, 1.0), trade("BBBUSDT", 1, 2.0), trade("BBBUSDT", 3, 1.0),
        trade("CCCUSDT", 2, -1.0),
    ]  # fmt: skip
    influence_report = read_influence(report.record, trades)
    assert influence_report is not None
    winners, losers = influence_report.groups
    assert (winners.name, winners.trades, losers.name, losers.trades) == ("winners", 3, "losers", 1)
    means = [winners.means[name] for name in (*SYMBOLS, "its own")]
    assert [mean for mean, _ in means] == pytest.approx([2 / 3, 1 / 3, 0.0, 2 / 3], abs=1e-6)
    assert {error for _, error in means} == {None}, "four bars are fewer than six blocks"
    assert [losers.means[name][0] for name in SYMBOLS] == pytest.approx([0.5, 0, 0.5], abs=1e-6)
    (entries,) = (t for t in influence_report.tables() if t.key == "influence_entries")
    rows = {row["bars"]: row for row in entries.documents()}
    assert rows["AAAUSDT"]["winners"] == {"value": pytest.approx(2 / 3), "error": None}
    assert rows["CCCUSDT"]["losers"] == {"value": pytest.approx(0.5), "error": None}
    assert entries.documents()[0]["bars"] == "its own"


def test_spread_quarters_and_the_rest_are_by_the_definition(report: Report) -> None:
    """Each decision notes eight of a hundred symbols; the size of the tables is bounded."""
    rng = np.random.default_rng(3)
    names = [f"S{number:02}USDT" for number in range(100)]
    times = np.arange(40) * 300_000 + 60_000
    whole = rng.dirichlet(np.full(100, 0.05), size=(len(times), 100))  # [time, row, column]
    notes: dict[str, dict[str, NoteColumns]] = {}
    for row, name in enumerate(names):
        largest = np.argsort(-whole[:, row], axis=1)[:, :8]
        noted = np.zeros((len(times), 100), dtype=bool)
        np.put_along_axis(noted, largest, True, axis=1)
        whole[:, row][~noted] = 0.0
        notes[f"linear:{name}"] = {
            f"from_{names[at]}": NoteColumns(
                times[noted[:, at]], whole[noted[:, at], row, at], np.array([], dtype=np.str_)
            )
            for at in np.flatnonzero(noted.any(axis=0)).tolist()
        }
    unnamed = structs.replace(instrument(), symbol="")
    instruments = {f"linear:{name}": structs.replace(unnamed, symbol=name) for name in names}
    influence_report = read_influence(replace(report.record, notes=notes, instruments=instruments))
    assert influence_report is not None
    tables = influence_report.tables()
    chart, quarters = influence_chart(influence_report), influence_quarters_chart(influence_report)
    np.testing.assert_allclose(influence_report.mean, whole.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(influence_report.spread, whole.std(axis=0), atol=1e-9)
    np.testing.assert_allclose(influence_report.mean.sum(axis=1) + influence_report.rest, 1.0)
    assert influence_report.rest.max() > 0.0
    np.testing.assert_allclose(influence_report.quarters[1], whole[10:20].mean(axis=0), atol=1e-12)
    matrix, led_by, pairs = tables
    assert len(matrix.figures) == COLUMNS_SHOWN + 2
    for shares in matrix.documents():
        cells = [cell["value"] for cell in shares.values() if isinstance(cell, dict)]
        assert sum(cells) + shares["others"] == pytest.approx(1.0)
    others = (whole.mean(axis=0).sum(axis=0) - np.diag(whole.mean(axis=0))) / 99
    assert led_by.documents()[0]["symbol"] == names[int(others.argmax())]
    influence = whole.mean(axis=0) * (1.0 - np.eye(100))
    at, of = np.unravel_index(influence.argmax(), influence.shape)
    first = pairs.documents()[0]
    assert (first["forecast"], first["bars"]) == (names[at], names[of])
    [drawn] = chart.panels[0].layers
    assert isinstance(drawn, HeatLayer)
    np.testing.assert_allclose(
        np.array(drawn.rows, dtype=np.float64) / 100, influence_report.mean, rtol=1e-2, atol=1e-9
    )
    assert drawn.high == pytest.approx(100 * influence.max())
    mean, spread = 100 * influence_report.mean[at, of], 100 * influence_report.spread[at, of]
    assert drawn.texts[at][of] == f"{mean:.2f} ± {spread:.2f} %"
    assert not chart.panels[0].x.has_labels  # a hundred names have no room
    assert quarters is not None
    assert (len(quarters.panels), quarters.columns) == (4, 4)
