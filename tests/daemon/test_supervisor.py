"""Retries without end, declared waits, the restart budget, signals and the orderly stop."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fakes import ManualClock
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tracepaper.daemon.notify import Notifier
from tracepaper.daemon.supervisor import (
    FIRST_WAIT_S,
    Complaints,
    RestartBudget,
    Supervisor,
    persist,
)
from tracepaper.strategies.errors import AuditUnwritable, FeedLost, FeedStale

SILENT = Notifier()


class JumpClock(ManualClock):
    """A manual clock that lets other tasks run while it sleeps."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await asyncio.sleep(0)


def failing(
    clock: JumpClock, *, times: int, lasting_s: float = 0.0
) -> Callable[[], Awaitable[str]]:
    left = times

    async def attempt() -> str:
        nonlocal left
        clock.advance(network_s=lasting_s)
        if left:
            left -= 1
            raise FeedLost("The stream ended; it is opened again.")
        return "done"

    return attempt


@given(seed=st.integers(0, 2**32), times=st.integers(0, 40))
async def test_waits_are_full_jitter_below_a_doubling_ceiling(seed: int, times: int) -> None:
    clock = JumpClock()
    result = await persist(
        failing(clock, times=times),
        clock=clock,
        rng=random.Random(seed),
        name="stream",
        ceiling_s=30.0,
    )
    assert result == "done"
    assert len(clock.slept) == times
    for number, waited in enumerate(clock.slept):
        assert 0 <= waited <= min(30.0, FIRST_WAIT_S * 2**number)


async def test_waits_use_the_whole_range() -> None:
    clock = JumpClock()
    await persist(
        failing(clock, times=400), clock=clock, rng=random.Random(1), name="stream", ceiling_s=10.0
    )
    late = clock.slept[10:]
    assert min(late) < 0.5
    assert max(late) > 9.5
    assert 4.5 < sum(late) / len(late) < 5.5


async def test_a_long_healthy_attempt_begins_the_backoff_anew() -> None:
    clock = JumpClock()
    await persist(
        failing(clock, times=30, lasting_s=31.0),
        clock=clock,
        rng=random.Random(1),
        name="stream",
        ceiling_s=30.0,
    )
    assert max(clock.slept) <= FIRST_WAIT_S


async def test_every_wait_is_told() -> None:
    clock = JumpClock()
    told: list[tuple[str, float]] = []
    await persist(
        failing(clock, times=3),
        clock=clock,
        rng=random.Random(1),
        name="rest",
        ceiling_s=30.0,
        waiting=lambda name, seconds: told.append((name, seconds)),
    )
    assert told == [("rest", waited) for waited in clock.slept]


async def test_failures_are_said_at_once_and_then_once_a_minute() -> None:
    clock = JumpClock()
    complaints = Complaints(clock=clock)
    with capture_logs() as lines:
        for name in ("time", "kline"):
            await persist(
                failing(clock, times=100),
                clock=clock,
                rng=random.Random(1),
                name=name,
                ceiling_s=2.0,
                complaints=complaints,
            )
    said = [line for line in lines if line["log_level"] == "warning"]
    waited_s = sum(clock.slept)
    assert waited_s / 60 <= len(said) <= waited_s / 60 + 1
    assert said[0]["failures"] == {"time": 1}
    assert sum(sum(line["failures"].values()) for line in said) > 150


async def test_a_spent_budget_raises_the_last_error() -> None:
    clock = JumpClock()
    with pytest.raises(FeedLost):
        await persist(
            failing(clock, times=99),
            clock=clock,
            rng=random.Random(1),
            name="http",
            ceiling_s=1.0,
            budget=RestartBudget(limit=3, window_s=600.0),
        )
    assert len(clock.slept) == 3


def test_failures_outside_the_window_are_forgiven() -> None:
    budget = RestartBudget(limit=2, window_s=60.0)
    assert [budget.allows(now) for now in (0.0, 1.0, 61.5, 62.0, 63.0)] == [
        True,
        True,
        True,
        True,
        False,
    ]


async def test_what_is_not_recoverable_is_not_retried() -> None:
    clock = JumpClock()

    async def attempt() -> None:
        raise AuditUnwritable("The disk is full; free some space.")

    with pytest.raises(AuditUnwritable):
        await persist(attempt, clock=clock, rng=random.Random(1), name="x", ceiling_s=1.0)
    assert clock.slept == []


async def forever() -> None:
    await asyncio.Event().wait()


async def test_the_end_of_the_essential_service_ends_the_others_in_good_order() -> None:
    ended: list[str] = []

    async def side() -> None:
        try:
            await forever()
        finally:
            ended.append("side")

    async def main() -> None:
        await asyncio.sleep(0)
        ended.append("main")

    supervisor = Supervisor(clock=JumpClock(), notifier=SILENT)
    await supervisor.run({"main": main, "side": side}, essential="main")
    assert ended == ["main", "side"]
    assert supervisor.stopping.is_set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_in_good_order(number: signal.Signals) -> None:
    ended: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
        try:
            await forever()
        finally:
            ended.append("main")

    await Supervisor(clock=JumpClock(), notifier=SILENT).run({"main": main}, essential="main")
    assert ended == ["main"]


async def test_a_fatal_error_ends_all_and_comes_out_bare() -> None:
    ended: list[str] = []

    async def side() -> None:
        try:
            await forever()
        finally:
            ended.append("side")

    async def main() -> None:
        await asyncio.sleep(0)
        raise AuditUnwritable("The disk is full; free some space.")

    supervisor = Supervisor(clock=JumpClock(), notifier=SILENT)
    with pytest.raises(AuditUnwritable, match="disk is full"):
        await supervisor.run({"side": side, "main": main}, essential="main")
    assert ended == ["side"]


async def test_a_side_service_that_fails_ends_the_essential_one() -> None:
    async def side() -> None:
        raise FeedStale("No data came; look at the network.")

    supervisor = Supervisor(clock=JumpClock(), notifier=SILENT)
    with pytest.raises(FeedStale):
        await supervisor.run({"side": side, "main": forever}, essential="main")


async def test_a_bug_is_not_hidden() -> None:
    async def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(BaseExceptionGroup) as caught:
        await Supervisor(clock=JumpClock(), notifier=SILENT).run({"main": main}, essential="main")
    assert caught.group_contains(ZeroDivisionError)


async def test_a_stop_before_the_start_starts_nothing() -> None:
    supervisor = Supervisor(clock=JumpClock(), notifier=SILENT)
    supervisor.stop()

    async def main() -> None:
        raise AssertionError("started")

    await supervisor.run({"main": main}, essential="main")


async def test_a_service_that_hangs_is_ended_by_the_clock() -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end_process(code: int) -> None:
        codes.append(code)
        ended.set()

    async def stubborn() -> None:
        supervisor.stop()
        while not ended.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    supervisor = Supervisor(
        clock=JumpClock(), notifier=SILENT, stop_within_s=0.05, end_process=end_process
    )
    await supervisor.run({"main": stubborn}, essential="main")
    assert codes == [1]


@pytest.fixture
def systemd(tmp_path: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(tmp_path / "notify"))
    channel.setblocking(False)
    return channel


def heard(channel: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(channel.recv(4096).decode())
        except BlockingIOError:
            return messages


async def supervised(
    systemd: socket.socket, pulse: Callable[[], object], wait_s: float
) -> list[str]:
    """Run twelve watchdog periods; return what systemd heard."""
    clock = JumpClock()
    notifier = Notifier(systemd.getsockname(), watchdog_s=30.0)
    supervisor = Supervisor(clock=clock, notifier=notifier, pulse=pulse)
    messages: list[str] = []

    async def main() -> None:
        supervisor.ready()
        supervisor.ready()  # said once, however often it is known
        supervisor.declare("ban", wait_s)
        while clock.network_s() < 120:
            messages.extend(heard(systemd))
            await asyncio.sleep(0)

    await supervisor.run({"main": main}, essential="main")
    return messages + heard(systemd)


async def test_systemd_hears_ready_alive_and_stopping(systemd: socket.socket) -> None:
    counter = iter(range(1_000))
    messages = await supervised(systemd, lambda: next(counter), wait_s=0.0)
    assert messages.count("READY=1") == 1
    assert messages.count("WATCHDOG=1") >= 12
    assert messages[-1] == "STOPPING=1"


async def test_the_watchdog_starves_where_nothing_moves(systemd: socket.socket) -> None:
    messages = await supervised(systemd, lambda: "still", wait_s=0.0)
    assert messages.count("WATCHDOG=1") == 1


async def test_a_declared_wait_counts_as_progress(systemd: socket.socket) -> None:
    messages = await supervised(systemd, lambda: "still", wait_s=600.0)
    assert messages.count("WATCHDOG=1") >= 12


def test_a_notifier_reads_what_systemd_sets() -> None:
    ours = {
        "NOTIFY_SOCKET": "/run/n",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    assert Notifier.from_environment(ours) == Notifier("/run/n", 30.0)
    assert Notifier.from_environment({**ours, "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier.from_environment({**ours, "WATCHDOG_USEC": "x"}).watchdog_s is None
    assert Notifier.from_environment({}) == Notifier("", None)


def test_a_notifier_without_a_listener_goes_on(tmp_path: Path) -> None:
    assert not Notifier().send("READY=1")
    assert not Notifier(str(tmp_path / "nobody")).send("READY=1")


def test_a_listener_that_does_not_read_blocks_nobody(systemd: socket.socket) -> None:
    notifier = Notifier(systemd.getsockname())
    assert not all(notifier.send("WATCHDOG=1") for _ in range(10_000))


def test_an_abstract_socket_is_reached() -> None:
    name = f"tracepaper-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name)
        assert Notifier("@" + name).send("READY=1", "STATUS=warm")
        assert channel.recv(4096) == b"READY=1\nSTATUS=warm"


DAEMON = """
import asyncio
from tracepaper.daemon.supervisor import Supervisor
from tests_clock import clock

async def main():
    print("up", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("closed", flush=True)

asyncio.run(Supervisor(clock=clock).run({"main": main}, essential="main"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_with_zero_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "tests_clock.py").write_text(
        "import asyncio, types\n"
        "clock = types.SimpleNamespace(network_s=lambda: 0.0, sleep=asyncio.sleep)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(timeout=8) == 0
        assert process.stdout.read() == "closed\n"
