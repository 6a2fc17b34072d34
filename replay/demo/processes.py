"""The demo's processes: the embedded exchange, and `tracepaper run` connected to it."""

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
WATCH_EVERY_S: Final = 0.1
WITHIN_S: Final = 120.0
SILENT_FOR_S: Final = 20.0
"""Seconds without a stored bar, while market time passes, after which the demo gives up."""
STOPS_WITHIN_S: Final = 8.0
READ_SHARE: Final = 1 / 40
"""Share of the race's seconds that the viewer gets to read a sentence."""


@dataclass
class Demo:
    """A demo's processes, files, screen, race and pace."""

    served: dict[str, Any]
    files: ShowFiles
    screen: RaceScreen
    pace: MarketPace
    clock: SystemClock
    http: aiohttp.ClientSession
    until_ms: int  # market time at which the race ends, if no incident is in progress
    seconds: float  # planned duration of the race
    port: int = 0  # of the daemon's page
    race: Race = field(default_factory=Race)
    process: asyncio.subprocess.Process | None = None
    starts: int = 0  # of the daemon
    outcomes: list[str] = field(default_factory=list)  # of the incidents, a sentence each
    is_held: bool = True  # market time is stopped while the daemon starts
    is_cut: bool = False  # the stream is cut, so silence does not mean a slow machine
    failure: TracepaperError | None = None  # the error that ended the race early

    # ------------------------------------------------------------ the exchange

    async def control(self, call: str, **body: object) -> dict[str, Any]:
        """Send one control call to the exchange and return its answer.

        Raises ``FeedLost`` if the exchange refuses the call or does not answer.
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
        """Stop market time until candles are subscribed again; then let it pass slowly."""
        self.is_held = True
        await self.control("hold")
        await self.run_at(SPEED_MIN)

    async def run_at(self, speed: float) -> None:
        """Set the speed of market time."""
        answer = await self.control("speed", speed=speed)
        self.pace.set(speed, now_ms=answer["time"], now_s=self.clock.network_s())

    async def go_on(self) -> None:
        """Set market time to the planned speed, once the daemon decides."""
        await self.run_at(self.pace.planned)
        self.is_held = False

    @property
    def market_ms(self) -> int:
        """The exchange's time."""
        return self.pace.market_ms(self.clock.network_s())

    async def watch(self) -> None:
        """Read the record, show it and choose the pace, until cancelled."""
        while True:
            self.poll()
            if self.race.decisions and not (self.is_held or self.is_cut):
                speed = self.pace.choose(self.race.now_ms, now_s=self.clock.network_s())
                if speed != self.pace.speed:
                    await self.run_at(speed)
            await asyncio.sleep(WATCH_EVERY_S)

    def poll(self) -> None:
        """Read the steps stored since the last poll, and show the race."""
        self.race.poll(self.files.database)
        self.screen.show(self.race, speed=self.pace.speed, until_ms=self.until_ms)

    # ------------------------------------------------------------ the daemon

    async def start_daemon(self) -> None:
        """Start the daemon's process; its output goes to the log."""
        settings = {
            "exchange.rest_url": self.served["rest_url"],
            "exchange.stream_url": self.served["stream_url"],
            "exchange.time_scale": self.pace.planned,
            "http.port": self.port,
        }
        files = ("-c", str(self.files.config), "--db", str(self.files.database))
        options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        with self.files.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*PROGRAM, "run", *files, *options),
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

    @property
    def has_ended(self) -> bool:
        """Whether the daemon's process has ended."""
        return self.process is not None and self.process.returncode is not None

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
            if self.has_ended:
                raise FeedLost(self.exit_reason())
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

    def exit_reason(self) -> str:
        """Return why the daemon ended: its signal, or the last line of its log."""
        code = self.process.returncode if self.process else None
        if code is not None and code < 0:
            return (
                f"The daemon's process was killed by signal {-code}; its log is {self.files.log}."
            )
        lines = self.files.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "The daemon's process did not start."


ENDS_WITHIN_S: Final = 5.0
CHECK_EVERY_S: Final = 0.2


@dataclass(frozen=True)
class ServedExchange:
    """The exchange's process, and the JSON object that it printed when ready."""

    process: subprocess.Popen[str]
    served: dict[str, Any]

    def require_alive(self) -> None:
        """Raise ``FeedLost`` if the process has ended."""
        if (code := self.process.poll()) is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise FeedLost(f"The process of the embedded exchange {how}; run the demo again.")

    async def watch(self) -> None:
        """Raise ``FeedLost`` once the process has ended."""
        while True:
            self.require_alive()
            await asyncio.sleep(CHECK_EVERY_S)


@contextmanager
def embedded_exchange(
    data: Sequence[str], speed: float, *, start: int | None = None, columns: Sequence[str] = ()
) -> Iterator[ServedExchange]:
    """Run the embedded exchange in a separate process.

    Its clock starts at bar *start* of the data, when a client subscribes to candles. It ends with
    this process, even a killed one, since it watches the pipe that is its standard input.
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
            start_new_session=True,  # Ctrl-C reaches this process, which then ends the exchange
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
