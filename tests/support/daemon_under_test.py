"""The real daemon on a real database, against the scripted exchange, in one loop."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from bybit_server import MINUTE, START_MS, ScriptedServer, book, kline, ticker
from waiting import deadline, until

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.session.child import ChildProcess, StartProcess
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.messenger import AppriseSender, Send
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import RunKind


class ServersClock(SystemClock):
    """A clock that is always as right as the scripted server's, whose minutes pass in no time."""

    def __init__(self, server: ScriptedServer) -> None:
        super().__init__()
        self._server, self._loop = server, asyncio.get_running_loop()

    def market_ms(self) -> int:
        return self._server.server_ms

    def network_s(self) -> float:
        return self._loop.time()

    def synchronise(self, server_ms: int) -> None:
        del server_ms  # the server may have moved on meanwhile


async def until_daemon(task: asyncio.Task[None], condition: Callable[[], object]) -> None:
    """Wait for *condition*; fail at the deadline, or with the error that ended the daemon."""

    def holds() -> bool:
        if condition():
            return True
        if task.done():
            task.result()
            raise AssertionError("the daemon ended by itself")
        return False

    await until(holds, poll_s=0.005)


class RunningDaemon:
    """A daemon at work: what it stored so far, and the exchange that it listens to."""

    def __init__(
        self, server: ScriptedServer, task: asyncio.Task[None], clock: ServersClock | None = None
    ) -> None:
        self.server = server
        self.task = task
        self.clock = clock or ServersClock(server)
        self.steps: list[Step] = []
        self.minute = 0

    def decisions(self) -> list[Step]:
        return [step for step in self.steps if step.decision is not None]

    def decided(self) -> int:
        """Return how many bars are decided."""
        return len(self.decisions())

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for *condition*; fail at the deadline, or with the error that ended the daemon."""
        await until_daemon(self.task, condition)

    def pass_bars(self, count: int) -> None:
        """Let *count* minutes close that only REST knows."""
        for _ in range(count):
            open_ms = START_MS + self.minute * MINUTE
            self.server.add_candle(open_ms, price(self.minute))
            self.server.server_ms = open_ms + MINUTE + 300
            self.minute += 1

    async def close_bars(self, count: int, *, stream: bool = True) -> None:
        """Close the next *count* minutes, whose closes rise and fall; await their decisions.

        Without *stream* its frames tell of the time alone.
        """
        await self.until(lambda: self.server.sockets and self.server.subscribed())
        for _ in range(count):
            open_ms, close = START_MS + self.minute * MINUTE, price(self.minute)
            self.pass_bars(1)
            ask = f"{float(close) + 0.1:.1f}"
            if stream:
                await self.server.send(
                    book(open_ms + MINUTE - 500, close, ask),
                    kline(open_ms, close),
                    book(open_ms + MINUTE + 500, close, ask),
                )
            else:
                self.server.server_ms = open_ms + MINUTE + 2_500  # final by REST
                await self.server.send(ticker(self.server.server_ms, close))
            await self.until(lambda: self.decided() >= self.minute)


async def decide(running: RunningDaemon, start: int, count: int) -> None:
    """Close so many minutes from minute *start* on, and await each decision."""
    server, running.minute = running.server, start
    await running.until(lambda: server.sockets and server.subscribed())
    for minute in range(start, start + count):
        before, at = running.decided(), START_MS + (minute + 1) * MINUTE
        running.pass_bars(1)
        close = price(minute)
        ask = f"{float(close) + 0.1:.1f}"
        frames = book(at - 500, close, ask), kline(at - MINUTE, close), book(at + 500, close, ask)
        await server.send(*frames)
        await running.until(lambda before=before: running.decided() > before)  # type: ignore[misc]


class Outside(RunningDaemon):
    """A daemon in a process of its own, known by its database alone."""

    def __init__(self, server: ScriptedServer, task: asyncio.Task[None], database: Path) -> None:
        super().__init__(server, task)
        self._database = database

    def decided(self) -> int:
        """Return how many bars are decided and committed."""
        uri = f"{self._database.as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM v_decisions").fetchone()[0])


def price(minute: int) -> str:
    """Return a close that crosses its averages every few minutes."""
    return f"{100 + abs(minute % 16 - 8):.1f}"


def settings(server: ScriptedServer, **sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configuration of a daemon of *server* that trades often and waits little."""
    given: dict[str, dict[str, Any]] = {
        "exchange": {
            "rest_url": server.rest_url,
            "stream_url": server.stream_url,
            "ban_cooldown_s": 0.2,
            "data_watchdog_s": 5.0,
            "requests_per_s": 100.0,
            "backoff_max_s": 0.1,
            "grace_ms": 100,
            "certain_s": 0.2,
        },
        "strategy": {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
        "sizing": {"mode": "fixed", "quantity": "0.5"},
        "account": {"cash": "1000000"},
        "http": {"port": 0},
        "parity": {"daily_at": "off"},
    }
    for name, section in sections.items():
        # Keys go with their choice, a size with its mode and an option with its strategy.
        before = {} if {"mode", "name"} & section.keys() else given.get(name, {})
        given[name] = {**before, **section}
    return given


@asynccontextmanager
async def daemon(
    server: ScriptedServer,
    database: Path,
    *,
    start_process: StartProcess = ChildProcess,
    sender: Callable[[NotifySection], Send] = AppriseSender,
    **sections: Mapping[str, Any],
) -> AsyncIterator[RunningDaemon]:
    """Run a daemon until the block ends, then stop it in good order."""
    holder: list[RunningDaemon] = []

    def watch(step: Step) -> bool:
        holder[0].steps.append(step)
        return True

    config = load(None, settings(server, **sections))
    clock = ServersClock(server)
    daemon = Daemon(
        config,
        database,
        kind=RunKind.LIVE,
        watch=watch,
        clock=clock,
        start_process=start_process,
        sender=sender,
    )
    running = RunningDaemon(server, asyncio.create_task(daemon.run()), clock)
    holder.append(running)
    try:
        yield running
        daemon.stop()
        async with deadline():
            await asyncio.wait([running.task])
    finally:
        running.task.cancel()
        await asyncio.wait([running.task])


def check_record(database: Path, *, bars: int) -> None:
    """Check chain, derivation and that each minute from the start on was decided once."""
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).passes
        verification = verify_run(reader, database, run_id)
        assert verification.differences == []
    with closing(sqlite3.connect(database)) as db:
        query = "SELECT open_time_ms FROM v_decisions ORDER BY sequence"
        opened = [at for (at,) in db.execute(query)]
    assert opened == [START_MS + minute * MINUTE for minute in range(bars)]


@asynccontextmanager
async def killed_daemon(
    server: ScriptedServer, config: Path, database: Path
) -> AsyncIterator[Outside]:
    """Run a daemon in a process of its own, and kill it where the block ends."""
    server.received.clear()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tracepaper.daemon.cli"),
        *("run", "-c", str(config), "--db", str(database)),
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def lived() -> None:
        await process.wait()

    task = asyncio.create_task(lived())
    try:
        yield Outside(server, task, database)
    finally:
        if process.returncode is None:
            process.kill()
        await task
