"""A demo on its way: its files, its run as the record grows, and the pace of both its sides."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tracepaper.daemon.session.child import end_with_parent
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.exchange.server import EmbeddedExchange
from tracepaper.storage.database.lock import holder_of
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid, FeedLost
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import Bar, Gap
from tracepaper.strategies.units import DAY_MS, MONEY_SCALE, iso

SLOW: Final = 500.0
"""Market seconds per second while a daemon starts or catches up."""
FASTEST: Final = 30_000.0
SLOWER: Final = 0.8
BEHIND_S: Final = 0.3
BEHIND_INTERVALS: Final = 3
"""The machine is behind if a bar is stored later after its close than both of these."""
POLL_S: Final = 0.05
WITHIN_S: Final = 120.0
SILENT_FOR_S: Final = 20.0
"""Seconds without a stored bar, while market time passes, after which the demo gives up."""
STOPS_WITHIN_S: Final = 8.0
READ_SHARE: Final = 1 / 40
"""Share of the race's seconds that the viewer gets to read a sentence."""
STYLES: Final = {"▶": "bold yellow", "✓": "bold green", "✗": "bold red"}


@dataclass(frozen=True)
class ShowFiles:
    """The demo's files: the record, its configuration, the daemon's log."""

    database: Path

    @classmethod
    def at(cls, database: Path | None, wall_ms: int) -> ShowFiles:
        """Return new files, by default named by time: ``demo-20250501-120000.db``.

        Raises ``DataInvalid`` if there is a record or a configuration of that name.
        """
        digits = iso(wall_ms)[:19].replace(":", "").replace("-", "").replace("T", "-")
        files = cls(database or Path(f"demo-{digits}.db"))
        for path in (files.database, files.config):
            if path.exists():
                raise DataInvalid(f"{path} exists already; give another --db, or remove it.")
        return files

    @property
    def config(self) -> Path:
        """The configuration, with which the run can be repeated."""
        return self.database.with_suffix(".toml")

    @property
    def log(self) -> Path:
        """The log lines of the daemon's processes."""
        return self.database.with_suffix(".log")


@dataclass(slots=True)
class Race:
    """The state of a demo's run, from the steps stored so far."""

    sequence: int = -1  # of the newest step
    start_ms: int = 0  # close of the first decided bar
    now_ms: int = 0  # close of the newest
    closes_ms: dict[str, int] = field(default_factory=dict)  # of the newest of each instrument
    equity: float = 0.0  # quote currency
    fills: int = 0
    gaps: list[Gap] = field(default_factory=list)
    decisions: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # decisions by the gate that refused
    _reader: Reader | None = None

    def has_passed(self, time_ms: int) -> bool:
        """Return whether each instrument has a decided bar that closed at *time_ms* or later."""
        return min(self.closes_ms.values()) >= time_ms

    def poll(self, database: Path) -> None:
        """Read the steps that the run in *database* stored since the last poll."""
        if self._reader is None:
            try:
                self._reader = Reader.open(database)
            except DataInvalid:
                return  # the daemon has not created it yet
        for run_id in self._reader.run_ids()[-1:]:
            for step in self._reader.steps(run_id, after=self.sequence):
                self.observe(step)

    def close(self) -> None:
        """Close the database."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def observe(self, step: Step) -> None:
        """Update the state with the next *step*."""
        self.sequence = step.sequence
        if isinstance(step.event, Gap):
            self.gaps.append(step.event)
        elif isinstance(step.event, Bar) and step.accepted and step.decision is not None:
            self.now_ms = max(self.now_ms, step.event.close_time_ms)
            self.start_ms = self.start_ms or step.event.close_time_ms
            self.closes_ms[step.event.instrument] = step.event.close_time_ms
            self.decisions += 1
            self.refused[step.decision.refused_by or ""] += 1
            self.equity = step.account.equity / MONEY_SCALE
            self.fills += len(step.fills)


class RaceScreen:
    """Prints sentences; on a terminal it redraws the race's progress line below them."""

    def __init__(self, console: Console | None = None) -> None:
        """Draw on *console*, by default on standard error."""
        self._console = console or Terminal(stderr=True, highlight=False)
        is_drawn = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False) if is_drawn else None
        if self._live is not None:
            self._live.start()

    def say(self, sentence: str, *, mark: str = "") -> None:
        """Print *sentence* above the progress line."""
        text = Text.assemble((f"{mark or '-'} ", STYLES.get(mark, "")), sentence)
        self._console.print(text, soft_wrap=True)

    def show(self, race: Race, *, speed: float, until_ms: int) -> None:
        """Redraw the progress line: the date, the day of the race, and the account."""
        if self._live is None or not race.start_ms:
            return
        now = datetime.fromtimestamp(race.now_ms / 1_000, UTC)
        elapsed, total = ((at - race.start_ms) / DAY_MS for at in (race.now_ms, until_ms))
        line = (
            f"  tracepaper demo  {now:%Y-%m-%d %H:%M} UTC  day {elapsed:.1f} of {total:.1f}"
            f"  {race.decisions:,} decisions  {race.fills:,} fills  {race.equity:,.2f}"
            f"  {speed:,.0f} x real time"
        )
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def close(self) -> None:
        """Keep the last progress line and restore the cursor."""
        if self._live is not None:
            self._live.stop()


@dataclass
class Demo:
    """A demo's exchange, daemon, files and screen; the race lasts until ``until_ms``.

    ``speed`` is the planned one, in market seconds per second, and ``seconds`` the planned time.
    """

    exchange: EmbeddedExchange
    files: ShowFiles
    screen: RaceScreen
    interval_ms: int
    until_ms: int
    speed: float
    seconds: float
    port: int = 0  # of the daemon's page
    pace: float = 0.0  # the speed that the machine keeps up with, as far as is known
    race: Race = field(default_factory=Race)
    process: asyncio.subprocess.Process | None = None
    starts: int = 0  # of the daemon
    outcomes: list[str] = field(default_factory=list)  # of the incidents, a sentence each
    is_held: bool = True  # market time is stopped while the daemon starts
    is_cut: bool = False  # the stream is cut, so silence does not mean a slow machine

    # ------------------------------------------------------------ market time

    def hold(self) -> None:
        """Stop market time until candles are subscribed again; then let it pass slowly."""
        self.is_held = True
        self.exchange.clock.hold()
        self._run_at(SLOW)

    def go_on(self) -> None:
        """Let market time pass at the planned speed, once the daemon decides."""
        self.is_held, self.pace = False, self.pace or self.speed
        self._run_at(self.pace)

    def _run_at(self, speed: float) -> None:
        self.exchange.clock.set_speed(speed)
        self.exchange.hub.wake()

    async def watch(self) -> None:
        """Read the record, show it and choose the pace, until cancelled."""
        while True:
            self.poll()
            if self.race.decisions and not (self.is_held or self.is_cut):
                self.keep_pace()
            await asyncio.sleep(2 * POLL_S)

    def keep_pace(self) -> None:
        """Slow market time down while the machine is behind, until it has caught up.

        Each time that happens, market time goes on more slowly than before.
        """
        clock = self.exchange.clock
        was_behind = clock.speed == SLOW
        limit_ms = float(self.interval_ms)
        if not was_behind:
            limit_ms = max(BEHIND_INTERVALS * limit_ms, BEHIND_S * 1_000 * clock.speed)
        is_behind = clock.now_ms() - self.race.now_ms - self.interval_ms > limit_ms
        if is_behind and not was_behind:
            self.pace = max(SLOW, self.pace * SLOWER)
            self._run_at(SLOW)
        elif was_behind and not is_behind:
            self._run_at(self.pace)

    def poll(self) -> None:
        """Read the steps stored since the last poll, and show the race."""
        self.race.poll(self.files.database)
        self.screen.show(self.race, speed=self.exchange.clock.speed, until_ms=self.until_ms)

    # ------------------------------------------------------------ the daemon

    async def start_daemon(self) -> None:
        """Start the daemon's process; its output goes to the log."""
        settings = {
            "exchange.rest_url": self.exchange.rest_url,
            "exchange.stream_url": self.exchange.stream_url,
            "exchange.time_scale": self.speed,
            "http.port": self.port,
        }
        command = [sys.executable, "-m", "tracepaper.daemon.cli", "run"]
        command += ["-c", str(self.files.config), "--db", str(self.files.database)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        with self.files.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the demo, which then ends the daemon
                preexec_fn=end_with_parent,
            )
        self.starts += 1

    @property
    def page_url(self) -> str | None:
        """The address of the daemon's page; None before it is served."""
        holder = holder_of(self.files.database)
        return None if holder is None else holder.http or None

    async def stop_daemon(self) -> None:
        """Terminate the daemon; kill it if it does not end in time."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOPS_WITHIN_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    # ------------------------------------------------------------ waiting

    async def until(self, condition: Callable[[], bool], *, within_s: float = WITHIN_S) -> None:
        """Wait until *condition*; raise ``FeedLost`` if the daemon ends or time runs out first.

        Time in which the demo itself was stopped (Ctrl-Z, a blocked terminal) is not counted.
        """
        for _ in range(round(within_s / POLL_S)):
            if condition():
                return
            if self.process is not None and self.process.returncode is not None:
                raise FeedLost(f"The daemon's process ended early; its log is {self.files.log}.")
            await asyncio.sleep(POLL_S)
        raise FeedLost(
            f"The demo waited {within_s:.0f} s in vain; see {self.files.log}, and run it again on "
            "a machine that is less busy."
        )

    async def reach(self, share: float) -> None:
        """Wait until *share* of the race is over, at most ``SILENT_FOR_S`` for each step."""
        race = self.race
        at_ms = race.start_ms + round(share * (self.until_ms - race.start_ms))

        def has_new_step(sequence: int) -> bool:
            return race.sequence != sequence

        while race.now_ms < at_ms:
            await self.until(partial(has_new_step, race.sequence), within_s=SILENT_FOR_S)

    async def pause(self) -> None:
        """Give the viewer time to read."""
        await asyncio.sleep(self.seconds * READ_SHARE)
