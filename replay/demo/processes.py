"""Processes of the demo: the exchange, the daemon that is killed, their control.

The show starts it by ``python -m``, writes one ``Assignment`` on its standard input, and after
that a line with each new pace of market time. It tells every stored step on its standard output,
and ends in good order when its standard input does: whoever started it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from msgspec import Struct

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load, restore
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.shutdown import exit_without_waiting, run_loop
from tracepaper.daemon.terminal import console
from tracepaper.daemon.terminal.live_view import live_view
from tracepaper.replay.demo import playback
from tracepaper.replay.demo.playback import (
    FIRST_SPEED,
    SPEED_MIN,
    MarketPast,
    Pacer,
    Race,
    ShowFiles,
    SpeedMessage,
    encode,
    messages_of,
    start_message,
)
from tracepaper.replay.demo.screen import Stage
from tracepaper.storage.database.lock import holder_of
from tracepaper.strategies.errors import DataInvalid, FeedLost, TracepaperError
from tracepaper.strategies.types.decisions import Run, Step
from tracepaper.strategies.types.market import Bar, Instrument, RunKind

CHUNK_BYTES: Final = 4_096


class Assignment(Struct, frozen=True):
    """What one process of the daemon is to do."""

    database: str
    config: str  # the file
    settings: dict[str, dict[str, Any]]  # what lies over the file, by section and key
    speed: float  # market seconds a second, until another is said
    until_ms: int  # it ends with the bars that close then


class PaceSaid(Struct, frozen=True):
    """A new pace: market seconds a second."""

    speed: float


async def serve(assignment: Assignment, lines: Iterator[bytes]) -> None:
    """Run the daemon until the data or the *lines* of its standard input end."""
    config = load(Path(assignment.config), assignment.settings)
    console.configure(level=config.log.level, output="json")
    clock = SystemClock(assignment.speed)
    instruments: dict[str, Instrument] = {}
    unfinished: set[str] = set()

    with live_view(database=Path(assignment.database)) as watcher:

        def opened(run: Run) -> None:
            watcher.opened(run)
            instruments.update({one.id: one for one in run.instruments})
            unfinished.update(instruments)
            cash = float(restore(run.config).account.cash)
            _tell(encode(start_message(run, pid=os.getpid(), cash=cash)))

        def watch(step: Step) -> bool:
            for message in messages_of(step, instruments):
                _tell(encode(message))
            if isinstance(step.event, Bar) and step.event.close_time_ms >= assignment.until_ms:
                unfinished.discard(step.event.instrument)
            return watcher.watch(step) and bool(unfinished)

        daemon = Daemon(
            config,
            Path(assignment.database),
            kind=RunKind.DEMO,
            opened=opened,
            watch=watch,
            clock=clock,
        )

        def follow(speed: float) -> None:
            clock.set_time_scale(speed)
            _tell(encode(SpeedMessage(speed)))

        _listen(lines, daemon, follow, asyncio.get_running_loop())
        await daemon.run()


def _tell(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _lines() -> Iterator[bytes]:
    """Yield each line of standard input as it comes.

    Not through ``sys.stdin``: its buffer would be locked by a thread that waits in it when the
    interpreter ends, which is fatal.
    """
    pending = b""
    while chunk := os.read(0, CHUNK_BYTES):
        *whole, pending = (pending + chunk).split(b"\n")
        yield from whole


def _listen(
    lines: Iterator[bytes],
    daemon: Daemon,
    follow: Callable[[float], None],
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Follow each new pace, and stop *daemon* where standard input ends."""

    def read() -> None:
        for line in lines:
            pace = msgspec.json.decode(line, type=PaceSaid)
            loop.call_soon_threadsafe(follow, pace.speed)
        loop.call_soon_threadsafe(daemon.stop)

    threading.Thread(target=read, name="pace", daemon=True).start()


def main() -> None:
    """Do what the first line of standard input says; exit with 1 and a sentence where it fails."""
    lines = _lines()
    assignment = msgspec.json.decode(next(lines), type=Assignment)
    code = 0
    try:
        run_loop(serve(assignment, lines))
    except TracepaperError as error:
        sys.stderr.write(f"{error}\n")
        code = 1
    exit_without_waiting(code)
    sys.exit(code)


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
        with self.files.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tracepaper.replay.demo.processes",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the show, which then ends the daemon
                limit=LINE_BYTES_MAX,
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
                message = playback.decode(line)
            except msgspec.DecodeError:  # cut short: it was killed while it wrote
                continue
            if isinstance(message, playback.SpeedMessage):
                self.followed.set()
            self.race.observe(message)
            if isinstance(message, playback.BarMessage) and message.is_decided and not self.is_held:
                now_s = self.clock.network_s()
                lag_s = self.past.seconds_since(message.close_ms, now_s=now_s)
                self.pacer.observe(lag_s, now_s=now_s)
        await process.wait()

    @property
    def page_url(self) -> str | None:
        """The address of the daemon's page; None before it is served."""
        holder = holder_of(self.files.database)
        return None if holder is None else holder.http or None

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


@contextmanager
def exchange_beside(
    data: Sequence[str], speed: float, *, start: int | None = None, columns: Sequence[str] = ()
) -> Iterator[ServedExchange]:
    """Run the embedded exchange in a process of its own.

    Its time stands still, *start* bars into the data, until candles are subscribed. It ends with
    us, however we end: it watches the pipe that is its standard input.
    """
    command = [sys.executable, "-m", "tracepaper.daemon.cli", "exchange"]
    for path in data:
        command += ["--data", path]
    for text in columns:
        command += ["--columns", text]
    command += ["--speed", str(speed), "--hold", "--until-eof"]
    if start is not None:
        command += ["--start", str(start)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # Ctrl-C is for the daemon, which then ends the exchange
        )
        try:
            assert process.stdout is not None
            if not (line := process.stdout.readline()):
                process.wait(ENDS_WITHIN_S)
                said.seek(0)
                raise DataInvalid(said.read().strip() or "The embedded exchange did not start.")
            yield ServedExchange(process, json.loads(line))
        finally:
            process.terminate()
            try:
                process.communicate(timeout=ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


if __name__ == "__main__":
    main()
