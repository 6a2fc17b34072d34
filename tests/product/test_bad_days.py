"""Every row of the table of bad days, made to happen to the real daemon.

Rows that need a process of their own, a full disk or a card live beside their modules; the last
test names them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import ClientSession, web
from bybit_server import MINUTE, START_MS, ScriptedServer, book, kline, ticker
from daemon_under_test import (
    Running,
    ServersClock,
    check_record,
    daemon,
    killed_daemon,
    price,
    settings,
)
from waiting import deadline_s

from tracepaper.daemon.config.loading import load, render
from tracepaper.daemon.http.client import ask, token_file
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.loop import GROUP_STEPS
from tracepaper.daemon.terminal import console as log_lines
from tracepaper.storage.checkpoints import DEFAULT_CHECKPOINT
from tracepaper.storage.database.lock import holder_of
from tracepaper.storage.maintenance import backup
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import (
    AuditUnwritable,
    ConfigInvalid,
    Fatal,
    StrategyFailed,
)
from tracepaper.strategies.forecasters.tabular import EnsembleForecaster
from tracepaper.strategies.types.decisions import Action, Forecast, Step
from tracepaper.strategies.types.market import Bar, Gap, GapCause, ModelChange, RunKind


def candle(**changes: Any) -> dict[str, Any]:
    """Return a closing frame of the next minute with some fields changed."""
    frame = kline(START_MS + 10 * MINUTE)
    frame["data"][0].update(changes)
    return frame


HOSTILE: dict[str, bytes | dict[str, Any]] = {
    "null": b"null",
    "a number": b"17",
    "cut off": b'{"topic":"kline.1.BTCUSDT","data":[{"start":17',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "huge": b'{"topic":"' + b"x" * 9_000_000 + b'"}',
    "no data": {"topic": "kline.1.BTCUSDT", "type": "snapshot", "ts": START_MS},
    "empty data": {**candle(), "data": []},
    "many candles": {**candle(), "data": candle(confirm=False)["data"] * 5_000},
    "NaN by name": json.dumps(candle(close=float("nan"))).encode(),
    "NaN as text": candle(close="NaN"),
    "infinity": candle(high="Infinity"),
    "negative": candle(low="-1", close="-1"),
    "zero": candle(open="0", high="0", low="0", close="0"),
    "high under low": candle(high="1", low="200"),
    "exponent": candle(close="1e400"),
    "endless decimals": candle(close="100." + "1" * 5_000),
    "negative volume": candle(volume="-3"),
    "1970": candle(start=0, end=MINUTE - 1),
    "2262": candle(start=9_214_646_400_000, end=9_214_646_400_000 + MINUTE - 1),
    "beyond 64 bits": candle(start=2**70),
    "before 1970": candle(start=-MINUTE, end=-1),
    "off the grid": candle(start=START_MS + 1),
    "confirm as text": candle(confirm="true"),
    "wrong symbol": kline(START_MS + 10 * MINUTE, symbol="ETHUSDT"),
    "wrong interval": {**candle(), "topic": "kline.5.BTCUSDT"},
    "unknown topic": {"topic": "liquidation.BTCUSDT", "data": {}, "ts": START_MS},
    "far future": {**kline(START_MS + 10_000 * MINUTE), "ts": START_MS},
    "time in 2262": book(9_214_646_400_000),
    "time null": {**book(START_MS), "ts": None},
    "time negative": book(-5),
    "crossed book": book(START_MS, "101.0", "99.0"),
    "book of nothing": book(START_MS, "0", "0", "0"),
    "book of NaN": book(START_MS, "NaN", "NaN"),
    "mark of NaN": ticker(START_MS, "NaN"),
    "mark negative": ticker(START_MS, "-5"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_frame_changes_nothing_and_the_daemon_goes_on(
    tmp_path: Path, name: str
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(10)
        known = running.server.connections
        await server.send(HOSTILE[name])
        if name == "huge":
            await running.until(lambda: server.connections > known and server.sockets)
        await running.close_bars(12)
        traded = [step.event for step in running.decisions()]
    check_record(database, bars=22)
    assert all(isinstance(bar, Bar) and 1_000 <= bar.close <= 1_090 for bar in traded)


async def test_one_frame_from_2262_costs_no_decision_after_the_clock_is_read_anew(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(10)
        asked = len(server.asked("time"))
        await server.send(book(9_214_646_400_000))
        await running.until(lambda: len(server.asked("time")) > asked)
        await running.close_bars(3)
        refused = [step.decision.refused_by for step in running.decisions() if step.decision][10:]
    check_record(database, bars=13)
    assert refused == [None] * 3


async def test_a_candle_missing_twice_late_or_revised_is_decided_once(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(9)
        await running.close_bars(1, stream=False)  # missing: REST has it
        await server.send(kline(START_MS + 9 * MINUTE, price(9)))  # and late
        await running.close_bars(1)
        await server.send(kline(START_MS + 10 * MINUTE, price(10)))  # twice
        await server.send(kline(START_MS + 10 * MINUTE, "250.0"))  # revised
        await server.send(kline(START_MS + 3 * MINUTE, "1.0"))  # long ago
        await running.close_bars(2)
        evidence = [step.event for step in running.steps if not step.accepted]
    check_record(database, bars=13)
    assert [bar.close for bar in evidence if isinstance(bar, Bar)] == [2_500, 10]


async def test_what_is_missing_everywhere_is_said_and_the_next_bar_held(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(10)
        server.add_candle(START_MS + 11 * MINUTE, price(11))
        server.server_ms = START_MS + 12 * MINUTE + 2_000
        await server.send(kline(START_MS + 11 * MINUTE, price(11)))
        await running.until(lambda: len(running.decisions()) == 11)
        gaps = [step.event for step in running.steps if isinstance(step.event, Gap)]
        last = running.decisions()[-1].decision
    assert [(gap.from_ms, gap.until_ms, gap.repaired_by) for gap in gaps] == [
        (START_MS + 10 * MINUTE, START_MS + 11 * MINUTE, "")
    ]
    assert last is not None
    assert (last.action, last.refused_by) == (Action.HOLD, "gap")


async def test_a_machine_that_slept_decides_all_that_it_missed_late_and_goes_on(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(9)
        now_ms = server.server_ms
        running.pass_bars(120)
        server.server_ms = now_ms
        running.clock.fall_asleep(120 * MINUTE + 2_000)
        await server.send(kline(START_MS + 128 * MINUTE, price(128)))
        await running.until(lambda: running.decided() == 129)
        await running.close_bars(3)
        gaps = [step.event for step in running.steps if isinstance(step.event, Gap)]
        refused = [step.decision.refused_by for step in running.decisions() if step.decision]
    check_record(database, bars=132)
    assert (gaps[0].cause, gaps[0].repaired_by) == (GapCause.JUMPED, "clock")
    assert gaps[0].until_ms - gaps[0].from_ms == 120 * MINUTE + 2_000
    assert {(gap.cause, gap.repaired_by) for gap in gaps[1:]} == {(GapCause.JUMPED, "rest")}
    assert set(refused[9:128]) == {"late"}
    assert refused[129:] == [None] * 3


async def test_without_quotes_nothing_is_traded(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(9, stream=False)
        refused = {step.decision.refused_by for step in running.decisions() if step.decision}
        traded = [order for step in running.steps for order in step.orders]
    check_record(database, bars=9)
    assert refused == {"warm", "stale"}
    assert traded == []


async def test_a_daemon_that_was_down_catches_up_in_few_commits(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        async with daemon(server, database) as running:
            await running.close_bars(9)
        running.pass_bars(600)
        server.server_ms += 2_000
        async with daemon(server, database) as running:
            await running.until(lambda: running.decided() == 600)
            samples = await scraped(database)
    assert float(samples["tracepaper_commit_seconds_count"]) < 20
    check_record(database, bars=609)


@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_a_refused_stream_is_knocked_at_until_it_opens_and_rest_fills_the_hole(
    tmp_path: Path, status: int
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(9)
        server.refuse_status = status
        server.received.clear()
        await server.drop()
        running.pass_bars(2)
        server.refuse_status = 0
        await running.close_bars(2)
    check_record(database, bars=13)


async def test_a_half_open_stream_is_left_by_its_silence_not_its_pongs(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    impatient = {"data_watchdog_s": 0.3, "ping_s": 0.05}
    async with ScriptedServer() as server, daemon(server, database, exchange=impatient) as running:
        await running.close_bars(9)
        connections, pings = server.connections, server.pings()
        await running.until(lambda: server.connections > connections)
        assert server.pings() > pings
        await running.close_bars(2)
    check_record(database, bars=11)


@pytest.mark.parametrize("way", ["10006", "403", "html", "cut", "empty"])
async def test_rest_that_bans_or_babbles_delays_a_bar_and_loses_none(
    tmp_path: Path, way: str
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(9)
        answers = {
            "10006": lambda: server.reply({}, code=10006, message="Too many visits!"),
            "403": lambda: web.Response(status=403, text="<html>banned</html>"),
            "html": lambda: web.Response(text="<html>maintenance</html>"),
            "cut": lambda: web.Response(text='{"retCode":0,"result":{"list":[["17'),
            "empty": lambda: web.Response(text=""),
        }
        server.answer_next("kline", *(answers[way]() for _ in range(2)))
        await running.close_bars(1, stream=False)
        await running.close_bars(1)
    check_record(database, bars=11)


async def test_numbers_in_other_forms_end_no_daemon(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    linear = {"category": "linear", "symbol": "BTCUSDT"}
    async with ScriptedServer() as server:
        odd = {"symbol": "BTCUSDT", "lastPrice": "cheap"}
        server.answer_next("tickers", server.reply({**linear, "list": [odd]}))
        async with daemon(server, database) as running:
            await running.close_bars(1, stream=False)
            running.pass_bars(1)
            # The first quote of all: none is newer, so it would be an event before this bar.
            await server.send(book(-(10**30)), kline(START_MS + MINUTE, price(1)))
            await running.close_bars(7)
            times = (f"{START_MS + 9 * MINUTE}.0", f"{START_MS + 9 * MINUTE}e0")
            rows = [[time, *["100.0"] * 4, "1.5", "150.75"] for time in times]
            server.answer_next("kline", *(server.reply({**linear, "list": [row]}) for row in rows))
            await running.close_bars(1, stream=False)
            await running.close_bars(1)
    check_record(database, bars=11)


async def test_a_stop_drops_what_waits_behind_the_step_in_hand(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        seen: list[Step] = []

        def watch(step: Step) -> bool:
            seen.append(step)
            if sum(one.decision is not None for one in seen) == 15:
                flooded.stop()
            return True

        strategy = {"name": f"{__name__}:Guarded"}
        Guarded.closes.clear()
        flooded = Daemon(
            load(None, settings(server, strategy=strategy)),
            database,
            kind=RunKind.LIVE,
            watch=watch,
            clock=ServersClock(server),
        )
        running = Running(server, asyncio.create_task(flooded.run()))
        running.steps = seen
        await running.close_bars(3)
        running.pass_bars(400)
        await server.send(*(kline(START_MS + at * MINUTE, price(at)) for at in range(3, 403)))
        await asyncio.wait([running.task], timeout=deadline_s())
        assert running.task.done()
        running.task.result()
        assert Guarded.closes == [START_MS + at * MINUTE for at in range(running.decided())]
        assert 15 <= running.decided() < 15 + GROUP_STEPS
    check_record(database, bars=running.decided())
    with closing(sqlite3.connect(database)) as db:
        (ended,) = db.execute("SELECT count(*) FROM v_runs WHERE ended_at IS NOT NULL").fetchone()
    assert ended == 1


def refusals(server: ScriptedServer) -> list[web.Response]:
    """Return answers that were once taken for a wrong configuration, and some stranger ones."""
    statuses = [201, 204, 302, 400, 401, 404, 410, 451, 500]
    codes = [10001, 10009, 10017, 10024, 10029, 424242]
    nothing = {"category": "linear", "symbol": "BTCUSDT", "list": []}
    return [
        *(web.Response(status=status) for status in statuses),
        *(server.reply({}, code=code, message="no") for code in codes),
        *(server.reply({**nothing, **odd}) for odd in ({"category": "spot"}, {"list": None})),
    ]


async def test_refusals_in_mid_run_delay_and_end_nothing(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(9)
        for name in ("time", "kline", "instruments-info", "funding/history"):
            server.answer_next(name, *refusals(server))
        await running.close_bars(1, stream=False)
        await running.close_bars(2)
        assert not server.answers["kline"]
    check_record(database, bars=12)


@pytest.mark.parametrize("name", ["time", "instruments-info", "kline"])
async def test_a_restart_waits_for_an_exchange_that_refuses_what_it_once_served(
    tmp_path: Path, name: str
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        async with daemon(server, database) as running:
            await running.close_bars(9)
        running.pass_bars(1)
        server.server_ms += 2_000
        server.answer_next(name, *refusals(server))
        async with daemon(server, database) as running:
            await running.until(lambda: len(running.decisions()) == 1)
            assert not server.answers[name]
    check_record(database, bars=10)


@pytest.mark.parametrize("name", ["tickers", "kline"])
async def test_a_first_start_waits_once_its_symbols_were_found(tmp_path: Path, name: str) -> None:
    # Time and instruments have answered: the address, the category and the symbols are right.
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        server.answer_next(name, *refusals(server))
        async with daemon(server, database) as running:
            await running.close_bars(2)
            assert not server.answers[name]
    check_record(database, bars=2)


async def test_a_symbol_that_was_never_served_is_refused_although_another_was(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        async with daemon(server, database) as running:
            await running.close_bars(1)
        config = load(None, settings(server, market={"symbols": ["NOSUCHUSDT"]}))
        with pytest.raises(ConfigInvalid, match="NOSUCHUSDT"):
            await Daemon(config, database, kind=RunKind.LIVE).run()


async def test_a_second_daemon_on_one_database_is_refused_with_the_holders_pid(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(2)
        second = Daemon(load(None, settings(server)), database, kind=RunKind.LIVE)
        with pytest.raises(ConfigInvalid, match=f"in use by process {os.getpid()}; stop it"):
            await second.run()
        await running.close_bars(2)
    check_record(database, bars=4)


async def test_a_database_that_is_taken_away_ends_the_daemon_with_a_sentence(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(2)
        database.unlink()
        with pytest.raises(AuditUnwritable, match="was deleted, moved or replaced"):
            await running.close_bars(2)


@pytest.mark.parametrize("ending", ["-wal", "-shm"])
async def test_a_log_deleted_under_the_daemon_ends_it_and_costs_no_decision(
    tmp_path: Path, ending: str
) -> None:
    database = tmp_path / "run.db"

    async def lose_it() -> None:
        async with daemon(server, database) as running:
            await running.close_bars(5)
            database.with_name(database.name + ending).unlink()
            await running.close_bars(1)

    async with ScriptedServer() as server:
        with pytest.raises(AuditUnwritable, match=r"was deleted or replaced .*: start again"):
            await lose_it()
        async with daemon(server, database) as again:
            await again.until(lambda: any(isinstance(s.event, ModelChange) for s in again.steps))
    with closing(sqlite3.connect(database)) as db:
        opened = {at for (at,) in db.execute("SELECT open_time_ms FROM v_decisions")}
    assert opened >= {START_MS + minute * MINUTE for minute in range(5)}


async def test_a_foreign_write_lock_stops_decisions_until_it_is_given_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "run.db"
    log_lines.configure(output="json")
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(3)
        with closing(sqlite3.connect(database, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            closing_bar = asyncio.create_task(running.close_bars(1))
            reasons: list[object] = []
            while not reasons:
                status = await asyncio.to_thread(ask, database, "/status")
                reasons = [r for r in status["not_ready"] if "write lock" in str(r)]  # type: ignore[attr-defined]
            assert running.decided() == 3
            shell.execute("ROLLBACK")
        await closing_bar
        status = await asyncio.to_thread(ask, database, "/status")
        assert status["not_ready"] == ["linear:BTCUSDT is warming up until 2023-11-14T22:21Z"]
    check_record(database, bars=4)
    assert capfd.readouterr().err.count("another process holds the database's write lock") == 1


async def scraped(database: Path) -> dict[str, str]:
    """Return the metrics of the daemon that writes *database*."""
    holder = holder_of(database)
    assert holder is not None
    async with ClientSession() as client, client.get(f"{holder.http}/metrics") as answer:
        text = await answer.text()
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")


async def test_a_scrape_says_how_old_everything_is_and_how_long_it_took(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(3)
        samples = await scraped(database)
    btc = '{instrument="linear:BTCUSDT"}'
    for age in (f"bar_age_seconds{btc}", f"quote_age_seconds{btc}", "frame_age_seconds"):
        assert 0 <= float(samples[f"tracepaper_{age}"]) < 60
    assert samples["tracepaper_decision_seconds_count"] == "3.0"
    assert float(samples["tracepaper_commit_seconds_count"]) >= 5
    assert 0 <= float(samples["tracepaper_commit_age_seconds"]) < 60


async def test_the_token_of_a_command_lives_as_long_as_the_daemon_and_is_in_no_backup(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    tokens = set()
    async with ScriptedServer() as server:
        for kind in ("HALT", "RESUME"):
            async with daemon(server, database) as running:
                await running.until(lambda: token_file(database).exists())
                await running.until(
                    lambda: any(type(s.event) is ModelChange for s in running.steps)
                )
                tokens.add(token_file(database).read_text())
                answer = await asyncio.to_thread(ask, database, "/command", {"kind": kind})
                assert answer["kind"] == kind
                backup(database, tmp_path / f"{kind}.db")
            assert not token_file(database).exists()
    assert len(tokens) == 2
    held = [(tmp_path / name).read_bytes() for name in ("run.db", "HALT.db", "RESUME.db")]
    assert not any(token.encode() in content for token in tokens for content in held)


FAILING: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "unknown symbol": ({"market": {"symbols": ["NOSUCHUSDT"]}}, "NOSUCHUSDT"),
    "missing model": (
        {"strategy": {"name": "attention"}, "model": {"checkpoint": "nowhere"}},
        "nowhere",
    ),
    "port in use": ({}, "cannot be listened on"),
    "strategy that cannot be made": (
        {"strategy": {"name": "failing_start:Unmakeable"}},
        "failed when it was made",
    ),
    "strategy that fails while it warms up": (
        {"strategy": {"name": "failing_start:Unwarmable"}},
        "failed in observe",
    ),
}
FAILING_STRATEGIES = """
from tracepaper.strategies.api.strategy import Strategy

class Unmakeable(Strategy):
    def __init__(self, options):
        raise RuntimeError("no")
    def decide(self, now):
        raise AssertionError

class Unwarmable(Strategy):
    warmup = 5
    def __init__(self, options):
        pass
    def observe(self, bar):
        raise RuntimeError("no")
    def decide(self, now):
        raise AssertionError
"""


@pytest.mark.parametrize("way", FAILING)
async def test_a_start_that_fails_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    database = tmp_path / "run.db"
    (tmp_path / "failing_start.py").write_text(FAILING_STRATEGIES)
    monkeypatch.syspath_prepend(tmp_path)
    async with ScriptedServer() as server:
        for minute in range(1, 40):
            server.add_candle(START_MS - minute * MINUTE)
        taken = server.rest_url.rpartition(":")[2] if way == "port in use" else "0"
        sections, words = FAILING[way]
        given = settings(server, http={"port": int(taken)}, **sections)
        with pytest.raises(Fatal, match=words):
            await Daemon(load(None, given), database, kind=RunKind.LIVE).run()
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (0,)


@pytest.mark.parametrize("way", ["corrupt", "swapped"])
async def test_a_checkpoint_that_is_not_its_cards_is_refused_before_anything_is_traded(
    tmp_path: Path, way: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content if way == "corrupt" else b"\x08" + bytes(7) + b"{}      ")
    model = {"checkpoint": str(folder)}
    async with ScriptedServer() as server:
        with pytest.raises(ConfigInvalid, match="SHA-256"):
            async with daemon(
                server, tmp_path / "run.db", model=model, strategy={"name": "attention"}
            ) as running:
                await running.until(lambda: running.steps)


async def test_an_order_that_no_quote_fills_in_time_is_canceled_saying_so(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.until(lambda: server.sockets and server.subscribed())
        for minute in range(12):
            open_ms, close = START_MS + minute * MINUTE, price(minute)
            running.pass_bars(1)
            # The only quote of a minute comes just before its close, long after the last order.
            ask_price = f"{float(close) + 0.1:.1f}"
            quoted = book(open_ms + MINUTE - 500, close, ask_price)
            await server.send(quoted, kline(open_ms, close))
            await running.until(lambda: running.decided() >= running.minute)
    check_record(database, bars=12)
    with closing(sqlite3.connect(database)) as db:
        ends = db.execute("SELECT status, reason FROM v_orders ORDER BY sequence").fetchall()
        assert db.execute("SELECT count(*) FROM v_fills").fetchone() == (0,)
    assert len(ends) == 12 - 6  # from the seventh close on, which makes the averages, every bar
    assert set(ends[:-1]) == {("CANCELED", "no quote filled it within 10,000 ms")}
    assert ends[-1][0] == "ACCEPTED"


async def test_a_model_that_is_too_slow_is_held_and_nothing_is_traded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "run.db"
    slow = {"deadline_ms": 1}
    quick = EnsembleForecaster.step

    def laborious(forecaster: EnsembleForecaster, bar: Bar) -> Forecast | None:
        assert sum(range(1_000_000)) > 0  # tens of milliseconds on any machine
        return quick(forecaster, bar)

    monkeypatch.setattr(EnsembleForecaster, "step", laborious)
    async with ScriptedServer() as server:
        for minute in range(-7_250, 0):
            server.add_candle(START_MS + minute * MINUTE, price(minute))
        async with daemon(server, database, model=slow, strategy={"name": "attention"}) as running:
            await running.close_bars(3)
            decisions = [step.decision for step in running.decisions() if step.decision]
    check_record(database, bars=3)
    assert len(decisions) == 3
    for one in decisions:
        assert (one.action, one.refused_by in ("stale", "deadline")) == (Action.HOLD, True)
        place = one.gate_set.gates.index("deadline")
        assert not one.passed >> place & 1


async def test_a_daemon_killed_at_any_step_goes_on_with_nothing_lost(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    config = tmp_path / "run.toml"
    async with ScriptedServer() as server:
        hasty = {"time_scale": 100, "ahead_ms": 20_000}  # minutes pass in no time
        config.write_text(render(load(None, settings(server, exchange=hasty))))
        for decided, lived in ((0, 11), (11, 17)):
            async with killed_daemon(server, config, database) as running:
                running.minute = decided
                await running.until(server.subscribed)
                await running.close_bars(lived - decided)
        async with daemon(server, database, exchange=hasty) as last:
            last.minute = 17
            await last.until(lambda: any(isinstance(s.event, ModelChange) for s in last.steps))
    check_record(database, bars=17)
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("SELECT count(*) FROM v_runs").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM v_fills").fetchone()[0] >= 1


class Guarded(Strategy):
    """Long under a stop, or ends the process where it is told to."""

    closes: ClassVar[list[int]] = []

    def __init__(self, options: dict[str, Any]) -> None:
        self._exits_at = options.get("exits_at")
        self._asked = 0

    def observe(self, bar: Bar) -> None:
        self.closes.append(bar.open_time_ms)

    def decide(self, context: BarContext) -> Signal:
        self._asked += 1
        if self._asked == self._exits_at:
            sys.exit(0)
        return Signal(Action.LONG, "up", stop=Percent(1), reenter=True)


async def test_a_stop_waits_out_minutes_of_broken_books_and_meets_the_first_true_quote(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    strategy = {"name": f"{__name__}:Guarded"}
    async with ScriptedServer() as server, daemon(server, database, strategy=strategy) as running:
        await running.until(lambda: server.sockets and server.subscribed())
        for minute in range(5):
            open_ms = START_MS + minute * MINUTE
            running.pass_bars(1)
            end, broken = open_ms + MINUTE, [("50.0", "40.0", "1"), ("0", "0", "0")]
            if minute == 0:
                await server.send(book(end - 500, "107.9", "108.0"), kline(open_ms, "108.0"))
                await running.until(lambda: running.decided() >= 1)
                await server.send(book(end + 500, "107.9", "108.0"))
                await running.until(lambda: any(step.fills for step in running.steps))
                continue
            frames = [book(end - 500 + 10 * at, *one) for at, one in enumerate(broken)]
            await server.send(*frames, kline(open_ms, price(minute)))
            await running.until(lambda: running.decided() >= running.minute)
        assert sum(len(step.fills) for step in running.steps) == 1
        await server.send(book(START_MS + 5 * MINUTE + 900, "103.0", "103.1"))
        await running.until(lambda: sum(len(step.fills) for step in running.steps) == 2)
    check_record(database, bars=5)
    with closing(sqlite3.connect(database)) as db:
        taken = db.execute("SELECT side, price, reason FROM v_fills ORDER BY sequence").fetchall()
    assert taken == [("BUY", 108.0, "up"), ("SELL", 103.0, "stop 1 %")]


async def test_a_class_that_exits_ends_the_daemon_with_a_sentence_and_loses_nothing(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    strategy = {"name": f"{__name__}:Guarded", "options": {"exits_at": 4}}
    with pytest.raises(StrategyFailed, match="Guarded failed in decide with SystemExit: 0 at "):
        async with (
            ScriptedServer() as server,
            daemon(server, database, strategy=strategy) as running,
        ):
            await running.close_bars(5)
    check_record(database, bars=3)
