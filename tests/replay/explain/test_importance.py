"""Importance over a run: of bars from the record, of features recomputed by the model."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import explained_runs
import numpy as np
import pytest
from command_line import Cli
from programs import ROOT

import tracepaper
from tracepaper.replay.explain.attribution import by_feature, past_of_row_model
from tracepaper.replay.explain.importance import by_age, read_importance
from tracepaper.replay.report.past import open_any
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

SPAN = 50  # bars


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importance")
    return explained_runs.replayed(folder, symbols=("AAAUSDT", "BBBUSDT"))


def test_bars_shares_are_the_means_of_what_decisions_stored(database: Path) -> None:
    run_id = explained_runs.run_id(database)
    rows = read_importance(database, run_id, str(SPAN)).of("bars").documents()
    with closing(sqlite3.connect(database)) as db:
        stored = db.execute(
            "SELECT d.instrument, d.open_time_ms, a.buckets, a.older_mass FROM v_decisions d "
            "JOIN answers a ON a.sequence = d.sequence "
            "WHERE a.buckets IS NOT NULL"
        ).fetchall()
    spans: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for name, time, packed, older in stored:
        buckets = np.array(json.loads(packed)) / 2**24
        open_share = (time // 60_000 % 64 + 1) / 64  # of the newest block of 64 bars
        youngest = buckets[0] + (1 - open_share) * buckets[1]
        owner = (name, time // (SPAN * 60_000) * SPAN * 60_000)
        spans.setdefault(owner, []).append((buckets.sum(), older, youngest))
    assert len(spans) > 4
    assert [(row["instrument"], row["from_ms"]) for row in rows] == sorted(spans)
    for row in rows:
        values = np.array(spans[row["instrument"], row["from_ms"]])
        assert row["decisions"] == len(values)
        assert row["older"]["value"] == pytest.approx(values[:, 1].mean(), abs=1e-7)
        assert row["age_0"]["value"] == pytest.approx(values[:, 2].mean(), rel=1e-6)
        assert row["age_0"]["error"] == pytest.approx(values[:, 2].std(), rel=1e-4)
        assert values[:, 2].std() > 1e-3
        ages = {name: share["value"] for name, share in row.items() if name.startswith("age_")}
        assert sum(ages.values()) == pytest.approx(values[:, 0].mean(), rel=1e-6)


def test_ages_are_told_apart_in_groups_that_reach_four_times_as_far() -> None:
    cells = np.arange(1.0, 8.0)[None] / 28.0  # six cells of 64 bars, and what is older
    shares = {name: 28.0 * share[0] for name, share in by_age(cells, 64)}
    assert shares == pytest.approx({"age_0": 1.0, "age_64": 9.0, "age_256": 11.0, "older": 7.0})


def test_features_are_those_of_the_decisions_that_are_asked(tmp_path: Path, cli: Cli) -> None:
    sample = ROOT / "replay/samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
    path = tmp_path / "run.db"
    span = ["--from", "2025-05-31T10:00", "--to", "2025-05-31T12:00", "--db", str(path)]
    assert cli("replay", "--data", sample, *span).code == 0
    given = ["report", "last", "--db", str(path), "--importance", "1h", "--samples", "2", "--json"]
    document = json.loads(cli.out(*given))
    assert len(document["importance_bars"]) == 2
    first, second = document["importance_features"]
    assert (first["decisions"], second["decisions"]) == (2, 2)
    names = [name for name in first if name not in {"instrument", "from_ms", "decisions"}]
    assert sum(first[name]["value"] for name in names) == pytest.approx(1.0)
    with closing(sqlite3.connect(path)) as db:
        query = "SELECT sequence FROM v_decisions WHERE open_time_ms >= ? AND open_time_ms < ?"
        bounds = (first["from_ms"], first["from_ms"] + 3_600_000)
        sequences = [row[0] for row in db.execute(query + " ORDER BY 1", bounds)]
        run_id = db.execute("SELECT run_id FROM v_runs").fetchone()[0]
    shares = []
    for sequence in (sequences[15], sequences[45]):  # the middles of the two halves of an hour
        rows = past_of_row_model(open_any(path, run_id, sequence))
        assert rows is not None
        sizes = {row.feature: abs(math.log(row.volatility)) for row in by_feature(rows).features}
        shares.append({name: size / sum(sizes.values()) for name, size in sizes.items()})
    for name in names:
        pair = [share[name] for share in shares]
        assert first[name]["value"] == pytest.approx(np.mean(pair), abs=1e-9)
        assert first[name]["error"] == pytest.approx(np.std(pair), abs=1e-6)
    frame = tracepaper.open_run("last", path).importance("1h", of="features", samples=2)
    assert frame[names[0]].to_list() == [each[names[0]]["value"] for each in (first, second)]
    assert frame[names[0] + "_error"][0] == first[names[0]]["error"]


def test_what_a_run_lacks_is_said_in_a_sentence(tmp_path: Path, database: Path) -> None:
    plain = explained_runs.replayed(tmp_path, strategy="sma_cross", bars=40)
    run_id = explained_runs.run_id(plain)
    with pytest.raises(DataInvalid, match="stored where its model looked"):
        read_importance(plain, run_id, "1d")
    with pytest.raises(DataInvalid, match="has a forecast to take apart"):
        read_importance(plain, run_id, "1d", samples=1)
    with pytest.raises(ConfigInvalid, match="give 0 to 100"):
        read_importance(plain, run_id, "1d", samples=101)
    with pytest.raises(DataInvalid, match="ask for features with samples"):
        read_importance(database, explained_runs.run_id(database), "1d").of("features")
