"""A day is replayed once it is over, in a process beside the daemon; the result is an event.

The daemon is real. Except in the last test, what stands for the replaying process gives an answer
that the test chose.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import builders
import msgspec
import pytest
from bybit_server import MINUTE, START_MS, ScriptedServer
from daemon_under_test import RunningDaemon, daemon, decide
from fakes import ManualClock
from prometheus_client import generate_latest
from rich.console import Console
from waiting import until

from tracepaper.daemon.config.sections import ParitySection
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session import parity
from tracepaper.daemon.session.child import ChildFailed, TimeLimits
from tracepaper.daemon.session.parity import DailyParity
from tracepaper.daemon.terminal.status import parity_text as status_line
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Event, ParityCheck, ParityOutcome
from tracepaper.strategies.units import DAY_MS

IDENTICAL, DIFFERENT, FAILED = ParityOutcome
MIDNIGHT_MS = START_MS // DAY_MS * DAY_MS + DAY_MS
BEFORE = (MIDNIGHT_MS - START_MS) // MINUTE
"""Minutes from the first decided bar until midnight."""
AT_MIDNIGHT: dict[str, Any] = {"parity": {"daily_at": "00:00"}}
WELL = ParityCheck(IDENTICAL, "identical 106 of 106 decisions", 0, 1, 106, 106, 0)


class Replays:
    """Stands for the processes that replay, and keeps the options of each."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.calls: list[str] = []
        self.answer: Callable[[], Awaitable[ParityCheck]] = well
        self._limits = TimeLimits()

    def __call__(self, _name: str, command: Sequence[str], limits: TimeLimits) -> Replays:
        self.calls.append(" ".join(command[len(parity.PROGRAM) :]))
        self._limits = limits
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None: ...

    async def ask(self, _kind: type[ParityCheck]) -> ParityCheck:
        try:
            async with asyncio.timeout(self._limits.answer_s):
                return await self.answer()
        except TimeoutError:
            raise ChildFailed(f"it took longer than {self._limits.key}") from None

    def events(self) -> list[ParityCheck]:
        with Reader.open(self.database) as reader:
            events = reader.events(reader.find("last"))
            return [event for _, _, event, _ in events if isinstance(event, ParityCheck)]


async def well() -> ParityCheck:
    return WELL


async def never() -> ParityCheck:
    await asyncio.Event().wait()
    return WELL


async def fails() -> ParityCheck:
    raise ChildFailed("the replay ended with 1: There is no run x")


@pytest.fixture
def replays(tmp_path: Path) -> Replays:
    return Replays(tmp_path / "run.db")


@asynccontextmanager
async def parity_daemon(server: ScriptedServer, replays: Replays) -> AsyncIterator[RunningDaemon]:
    start: Any = replays
    async with daemon(server, replays.database, start_process=start, **AT_MIDNIGHT) as running:
        yield running


def checks(steps: list[Step]) -> list[ParityCheck]:
    return [step.event for step in steps if isinstance(step.event, ParityCheck)]


async def decide_until_midnight(running: RunningDaemon) -> None:
    """Let every minute of the first day close; most bars come from REST only."""
    await running.until(lambda: running.server.sockets and running.server.subscribed())
    running.pass_bars(BEFORE - 1)
    await running.close_bars(1)


# ---------------------------------------------------------------- in a daemon


async def test_a_day_is_checked_once_it_is_over_and_never_again(replays: Replays) -> None:
    async with ScriptedServer() as server:
        async with parity_daemon(server, replays) as running:
            await decide_until_midnight(running)
            assert replays.calls == []
            await running.close_bars(1)
            await running.until(lambda: checks(running.steps))
            await running.close_bars(2)
            run_id = replays.calls[0].split()[0]
        async with parity_daemon(server, replays) as running:
            await decide(running, BEFORE + 3, 2)
    assert replays.calls == [f"{run_id} --day 2023-11-14 --db {replays.database} --service"]
    (event,) = replays.events()
    assert event.market_ms == event.seen_ms >= MIDNIGHT_MS + MINUTE
    assert (event.from_ms, event.until_ms) == (MIDNIGHT_MS - DAY_MS, MIDNIGHT_MS)
    spans = {"from_ms": WELL.from_ms, "until_ms": WELL.until_ms}
    assert msgspec.structs.replace(event, market_ms=0, seen_ms=0, **spans) == WELL


async def test_a_check_that_the_stop_cut_off_begins_anew(replays: Replays) -> None:
    replays.answer = never
    async with ScriptedServer() as server:
        async with parity_daemon(server, replays) as running:
            await decide_until_midnight(running)
            await running.close_bars(1)
            await running.until(lambda: replays.calls)
            await running.close_bars(1)  # while it replays
        assert replays.events() == []
        replays.answer = well
        async with parity_daemon(server, replays) as running:
            await decide(running, BEFORE + 2, 1)
            await running.until(lambda: checks(running.steps))
    assert len(replays.calls) == 2
    assert len(replays.events()) == 1


# ---------------------------------------------------------------- one check


class EventQueue:
    """Accepts events like the queue of a daemon."""

    def __init__(self) -> None:
        self.events: list[ParityCheck] = []

    async def __call__(self, event: Event) -> int:
        assert isinstance(event, ParityCheck)
        self.events.append(event)
        return len(self.events)


def daily(replays: Replays, **section: Any) -> tuple[DailyParity, EventQueue]:
    """Return the daily check of a run that began at ``START_MS`` and is not stored yet."""
    from tracepaper.storage.audit import SqlAuditLog

    SqlAuditLog.open(replays.database).close()
    given = ParitySection.model_construct(**{"daily_at": "00:10", "time_limit": "1h", **section})
    submitted = EventQueue()
    run = msgspec.structs.replace(builders.run(), period_start_ms=START_MS)
    clock = ManualClock(MIDNIGHT_MS + 11 * MINUTE)
    start: Any = replays
    checked = DailyParity(given, replays.database, run, submitted, clock, start_process=start)
    return checked, submitted


def closed(minute: int) -> Step:
    """Return the step of the bar that opened this many minutes after midnight."""
    return builders.step(builders.bar(open_time_ms=MIDNIGHT_MS + minute * MINUTE))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (fails, "the replay ended with 1: There is no run x"),
        (never, "it took longer than parity.time_limit, 1h"),
    ],
)
async def test_what_breaks_off_is_a_result_too(
    replays: Replays, answer: Callable[[], Awaitable[ParityCheck]], reason: str
) -> None:
    replays.answer = answer
    daily_parity, submitted = daily(replays)
    async with daily_parity.in_background(lambda: None):
        daily_parity.observe(closed(10))
        await asyncio.sleep(3_601)
    (event,) = submitted.events
    assert (event.outcome, event.compared) == (FAILED, 0)
    assert event.reason.startswith(f"2023-11-14 could not be replayed: {reason}")
    assert (event.from_ms, event.until_ms) == (MIDNIGHT_MS - DAY_MS, MIDNIGHT_MS)
    assert daily_parity.due_ms == MIDNIGHT_MS + DAY_MS + 10 * MINUTE


@pytest.mark.parametrize(
    ("daily_at", "minutes", "first"),
    [
        ("00:10", range(-3, 30), 9),  # the bar that closes at 00:10
        ("00:00", range(-3, 30), 0),  # no bar of the checked day, which may have holes
        ("23:59", range(1_436, 1_450), 1_438),
    ],
)
def test_the_check_begins_with_the_first_bar_that_closes_at_its_time(
    replays: Replays, daily_at: str, minutes: range, first: int
) -> None:
    daily_parity, _ = daily(replays, daily_at=daily_at)
    begun = []
    daily_parity.observe(msgspec.structs.replace(closed(minutes[-1]), accepted=False))  # a revision
    for minute in minutes:
        daily_parity.observe(closed(minute))
        if daily_parity._is_due.is_set():  # noqa: SLF001 - when, not that
            begun.append(minute)
    assert begun[0] == first


WEEK = builders.bar(open_time_ms=MIDNIGHT_MS + 5 * DAY_MS, interval_ms=7 * DAY_MS)


@pytest.mark.parametrize(
    ("step", "day"),
    [
        (builders.step(WEEK), "2023-11-13"),  # the day on which the weekly bar before it opened
        (closed(5 * 1_440 + 9), "2023-11-19"),  # the last day without the daemon
    ],
)
async def test_the_day_that_is_checked_is_the_last_that_is_whole(
    replays: Replays, step: Step, day: str
) -> None:
    daily_parity, submitted = daily(replays)
    async with daily_parity.in_background(lambda: None):
        daily_parity.observe(step)
        await until(lambda: submitted.events, poll_s=0.01)
    assert replays.calls[0].split()[1:3] == ["--day", day]


async def test_bars_that_close_meanwhile_begin_no_second_check(replays: Replays) -> None:
    go = asyncio.Event()

    async def waits() -> ParityCheck:
        await go.wait()
        return WELL

    replays.answer = waits
    daily_parity, submitted = daily(replays)
    async with daily_parity.in_background(lambda: None):
        daily_parity.observe(closed(10))
        await until(lambda: replays.calls)
        assert daily_parity.is_checking
        daily_parity.observe(closed(11))
        go.set()
        await until(lambda: not daily_parity.is_checking and submitted.events)
        daily_parity.observe(closed(12))
        await asyncio.sleep(0)
        assert not daily_parity.is_checking
        daily_parity.observe(closed(1_440 + 9))
        await until(lambda: len(submitted.events) > 1)
    days = [words.split()[2] for words in replays.calls]
    assert days == ["2023-11-14", "2023-11-15"]


# ---------------------------------------------------------------- status


@pytest.mark.parametrize("outcome", ParityOutcome)
def test_status_and_metrics_have_the_last_result(replays: Replays, outcome: ParityOutcome) -> None:
    parity, _ = daily(replays)
    monitor = Monitor(run=builders.run(), clock=ManualClock(START_MS))
    assert monitor.status()["parity"] is None
    monitor.companions[parity.key] = parity.status
    registry = registry_of(monitor)
    assert registry.get_sample_value("tracepaper_parity_until_seconds") == START_MS / 1000
    assert b"tracepaper_parity_outcome" not in generate_latest(registry)
    assert line_of(monitor) == "parity: first replay at 2023-11-15T00:10Z\n"
    parity.is_checking = True
    assert line_of(monitor) == "parity: a day is replayed now\n"
    parity.is_checking = False
    parity.last = msgspec.structs.replace(WELL, outcome=outcome, until_ms=MIDNIGHT_MS)
    assert line_of(monitor) == "parity: identical 106 of 106 decisions\n"
    text = generate_latest(registry).decode()
    for each in ParityOutcome:
        value = float(each is outcome)
        assert f'tracepaper_parity_outcome{{outcome="{each}"}} {value}\n' in text
    assert "tracepaper_parity_compared 106.0\n" in text
    assert "tracepaper_parity_identical 106.0\n" in text
    assert registry.get_sample_value("tracepaper_parity_until_seconds") == MIDNIGHT_MS / 1000


def line_of(monitor: Monitor) -> str:
    """Return the line of ``tracepaper status``."""
    console = Console(width=200)
    document: Any = monitor.status()["parity"]
    with console.capture() as captured:
        console.print(status_line(document))
    return captured.get()


# ---------------------------------------------------------------- the real process


@pytest.mark.sockets
async def test_the_day_of_a_daemon_is_identical_to_its_replay(tmp_path: Path) -> None:
    """The day has a restart and a command; the real process replays it."""
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        async with daemon(server, database, **AT_MIDNIGHT) as running:
            await decide(running, 0, 5)
            await asyncio.to_thread(ask, database, "/command", {"kind": "HALT", "note": "lunch"})
            await decide(running, 5, 2)
        async with daemon(server, database, **AT_MIDNIGHT) as running:
            await decide(running, 7, 2)
            await asyncio.to_thread(ask, database, "/command", {"kind": "RESUME", "note": ""})
            running.pass_bars(BEFORE - 9)
            await decide(running, BEFORE, 1)
            await running.until(lambda: checks(running.steps))
    (event,) = checks(running.steps)
    assert event.outcome is IDENTICAL
    assert event.reason == (
        f"identical {BEFORE} of {BEFORE} decisions of 2023-11-14, from 22:14Z on"
    )
    with Reader.open(database) as reader:
        verification = verify_run(reader, database, reader.find("last"))
        assert verification.passes  # the check is in the record
        assert verify_chain(reader.connection, verification.run_id).passes
