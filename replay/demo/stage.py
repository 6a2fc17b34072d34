"""A demo on its way: the exchange in this process, the daemon in its own, and the pace of both."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tracepaper.daemon.session.child import end_with_parent
from tracepaper.replay.demo.race import Race, ShowFiles
from tracepaper.replay.demo.screen import RaceScreen
from tracepaper.replay.exchange.server import EmbeddedExchange
from tracepaper.storage.database.lock import holder_of
from tracepaper.strategies.errors import FeedLost

SLOW: Final = 500.0
"""Market seconds per second while a daemon starts or catches up."""
FASTEST: Final = 30_000.0
SLOWER: Final = 0.7
FASTER: Final = 1.02
BEHIND_S: Final = 0.3
BEHIND_INTERVALS: Final = 3
"""The machine is behind if a bar is stored later after its close than both of these."""
POLL_S: Final = 0.05
WATCH_EVERY_S: Final = 0.1
WITHIN_S: Final = 120.0
SILENT_FOR_S: Final = 20.0
"""Seconds without a stored bar, while market time passes, after which the demo gives up."""
STOPS_WITHIN_S: Final = 8.0
READ_SHARE: Final = 1 / 40
"""Share of the race's seconds that the viewer gets to read a sentence."""


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
    ceiling: float = math.inf  # the speed that the machine keeps up with, as far as is known
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
        self.is_held = False
        self._run_at(self.speed)

    def _run_at(self, speed: float) -> None:
        self.exchange.clock.set_speed(speed)
        self.exchange.hub.wake()

    async def watch(self) -> None:
        """Read the record, show it and choose the pace, until cancelled."""
        while True:
            self.poll()
            if self.race.decisions and not (self.is_held or self.is_cut):
                self.keep_pace()
            await asyncio.sleep(WATCH_EVERY_S)

    def keep_pace(self) -> None:
        """Slow market time down while the machine is behind, until it has caught up.

        Each time that happens, market time goes on more slowly than before, and then speeds up.
        """
        clock = self.exchange.clock
        was_behind = clock.speed == SLOW
        limit_ms = float(self.interval_ms)
        if not was_behind:
            limit_ms = max(BEHIND_INTERVALS * limit_ms, BEHIND_S * 1_000 * clock.speed)
        if clock.now_ms() - self.race.now_ms - self.interval_ms > limit_ms:
            if not was_behind:
                self.ceiling = max(SLOW, clock.speed * SLOWER)
                self._run_at(SLOW)
            return
        self.ceiling = min(self.speed, self.ceiling * FASTER)
        if clock.speed != self.ceiling:
            self._run_at(self.ceiling)

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

    def say(self, sentence: str, *, mark: str = "") -> None:
        """Print *sentence* above the race."""
        self.screen.say(sentence, mark=mark)
