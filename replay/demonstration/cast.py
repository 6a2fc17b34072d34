"""What is on the stage: the exchange, the daemon's process, the race, and how fast it goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import msgspec

from tracepaper.daemon.clock import SystemClock
from tracepaper.replay.demonstration import told
from tracepaper.replay.demonstration.files import ShowFiles
from tracepaper.replay.demonstration.pace import FIRST_SPEED, SPEED_MIN, MarketPast, Pacer
from tracepaper.replay.demonstration.process import Assignment, PaceSaid
from tracepaper.replay.demonstration.race import Race
from tracepaper.replay.demonstration.stage import Stage
from tracepaper.strategies.errors import FeedLost, TracepaperError

POLL_S: Final = 0.05
COMES_WITHIN_S: Final = 120.0
SILENT_FOR_S: Final = 20.0
"""A daemon that stores no bar for so long, though market time passes, is given up."""
STOPS_WITHIN_S: Final = 8.0
LOOK_SHARE: Final = 1 / 40
"""Of the race's seconds: as long as the viewer is given to read a sentence."""
FOLLOWS_WITHIN_S: Final = 1.0
LINE_BYTES_MAX: Final = 1 << 20


@dataclass
class Cast:
    """Everything that is on the stage: processes, files, the race and how fast it goes."""

    served: dict[str, Any]
    files: ShowFiles
    stage: Stage
    race: Race
    pacer: Pacer
    clock: SystemClock
    http: aiohttp.ClientSession
    settings: dict[str, dict[str, Any]]
    until_ms: int
    speed: float = FIRST_SPEED  # of the exchange
    process: asyncio.subprocess.Process | None = None
    now: str = "starting the daemon"
    outcomes: list[str] = field(default_factory=list)  # of the incidents, a sentence each
    reading: asyncio.Task[None] | None = None
    is_held: bool = True  # market time stands still while the daemon starts
    followed: asyncio.Event = field(default_factory=asyncio.Event)  # the last pace that was told
    past: MarketPast = field(default_factory=MarketPast)
    failure: TracepaperError | None = None  # what ended the race before its time

    # ------------------------------------------------------------ the exchange

    async def control(self, call: str, body: object = None) -> dict[str, Any]:
        """Make one control call of the exchange; return its answer.

        Raises ``FeedLost`` where it refuses, or does not answer.
        """
        url = f"{self.served['control_url']}/{call}"
        content = msgspec.json.encode({} if body is None else body)
        try:
            async with self.http.post(url, data=content) as answer:
                if answer.status != HTTPStatus.OK:
                    raise FeedLost(f"The exchange refused {call}: {await answer.text()}")
                return msgspec.json.decode(await answer.read(), type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FeedLost(
                f"The embedded exchange does not answer ({error}); run the demo again."
            ) from None

    async def hold(self) -> None:
        """Let market time stand still until candles are subscribed anew."""
        self.is_held = True
        await self.control("hold")

    async def run_at(self, speed: float) -> None:
        """Let market time pass at *speed*, for the exchange and for the daemon's clock.

        The daemon's clock is never the faster one: frames move it ahead, but what is ahead of the
        exchange stays so until its time is read again, and every bar would look late.
        """
        slower, self.speed = speed < self.speed, speed
        self.followed.clear()
        if not slower:
            await self._pace_exchange(speed)
        self._tell_daemon(PaceSaid(speed))
        if slower:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FOLLOWS_WITHIN_S):
                    await self.followed.wait()
            await self._pace_exchange(speed)

    async def _pace_exchange(self, speed: float) -> None:
        answer = await self.control("speed", PaceSaid(speed))
        self.past.change(speed, now_ms=answer["time"], now_s=self.clock.network_s())

    async def follow(self) -> None:
        """Let the clock of a daemon that has just begun follow the exchange's."""
        await self._pace_exchange(self.speed)
        self._tell_daemon(PaceSaid(self.speed))
        self.pacer.observe(0.0, now_s=self.clock.network_s())
        self.is_held = False

    def _tell_daemon(self, said: Assignment | PaceSaid) -> None:
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(ConnectionError):  # it was killed in this moment
                self.process.stdin.write(msgspec.json.encode(said) + b"\n")

    # ------------------------------------------------------------ the daemon

    async def start_daemon(self) -> None:
        """Start a process of the daemon and read what it tells; its log goes to the file."""
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        with self.files.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tracepaper.replay.demonstration.process",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the show, which then ends the daemon
                limit=LINE_BYTES_MAX,
                env=environment,
            )
        self._tell_daemon(
            Assignment(
                str(self.files.database),
                str(self.files.config),
                self.settings,
                SPEED_MIN,  # market time stands still: its clock would be ahead before the start
                self.until_ms,
            )
        )
        self.reading = asyncio.create_task(self._read(self.process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Take in every line until the process has ended."""
        assert process.stdout is not None
        async for line in process.stdout:
            try:
                said = told.read(line)
            except msgspec.DecodeError:  # cut short: it was killed while it wrote
                continue
            if isinstance(said, told.Paced):
                self.followed.set()
            self.race.observe(said)
            if isinstance(said, told.BarTold) and said.is_decided and not self.is_held:
                now_s = self.clock.network_s()
                lag_s = self.past.seconds_since(said.close_ms, now_s=now_s)
                self.pacer.observe(lag_s, now_s=now_s)
        await process.wait()

    @property
    def has_ended(self) -> bool:
        """Whether the daemon's process is gone, and all that it told is taken in."""
        return self.reading is not None and self.reading.done()

    async def stop_daemon(self) -> None:
        """Let the daemon end in good order; kill it where it does not."""
        if self.process is None or self.process.stdin is None:
            return
        with contextlib.suppress(ConnectionError):
            self.process.stdin.close()
        try:
            async with asyncio.timeout(STOPS_WITHIN_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    # ------------------------------------------------------------ waiting

    async def until(self, is_so: Callable[[], bool], *, within_s: float = COMES_WITHIN_S) -> None:
        """Wait until *is_so*; raise ``FeedLost`` where the daemon ends before, or it never is.

        Time in which the show itself was stopped (Ctrl-Z, a terminal that takes nothing) is not
        counted.
        """
        for _ in range(round(within_s / POLL_S)):
            if is_so():
                return
            if self.has_ended:
                raise FeedLost(self.last_words())
            await asyncio.sleep(POLL_S)
        raise FeedLost(
            f"What the demo waits for did not come in {within_s:.0f} s; see "
            f"{self.files.log}, and run it again on a machine that is less busy."
        )

    async def reach(self, share: float) -> bool:
        """Wait until *share* of the race is over; return False where the whole race is.

        Raises ``FeedLost`` where the daemon ends before, or no bar comes for ``SILENT_FOR_S``.
        """
        race, at_ms = self.race, self.place(share)
        seen, silent_s = race.sequence, 0.0
        while race.now_ms < at_ms and not self.has_ended:
            if race.sequence != seen:
                seen, silent_s = race.sequence, 0.0
            elif silent_s > SILENT_FOR_S:
                raise FeedLost(f"No bar came for {SILENT_FOR_S:.0f} s; see {self.files.log}.")
            await asyncio.sleep(POLL_S)
            silent_s += POLL_S
        if race.now_ms < at_ms:
            raise FeedLost(self.last_words())
        return not self.has_ended

    def place(self, share: float) -> int:
        """Return the market time at which *share* of the race is over."""
        return self.race.start_ms + round(share * (self.until_ms - self.race.start_ms))

    @property
    def market_ms(self) -> int:
        """The exchange's time."""
        return self.past.market_ms(now_s=self.clock.network_s())

    async def look(self) -> None:
        """Give the viewer time to read."""
        await asyncio.sleep(self.pacer.seconds * LOOK_SHARE)

    def say(self, sentence: str, *, mark: str = "") -> None:
        """Announce *sentence*, and let it stand below the race until the next one."""
        self.now = sentence
        self.stage.say(sentence, mark=mark)

    def last_words(self) -> str:
        """Return why the daemon ended, as far as its log says."""
        code = self.process.returncode if self.process else None
        if code is not None and code < 0:
            return (
                f"The daemon's process was killed by signal {-code}; its log is {self.files.log}."
            )
        said = self.files.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return said[-1] if said else "The daemon's process did not start."
