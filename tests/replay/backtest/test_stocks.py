"""Shares from candle files: their dates are their sessions, which are stored with the run."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from forging import rechain
from msgspec.structs import replace
from records import identities, rows
from stock_files import HOUR_MS, date_alone, moment, opens, write

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.session.run_row import sessions_of
from tracepaper.replay.backtest import run as running
from tracepaper.replay.backtest.build import build, configuration
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.sessions import Sessions, packed
from tracepaper.strategies.units import DAY_MS

SHARES = """
[market]
asset = "stock"
[strategy]
name = "sma_cross"
fast = 3
slow = 7
long_only = false
[execution]
fee_per_share = "0.005"
fee_minimum = "1"
"""
ALTERNATE = """
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action


class Once(Strategy):
    warmup = 1
    horizon = 8

    def __init__(self, options):
        self.bars = 0

    def observe(self, bar):
        self.bars += 1

    def decide(self, context):
        return Signal(Action.LONG if self.bars == 5 else Action.HOLD, "once")
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shares.toml").write_text(SHARES)


def replayed(times: Sequence[int], database: str = "run.db", config: str = "shares.toml") -> None:
    write(Path("acme.csv"), times)
    assert invoke(["replay", "ACME=acme.csv", "-c", config, "--db", database, "--json"]) == 0


def refused(database: str = "run.db") -> list[tuple[Any, ...]]:
    return rows(
        database,
        "SELECT refused_by, open_time_ms FROM v_decisions "
        "WHERE refused_by IS NOT NULL AND refused_by <> 'warm' ORDER BY sequence",
    )


@pytest.mark.parametrize("interval_ms", [HOUR_MS, 24 * HOUR_MS], ids=["hours", "days"])
def test_no_bar_is_refused_for_a_night_a_holiday_or_a_half_session(interval_ms: int) -> None:
    replayed(times := opens("2014-10-20", "2014-12-31", interval_ms))
    assert refused() == []
    assert rows("run.db", "SELECT count(*) FROM v_decisions") == [(len(times),)]
    assert rows("run.db", "SELECT count(*) FROM v_gaps") == [(0,)]
    assert invoke(["verify", "last", "--db", "run.db"]) == 0
    assert invoke(["audit", "verify", "last", "--db", "run.db"]) == 0  # fees by the share too


@pytest.mark.parametrize("interval_ms", [HOUR_MS, 24 * HOUR_MS], ids=["hours", "days"])
def test_a_day_that_the_file_lacks_is_said_and_refuses_nothing(interval_ms: int) -> None:
    times = opens("2014-10-20", "2014-12-31", interval_ms)
    replayed([at for at in times if date_alone(at) != "2014-11-19"])
    assert refused() == []
    ((warnings,),) = rows("run.db", "SELECT warnings FROM v_runs")
    assert json.loads(warnings) == [
        "acme.csv: 3 days between others without a candle, the first 2014-11-19"
    ]


def test_the_bar_after_a_missing_hour_is_refused() -> None:
    times = opens("2014-10-20", "2014-12-31", HOUR_MS)
    times.remove(gone := moment("2014-11-19T11:00"))
    replayed(times)
    assert refused() == [("gap", gone + HOUR_MS)]
    measured = "SELECT measure FROM v_gates WHERE gate = 'gap' AND NOT passed"
    assert rows("run.db", measured) == [(1.0,)]
    assert rows("run.db", "SELECT from_ms, until_ms FROM v_gaps") == [(gone, gone + HOUR_MS)]


def test_each_share_has_the_dates_of_its_own_file() -> None:
    times = opens("2014-10-20", "2014-12-31")
    write(Path("acme.csv"), times)
    write(Path("emca.csv"), [at for at in times if f"{at // DAY_MS}"[-1] != "4"], seed=2)
    files = ["ACME=acme.csv", "EMCA=emca.csv"]
    assert invoke(["replay", *files, "-c", "shares.toml", "--db", "run.db", "--json"]) == 0
    assert refused() == []
    assert rows("run.db", "SELECT count(*) FROM v_gaps") == [(0,)]
    assert invoke(["verify", "last", "--db", "run.db"]) == 0
    assert invoke(["report", "last", "--db", "run.db"]) == 0


def test_hours_that_no_report_could_count_together_are_refused(cli: Cli) -> None:
    write(Path("acme.csv"), opens("2014-11-03", "2014-11-28", HOUR_MS, by_clock=False))
    later = (("10:00", "16:00"),)
    write(Path("emca.csv"), opens("2014-11-03", "2014-11-28", HOUR_MS, hours=later))
    words = ["replay", "ACME=acme.csv", "EMCA=emca.csv", "-c", "shares.toml", "--db", "run.db"]
    assert "replay the shares of each exchange apart" in cli.err(*words, code=1)


def test_a_bar_is_decided_at_the_close_of_its_session() -> None:
    replayed(opens("2014-11-03", "2014-12-05", HOUR_MS))
    query = "SELECT e.market_ms FROM v_equity e JOIN v_decisions d USING (sequence)"
    for opened, closed in (("09:30", "10:00"), ("12:00", "13:00")):
        (row,) = rows("run.db", f"{query} WHERE d.open_time_ms = {moment(f'2014-11-28T{opened}')}")
        assert row == (moment(f"2014-11-28T{closed}"),)


def test_a_short_signal_is_flat_and_says_why() -> None:
    replayed(opens("2014-10-20", "2014-12-31", HOUR_MS))
    assert rows("run.db", "SELECT count(*) FROM v_decisions WHERE action = 'SHORT'") == [(0,)]
    assert rows("run.db", "SELECT count(*) > 20 FROM v_decisions WHERE reason LIKE 'stock: %'") == [
        (1,)
    ]
    assert rows("run.db", "SELECT min(quantity) FROM v_positions") == [(0.0,)]


def test_a_horizon_counts_session_bars() -> None:
    Path("once_in_hours.py").write_text(ALTERNATE)
    Path("own.toml").write_text(
        SHARES.replace(
            'name = "sma_cross"\nfast = 3\nslow = 7\nlong_only = false',
            'name = "once_in_hours:Once"',
        )
    )
    replayed(times := opens("2014-11-03", "2014-11-14", HOUR_MS), config="own.toml")
    (closed,) = rows("run.db", "SELECT open_time_ms FROM v_decisions WHERE reason = 'horizon'")
    assert closed == (times[4 + 8],)  # the ninth hour of trading, on the next day


def test_fees_are_paid_by_the_share_in_its_currency() -> None:
    replayed(opens("2014-10-20", "2014-12-31", HOUR_MS))
    fills = rows("run.db", "SELECT quantity, fee, fee_base FROM v_fills")
    assert len(fills) > 4
    for quantity, fee, fee_base in fills:
        assert quantity == int(quantity)
        assert (fee, fee_base) == (max(1.0, quantity * 0.005), 0.0)


# ---------------------------------------------------------------- what is stored


def stored_sessions(database: str = "run.db") -> Sessions:
    with Reader.open(Path(database)) as reader:
        (sessions,) = sessions_of(reader.stored_run(reader.find("last")).run).values()
    return sessions


def forged_sessions(sessions: Sessions) -> bool:
    """Write *sessions* into the run's row; return whether they are believed."""
    shutil.copy("run.db", "forged.db")
    with closing(sqlite3.connect("forged.db")) as raw:
        raw.execute("UPDATE runs SET sessions = ?", (packed([sessions]),))
        raw.commit()
    rechain(Path("forged.db"))
    assert invoke(["audit", "verify", "--db", "forged.db"]) == 0
    return invoke(["verify", "last", "--db", "forged.db"]) == 0


def test_forged_sessions_are_found_where_a_bar_contradicts_them() -> None:
    """The others follow from nothing: docs/storage.md, S12, lists them."""
    replayed(opens("2014-10-20", "2014-11-20"))
    true = stored_sessions()

    def changed(day: str, *, closes: int) -> Sessions:
        """Return the true sessions with another close on *day*; without it if 0."""
        at = true.days.index(moment(f"{day}T00:00Z") // DAY_MS)
        columns = {name: [*getattr(true, name)] for name in ("days", "starts", "opens", "closes")}
        columns["closes"][at] += closes
        for column in columns.values():
            del column[at : at + (not closes)]
        return replace(true, **{name: tuple(column) for name, column in columns.items()})

    assert not forged_sessions(changed("2014-11-05", closes=0))
    assert not forged_sessions(changed("2014-11-05", closes=-60))
    assert forged_sessions(changed("2014-11-25", closes=0)), "no bar lies there"


def interrupted(monkeypatch: pytest.MonkeyPatch, *, every: int = 16) -> str:
    """Stop a replay of ``acme.csv`` after *every* events, in ``part.db``; return its run."""
    monkeypatch.setattr(running, "PROGRESS_EVENTS", every)
    data = MarketData.read(RunSpec(candles=("ACME=acme.csv",), config=Path("shares.toml")))
    replay = build(configuration(Path("shares.toml"), data), data, started_at_ms=0)
    audit = SqlAuditLog.open(Path("part.db"))
    run_replay(replay, audit, Tally(stopped=lambda: True))
    audit.close()
    return replay.run.run_id


def test_a_replay_goes_on_by_its_own_sessions(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    times = opens("2014-11-03", "2014-12-31", HOUR_MS)
    replayed(times, "whole.db")
    run_id = interrupted(monkeypatch)
    again = ["replay", "ACME=acme.csv", "-c", "shares.toml", "--resume", run_id, "--db", "part.db"]
    write(Path("acme.csv"), [at for at in times if date_alone(at) != "2014-12-17"])
    assert "which are its sessions; give the data that it was made of" in cli.err(*again, code=1)
    write(Path("acme.csv"), times)
    assert invoke([*again, "--json"]) == 0
    assert rows("part.db", "SELECT count(*) FROM v_decisions") == [(len(times),)]
    assert refused("part.db") == refused("whole.db") == []
    assert identities("part.db") == identities("whole.db")
    assert invoke(["verify", "last", "--db", "part.db"]) == 0


# ---------------------------------------------------------------- what is said, and refused


def test_a_report_counts_days_and_years_in_sessions(cli: Cli) -> None:
    replayed(opens("2014-10-20", "2014-12-31", HOUR_MS))
    figures = cli.json("report", "last", "--db", "run.db")["accounts"][0]
    sessions = len(opens("2014-10-20", "2014-12-31"))
    assert figures["days"] == sessions
    assert figures["volatility"] == pytest.approx(
        figures["volatility_day"] * stored_sessions().a_year ** 0.5
    )
    assert f"a year has {stored_sessions().a_year:.0f} days or sessions" in " ".join(
        cli.out("report", "last", "--notes", "--db", "run.db").split()
    )


def test_shares_are_not_traded_live(cli: Cli) -> None:
    assert "has no exchange here; replay candle files by" in cli.err(
        "run", "-c", "shares.toml", "--db", "live.db", code=2
    )
    assert not Path("live.db").exists()


def test_who_does_not_say_that_a_file_holds_shares_is_told(cli: Cli) -> None:
    said = "for shares set market.asset, in a training features.asset, to stock"
    write(Path("acme.csv"), opens("2014-10-20", "2014-12-31"), date_alone)
    assert f"no candle is of a weekend; {said}" in cli.out("data", "check", "ACME=acme.csv")
    words = ("train", "--data", "ACME=acme.csv", "--set", "horizons=1", "--out", "net")
    assert f"without a gap; no candle is of a weekend; {said}." in cli.err(*words, code=1)
    write(Path("acme.csv"), opens("2014-10-20", "2014-12-31", HOUR_MS))
    assert f"one fixed interval, or {said}." in cli("data", "check", "ACME=acme.csv").out


def test_shares_and_crypto_are_not_mixed(cli: Cli) -> None:
    days = opens("2014-10-20", "2014-12-31")
    shares = write(Path("stock_ACME_1d.csv"), days, date_alone)
    coin = write(Path("BTCUSDT_1d.csv"), days, date_alone)
    said = "replay those of crypto apart"
    assert said in cli.err("replay", shares, coin, "--strategy", "sma_cross", code=2)
    assert said in cli.err("replay", coin, shares, "--strategy", "sma_cross", code=2)
    linear = ("--set", "market.category=linear")
    assert said in cli.err("replay", shares, *linear, "--strategy", "sma_cross", code=2)


def test_candles_that_are_not_adjusted_for_a_split_are_said(cli: Cli) -> None:
    times = opens("2014-11-03", "2014-12-31")
    split = times.index(moment("2014-12-03T09:30"))
    write(Path("acme.csv"), times, prices=lambda row: 1.0 if row >= split else 7.0)
    assert "a split needs adjusted candles" in cli.out(
        "data", "check", "ACME=acme.csv", "--category", "stock"
    )


# ---------------------------------------------------------------- higher timeframes


DAYS = """
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action


class Days(Strategy):
    frames = ("D", "W")
    frames_warmup = {"D": 3, "W": 1}

    def __init__(self, options):
        pass

    def decide(self, now):
        days, weeks = now.timeframe("D"), now.timeframe("W")
        print([now.time, days.time.tolist(), weeks.time.tolist()])
        rose = days.close[-1] > days.open[0]
        return Signal(Action.LONG if rose else Action.FLAT, "as the days say")
"""


def test_days_and_weeks_are_made_of_session_bars(capsys: pytest.CaptureFixture[str]) -> None:
    Path("days.py").write_text(DAYS)
    text = SHARES.replace('"sma_cross"\nfast = 3\nslow = 7\nlong_only = false', '"days:Days"')
    Path("days.toml").write_text(text)
    times = opens("2014-11-03", "2014-12-19", HOUR_MS)
    lost = times.index(moment("2014-12-10T11:00"))
    replayed([*times[:lost], *times[lost + 1 :]], config="days.toml")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[1")]
    closes = {at: (days, weeks) for at, days, weeks in map(json.loads, lines)}
    friday = moment("2014-11-28T13:00")  # a half session
    assert closes[friday][0] == [moment("2014-11-25T16:00"), moment("2014-11-26T16:00"), friday]
    assert closes[friday][1] == [friday]
    before = max(at for at in closes if at < friday)
    assert closes[before][1] == [moment("2014-11-21T16:00")]
    holed = moment("2014-12-11T16:00")  # the day before lacks an hour, and so does its week
    assert closes[holed][0] == [moment("2014-12-09T16:00"), holed]
    assert closes[moment("2014-12-12T16:00")][1] == []
    assert invoke(["verify", "last", "--db", "run.db"]) == 0
    given = ["--data", "ACME=acme.csv", "-c", "days.toml", "--probes", "2"]
    assert invoke(["lookahead", *given]) == 0
    capsys.readouterr()
    assert invoke(["recursive", *given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["compared"] > 50
    assert document["warmup"] < 168  # a week of hours that are no sessions
