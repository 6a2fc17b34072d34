"""Whether a run is still what its backtest promised: the sums of days, the looks, the errors."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings
from exchange_client import candles as made_candles
from recordings import copied
from records import prune, rows
from scenarios import SCENARIOS

from tracepaper import backtest
from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive import Candles
from tracepaper.replay.checks.drift import (
    MATERIAL,
    MEASURES,
    OTHERS,
    REFUSED,
    DaySums,
    Drift,
    drift_document,
    drift_json,
    drift_of,
    looks_until,
    read_days,
    read_drift,
    shares_of,
)
from tracepaper.replay.document.charts import BandLayer, Chart
from tracepaper.replay.report.metrics import BLOCKS_LEAST
from tracepaper.replay.run import open_run
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.units import DAY_MS, HOUR_MS

BOOK = "a limit of the whole book"
"""Eighty-five days of two symbols, of which a gate refuses some decisions."""
HALF_DAY_MS = 12 * HOUR_MS


def days_of(path: Path, before: DaySums | None = None) -> DaySums:
    with Reader.open(path) as reader:
        columns = RunColumns(reader, reader.find("last"))
        return read_days(columns) if before is None else read_days(columns, before)


def drift(reference: DaySums, run: DaySums, level: float = 0.05) -> Drift:
    return drift_of(("backtest", reference), ("run", run), level)


# ---------------------------------------------------------------- the looks


def made(days: int, rng: np.random.Generator, *, edge: float = 0.0, cost: float = 0.0) -> DaySums:
    """Return days with heavy tails, rare crashes and 0 to 4 trades; *cost* is that of a fill."""
    crash = 0.06 * (rng.random(days) < 0.01)
    returns = 0.01 * rng.standard_t(3, days) - crash + edge
    trades = rng.integers(0, 5, days).astype(float)
    ones = np.ones(days)
    sums = {
        "return": np.array([returns, ones]),
        "hit_rate": np.array([rng.binomial(trades.astype(int), 0.4), trades]),
        "turnover": np.array([0.3 * trades, ones]),
        "cost": np.array([cost * trades, trades]),
        f"{REFUSED}edge": np.array([rng.binomial(24, 0.3, days), 24 * ones]),
    }
    return DaySums(np.arange(days), 24 * ones, sums)


def test_years_like_their_backtest_are_outside_at_most_at_the_level() -> None:
    """Both are drawn, so the backtest's own luck counts too."""
    level, years, rng = 0.2, 150, np.random.default_rng(1)
    outside = sum(bool(drift(made(365, rng), made(365, rng), level).outside) for _ in range(years))
    assert outside <= level * years


def test_the_looks_of_all_measures_share_the_level() -> None:
    reference = made(365, np.random.default_rng(2))
    shares = shares_of(reference)
    # A constant cost takes nothing: a run like its backtest has it too.
    assert shares["cost"] == shares["return"] == 1 / 4
    assert sum(shares.values()) - shares["cost"] == pytest.approx(1.0)
    assert shares[OTHERS] == shares[f"{REFUSED}edge"] == 1 / 8
    assert looks_until(72) == [6, 9, 14, 21, 32, 48, 72]
    assert looks_until(BLOCKS_LEAST - 1) == []


def test_a_lost_edge_is_outside_from_the_look_that_finds_it() -> None:
    rng = np.random.default_rng(3)
    reference = made(400, rng, edge=0.03)
    lost = drift(reference, made(120, rng, edge=0.0))
    first = lost.measures[0].looks[0]
    assert (first.days, first.at_ms) == (30, 30 * DAY_MS)
    assert lost.outside == {"return": first.at_ms}
    assert lost.sentence == "Outside what the backtest allows: return since 1970-01-31."
    # It stays outside, whatever comes later.
    paid = made(120, rng, edge=0.03)
    after = replace(paid, days=paid.days + 30)
    begun = made(30, rng, edge=0.0)
    again = drift(reference, begun.joined(after))
    assert again.outside == {"return": first.at_ms}
    assert not again.measures[0].looks[-1].is_outside


def test_costs_that_a_backtest_holds_constant_are_compared_by_their_own_spread() -> None:
    rng = np.random.default_rng(4)
    reference, paid = made(365, rng, cost=6e-4), made(60, rng, cost=6e-4)

    def costing(factor: float, spread: float = 0.0) -> DaySums:
        cost, traded = paid.sums["cost"]
        noise = 1.0 + spread * np.resize([1.0, -1.0], cost.size)
        return replace(paid, sums={**paid.sums, "cost": np.array([factor * cost * noise, traded])})

    assert "cost" not in drift(reference, paid).outside
    assert "cost" not in drift(reference, costing(1 + 0.9 * MATERIAL)).outside
    assert "cost" in drift(reference, costing(1 + 1.1 * MATERIAL)).outside
    assert "cost" not in drift(reference, costing(1.1, spread=3.0)).outside
    assert "cost" in drift(reference, costing(2.0, spread=0.5)).outside


def test_a_gate_that_refused_nothing_in_the_backtest_is_told() -> None:
    rng = np.random.default_rng(5)
    reference, run = made(365, rng), made(60, rng)
    late = np.array([rng.binomial(24, 0.2, 60), 24 * np.ones(60)])
    refused = drift(reference, replace(run, sums={**run.sums, f"{REFUSED}late": late}))
    assert list(refused.outside) == [OTHERS]
    (others,) = [each for each in refused.measures if each.name == OTHERS]
    assert others.value is not None
    assert others.value[0] == pytest.approx(100 * late[0].sum() / late[1].sum())


def test_few_days_are_named_and_nothing_is_compared() -> None:
    rng = np.random.default_rng(6)
    for days in ((29, 365), (365, 29), (0, 365)):
        few = drift(made(days[1], rng), made(days[0], rng))
        assert few.too_few
        assert few.outside == {}
        assert few.sentence.startswith(
            f"Too few days: {days[0]} whole days of the run and {days[1]} of the reference"
        )
        assert all(not each.verdict for each in few.measures)


# ---------------------------------------------------------------- the days of a run


def test_the_sums_are_those_of_the_whole_days() -> None:
    path = SCENARIOS[BOOK].recorded()
    sums = days_of(path)
    ((begin_ms, end_ms),) = rows(path, "SELECT min(open_time_ms), max(open_time_ms) FROM v_bars")
    warm = rows(path, "SELECT count(*) FROM v_decisions WHERE refused_by = 'warm'")[0][0]
    first = (begin_ms + warm // 2 * HALF_DAY_MS) // DAY_MS + 1
    assert sums.days.tolist() == list(range(first, end_ms // DAY_MS))
    span_ms = (first * DAY_MS, end_ms // DAY_MS * DAY_MS)
    ends = [
        rows(
            path,
            f"SELECT max(sequence) FROM v_decisions WHERE open_time_ms < {at_ms}",
        )[0][0]
        for at_ms in span_ms
    ]
    inside = f"WHERE sequence > {ends[0]} AND sequence <= {ends[1]}"
    equity = [
        rows(path, f"SELECT equity FROM v_equity WHERE sequence = {end}")[0][0] for end in ends
    ]
    earned, _ = sums.sums["return"]
    assert np.prod(1 + earned) == pytest.approx(equity[1] / equity[0])
    traded, slipped, fees = rows(
        path,
        "SELECT sum(notional), sum((price - reference_price) * quantity "
        f"* CASE side WHEN 'BUY' THEN 1 ELSE -1 END), sum(fee) FROM v_fills {inside}",
    )[0]
    assert sums.sums["cost"].sum(axis=1) == pytest.approx([slipped + fees, traded])
    assert sums.sums["slippage"].sum(axis=1) == pytest.approx([slipped, traded])
    held = np.append(equity[0], equity[0] * np.cumprod(1 + earned)[:-1])
    assert (sums.sums["turnover"][0] * held).sum() == pytest.approx(traded)
    trades = rows(path, f"SELECT sum(profit > 0), count(*) FROM v_trades {inside}")[0]
    assert sums.sums["hit_rate"].sum(axis=1).tolist() == list(trades)
    gate = "risk.book_shortfall"
    counts = rows(
        path,
        f"SELECT sum(refused_by = '{gate}'), count(*) FROM v_decisions {inside}",
    )[0]
    assert sums.sums[REFUSED + gate].sum(axis=1).tolist() == list(counts)
    assert counts[0] > 0


def test_days_that_are_read_as_they_come_equal_those_read_at_once() -> None:
    scenario = SCENARIOS[BOOK]
    whole, (killed, *_) = days_of(scenario.recorded()), scenario.killed()
    early = days_of(killed)
    later = days_of(scenario.recorded(), early)
    assert 0 < early.days.size < whole.days.size
    assert later.days.tolist() == whole.days.tolist()
    assert (later.sequence, later.equity) == (whole.sequence, whole.equity)
    for name in whole.sums:
        assert later.of(name).tolist() == whole.of(name).tolist(), name
    assert days_of(scenario.recorded(), later) is later  # no day is over since


CALM = """
from tracepaper import Model

class Calm(Model):
    horizons = (3,)
    measures = ("mean_return", "stdev_return")
    def predict(self, inputs):
        return {"mean_return": 0.0, "stdev_return": 0.02}
"""


def test_forecasts_are_judged_by_qlike_at_the_end_of_their_horizon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calm_model.py").write_text(CALM, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(7)
    closes = np.round(10_000 * np.exp(np.cumsum(rng.normal(0.0, 0.02, 80)))).astype(int)
    bars = [(at, at + 1, at - 1, at, 1_000) for at in closes.tolist()]
    candles = made_candles(bars, interval_ms=HALF_DAY_MS)
    config: dict[str, dict[str, Any]] = {
        "market": {"interval": "720"},
        "model": {"class": "calm_model:Calm"},
        "gate": {"horizon": 3},
    }
    with backtest("attention", candles, config=config, db=tmp_path / "run.db") as run:
        sums = days_of(run.database)
    moves = np.diff(np.log(closes)) ** 2
    losses: dict[int, list[float]] = {}
    for at in range(3, closes.size):
        ratio = moves[at - 3 : at].sum() / 0.02**2
        day = (int(candles.open_time_ms[at]) + HALF_DAY_MS - 1) // DAY_MS
        losses.setdefault(day, []).append(ratio - math.log(ratio) - 1)
    expected = [(sum(losses[day]), len(losses[day])) for day in sums.days.tolist()]
    assert sums.sums["qlike"] == pytest.approx(np.array(expected).T)


# ---------------------------------------------------------------- a run and its reference


def crossing(folder: Path, name: str, seed: int = 1, days: int = 50, **sections: Any) -> Path:
    """Return the database of averages that cross, over a walk of half days."""
    config = {
        "market": {"interval": "720"},
        "strategy": {"name": "sma_cross", "fast": 2, "slow": 4},
        **sections,
    }
    path = folder / f"{name}.db"
    with backtest(None, walked(seed, days), config=config, db=path):
        return path


def walked(seed: int, days: int) -> Candles:
    moves = np.random.default_rng(seed).normal(0.0, 0.02, 2 * days)
    closes = np.round(10_000 * np.exp(np.cumsum(moves))).astype(int).tolist()
    bars = [(at, at + 50, at - 50, at, 1_000) for at in closes]
    return made_candles(bars, interval_ms=HALF_DAY_MS)


def read(reference: Path, run: Path) -> Drift:
    with Reader.open(reference) as before, Reader.open(run) as reader:
        return read_drift(
            RunColumns(before, before.find("last")), RunColumns(reader, reader.find("last"))
        )


def test_the_command_and_python_give_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = crossing(tmp_path, "backtest")
    path = crossing(tmp_path, "run", seed=2, execution={"model": "next_open"})
    against, page = f"{reference}#last", tmp_path / "drift.html"
    assert invoke(["drift", "--against", against, "--db", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    run = open_run("last", path)
    assert run.drift(against).document == printed == drift_json(read(reference, path))
    assert run.drift(open_run("last", reference)).document == printed
    assert printed["sentence"] == "Inside what the backtest allows: 5 measures over 45 days."
    assert [each["name"] for each in printed["measures"]] == list(MEASURES)[:-1]
    assert [look["days"] for look in printed["measures"][0]["looks"]] == [30, 45]
    assert invoke(["drift", "--against", against, "--page", str(page), "--db", str(path)]) == 0
    assert page.exists()
    document = drift_document(read(reference, path))
    (chart,) = [part for part in document.parts if isinstance(part, Chart)]
    band = chart.panels[0].layers[0]
    assert isinstance(band, BandLayer)
    looks = printed["measures"][0]["looks"]
    assert band.low[:-1] == pytest.approx([look["low"] for look in looks], rel=1e-5)


def test_runs_that_differ_are_named_and_not_compared(tmp_path: Path) -> None:
    reference = crossing(tmp_path, "backtest")
    other = crossing(tmp_path, "slow", strategy={"name": "sma_cross", "fast": 2, "slow": 5})
    with pytest.raises(DataInvalid, match=r"differs in strategy\.slow \(4, not 5\); replay a ref"):
        read(reference, other)
    named = r"differs in symbols \(linear:BTCUSDT, not linear:AAAUSDT, linear:BBBUSDT\), strat"
    with pytest.raises(DataInvalid, match=named):
        read(reference, SCENARIOS[BOOK].recorded())
    assert invoke(["drift", "--against", f"{reference}#last", "--db", str(other)]) == 2


def test_of_a_pruned_run_the_days_count_that_are_left(tmp_path: Path) -> None:
    path, pruned = (tmp_path / f"{name}.db" for name in ("whole", "pruned"))
    config = recordings.crossing(interval="720")
    recordings.record(path, config, [walked(1, 60)], group_steps=1)
    copied(path, pruned)
    prune(pruned, keep_days=5)
    whole, left = days_of(path), days_of(pruned)
    assert 0 < left.days.size < whole.days.size
    assert left.days.tolist() == whole.days[-left.days.size :].tolist()
    for name, sums in left.sums.items():
        assert sums.tolist() == whole.of(name)[:, -left.days.size :].tolist(), name


def test_a_run_that_decided_nothing_is_not_compared(tmp_path: Path) -> None:
    path = copied(SCENARIOS[BOOK].recorded(), tmp_path / "run.db")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE steps SET outcome = NULL")
    with pytest.raises(DataInvalid, match="has decided no bar yet; let it run on"):
        read(SCENARIOS[BOOK].recorded(), path)
