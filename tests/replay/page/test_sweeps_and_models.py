"""A sweep and a run's model as places of the page, and the comparison of two runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from page_cases import shown_of
from report_cases import BTC, SOL, cross, replayed

import tracepaper
from tracepaper.replay.document.charts import Chart
from tracepaper.replay.document.values import Table, as_parts
from tracepaper.replay.page import documents, model, routes, runs
from tracepaper.replay.page.databases import Databases, HttpRefusal, OpenRun
from tracepaper.storage.sweeps import SweepFile

HEADER = {"strategy": "sma_cross", "objective": "sharpe"}


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Store a small sweep in a file."""
    monkeypatch.setenv("TRACEPAPER_TRIALS", str(tmp_path / "trials.db"))
    path = tmp_path / "sweep.db"
    space = {"fast": [3, 5], "slow": [20]}
    tracepaper.sweep("sma_cross", BTC, space, "return", jobs=1, end="2025-05-26T12:00", state=path)
    return path


def test_a_sweep_is_listed_and_is_the_document_of_its_command(swept: Path) -> None:
    databases = Databases([swept])
    listed = runs.runs(databases)
    assert (listed.runs, listed.refused) == ([], [])
    (row,) = listed.sweeps
    assert (row.strategy, row.objective, row.cells) == ("sma_cross", "return", 2)
    assert row.is_whole
    answer = routes.match(f"/sweeps/{row.sweep_id}", {}).respond(databases, lambda *_: None)
    document = msgspec.to_builtins(answer)
    assert document["title"] == "Sweep of sma_cross"
    texts = [part.get("text") for part in document["parts"]]
    assert "How much of it is luck" in texts
    runs_table, heat = [part for part in document["parts"] if part["kind"] == "table"]
    assert len(runs_table["rows"]) == 2
    assert sorted(cell["tint"] for cell in heat["rows"][0][1:]) == [-1.0, 1.0]
    with pytest.raises(HttpRefusal, match="no such sweep"):
        databases.sweep("0" * 16)


def test_a_sweep_that_is_not_whole_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "sweep.db"
    with SweepFile(path, HEADER) as held:
        held.store((0, "whole", 0), {"value": 1.0})
        (being_made,) = runs.runs(Databases([path])).refused
        assert "it is being made" in being_made.error
    databases = Databases([path])
    (row,) = runs.runs(databases).sweeps
    assert (row.cells, row.is_whole) == (1, False)
    with pytest.raises(HttpRefusal, match="run its command again"):
        routes.match(f"/sweeps/{row.sweep_id}", {}).respond(databases, lambda *_: None)


# ---------------------------------------------------------------- two runs


_DECIDED = ("action", "refused_by", "target_quantity")


def test_two_runs_differ_where_their_views_do(
    run: OpenRun, pair_database: Path, tmp_path: Path
) -> None:
    pair = shown_of(pair_database)
    longs = shown_of(replayed(tmp_path, cross(long_only=True), "--data", BTC))
    config = cross(long_only=True, symbols=("SOLUSDT",))
    other, until = tmp_path / "other", ("--to", "2025-05-05T10:00")
    other.mkdir()
    shorter = shown_of(replayed(other, config, "--data", SOL, *until))
    for first, second in ((run, longs), (pair, shorter), (shorter, pair)):
        parts = as_parts(documents.compare(first, second).parts)
        before, two = (
            {(row["instrument"], row["open_time_ms"]): row for row in of.views.rows("v_decisions")}
            for of in (first, second)
        )
        common = sorted(before.keys() & two.keys(), key=lambda key: before[key]["sequence"])

        changes_of = [
            {name for name in _DECIDED if before[key][name] != two[key][name]} for key in common
        ]
        sentence = parts[1]["text"].replace(",", "").partition(";")[0]
        changed = sum(map(bool, changes_of))
        assert changed > 0
        moved = sum("target_quantity" in of for of in changes_of)
        assert list(map(int, re.findall(r"\d+", sentence))) == [changed, len(common), moved]
        (changes,) = [part for part in parts if part.get("key") == "changes"]
        for bar, instrument, left, right, *_ in changes["rows"]:
            key = (instrument, bar["sort"])
            assert (before[key]["sequence"], two[key]["sequence"]) == (left["step"], right["sort"])
        (accounts,) = [part for part in parts if part.get("key") == "accounts"]
        for of, decided, row in zip((first, second), (before, two), accounts["rows"], strict=False):
            at = [decided[key]["sequence"] for key in common]
            filled = [at[0] <= fill["sequence"] <= at[-1] for fill in of.views.rows("v_fills")]
            assert row[-1]["sort"] == sum(filled) > 0


# ---------------------------------------------------------------- the model


def forecasts(count: int, *, spread: float, skill: float) -> model.RunForecasts:
    """Return outcomes normal around the forecasts, *spread* times as wide as forecast."""
    draw = np.random.default_rng(3)
    mean = draw.normal(0.0, 0.001, count)
    realised = skill * mean + spread * draw.normal(0.0, 0.002, count)
    days = np.repeat(np.arange(40), count // 40)
    return model.RunForecasts(
        open_time_ms=days * 86_400_000,
        mean=mean,
        stdev=np.full(count, 0.002),
        up=np.clip(0.5 + 100 * mean, 0.01, 0.99),
        confidence_entropy=np.abs(mean),
        realised=realised,
    )


def rows_of(run_forecasts: model.RunForecasts, key: str) -> list[Any]:
    parts = model.realised(run_forecasts, 30, 60_000)
    (table,) = [part for part in parts if isinstance(part, Table) and part.key == key]
    return list(table.rows)


def test_intervals_that_are_too_narrow_are_seen_to_be() -> None:
    sound = dict(rows_of(forecasts(4_000, spread=1.0, skill=1.0), "intervals"))
    narrow = dict(rows_of(forecasts(4_000, spread=2.0, skill=1.0), "intervals"))
    for level in (0.5, 0.8, 0.9, 0.95):
        value, error = sound[level]
        assert abs(value - level) < 4 * error < 0.05
        value, error = narrow[level]
        assert value < level - 4 * error


def test_a_direction_that_is_known_rises_with_what_was_said() -> None:
    skilled = [row[1][0] for row in rows_of(forecasts(20_000, spread=0.1, skill=1.0), "direction")]
    assert skilled[0] < 0.05
    assert skilled[-1] > 0.95
    blind = [row[1] for row in rows_of(forecasts(20_000, spread=1.0, skill=0.0), "direction")]
    assert all(abs(value - 0.5) < 5 * error for value, error in blind)


def test_confidence_that_helps_is_said_to_and_chance_is_not() -> None:
    def caption_of(forecasts: model.RunForecasts) -> str:
        charts = [part for part in model.realised(forecasts, 30, 60_000) if isinstance(part, Chart)]
        return next(chart.caption for chart in charts if chart.caption.startswith("Sign wrong"))

    helps = forecasts(20_000, spread=0.5, skill=1.0)
    assert "is lower than for random ones" in caption_of(helps)
    shuffled = replace(
        helps, confidence_entropy=np.random.default_rng(1).permutation(helps.confidence_entropy)
    )
    assert "is the same as for random ones" in caption_of(shuffled)


def test_outcomes_are_the_closes_that_came(tmp_path: Path, run: OpenRun) -> None:
    """Forecasts planted in the rows of a run are compared with the closes of its bars."""
    bars = run.views.rows("v_bars")
    times = np.array([bar["open_time_ms"] for bar in bars])
    closes = np.array([bar["close"] for bar in bars])
    wanted = np.append(times[:100] + 30 * 60_000, times[-1] + 60_000)
    at = model.places_of(times, wanted)
    assert (at[:-1] == np.arange(30, 130)).all()
    assert at[-1] == -1
    assert np.isfinite(np.log(closes[at[:-1]] / closes[:100])).all()
