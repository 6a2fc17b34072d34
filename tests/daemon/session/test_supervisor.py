"""Declared waits, signals, systemd and the orderly stop."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from bybit_server import ScriptedServer
from daemon_under_test import daemon
from fakes import JumpClock
from structlog.testing import capture_logs
from user_strategies import importable, source
from waiting import deadline

from tracepaper.daemon.session.background import Companion
from tracepaper.daemon.session.supervisor import Notifier, Supervisor
from tracepaper.strategies.errors import AuditUnwritable, StrategyFailed

SILENT = Notifier()
ENDLESS = 1 << 46
"""A stack size that no address space can hold, so that no thread can be started."""


async def forever() -> None:
    await asyncio.Event().wait()


async def test_an_error_beside_the_service_ends_it_and_is_no_orderly_stop() -> None:
    class Breaks(Companion):
        async def _work(self) -> None:
            raise AuditUnwritable("It cannot be stored.")

    supervisor = Supervisor(clock=JumpClock(), notifier=SILENT)

    async def main() -> None:
        async with Breaks().in_background(supervisor.stop):
            await forever()

    with pytest.raises(AuditUnwritable, match="cannot be stored"):
        await supervisor.run(main)


async def signalled(
    spend: Callable[[], object], notifier: Notifier, number: int = signal.SIGTERM
) -> list[str]:
    """Run a service that exhausts a resource and is then stopped; return the ended process."""
    ended: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
        spend()
        try:
            await forever()
        finally:
            ended.append("main")

    async with deadline():
        await Supervisor(clock=JumpClock(), notifier=notifier).run(main)
    return ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_in_good_order(number: signal.Signals) -> None:
    assert await signalled(lambda: None, SILENT, number) == ["main"]


async def test_a_signal_is_obeyed_where_no_thread_can_be_started() -> None:
    usual = threading.stack_size()
    try:
        ended = await signalled(lambda: threading.stack_size(ENDLESS), SILENT)
        with pytest.raises(RuntimeError, match="new thread"):
            threading.Thread(target=print).start()
    finally:
        threading.stack_size(usual)
    assert ended == ["main"]


async def test_a_signal_is_obeyed_where_no_descriptor_is_left(systemd: socket.socket) -> None:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        ended = await signalled(
            lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (0, usual[1])),
            Notifier(systemd.getsockname()),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert ended == ["main"]


@pytest.mark.parametrize("error", [AuditUnwritable("The disk is full."), ZeroDivisionError()])
async def test_a_stop_that_comes_while_an_error_unwinds_does_not_hide_it(error: Exception) -> None:
    supervisor = Supervisor(clock=JumpClock(), notifier=SILENT)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.Event().wait)  # like a socket that closes slowly
            stack.push(supervisor.keep_failure)
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
            raise error

    with pytest.raises(type(error)) as caught:
        await supervisor.run(main)
    assert caught.value is error


FAILS = """
self.bars = getattr(self, "bars", 0) + 1
if self.bars == 3:
    os.kill(os.getpid(), signal.SIGTERM)
    raise ValueError("no side")
return by(True)
"""


async def test_a_strategy_that_fails_in_the_step_of_a_stop_is_said(tmp_path: Path) -> None:
    text = source(top="import os, signal", head="warmup = 1", decide=FAILS)
    (tmp_path / "fails_at_stop.py").write_text(text)
    chosen = {"name": "fails_at_stop:Mine"}
    with importable(tmp_path):
        async with (
            ScriptedServer() as server,
            daemon(server, tmp_path / "run.db", strategy=chosen) as running,
        ):
            with pytest.raises(StrategyFailed, match="no side"):
                await running.close_bars(4)
    assert running.decided() == 2


async def test_a_stop_before_the_start_starts_nothing() -> None:
    supervisor = Supervisor(clock=JumpClock(), notifier=SILENT)
    supervisor.stop()
    started: list[str] = []

    async def main() -> None:
        started.append("main")

    await supervisor.run(main)
    assert started == []


@pytest.mark.sockets
async def test_a_service_that_hangs_is_ended_by_the_clock() -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    codes: list[int] = []

    def end_process(code: int) -> None:
        codes.append(code)
        loop.call_soon_threadsafe(ended.set_result, None)

    async def inner() -> None:
        while not ended.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(ended)

    async def stubborn() -> None:
        supervisor.stop()
        await inner()

    supervisor = Supervisor(
        clock=JumpClock(), notifier=SILENT, stop_within_s=0.2, end_process=end_process
    )
    with capture_logs() as logged:
        await supervisor.run(stubborn)
    assert codes == [1]
    (line,) = logged
    assert line["event"] == "stop took too long"
    phases = " ".join(line["hanging"])
    assert ".stubborn:" in phases
    assert ".inner:" in phases
    assert line["running"]


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
    """Run twelve watchdog periods; return the messages to systemd."""
    clock = JumpClock()
    notifier = Notifier(systemd.getsockname(), watchdog_s=30.0)
    supervisor = Supervisor(clock=clock, notifier=notifier, pulse=pulse)
    messages: list[str] = []

    async def main() -> None:
        supervisor.ready()
        supervisor.ready()  # sent once, however often it is called
        supervisor.declare("ban", wait_s)
        while clock.network_s() < 120:
            messages.extend(heard(systemd))
            await asyncio.sleep(0)

    await supervisor.run(main)
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
    for odd in ("x", "\u00b2", "-1", ""):  # the second is a digit but no number
        assert Notifier.from_environment({**ours, "WATCHDOG_USEC": odd}).watchdog_s is None
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
