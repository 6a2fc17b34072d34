"""Forecasts of auxiliary heads against outcomes: true ones pass, false ones are detected."""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import explained_runs
import numpy as np
import pytest
from command_line import Cli
from scipy import stats

from tracepaper.replay.report.metrics import kupiec
from tracepaper.replay.report.risk_heads import HeadOutcomes, tables_of
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.networks.trading import TradingConfig
from tracepaper.strategies.types.decisions import Forecast

HORIZON = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = TradingConfig(
        features=explained_runs.SMALL.features,
        dim=16,
        layers=2,
        heads=2,
        window=33,
        horizons=explained_runs.SMALL.horizons,
        quantiles=(0.05, 0.5, 0.95),
    )
    folder = tmp_path_factory.mktemp("risk_heads")
    return explained_runs.replayed(folder, network=network, edge="0")


def reported(path: Path, cli: Cli) -> dict[str, Any]:
    document: dict[str, Any] = cli.json("report", "last", "--db", path)
    return document


def test_the_report_says_what_heads_said_and_what_came(run: Path, cli: Cli) -> None:
    document = reported(run, cli)
    with closing(sqlite3.connect(run)) as raw:
        closes = [row[0] for row in raw.execute("SELECT close FROM v_bars ORDER BY sequence")]
        decided = raw.execute("SELECT sequence FROM v_decisions ORDER BY sequence").fetchall()
    place = {sequence: at for at, (sequence,) in enumerate(decided)}
    logs = [math.log(close) for close in closes]
    assert len(logs) == len(decided)
    with Reader.open(run) as reader:
        answers = [
            (place[step.sequence], step.prediction)
            for step in reader.steps(reader.find("last"))
            if isinstance(step.prediction, Forecast)
        ]
    answers = [(at, answer) for at, answer in answers if at + HORIZON < len(logs)]
    index = answers[0][1].horizons.index(HORIZON)
    assert len(answers) > 80
    moved = [logs[at + HORIZON] - logs[at] for at, _ in answers]
    ways = [logs[at : at + HORIZON + 1] for at, _ in answers]
    fallen = [max(a - b for i, a in enumerate(way) for b in way[i:]) for way in ways]
    wild = [math.sqrt(sum((b - a) ** 2 for a, b in itertools.pairwise(w))) for w in ways]
    rows = document["head_tails"]
    assert [(row["position"], row["forecast"]) for row in rows] == [
        ("long", 0.01), ("long", 0.05), ("short", 0.01), ("short", 0.05),
    ]  # fmt: skip
    for number, row in enumerate(rows):
        sign = -1 if number < 2 else 1
        limits = [forecast.head("tails", index)[2 * number] for _, forecast in answers]
        beyond = [sign * move > limit for move, limit in zip(moved, limits, strict=True)]
        assert row["realised"]["value"] == pytest.approx(np.mean(beyond))
        assert row["bars"] == sum(at % HORIZON == 0 for at, _ in answers)
        if any(beyond):
            lost = [sign * move for move, is_lost in zip(moved, beyond, strict=True) if is_lost]
            assert row["lost"]["value"] == pytest.approx(np.mean(lost))
            expected = [
                forecast.head("tails", index)[2 * number + 1]
                for (_, forecast), is_lost in zip(answers, beyond, strict=True) if is_lost
            ]  # fmt: skip
            assert row["expected"] == pytest.approx(np.mean(expected))
    quantiles = {
        (row["outcome"], row["forecast"]): row["realised"]["value"]
        for row in document["head_quantiles"]
    }
    assert set(quantiles) == {
        ("drawdown", 0.5), ("drawdown", 0.9), ("return", 0.05), ("return", 0.5), ("return", 0.95),
    }  # fmt: skip
    median = [forecast.head("drawdown", index)[0] for _, forecast in answers]
    assert quantiles["drawdown", 0.5] == np.mean(np.array(fallen) <= np.array(median))
    upper = [forecast.head("quantiles", index)[2] for _, forecast in answers]
    assert quantiles["return", 0.95] == pytest.approx(np.mean(np.array(moved) <= np.array(upper)))
    regimes = [int(np.argmax(forecast.head("regimes", index)[::2])) + 1 for _, forecast in answers]
    for row in document["learned_regimes"]:
        inside = [w for w, regime in zip(wild, regimes, strict=True) if regime == row["regime"]]
        assert row["bars"] == len(inside)
        if inside:
            assert row["volatility"]["value"] == pytest.approx(np.mean(inside))


def planted(factor: float = 1.0) -> HeadOutcomes:
    """Return normal returns of 60 days, and their true tails times *factor*."""
    rng, rows = np.random.default_rng(1), 12_000
    scale = np.exp(0.3 * rng.normal(size=rows))
    returned = scale * rng.normal(size=rows)
    edges = []
    for share in (0.01, 0.05):
        edge = stats.norm.isf(share)
        edges += [edge, stats.norm.pdf(edge) / share]
    tails = factor * scale[:, None] * np.array(edges * 2)
    odds = rng.random(rows)
    return HeadOutcomes(
        horizon=1,
        days=np.arange(rows) // 200,
        separate=np.arange(rows),
        forecasts={
            "tails": tails,
            "drawdown": scale[:, None] * np.array([0.0, stats.norm.ppf(0.9)]),
            "regimes": np.stack([odds, odds * 0, 1 - odds, odds * 0], axis=1),
        },
        levels=(),
        returned=returned,
        fallen=returned,
        risen=returned,
        volatility=np.where(odds > 0.5, 1.0, 3.0),
    )


def rows_of(outcomes: HeadOutcomes) -> dict[str, list[dict[str, Any]]]:
    return {each.key: each.documents() for each in tables_of(outcomes)}


def test_right_heads_hold_and_wrong_ones_do_not() -> None:
    right, narrow = rows_of(planted()), rows_of(planted(0.7))
    for row in right["head_tails"]:
        values = row["realised"]
        assert values["value"] == pytest.approx(row["forecast"], abs=4 * values["error"])
        assert 0 < values["error"] < 0.01
        assert row["p"] > 0.01
        assert row["lost"]["value"] == pytest.approx(row["expected"], rel=0.1)
    for row in narrow["head_tails"]:
        assert row["p"] < 1e-4
        assert row["lost"]["value"] > 1.05 * row["expected"]
    values = [row["realised"]["value"] for row in right["head_quantiles"]]
    assert values == pytest.approx([0.5, 0.9], abs=0.02)
    calm, wild = right["learned_regimes"]
    assert (calm["volatility"]["value"], wild["volatility"]["value"]) == (1.0, 3.0)
    assert calm["share"] + wild["share"] == 1.0
    assert list(tables_of(None)) == []
    assert list(tables_of(replace(planted(), forecasts={}))) == []


def test_kupiec_is_the_likelihood_ratio() -> None:
    for breaches, count in ((0, 50), (7, 100), (50, 50), (5, 100)):
        hits = stats.binom(count, 0.05).logpmf(breaches)
        best = stats.binom(count, breaches / count).logpmf(breaches)
        wanted = stats.chi2.sf(2 * (best - hits), 1)
        assert kupiec(breaches, count, 0.05) == pytest.approx(wanted, abs=1e-9)
    assert kupiec(0, 0, 0.05) is None


def test_of_one_day_a_mean_has_no_error() -> None:
    """One day has no standard error by day: nothing is printed for it, and no NaN."""
    outcomes = HeadOutcomes(
        horizon=HORIZON,
        days=np.zeros(4, dtype=np.int64),
        separate=np.arange(1),
        forecasts={"regimes": np.tile([0.9, 1e-3, 0.1, 1e-2], (4, 1))},
        levels=(),
        returned=np.zeros(4),
        fallen=np.zeros(4),
        risen=np.zeros(4),
        volatility=np.full(4, 2e-3),
    )
    (table,) = tables_of(outcomes)
    text = json.dumps(table.documents())
    assert "NaN" not in text
    assert [row["volatility"] for row in table.documents()] == [
        {"value": 2e-3, "error": None},
        None,
    ]
