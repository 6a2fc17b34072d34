"""Faults that are planted in the product: the world must find each.

    python tests/campaigns/campaign_plants.py [--seed N] [--count M] [--bars B]

It prints of each plant the law that found it and after how many histories, or that none did.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

TESTS: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "campaigns")]

from world.history import history, in_child, prepare  # noqa: E402 - after their folder
from world.spec import BURST, HOST_FAULTS, drawn  # noqa: E402

from tracepaper.daemon.broker.line import Line  # noqa: E402
from tracepaper.daemon.bybit.websocket import PublicStream  # noqa: E402
from tracepaper.daemon.feed.client import EventQueue  # noqa: E402
from tracepaper.daemon.session.daemon import Daemon  # noqa: E402
from tracepaper.storage.audit import SqlAuditLog  # noqa: E402
from tracepaper.strategies.types.decisions import Fill, Step  # noqa: E402

CENT: Final = 1_000_000
"""Units of money in a hundredth."""


def _replace(owner: type, name: str, replacement: Callable[..., Any]) -> None:
    setattr(owner, name, replacement)


def acknowledged_before_the_commit() -> None:
    """Count steps as stored before they are."""
    write = SqlAuditLog._write  # noqa: SLF001 - what is broken is private

    def early(self: SqlAuditLog, commits: Sequence[Any]) -> None:
        self._writer.settle(self._run_id, commits[-1].last + 1)
        write(self, commits)

    _replace(SqlAuditLog, "_write", early)


def answered_before_the_commit() -> None:
    """Let steps wait that a command's answer depends on."""
    may_wait = SqlAuditLog._may_wait  # noqa: SLF001 - likewise

    def later(self: SqlAuditLog, step: Step) -> bool:
        return may_wait(self, step) or self._due % 4 != 0

    _replace(SqlAuditLog, "_may_wait", later)


def a_rounded_fee() -> None:
    """Round each fee down to a cent."""
    post = Line.post

    def rounded(self: Line, fill: Fill) -> None:
        cheaper = msgspec.structs.replace(fill, fee=fill.fee // CENT * CENT)
        post(self, cheaper)

    _replace(Line, "post", rounded)


def a_task_left_behind() -> None:
    """Begin a task with each stream that nobody ends."""
    run = PublicStream.run

    async def forgetful(self: PublicStream) -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(1e9))
        await run(self)

    _replace(PublicStream, "run", forgetful)


def an_error_nobody_handles() -> None:
    """Let a callback of the loop fail."""
    run = PublicStream.run

    async def failing(self: PublicStream) -> None:
        asyncio.get_running_loop().call_later(3, lambda: 1 / 0)
        await run(self)

    _replace(PublicStream, "run", failing)


def a_stop_that_takes_half_a_minute() -> None:
    """Wait at the end of each service."""
    serve = Daemon._serve  # noqa: SLF001 - likewise

    async def slow(self: Daemon, audit: SqlAuditLog) -> None:
        try:
            await serve(self, audit)
        finally:
            await asyncio.sleep(30)

    _replace(Daemon, "_serve", slow)


def a_start_that_waits_too_long() -> None:
    """Wait a quarter of an hour before each service."""
    serve = Daemon._serve  # noqa: SLF001 - likewise

    async def late(self: Daemon, audit: SqlAuditLog) -> None:
        await asyncio.sleep(1_000)
        await serve(self, audit)

    _replace(Daemon, "_serve", late)


def a_real_thread() -> None:
    """Start a thread, which no seed determines."""
    run = PublicStream.run

    async def threaded(self: PublicStream) -> None:
        threading.Thread(target=print, name="real").start()
        await run(self)

    _replace(PublicStream, "run", threaded)


def a_real_process() -> None:
    """Start a process, which no seed determines."""
    run = PublicStream.run

    async def with_process(self: PublicStream) -> None:
        subprocess.Popen(["true"])  # noqa: ASYNC220 - what must be refused
        await run(self)

    _replace(PublicStream, "run", with_process)


def a_full_queue_that_raises() -> None:
    """Raise where the queue of the feed has no room."""

    def raising(self: EventQueue[Any], item: object, *, share: float = 1.0) -> bool:
        if self.qsize() >= self.limit * share:
            raise asyncio.QueueFull
        self.put_nowait(item)
        return True

    _replace(EventQueue, "try_put", raising)


PLANTS: Final[Mapping[Callable[[], None], str]] = {
    acknowledged_before_the_commit: "acknowledged",
    answered_before_the_commit: "commands",
    a_rounded_fee: "ledger",
    a_task_left_behind: "left",
    an_error_nobody_handles: "unhandled",
    a_stop_that_takes_half_a_minute: "stop",
    a_start_that_waits_too_long: "recovery",
    a_real_thread: "end",
    a_real_process: "end",
    a_full_queue_that_raises: "end",
}
"""Each fault, and the law that must find it."""


def find(plant: Callable[[], None], base: Path, seeds: Sequence[int], bars: int) -> str:
    """Return the law that *plant* broke in the first history that showed it; else nothing."""
    plant()
    for number, seed in enumerate(seeds, start=1):
        # Many commands, kills and bursts: a fault shows where one meets the other.
        spec = drawn(seed, bars=bars)
        rates = {**spec.rates, BURST: 3.0}
        spec = msgspec.structs.replace(spec, host=HOST_FAULTS, command_bars=0.5, rates=rates)
        outcome = history(spec, base / plant.__name__)
        laws = {each.law for each in outcome.violations}
        if PLANTS[plant] in laws:
            return f"{PLANTS[plant]} after {number}"
    return ""


def main() -> int:
    """Plant each fault; return 1 where one was not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1_000)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--bars", type=int, default=30)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    base = Path(tempfile.mkdtemp(prefix="planted-"))
    prepare(base / "prepared")
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    missed = 0
    for plant in PLANTS:
        law = in_child(partial(find, plant, base, seeds, arguments.bars))
        missed += not law
        print(f"{plant.__name__}: {law or 'not found'}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
