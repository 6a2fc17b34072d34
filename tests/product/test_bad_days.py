"""Bad days that no history of the world draws, made to happen to the real daemon."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import ClientSession, web
from bybit_server import MINUTE, START_MS, ScriptedServer, book, kline
from daemon_under_test import (
    RunningDaemon,
    ServersClock,
    check_record,
    daemon,
    killed_daemon,
    price,
    settings,
)
from records import rows
from waiting import deadline_s
from world.loop import VirtualLoop

import tracepaper
from tracepaper.daemon.config.loading import load, render
from tracepaper.daemon.http.client import ask, token_file
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.loop import GROUP_STEPS
from tracepaper.daemon.terminal import console as log_lines
from tracepaper.storage.database.lock import holder_of
from tracepaper.storage.maintenance import backup
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Action, RunRow, Step
from tracepaper.strategies.types.market import Bar, ModelChange, RunKind


def candle(**changes: Any) -> dict[str, Any]:
    """Return a closing frame of the next minute with some fields changed."""
    frame = kline(START_MS + 10 * MINUTE)
    frame["data"][0].update(changes)
    return frame


HOSTILE: dict[str, bytes | dict[str, Any]] = {
    "deep": b"[" * 100_000,
    "huge": b'{"topic":"' + b"x" * 9_000_000 + b'"}',
    "NaN as text": candle(close="NaN"),
    "beyond 64 bits": candle(start=2**70),
    "far future": {**kline(START_MS + 10_000 * MINUTE), "ts": START_MS},
    "crossed book": book(START_MS, "101.0", "99.0"),
}
"""One frame of each part that refuses it: text, size, number, time, clock and book."""


async def test_a_hostile_frame_changes_nothing_and_the_daemon_goes_on(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server, daemon(server, database) as running:
        await running.close_bars(10)
        for name, frame in HOSTILE.items():
            connections = running.server.connections
            await server.send(frame)
            if name == "huge":
                await running.until(lambda: server.connections > connections and server.sockets)  # noqa: B023 - asked at once
            await running.close_bars(2)
        traded = [step.event for step in running.decisions()]
    check_record(database, bars=10 + 2 * len(HOSTILE))
    assert all(isinstance(bar, Bar) and 1_000 <= bar.close <= 1_090 for bar in traded)


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


async def test_a_stop_drops_what_waits_behind_the_step_in_hand(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        steps: list[Step] = []

        def watch(step: Step) -> bool:
            steps.append(step)
            if sum(step.decision is not None for step in steps) == 15:
                flooded.stop()
            return True

        strategy = {"name": f"{__name__}:LongUnderStop"}
        LongUnderStop.closes.clear()
        flooded = Daemon(
            load(None, settings(server, strategy=strategy)),
            database,
            kind=RunKind.LIVE,
            watch=watch,
            clock=ServersClock(server),
        )
        running = RunningDaemon(server, asyncio.create_task(flooded.run()))
        running.steps = steps
        await running.close_bars(3)
        running.pass_bars(400)
        await server.send(*(kline(START_MS + at * MINUTE, price(at)) for at in range(3, 403)))
        await asyncio.wait([running.task], timeout=deadline_s())
        assert running.task.done()
        running.task.result()
        assert LongUnderStop.closes == [START_MS + at * MINUTE for at in range(running.decided())]
        assert 15 <= running.decided() < 15 + GROUP_STEPS
    check_record(database, bars=running.decided())
    (ended,) = rows(database, "SELECT count(*) FROM v_runs WHERE ended_ms IS NOT NULL")[0]
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


async def test_a_first_start_waits_once_the_exchange_has_answered_for_its_symbols(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    tier = {"symbol": "BTCUSDT", "riskLimitValue": "2000000", "maintenanceMargin": "0.005"}
    tier |= {"initialMargin": "0.01", "maxLeverage": "100.00", "mmDeduction": ""}
    async with ScriptedServer() as server:
        known = {"category": "linear", "symbol": "BTCUSDT", "list": [tier], "nextPageCursor": ""}
        *broken, _, _ = refusals(server)
        server.answer_next("risk-limit", *broken, server.reply(known))
        async with daemon(server, database, account={"margin": "isolated"}) as running:
            await running.close_bars(1)
    assert not server.answers["risk-limit"]
    check_record(database, bars=1)


@pytest.mark.sockets
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
                reasons = [r for r in status["not_ready"] if "write lock" in str(r)]
            assert running.decided() == 3
            shell.execute("ROLLBACK")
        await closing_bar
        status = await asyncio.to_thread(ask, database, "/status")
        assert status["not_ready"] == [
            "linear:BTCUSDT is warming up until 2023-11-14T22:21Z; it has 4 of 7 bars"
        ]
    check_record(database, bars=4)
    assert capfd.readouterr().err.count("another process holds the database's write lock") == 1


async def scraped(database: Path) -> dict[str, str]:
    """Return the metrics of the daemon that writes *database*."""
    holder = holder_of(database)
    assert holder is not None
    async with ClientSession() as client, client.get(f"{holder.http}/metrics") as answer:
        text = await answer.text()
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")


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
                was_copied = "tracepaper_backup_seconds" in await scraped(database)
                assert was_copied is (kind == "RESUME")
                backup(database, tmp_path / f"{kind}.db")
            assert not token_file(database).exists()
    assert len(tokens) == 2
    held = [(tmp_path / name).read_bytes() for name in ("run.db", "HALT.db", "RESUME.db")]
    assert not any(token.encode() in content for token in tokens for content in held)


async def test_a_port_in_use_adds_nothing_to_the_run_that_would_go_on(tmp_path: Path) -> None:
    database, opened = tmp_path / "run.db", list[RunRow]()
    async with ScriptedServer() as server:
        given = settings(server, http={"port": 50_000})
        async with daemon(server, database, http=given["http"]) as running:
            await running.close_bars(1)
        counted = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM events)"
        before = rows(database, counted)
        async with await asyncio.start_server(lambda *_streams: None, "127.0.0.1", 50_000):
            second = Daemon(load(None, given), database, kind=RunKind.LIVE, opened=opened.append)
            with pytest.raises(ConfigInvalid, match="cannot be listened on"):
                await second.run()
        assert (rows(database, counted), opened) == (before, [])
        async with daemon(server, database, http=given["http"]) as running:
            await running.until(lambda: running.steps)
        assert rows(database, counted)[0][0] == before[0][0]  # it went on


async def test_a_model_that_is_too_slow_is_held_and_nothing_is_traded(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    async with ScriptedServer() as server:
        for minute in range(-7_250, 0):
            server.add_candle(START_MS + minute * MINUTE, price(minute))
        model, strategy = {"deadline_ms": 1}, {"name": "attention"}
        async with daemon(server, database, model=model, strategy=strategy) as running:
            await running.until(server.subscribed)
            loop.work_s = 0.01, 0.02  # of each forecast
            await running.close_bars(3)
            decisions = [step.decision for step in running.decisions() if step.decision]
    check_record(database, bars=3)
    assert len(decisions) == 3
    for row in decisions:
        assert (row.action, row.refused_by in ("stale", "deadline")) == (Action.HOLD, True)
        place = row.gate_set.gates.index("deadline")
        assert not row.passed >> place & 1


@pytest.mark.sockets
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


class LongUnderFarStop(Strategy):
    """Long under a stop whose price is probably a mistake."""

    warmup = 1

    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.LONG, "up", stop=40.0)


async def test_an_exit_that_a_quote_placed_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    """The quote that fills the entry is no bar of a decision."""
    database = tmp_path / "run.db"
    strategy = {"name": f"{__name__}:LongUnderFarStop"}
    async with ScriptedServer() as server, daemon(server, database, strategy=strategy) as running:
        await running.until(lambda: server.sockets and server.subscribed())
        running.pass_bars(1)
        end = START_MS + MINUTE
        await server.send(book(end - 500, "107.9", "108.0"), kline(START_MS, "108.0"))
        await running.until(lambda: running.decided() >= 1)
        await server.send(book(end + 500, "107.9", "108.0"))
        await running.until(lambda: any(step.fills for step in running.steps))
    with tracepaper.open_run("last", database) as run:
        assert "stop 40 is -62.96 % from the entry at 108" in str(run)


class LongUnderStop(Strategy):
    """Long under a stop."""

    warmup = 1
    closes: ClassVar[list[int]] = []

    def observe(self, bar: Bar) -> None:
        self.closes.append(bar.open_time_ms)

    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.LONG, "up", stop=Percent(1), reenter=True)


async def test_a_stop_waits_out_minutes_of_broken_books_and_meets_the_first_true_quote(
    tmp_path: Path,
) -> None:
    database = tmp_path / "run.db"
    strategy = {"name": f"{__name__}:LongUnderStop"}
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
            frames = [book(end - 500 + 10 * at, *levels) for at, levels in enumerate(broken)]
            await server.send(*frames, kline(open_ms, price(minute)))
            await running.until(lambda: running.decided() >= running.minute)
        assert sum(len(step.fills) for step in running.steps) == 1
        await server.send(book(START_MS + 5 * MINUTE + 900, "103.0", "103.1"))
        await running.until(lambda: sum(len(step.fills) for step in running.steps) == 2)
    check_record(database, bars=5)
    fills = rows(database, "SELECT side, price, reason FROM v_fills ORDER BY sequence")
    assert fills == [("BUY", 108.0, "up"), ("SELL", 103.0, "stop 1 %")]
