"""The strategy trend in a replay: derived again, cut and resumed, warmed from files, explained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import record
from records import check_record, identities, rows
from report_cases import build_report_of

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import Config, load
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import percent

QUARTER = 15 * 60_000
HOUR = 4 * QUARTER
NOTED = """SELECT open_time_ms + :interval, name, number FROM v_notes
           WHERE open_time_ms + :interval > :warm_ms ORDER BY 1, name"""


def walk(count: int = 600, *, seed: int = 1) -> Candles:
    return made_candles(walk_rows(count, seed=seed), interval_ms=QUARTER)


def configured(interval: str = "15", **sections: dict[str, Any]) -> Config:
    given: dict[str, dict[str, Any]] = {
        "market": {"symbols": ["BTCUSDT"], "interval": interval},
        "strategy": {"name": "trend", "trend_windows": ["4h", "12h", "1d"]},
        "model": {"checkpoint": "none"},
        "sizing": {"mode": "equity", "fraction": "1"},
        "account": {"cash": "10000000"},
        **sections,
    }
    return load(None, given)


def test_quarters_and_hours_of_one_market_are_one_trend(tmp_path: Path) -> None:
    quarters = walk()
    first_ms = int(quarters.open_time_ms[0])
    record(tmp_path / "quarters.db", configured(), [quarters])
    record(tmp_path / "hours.db", configured("60"), [quarters.resampled(HOUR)])
    warm_ms = first_ms + 25 * HOUR
    finer = rows(tmp_path / "quarters.db", NOTED, interval=QUARTER, warm_ms=warm_ms)
    two = rows(tmp_path / "hours.db", NOTED, interval=HOUR, warm_ms=warm_ms)
    assert finer == two
    assert len({at for at, *_ in finer}) > 100
    check_record(tmp_path / "quarters.db")
    check_record(tmp_path / "hours.db")


def test_hours_from_a_file_warm_it_and_change_no_later_decision(tmp_path: Path) -> None:
    data = walk()
    hours = replace(data.resampled(HOUR), path="hours")
    late = data[203 : len(data)]
    cold, warm, whole = (tmp_path / f"{name}.db" for name in ("cold", "warm", "whole"))
    record(cold, configured(), [late])
    record(warm, configured(), [late], frames=[hours])
    record(whole, configured(), [data])
    noted = "SELECT open_time_ms, name, number FROM v_notes ORDER BY 1, 2"
    first_ms = int(late.open_time_ms[0])
    slow, quick, all_along = (rows(path, noted) for path in (cold, warm, whole))
    assert slow[0][0] >= first_ms + 23 * HOUR
    assert quick[0][0] < first_ms + HOUR
    assert quick == [row for row in all_along if row[0] >= quick[0][0]]
    check_record(warm)
    reasons = rows(cold, "SELECT DISTINCT action, reason FROM v_decisions WHERE refused_by='warm'")
    assert reasons == [("HOLD", "refused by warm")]


USUAL = ("8d", "16d", "32d", "64d")
FITTING = ("9h", "18h", "36h")  # not of the usual ones: whoever says them chose them


def windows(path: Path) -> list[str]:
    [(config,)] = rows(path, "SELECT DISTINCT config FROM runs")
    names: list[str] = json.loads(config)["strategy"]["trend_windows"]
    return names


def unsaid(**strategy: Any) -> Config:
    return configured(strategy=strategy)


def test_the_usual_windows_fit_the_candles_and_stay_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, again = tmp_path / "a.db", tmp_path / "again.db"
    run_id = record(path, unsaid(), [walk()])  # 6.25 days
    assert windows(path) == ["6h", "12h", "1d", "2d"]
    assert rows(path, "SELECT count(*) > 10 FROM v_fills") == [(1,)]
    check_record(path)
    assert invoke(["report", run_id, "--db", str(path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Warning: the trend uses 6h, 12h, 1d, 2d, since the candles span 6.2 days" in printed
    assert invoke(["replay", "--data", f"{path}#{run_id}", "--db", str(again), "--json"]) == 0
    assert windows(again) == windows(path)
    assert identities(again) == identities(path)


def test_windows_follow_from_all_candles_and_not_from_the_period(tmp_path: Path) -> None:
    data = walk()
    middle = int(data.open_time_ms[450])
    record(tmp_path / "late.db", unsaid(), [data], from_ms=middle)
    record(tmp_path / "early.db", unsaid(), [data], until_ms=middle)
    record(tmp_path / "two.db", unsaid(), [data[:300],
                                             data[300:600]])  # fmt: skip
    for name in ("late", "early", "two"):
        assert windows(tmp_path / f"{name}.db") == ["6h", "12h", "1d", "2d"]


@pytest.mark.parametrize("chosen", [USUAL, FITTING])
def test_windows_that_somebody_chose_stay(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    path = tmp_path / "a.db"
    record(path, unsaid(trend_windows=list(chosen)), [walk()])
    assert windows(path) == list(chosen)
    assert rows(path, "SELECT warnings FROM runs") == [("[]",)]


def test_candles_of_a_higher_frame_and_another_strategy_leave_the_usual_windows(
    tmp_path: Path,
) -> None:
    data = walk()
    record(tmp_path / "a.db", unsaid(), [data], frames=[replace(data.resampled(HOUR), path="h")])
    record(tmp_path / "b.db", unsaid(name="sma_cross", fast=3, slow=7), [data])
    for name in ("a", "b"):
        assert windows(tmp_path / f"{name}.db") == list(USUAL)
        assert rows(tmp_path / f"{name}.db", "SELECT warnings FROM runs") == [("[]",)]


def test_a_cut_future_leaves_the_windows_of_a_check() -> None:
    with FreshProcesses() as fresh:
        finding = lookahead(unsaid(), MarketData([walk(200)]), fresh, Limits(probes=2))
    assert finding.passes, finding.sentence()
    assert finding.without_later == 200


def test_the_report_judges_the_trends_own_side(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    config = configured(
        strategy={"name": "trend", "trend_windows": ["4h"], "long_only": False},
        gate={"horizon": 8},
    )
    run_id = record(path, config, [walk()])
    report = build_report_of(path, run_id)
    sides = dict(rows(path, "SELECT open_time_ms, number FROM v_notes WHERE name = 'trend'"))
    opens = dict(rows(path, "SELECT open_time_ms, open FROM v_bars"))
    gross = [
        np.sign(trend) * (opens[at + 9 * QUARTER] / opens[at + QUARTER] - 1)
        for at, trend in sides.items()
        if trend and at + 9 * QUARTER in opens
    ]
    (row,) = [row for row in report.refusals if row.gate == "allowed"]
    assert row.measured == len(gross) > 100
    assert row.gross == pytest.approx(mean(map(float, gross)))


def test_explain_says_what_the_trend_was_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strategy = {"name": "trend", "trend_windows": ["4h"], "long_only": False}
    record(tmp_path / "a.db", configured(strategy=strategy), [walk(300)])
    ((sequence, at),) = rows(
        tmp_path / "a.db",
        "SELECT sequence, open_time_ms FROM v_decisions WHERE action = 'LONG' LIMIT 1",
    )
    noted = dict(rows(tmp_path / "a.db", "SELECT name, number FROM v_notes WHERE sequence = :n",
                      n=sequence))  # fmt: skip
    capsys.readouterr()
    assert invoke(["explain", f"last:{sequence}", "--db", "a.db"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Noted: trend_4h" in text
    assert f"{noted['trend']:+.4f}, the mean of its distances, each clipped to [-1, 1]" in text
    assert f"40.0 % ÷ {percent(noted['volatility'], 1)} a year): {noted['size']:+.4f}." in text
    assert noted["size"] == noted["trend"] * min(1, 0.4 / noted["volatility"])
    assert invoke(["explain", f"last:{sequence + 1}", "--db", "a.db", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["notes"] == {}
    assert document["decision"]["reason"] == "no hour has closed"
    assert (at + QUARTER) % HOUR == 0


def test_windows_that_the_interval_cannot_make_are_refused(tmp_path: Path) -> None:
    data = walk().resampled(4 * HOUR)
    with pytest.raises(ConfigInvalid, match="has 4h, but closes of 4h make windows of 8h to"):
        build(configured("240"), MarketData([data]), started_at_ms=0, database=tmp_path / "a.db")
