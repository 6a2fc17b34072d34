"""``DailyParity``: replays the run's last day from its record, in a separate process.

No decision waits for it. The result is an event of the run: ``identical 1440 of 1440``, the first
difference with its cause, or the reason why the day could not be replayed.

The rules are docs/operations.md, O21 to O24.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.sections import ParitySection
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import Companion
from tracepaper.daemon.session.child import ChildFailed, ChildProcess, StartProcess, TimeLimits
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.types.market import Bar, Event, ParityCheck, ParityOutcome
from tracepaper.strategies.units import DAY_MS, day_text, time_of, time_of_day_ms

OFF: Final = "off"
PROGRAM = (sys.executable, "-m", "tracepaper.daemon.cli", "parity")
"""The process that replays: the same command that a user may run."""

log = Logger("parity")


class DailyParity(Companion):
    """Checks each UTC day of a run once it is over.

    The check starts with the first bar that closes at or after *section*'s time of the next day.
    After several days without the daemon only the last one is checked.
    """

    key = "parity"

    def __init__(
        self,
        section: ParitySection,
        database: Path,
        run: RunRow,
        submit: Callable[[Event], Awaitable[int]],
        clock: Clock,
        *,
        start_process: StartProcess = ChildProcess,
    ) -> None:
        self._is_due = asyncio.Event()
        self._start_process = start_process
        self.is_checking = False
        with Reader.open(database) as reader:
            is_stored = run.run_id in reader.run_ids()  # a new run is stored with its first steps
            self.last = reader.newest_of(run.run_id, ParityCheck) if is_stored else None
        self._section, self._database, self._run = section, database, run
        self._submit, self._clock = submit, clock
        self._at_ms = time_of_day_ms(section.daily_at)
        self._newest: Bar | None = None  # the newest stored bar after the day to check

    @property
    def _since_ms(self) -> int:
        """The end of the last checked day; the run's start before the first check."""
        return self._run.period_start_ms if self.last is None else self.last.until_ms

    @property
    def _until_ms(self) -> int:
        """The end of the next day to check."""
        return (self._since_ms // DAY_MS + 1) * DAY_MS

    @property
    def due_ms(self) -> int:
        """The earliest market time of the next check."""
        return self._until_ms + self._at_ms

    def status(self) -> dict[str, object]:
        """Return whether a check runs, the unchecked time's start, the next check, the last one."""
        return {
            "checking": self.is_checking,
            "since_ms": self._since_ms,
            "due_ms": self.due_ms,
            "last": msgspec.to_builtins(self.last),
        }

    def observe(self, step: Step) -> None:
        """Start a check once a stored bar of the next day reaches its due time."""
        bar = step.event
        if isinstance(bar, Bar) and step.accepted and bar.open_time_ms >= self._until_ms:
            self._newest = bar
            if bar.market_ms >= self.due_ms:
                self._is_due.set()

    async def _work(self) -> None:
        while True:
            await self._is_due.wait()
            await self._check_day_before()
            self._is_due.clear()  # only now: meanwhile bars were compared with the old due_ms

    async def _check_day_before(self) -> None:
        self.is_checking = True
        try:
            check = await self._check(self._day_before())
        finally:
            self.is_checking = False
        now_ms = self._clock.market_ms()
        event = msgspec.structs.replace(check, market_ms=now_ms, seen_ms=now_ms)
        await self._submit(event)
        self.last = event
        is_identical = event.outcome is ParityOutcome.IDENTICAL
        (log.info if is_identical else log.warning)("parity", result=event.reason)

    def _day_before(self) -> int:
        """Return the start of the last finished day in which a bar opened."""
        bar = self._newest
        assert bar is not None, "a bar has made the check due"
        before_ms = min(bar.market_ms - self._at_ms - DAY_MS, bar.open_time_ms - bar.interval_ms)
        return before_ms // DAY_MS * DAY_MS

    async def _check(self, from_ms: int) -> ParityCheck:
        """Replay the day that began at *from_ms*, in a separate process."""
        until_ms = from_ms + DAY_MS
        limit = self._section.time_limit
        command = (
            *(*PROGRAM, self._run.run_id, "--day", day_text(from_ms)),
            *("--db", str(self._database), "--service"),
        )
        limits = TimeLimits((time_of(limit) or 0) / 1000, f"parity.time_limit, {limit}")
        try:
            async with self._start_process("replay", command, limits) as child:
                result = await child.ask(ParityCheck)
        except ChildFailed as error:
            return unchecked(from_ms, until_ms, str(error))
        return msgspec.structs.replace(result, from_ms=from_ms, until_ms=until_ms)


def unchecked(from_ms: int, until_ms: int, reason: str) -> ParityCheck:
    """Return the check of a period that could not be replayed, for *reason*."""
    period = day_text(from_ms) if until_ms - from_ms == DAY_MS else "the run"
    sentence = f"{period} could not be replayed: {reason.rstrip('.')}"
    return ParityCheck(ParityOutcome.FAILED, sentence, from_ms, until_ms, 0, 0, 0)
