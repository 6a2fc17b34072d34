"""Processes of the demo: the embedded exchange, and `tracepaper run` on it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import msgspec

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.session.child import end_with_parent
from tracepaper.replay.demo.race import SPEED_MIN, MarketPace, Race, ShowFiles
from tracepaper.replay.demo.screen import RaceScreen
from tracepaper.storage.database.lock import holder_of
from tracepaper.strategies.errors import DataInvalid, FeedLost, TracepaperError

PROGRAM: Final = (sys.executable, "-m", "tracepaper.daemon.cli")
POLL_S: Final = 0.05
LOOK_EVERY_S: Final = 0.1
WITHIN_S: Final = 120.0
SILENT_FOR_S: Final = 20.0
"""A daemon that stores no bar for so long, though market time passes, is given up."""
STOPS_WITHIN_S: Final = 8.0
READ_SHARE: Final = 1 / 40
"""Of the race's seconds: as long as the viewer is given to read a sentence."""


@dataclass
class Demo:
    """Everything that a demo runs: processes, files, the race and how fast it goes."""

    served: dict[str, Any]
    files: ShowFiles
    screen: RaceScreen
    pace: MarketPace
    clock: SystemClock
    http: aiohttp.ClientSession
    until_ms: int  # where the race ends, unless an incident is not over
    seconds: float  # that it should take
    port: int = 0  # of the daemon's page
    race: Race = field(default_factory=Race)
    process: asyncio.subprocess.Process | None = None
    starts: int = 0  # of the daemon
    outcomes: list[str] = field(default_factory=list)  # of the incidents, a sentence each
    is_held: bool = True  # market time stands still while the daemon starts
    is_cut: bool = False  # then silence is no sign of a slow machine
    failure: TracepaperError | None = None  # what ended the race before its time

    # ------------------------------------------------------------ the exchange

    async def control(self, call: str, **body: object) -> dict[str, Any]:
        """Make one control call of the exchange; return its answer.

        Raises ``FeedLost`` where it refuses, or does not answer.
        """
        url = f"{self.served['control_url']}/{call}"
        try:
            async with self.http.post(url, data=msgspec.json.encode(body)) as answer:
                if answer.status != HTTPStatus.OK:
                    raise FeedLost(f"The exchange refused {call}: {await answer.text()}")
                return msgspec.json.decode(await answer.read(), type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FeedLost(
                f"The embedded exchange does not answer ({error}); run the demo again."
            ) from None

    async def hold(self) -> None:
        """Let market time stand still until candles are subscribed anew, and slowly pass then."""
        self.is_held = True
        await self.control("hold")
        await self.run_at(SPEED_MIN)

    async def run_at(self, speed: float) -> None:
        """Let market time pass at *speed*."""
        answer = await self.control("speed", speed=speed)
        self.pace.set(speed, now_ms=answer["time"], now_s=self.clock.network_s())

    async def go_on(self) -> None:
        """Let market time pass as planned, now that the daemon decides."""
        await self.run_at(self.pace.planned)
        self.is_held = False

    @property
    def market_ms(self) -> int:
        """The exchange's time."""
        return self.pace.market_ms(self.clock.network_s())

    async def watch(self) -> None:
        """Read the record, show it, and choose the pace, again and again."""
        while True:
            self.poll()
            if self.race.decisions and not (self.is_held or self.is_cut):
                speed = self.pace.choose(self.race.now_ms, now_s=self.clock.network_s())
                if speed != self.pace.speed:
                    await self.run_at(speed)
            await asyncio.sleep(LOOK_EVERY_S)

    def poll(self) -> None:
        """Read what was stored since the last look, and show it."""
        self.race.poll(self.files.database)
        self.screen.show(self.race, speed=self.pace.speed, until_ms=self.until_ms)

    # ------------------------------------------------------------ the daemon

    async def start_daemon(self) -> None:
        """Start a process of the daemon; what it writes goes to the log."""
        settings = {
            "exchange.rest_url": self.served["rest_url"],
            "exchange.stream_url": self.served["stream_url"],
            "exchange.time_scale": self.pace.planned,
            "http.port": self.port,
        }
        files = ("-c", str(self.files.config), "--db", str(self.files.database))
        given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        with self.files.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*PROGRAM, "run", *files, *given),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the show, which then ends the daemon
                preexec_fn=end_with_parent,
            )
        self.starts += 1

    @property
    def page_url(self) -> str | None:
        """The address of the daemon's page; None before it is served."""
        holder = holder_of(self.files.database)
        return None if holder is None else holder.http or None

    @property
    def has_ended(self) -> bool:
        """Whether the daemon's process is gone."""
        return self.process is not None and self.process.returncode is not None

    async def stop_daemon(self) -> None:
        """Let the daemon end in good order; kill it where it does not."""
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

    async def until(self, is_so: Callable[[], bool], *, within_s: float = WITHIN_S) -> None:
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

    async def reach(self, share: float) -> None:
        """Wait until *share* of the race is over, for ``SILENT_FOR_S`` at most for a bar."""
        race = self.race
        at_ms = race.start_ms + round(share * (self.until_ms - race.start_ms))

        def has_gone_on(sequence: int) -> bool:
            return race.sequence != sequence

        while race.now_ms < at_ms:
            await self.until(partial(has_gone_on, race.sequence), within_s=SILENT_FOR_S)

    async def pause(self) -> None:
        """Give the viewer time to read."""
        await asyncio.sleep(self.seconds * READ_SHARE)

    def say(self, sentence: str, *, mark: str = "") -> None:
        """Announce *sentence*."""
        self.screen.say(sentence, mark=mark)

    def last_words(self) -> str:
        """Return why the daemon ended, as far as its log says."""
        code = self.process.returncode if self.process else None
        if code is not None and code < 0:
            return (
                f"The daemon's process was killed by signal {-code}; its log is {self.files.log}."
            )
        lines = self.files.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "The daemon's process did not start."


ENDS_WITHIN_S: Final = 5.0
LOOKED_AT_EVERY_S: Final = 0.2


@dataclass(frozen=True)
class ServedExchange:
    """The exchange's process, and what it says it serves."""

    process: subprocess.Popen[str]
    served: dict[str, Any]

    def require_alive(self) -> None:
        """Raise ``FeedLost`` where the process has ended before its time."""
        if (code := self.process.poll()) is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise FeedLost(f"The process of the embedded exchange {how}; run the demo again.")

    async def watch(self) -> None:
        """Raise ``FeedLost`` once the process has ended."""
        while True:
            self.require_alive()
            await asyncio.sleep(LOOKED_AT_EVERY_S)


@contextmanager
def exchange_beside(
    data: Sequence[str], speed: float, *, start: int | None = None, columns: Sequence[str] = ()
) -> Iterator[ServedExchange]:
    """Run the embedded exchange in a process of its own.

    Its time stands still, *start* bars into the data, until candles are subscribed. It ends with
    us, however we end: it watches the pipe that is its standard input.
    """
    command = [*PROGRAM, "exchange", "--speed", str(speed), "--hold", "--until-eof"]
    for path in data:
        command += ["--data", path]
    for text in columns:
        command += ["--columns", text]
    if start is not None:
        command += ["--start", str(start)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the daemon, which then ends the exchange
        )
        try:
            assert process.stdout is not None
            if not (line := process.stdout.readline()):
                process.wait(ENDS_WITHIN_S)
                errors.seek(0)
                raise DataInvalid(errors.read().strip() or "The embedded exchange did not start.")
            yield ServedExchange(process, json.loads(line))
        finally:
            process.terminate()
            try:
                process.communicate(timeout=ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
