"""A day is replayed once it is over, in a process beside the daemon; the result is an event.

The daemon is real. Except in the last test, the replaying process gives an answer that the test
chose.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import builders
import msgspec
import pytest
from bybit_server import MINUTE, START_MS, ScriptedServer
from daemon_under_test import RunningDaemon, daemon
from fakes import ManualClock
from prometheus_client import generate_latest
from retrain_cases import decide
from rich.console import Console
from waiting import until

from tracepaper.daemon.commands.daemon import _parity as status_line
from tracepaper.daemon.config.sections import ParitySection
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.http.metrics import registry_of
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session import parity
from tracepaper.daemon.session.child import frame_of
from tracepaper.daemon.session.parity import DailyParity
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
AT_MIDNIGHT = {"parity": {"daily_at": "00:00"}}
WELL = ParityCheck(IDENTICAL, "identical 106 of 106 decisions", 0, 1, 106, 106, 0)
ANSWER = f"os.write(1, {frame_of(WELL)!r})"
ANSWERS = """
import os, pathlib, sys, time
here = pathlib.Path(__file__).parent
with (here / "asked.txt").open("a") as asked:
    asked.write(" ".join(sys.argv[1:]) + "\\n")
exec((here / "answer.py").read_text())
"""


class ParityProgram:
    """A program that replaces ``tracepaper parity`` and records its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.database = folder, folder / "run.db"
        (folder / "program.py").write_text(ANSWERS, encoding="utf-8")
        self.answers(ANSWER)

    def answers(self, code: str) -> None:
        (self.folder / "answer.py").write_text(code, encoding="utf-8")

    def calls(self) -> list[str]:
        """Return the options of each call."""
        path = self.folder / "asked.txt"
        return path.read_text().splitlines() if path.exists() else []

    def events(self) -> list[ParityCheck]:
        with Reader.open(self.database) as reader:
            events = reader.events(reader.find("last"))
            return [event for _, _, event, _ in events if isinstance(event, ParityCheck)]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ParityProgram:
    directory = ParityProgram(tmp_path)
    command = sys.executable, "-S", str(tmp_path / "program.py")
    monkeypatch.setattr(parity, "PROGRAM", command)
    return directory


def checks(steps: list[Step]) -> list[ParityCheck]:
    return [step.event for step in steps if isinstance(step.event, ParityCheck)]


async def decide_until_midnight(running: RunningDaemon) -> None:
    """Let every minute of the first day close; most bars come from REST only."""
    await running.until(lambda: running.server.sockets and running.server.subscribed())
    running.pass_bars(BEFORE - 1)
    await running.close_bars(1)


# ---------------------------------------------------------------- in a daemon


async def test_a_day_is_checked_once_it_is_over_and_never_again(planted: ParityProgram) -> None:
    async with ScriptedServer() as server:
        async with daemon(server, planted.database, **AT_MIDNIGHT) as running:
            await decide_until_midnight(running)
            assert planted.calls() == []
            await running.close_bars(1)
            await running.until(lambda: checks(running.steps))
            await running.close_bars(2)
            run_id = planted.calls()[0].split()[0]
        async with daemon(server, planted.database, **AT_MIDNIGHT) as running:
            await decide(running, BEFORE + 3, 2)
    options = f"{run_id} --day 2023-11-14 --db {planted.database} --service"
    assert planted.calls() == [options]
    (event,) = planted.events()
    assert event.market_ms == event.seen_ms >= MIDNIGHT_MS + MINUTE
    assert (event.from_ms, event.until_ms) == (MIDNIGHT_MS - DAY_MS, MIDNIGHT_MS)
    spans = {"from_ms": WELL.from_ms, "until_ms": WELL.until_ms}
    assert msgspec.structs.replace(event, market_ms=0, seen_ms=0, **spans) == WELL


async def test_a_check_that_the_stop_cut_off_begins_anew(planted: ParityProgram) -> None:
    pid = planted.folder / "pid"
    planted.answers(f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)")
    async with ScriptedServer() as server:
        async with daemon(server, planted.database, **AT_MIDNIGHT) as running:
            await decide_until_midnight(running)
            await running.close_bars(1)
            await running.until(lambda: pid.exists() and pid.read_text())
            await running.close_bars(1)  # while it replays
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
        assert planted.events() == []
        planted.answers(ANSWER)
        async with daemon(server, planted.database, **AT_MIDNIGHT) as running:
            await decide(running, BEFORE + 2, 1)
            await running.until(lambda: checks(running.steps))
    assert len(planted.calls()) == 2
    assert len(planted.events()) == 1


# ---------------------------------------------------------------- one check


class EventQueue:
    """Accepts events like the queue of a daemon."""

    def __init__(self) -> None:
        self.events: list[ParityCheck] = []

    async def __call__(self, event: Event) -> int:
        assert isinstance(event, ParityCheck)
        self.events.append(event)
        return len(self.events)


def daily(folder: Path, **section: Any) -> tuple[DailyParity, EventQueue]:
    """Return the daily check of a run that began at ``START_MS`` and is not stored yet."""
    from tracepaper.storage.audit import SqlAuditLog

    SqlAuditLog.open(folder / "run.db").close()
    given = ParitySection.model_construct(**{"daily_at": "00:10", "time_limit": "1h", **section})
    submitted = EventQueue()
    run = msgspec.structs.replace(builders.run(), period_start_ms=START_MS)
    clock = ManualClock(MIDNIGHT_MS + 11 * MINUTE)
    return DailyParity(given, folder / "run.db", run, submitted, clock), submitted


def closed(minute: int) -> Step:
    """Return the step of the bar that opened this many minutes after midnight."""
    return builders.step(builders.bar(open_time_ms=MIDNIGHT_MS + minute * MINUTE))


@pytest.mark.parametrize(
    ("code", "limit", "reason"),
    [
        ("sys.exit('There is no run x.')", "1h", "the replay ended with 1: There is no run x"),
        ("time.sleep(60)", "0m", "it took longer than parity.time_limit, 0m"),
    ],
)
async def test_what_breaks_off_is_a_result_too(
    planted: ParityProgram, code: str, limit: str, reason: str
) -> None:
    planted.answers(code)
    daily_parity, submitted = daily(planted.folder, time_limit=limit)
    async with daily_parity.in_background(lambda: None):
        daily_parity.observe(closed(10))
        await until(lambda: submitted.events, poll_s=0.01)
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
    tmp_path: Path, daily_at: str, minutes: range, first: int
) -> None:
    daily_parity, _ = daily(tmp_path, daily_at=daily_at)
    begun = []
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
    planted: ParityProgram, step: Step, day: str
) -> None:
    daily_parity, submitted = daily(planted.folder)
    async with daily_parity.in_background(lambda: None):
        daily_parity.observe(step)
        await until(lambda: submitted.events, poll_s=0.01)
    assert planted.calls()[0].split()[1:3] == ["--day", day]


async def test_bars_that_close_meanwhile_begin_no_second_check(planted: ParityProgram) -> None:
    go = planted.folder / "go"
    wait = f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)"
    planted.answers(f"{wait}\nprint({msgspec.json.encode(WELL).decode()!r})")
    daily_parity, submitted = daily(planted.folder)
    async with daily_parity.in_background(lambda: None):
        daily_parity.observe(closed(10))
        await until(planted.calls, poll_s=0.01)
        assert daily_parity.is_checking
        daily_parity.observe(closed(11))
        go.touch()
        await until(lambda: not daily_parity.is_checking and submitted.events, poll_s=0.01)
        daily_parity.observe(closed(12))
        await asyncio.sleep(0)
        assert not daily_parity.is_checking
        daily_parity.observe(closed(1_440 + 9))
        await until(lambda: len(submitted.events) > 1, poll_s=0.01)
    days = [words.split()[2] for words in planted.calls()]
    assert days == ["2023-11-14", "2023-11-15"]


# ---------------------------------------------------------------- status


@pytest.mark.parametrize("outcome", ParityOutcome)
def test_status_and_metrics_have_the_last_result(tmp_path: Path, outcome: ParityOutcome) -> None:
    parity, _ = daily(tmp_path)
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
