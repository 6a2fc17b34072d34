"""One life of a daemon: from a start to an orderly stop, a kill or one sentence.

A life is a forked child. It shares the imported modules and one page of memory with the history;
a kill is ``os._exit``, after which the kernel closes files and locks as after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import mmap
import os
import random
import re
import resource
import signal
import sqlite3
import struct
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TextIO, TypeVar

import aiohttp
import msgspec
from world.bomb import Bomb
from world.disk import FULL, IOERR, KILLED, Faults, Operation, install
from world.loop import Stuck, VirtualLoop, guard
from world.processes import FAULT_SHARE, WORK_S, StandIn, in_child, replayed
from world.processes import FAULTS as PROCESS_FAULTS
from world.proxy import Proxy
from world.spec import ADDRESS, EXCHANGE_FAULTS, RENAMED, SYMBOLS, TICKS, Spec, version_of

import tracepaper.daemon.clock as clock_module
import tracepaper.daemon.http.peer as peer_module
import tracepaper.daemon.session.run_row as run_row_module
import tracepaper.storage.database.writer as writer_module
from tracepaper.daemon.bybit.client import BANNED_STATUS
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.http.client import read_token
from tracepaper.daemon.session.child import ChildProcess, TimeLimits
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.messenger import Message
from tracepaper.replay.exchange.fault_kinds import Fault, Stage
from tracepaper.replay.exchange.instruments import list_instrument
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.replay.exchange.server import EmbeddedExchange
from tracepaper.storage.database.lock import FileWatch
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.decisions import OrderStatus, RunRow, Step
from tracepaper.strategies.types.market import Bar, Command, Gap, Quote, RunKind

PORT: Final = 9_000
PROXY_PORT: Final = 9_001
EXCHANGE: Final = "exchange.world"
"""The exchange's name where a proxy leads to it: this machine needs none."""
WATCHDOG_S: Final = 20.0
"""After so long without progress systemd ends the process: 180 s in deploy/tracepaper.service, and
less here, where a bar lasts a second."""
SPARE_FILES: Final = 25
"""Files that a life may open, where a class closes none of its own."""
SECOND_S: Final = 60.0
"""Network time after which a second instance counts as running."""
WALL_S: Final = 1_750_000_000.0
"""The machine's clock when virtual time is 0."""
LATE_S: Final = 150.0
"""Network time after a history's end at which a life is stopped that has seen no bar since: more
than the law of recovery allows."""
CALM_S: Final = 40.0
"""Network time without faults and backlog with which a history ends: longer than the longest wait
between two requests, so that every settlement was asked for."""
STOP_WITHIN_S: Final = 18.0
"""Network time within which an orderly stop ends (docs/operations.md, O3)."""
ALTERING: Final = {"close", "push", "rows", "frame", "body"}
"""Stages at which a fault may change a candle."""
COMMANDS: Final = ("HALT", "FLATTEN", "RESUME")
BURST_FRAMES: Final = 10_000
NOTE: Final = re.compile(r"\((\d+:\d+:\d+)\)")
"""The note of a command, as its notice has it."""
HALTED_BARS: Final = 2.0
"""Mean bars from a command that halts to the RESUME that follows it."""
OPEN: Final = {OrderStatus.NEW, OrderStatus.ACCEPTED, OrderStatus.PARTIALLY_FILLED}
PATHS: Final = ("/status", "/metrics", "/readyz", "/livez")


A = TypeVar("A")


class Report(msgspec.Struct):
    """What a life that ended by itself tells."""

    end: str = ""
    trace: str = ""
    now_s: float = 0.0
    market_ms: int = 0
    ticks: int = 0
    decided: int = 0
    is_done: bool = False
    digest: str = ""
    counts: dict[str, int] = {}
    faults: list[tuple[float, str, float, str]] = []
    """When what struck, until when nothing need be decided by what was drawn, and the phase."""
    decided_s: list[float] = []
    """Network time of each decision."""
    errors_met: int = 0
    left: list[str] = []
    """What an orderly end left behind."""
    unhandled: list[str] = []
    broken: list[tuple[str, str]] = []
    """Law and sentence of what was found while it lived."""
    start_s: float = 0.0
    stop_s: float = 0.0


PHASES: Final = ("starting", "gap", "position", "order", "notice", "flat")
"""Phases of a life; ``flat`` has nothing open."""
OPEN_PHASES: Final = {"gap", "position", "order", "notice"}
KILLS: Final = ("kill_in_operation", "kill", "kill_when_answered", "watchdog")
"""What kills; the first is the disk's."""


class Last(NamedTuple):
    """The state that a life shared last."""

    now_s: float
    steps: int
    market_ms: int
    phase: str
    kill: str


class Shared:
    """What survives a kill: virtual time, acknowledged steps, market time, phase, kind of kill."""

    _FORMAT = struct.Struct("dqqqq")

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)

    def put(
        self, now_s: float, steps: int, market_ms: int, phase: str = PHASES[0], kill: str = KILLS[0]
    ) -> None:
        """Store the state of a life."""
        places = PHASES.index(phase), KILLS.index(kill)
        self._FORMAT.pack_into(self._map, 0, now_s, steps, market_ms, *places)

    def get(self) -> Last:
        """Return what was stored last."""
        now_s, steps, market_ms, phase, kill = self._FORMAT.unpack_from(self._map, 0)
        return Last(now_s, steps, market_ms, PHASES[phase], KILLS[kill])


class _LifeDisk(Faults):
    """A disk that tells of each acknowledgement."""

    def __init__(self, acknowledged: Callable[[int], None]) -> None:
        super().__init__()
        self._acknowledged = acknowledged

    def done(self, operation: Operation) -> None:
        if operation.kind == "acknowledge":
            self._acknowledged(operation.offset)


class Life:
    """One life. *begin_ms* is the market's time at its start, *start_s* the network's."""

    def __init__(
        self,
        spec: Spec,
        number: int,
        exchange: EmbeddedExchange,
        shared: Shared,
        folder: Path,
        *,
        start_s: float,
        begin_ms: int,
        trace: TextIO | None = None,
    ) -> None:
        self.spec, self.exchange, self.shared, self.folder = spec, exchange, shared, folder
        self.begin_ms, self.start_s, self.trace = begin_ms, start_s, trace
        self.seed = f"{spec.seed}:{number}"
        self.loop = VirtualLoop(self.seed, start_s=start_s)
        self.loop.network.faulty_ports = frozenset({PORT, PROXY_PORT})
        self.loop.network.latency_s, self.loop.work_s = spec.latency_s, spec.work_s
        self.report = Report(start_s=start_s)
        self.wall_s = WALL_S
        self._counts: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._acknowledged = 0
        self._explained_s, self._calm_s = 0.0, start_s
        self._phase = PHASES[0]
        self._number = number
        self._untold: set[str] = set()  # notes of stored commands whose notice was not sent
        self._processes = 0
        self.proxy = Proxy(PROXY_PORT, PORT) if "proxy" in spec.traits else None
        self._positions: dict[str, int] = {}
        self._orders: set[object] = set()
        self._stop_asked_s = 0.0
        self._is_running = self._has_ended = False
        self._numbers = itertools.count()  # of commands
        self._send_rng = random.Random(f"{self.seed}:send")
        self._disk = _LifeDisk(self._acknowledge)

    # ------------------------------------------------------------ a life

    def live(self) -> NoReturn:
        """Live, report and end this process."""
        self.run()
        file = self.folder / f"life{self.seed.partition(':')[2]}.json"
        file.write_bytes(msgspec.json.encode(self.report))
        os._exit(0)

    def run(self) -> None:
        """Live and fill the report; nothing of this process is as before."""
        self._set_up()
        report = self.report
        try:
            self.loop.run_until_complete(self._serve())
        except Stuck as error:
            report.end = f"STUCK {error}"
        except BaseException as error:  # noqa: BLE001 - a fault of the world is told as one
            report.end += f" WORLD {type(error).__name__}: {error}"
            report.trace = traceback.format_exc()[-2_500:]
        report.ticks = self.loop.ticks
        if not report.now_s:
            self._note_end()
        report.digest, report.counts = self._digest.hexdigest(), dict(self._counts)
        report.errors_met = self._disk.fired

    def _set_up(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        guard()
        virtual = types.SimpleNamespace(
            monotonic=loop.time, time_ns=lambda: int((self.wall_s + loop.now_s) * 1e9)
        )
        setattr(clock_module, "time", virtual)  # noqa: B010 - the only module that reads a clock
        setattr(time, "sleep", self._sleep)  # noqa: B010 - a class, or a lock, may sleep
        if version := version_of(self.spec, self._number):
            setattr(run_row_module, "code_version", lambda: version)  # noqa: B010 - likewise
        if self.proxy is not None:
            os.environ |= {"http_proxy": f"http://127.0.0.1:{PROXY_PORT}", "no_proxy": ""}
        loop.set_exception_handler(self._unhandled)
        loop.on_tick = self._tick
        self._draw_host()
        install(self._disk)
        setattr(peer_module, "_TABLES", dict.fromkeys((4, 6), Path(os.devnull)))  # noqa: B010 - the machine's
        if not self.spec.has_views:
            setattr(writer_module, "VIEWS", ())  # noqa: B010 - likewise
        self._note_strikes()
        self._files = _open_files()
        self._files_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        if "leaking" in self.spec.traits:
            used = set(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - numbers
            free = (number for number in itertools.count() if number not in used)
            most = next(itertools.islice(free, SPARE_FILES, None))
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, self._files_limit[1]))

    def _note_strikes(self) -> None:
        """Note when an armed fault of the exchange strikes, and the time of a candle it changes.

        It may strike long after it was armed: a ban, each time that the client asks again.
        """
        faults = self.exchange.faults
        hit = faults.hit

        def noted(stage: Stage, now_ms: int, topic: str = "") -> Callable[..., Any] | None:
            armed = [*faults._armed]
            effect = hit(stage, now_ms, topic)
            if effect is not None:
                left = [*faults._armed, None]
                struck = next(
                    each for each, now in zip(armed, left, strict=True) if each is not now
                )
                if struck.status == BANNED_STATUS:
                    self._explain(self.spec.config["exchange"]["ban_cooldown_s"])
                self._note(f"exchange:{struck.kind}", self.loop.now_s)
                if stage in ALTERING:
                    self._write("altered", str(now_ms))
            return effect

        setattr(faults, "hit", noted)  # noqa: B010 - a method may not be assigned to

    def _unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.report.unhandled.append((repr(error) if error else context["message"])[:200])

    def _acknowledge(self, steps: int) -> None:
        self._acknowledged = max(self._acknowledged, steps)
        self._share()

    def _share(self, kill: str = KILLS[0]) -> None:
        market_ms = self.exchange.clock.now_ms()
        self.shared.put(self.loop.now_s, self._acknowledged, market_ms, self._phase, kill)

    def _kill(self, name: str) -> NoReturn:
        self._share(name)
        os._exit(KILLED)

    def _sleep(self, seconds: float) -> None:
        """Let a call hang that holds the loop; systemd ends what hangs for too long."""
        if seconds > WATCHDOG_S:
            self.loop.now_s += WATCHDOG_S
            self._kill("watchdog")
        self.loop.now_s += seconds
        if seconds >= 1:
            self._note("class", self.loop.now_s)

    def _break(self, law: str, sentence: str) -> None:
        self.report.broken.append((law, sentence))

    def _note(self, name: str, at_s: float) -> None:
        """Note that a fault struck, and in which phase."""
        struck = round(at_s, 3), name, round(self._explained_s, 3), self._phase
        self.report.faults.append(struck)

    # ------------------------------------------------------------ what strikes it

    def _draw_host(self) -> None:
        """Draw the kill and the errors of this life; each kind has a stream of its own."""
        spec, bar_s = self.spec, self.spec.bar_s
        host = spec.host if self.begin_ms < spec.calm_ms else ()
        self._kill_s, self._kill_ticks = 1e18, 0
        if "kill" in host and (rng := self._stream("kill")).random() < spec.kill_share:
            self._kill_s = self.start_s + rng.expovariate(1 / (spec.life_bars * bar_s))
            self._kill_ticks = rng.randrange(400)
        self._term_s, self._term_ticks, self._terms = 1e18, 0, 0
        if "terminate" in host and (rng := self._stream("terminate")).random() < 0.35:
            late_s = rng.expovariate(1 / (spec.life_bars * bar_s))
            self._term_s = self.start_s + rng.choice((rng.uniform(0, 2), late_s))  # as it starts
            self._term_ticks, self._terms = rng.randrange(400), rng.choice((1, 1, 2))
        if (
            "kill_in_operation" in host
            and (rng := self._stream("operation")).random() < spec.kill_share
        ):
            late = int(rng.expovariate(1 / spec.life_operations)) + 1
            self._disk.kill_at = rng.choice((rng.randint(1, 400), late))
            self._disk.is_short = "short_write" in host and rng.random() < 0.5
        self._kill_answer = 0
        if "kill_when_answered" in host and (rng := self._stream("answer")).random() < 0.25:
            self._kill_answer = rng.randint(1, 10)
        if "errors" in host and (rng := self._stream("errors")).random() < 0.15:
            first = int(rng.expovariate(1 / spec.life_operations)) + 1
            code = rng.choice((IOERR, IOERR, FULL))
            count = rng.choice((1, 1, 3, 10_000))
            self._disk.errors = dict.fromkeys(range(first, first + count), code)
        self._stop_s = 1e18
        if host:
            mean_s = 2 * spec.life_bars * bar_s
            self._stop_s = self.start_s + 5 + self._stream("stop").expovariate(1 / mean_s)

    def _stream(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}:{name}")

    def _tick(self) -> None:
        if self.trace is not None:
            callback = self.loop.next_callback()
            print(f"{self.loop.now_s:.9f}", callback, self._disk.operations, file=self.trace)
        if self.loop.now_s >= self._kill_s:
            self._kill_ticks -= 1
            if self._kill_ticks < 0:
                self._kill("kill")
        # A signal while a run that has ended is closed may drop its notices (O28).
        is_served = self._is_running and not self._has_ended
        if self._terms and is_served and self.loop.now_s >= self._term_s:
            self._term_ticks -= 1
            if self._term_ticks < 0:
                self._terminate()

    def _terminate(self) -> None:
        """Send SIGTERM, which ends this process if the daemon does not handle it."""
        self._terms -= 1
        self._counts["fault terminate"] += 1
        self._note("terminate", self.loop.now_s)
        self._stop_asked_s = self._stop_asked_s or self.loop.now_s
        signal.raise_signal(signal.SIGTERM)

    async def _strike(self) -> None:
        """Let each kind of fault strike at the times of its own stream."""
        bar_s = self.spec.bar_s
        due: list[tuple[float, str]] = []
        streams = {name: self._stream(f"fault:{name}") for name in self.spec.rates}
        for name, rng in streams.items():
            first_s = self.start_s + rng.expovariate(1 / (self.spec.rates[name] * bar_s))
            heapq.heappush(due, (first_s, name))
        while due:
            at_s, name = heapq.heappop(due)
            await asyncio.sleep(max(0.0, at_s - self.loop.now_s))
            if self.exchange.clock.now_ms() >= self.spec.calm_ms:
                return
            self._counts[f"fault {name}"] += 1
            now_s = self.loop.now_s
            self._hit(name, streams[name])
            self._note(name, now_s)
            next_s = at_s + streams[name].expovariate(1 / (self.spec.rates[name] * bar_s))
            heapq.heappush(due, (max(next_s, self.loop.now_s), name))

    def _hit(self, name: str, rng: random.Random) -> None:
        loop, network, clock = self.loop, self.loop.network, self.exchange.clock
        kind, _, detail = name.partition(":")
        match kind:
            case "reset":
                network.reset(rng)
            case "half_open":
                network.half_open(rng, rng.choice((5.0, 40.0, 400.0)))
            case "slow":
                seconds, late_s = rng.uniform(5, 60), rng.uniform(0.2, 8)
                network.slow(seconds, late_s)
                self._explain(seconds + late_s)
            case "refuse" | "hang" | "unresolved":
                seconds = rng.expovariate(1 / 20)
                until_s = loop.now_s + seconds
                if kind == "refuse" and self.proxy is not None:
                    self.proxy.broken_until_s = until_s
                elif kind == "refuse":
                    network.refused_until_s = until_s
                elif kind == "hang":
                    network.hanging_until_s = until_s
                else:
                    network.unresolved_until_s = until_s
                network.reset(rng)
                self._explain(seconds)
            case "wall_step":
                self.wall_s += rng.choice((-86_400, -3_600, -1, 1, 3_600, 86_400))
            case "stopped":  # SIGSTOP: network time goes on
                self._pause(rng.choice((1.0, 10.0, 40.0)))
            case "busy":  # what runs in a thread takes long: a model, a commit
                loop.busy_until_s = loop.now_s + rng.uniform(1, 20)
                self._explain(loop.busy_until_s - loop.now_s)
            case "suspended":  # network time stands, market time goes on
                bars = rng.choice((1, 10, 40))
                clock.set(clock.now_ms() + bars * self.spec.interval_ms)
            case "burst":
                self._flood(rng)
            case "second":
                self._start_second()
            case "bomb":
                network.tamper = Bomb(loop, PORT, rng, lambda what: self._break("bomb", what))
            case "exchange":
                described = EXCHANGE_FAULTS[detail]
                try:
                    self.exchange.arm(**described, provoke=Fault(**described).is_provoked)
                except TracepaperError:
                    self._counts[f"not armed: {detail}"] += 1
            case _:
                raise ValueError(name)

    def _pause(self, seconds: float) -> None:
        """Let this process do nothing for *seconds*, of which a stop is not guilty."""
        self.loop.now_s += seconds
        self._stop_asked_s += seconds if self._stop_asked_s else 0.0
        self._explain(0.0)

    def _flood(self, rng: random.Random) -> None:
        """Send thousands of frames behind the next closing one; half the time stop amid them.

        They are its topics' opening frames, written as one piece: the stream reads them while the
        bar is being stored.
        """
        hub, interval_ms = self.exchange.hub, self.spec.interval_ms
        close_ms = (hub.clock.now_ms() // interval_ms + 1) * interval_ms
        market = next(iter(self.exchange.venue.markets.values()))

        def send() -> None:
            for connection in sorted(hub.connections, key=lambda each: each.identity):
                topics = sorted(connection.topics)
                channels = [hub.channel(connection.category, topic) for topic in topics]
                now_ms = hub.clock.now_ms()
                frames = [frame for each in channels if each for frame in each.opening(now_ms)]
                sent = b"".join(_unmasked(frame.body) for frame in frames)
                if frames and (transport := connection._request.transport):
                    transport.write(sent * (BURST_FRAMES // len(frames)))

        hub.at(market.confirm_ms(close_ms) + 1, send)
        if rng.random() < 0.5:
            self._stop_s = min(self._stop_s, self.loop.now_s + rng.uniform(0, 3) * self.spec.bar_s)

    def _start_second(self) -> None:
        """Start another daemon on the record; it must name the first, and change nothing."""
        if self._phase == PHASES[0] or self._stop_asked_s:
            return
        with self._own_files():
            before = self._record()
            end = in_child(lambda: self._aside(self._second))
            if f"in use by process {os.getpid()}" not in end:
                self._break("second", f"a second instance ended so: {end}")
            if self._record() != before:
                self._break("second", "a second instance changed the record")

    def _record(self) -> dict[str, bytes]:
        """Return the digests of the record's files; SQLite rebuilds its index."""
        files = sorted(each for each in self.folder.glob("run.db*") if each.is_file())
        return {
            file.name: hashlib.sha256(file.read_bytes()).digest()
            for file in files
            if not file.name.endswith("-shm")
        }

    def _second(self) -> str:
        loop = VirtualLoop(f"{self.seed}:second", start_s=self.loop.now_s)
        asyncio.set_event_loop(loop)
        FileWatch._held.clear()  # it is another process
        daemon = self._daemon([])
        try:
            loop.run_until_complete(asyncio.wait_for(daemon.run(), SECOND_S))
        except TracepaperError as error:
            return f"{type(error).__name__}: {error}"
        except TimeoutError:
            return f"it ran for {SECOND_S:.0f} s"
        return "in order"

    def _aside(self, work: Callable[[], A]) -> A:
        """Do *work* in a child of this life, which no fault of the life strikes."""
        self._disk.kill_at, self._disk.errors = 0, {}
        self.loop.on_tick = lambda: None
        return work()

    # ------------------------------------------------------------ processes beside the daemon

    def _start_process(
        self, name: str, command: Sequence[str], limits: TimeLimits, **_options: Any
    ) -> ChildProcess:
        """Return what stands for a process of the daemon."""
        self._processes += 1
        stream = self._stream(f"process:{name}:{self._processes}")

        def begun() -> Sequence[object]:
            with self._own_files():
                return [in_child(lambda: self._aside(lambda: replayed(command)))]

        return StandIn(
            name, command, limits, rng=stream, begun=begun, fault=lambda: self._fault_of(stream)
        )

    def _fault_of(self, stream: random.Random) -> str:
        """Draw what becomes of an answer of a process or a service: nothing, or a fault."""
        struck = stream.choice(PROCESS_FAULTS) if stream.random() < FAULT_SHARE else ""
        if not struck or "process" not in self.spec.host or self.begin_ms >= self.spec.calm_ms:
            return ""
        self._counts["fault process"] += 1
        self._note(f"process:{struck}", self.loop.now_s)
        return struck

    async def _send(self, address: str, message: Message) -> str:
        """Send as a service does, or hang, or fail; note which commands were told."""
        assert address == ADDRESS
        fault = self._fault_of(self._send_rng)
        await asyncio.sleep(self._send_rng.uniform(*WORK_S))
        if fault == "silent":
            await asyncio.Event().wait()  # for ever, as a thread may
        if fault:
            return fault
        for note in NOTE.findall(message.body):
            self._write("told", note)
            self._untold.discard(note)
        return ""

    def _explain(self, seconds: float) -> None:
        """Note that nothing may be decided for *seconds*, by what was just drawn."""
        self._explained_s = max(self._explained_s, self.loop.now_s + seconds)

    # ------------------------------------------------------------ daemon, exchange, operator

    async def _serve(self) -> None:
        spec, exchange, report = self.spec, self.exchange, self.report
        async with exchange, self.proxy or contextlib.nullcontext():
            clock = exchange.clock
            clock._anchor_ms, clock._anchor_s = self.begin_ms, self.loop.now_s
            side: list[asyncio.Task[None]] = []
            daemon = self._daemon(side)
            side.append(asyncio.create_task(self._end_with_data(daemon)))
            for bar, change in (
                (spec.gone_bar, self._take_away),
                (spec.renamed_bar, self._rename),
                (spec.filters_bar, self._coarsen),
            ):
                if bar:
                    side.append(asyncio.create_task(self._change(bar, change)))
            if spec.rates:
                side.append(asyncio.create_task(self._strike()))
            runner = asyncio.create_task(self._run(daemon))
            limit_s = spec.bar_s * spec.bars * 3 + 4_000
            limit = asyncio.create_task(asyncio.sleep(limit_s))
            await asyncio.wait({runner, limit}, return_when=asyncio.FIRST_COMPLETED)
            if not runner.done():
                report.end = f"STUCK: no end within {limit_s:.0f} s of network time; "
                runner.cancel()
            for each in (*side, limit):
                each.cancel()
            await asyncio.gather(*side, limit, return_exceptions=True)
            await self._end_of(runner)
            self._note_end()  # what serves the daemon may take longer
            if self._stop_asked_s:
                report.stop_s = self.loop.now_s - self._stop_asked_s
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files_limit)
        if report.end == "orderly":
            report.left = [*self._left()]
            if self._untold and "process" not in spec.host:
                self._break("notices", f"{len(self._untold)} commands were not told")
        dialled = self.loop.network.connections[PORT]
        if self.proxy is not None and dialled > self.proxy.asked:
            self._break("proxy", f"{dialled} connections, {self.proxy.asked} through the proxy")

    async def _run(self, daemon: Daemon) -> None:
        self._is_running = True
        try:
            await daemon.run()
        finally:
            self._is_running = False

    async def _change(self, bar: int, change: Callable[[], None]) -> None:
        """Let the exchange *change* something once the time of *bar* has come."""
        while self.exchange.clock.now_ms() < self.spec.time_of(bar):  # noqa: ASYNC110 - it may be suspended
            await asyncio.sleep(self.spec.bar_s)
        change()

    def _take_away(self) -> None:
        """Delist the second symbol."""
        markets = self.exchange.venue.markets
        for key in [key for key, market in markets.items() if market.symbol == SYMBOLS[1]]:
            del markets[key]

    def _rename(self) -> None:
        """Trade the second symbol under its later name."""
        markets = self.exchange.venue.markets
        self._take_away()
        market = renamed(self.exchange)
        markets[market.category, market.symbol] = market

    def _coarsen(self) -> None:
        """Give the first symbol a coarser tick."""
        market = next(
            each for each in self.exchange.venue.markets.values() if each.symbol == SYMBOLS[0]
        )
        listing = market.listing
        text = str(Decimal(TICKS[1]).scaleb(-2))
        filters = {**listing.item["priceFilter"], "tickSize": text}
        item = {**listing.item, "priceFilter": filters}
        tick = listing.tick * TICKS[1] // TICKS[0]
        setattr(market, "listing", replace(listing, tick=tick, item=item))  # noqa: B010 - it is final

    async def _end_with_data(self, daemon: Daemon) -> None:
        """Stop *daemon* a while after the history's end, should no bar of it arrive any more."""
        late_ms = max(self.spec.end_ms, self.begin_ms) + int(LATE_S * 1000 * self.spec.speed)
        while self.exchange.clock.now_ms() < late_ms:  # noqa: ASYNC110 - it may be suspended
            await asyncio.sleep(self.spec.bar_s)
        self.report.is_done = True
        self._stop_asked_s = self._stop_asked_s or self.loop.now_s
        if not self._has_ended:  # what is closed already is not to be stopped amid that
            daemon.stop()

    def _note_end(self) -> None:
        self.report.now_s = self.loop.now_s
        self.report.market_ms = self.exchange.clock.now_ms()

    async def _end_of(self, runner: asyncio.Task[None]) -> None:
        report = self.report
        try:
            await runner
            report.end += "orderly"
        except asyncio.CancelledError:
            report.end += "cancelled"
        except TracepaperError as error:
            report.end += f"{type(error).__name__}: {error}"
        except sqlite3.DatabaseError as error:
            report.end += f"sqlite3: {error}"  # the command line explains it
        except BaseException as error:  # noqa: BLE001 - any other end is a fault of the product
            report.end += f"CRASH {type(error).__name__}: {error}"
            report.trace = traceback.format_exc()[-2_500:]

    def _left(self) -> Iterator[str]:
        """Yield what is left behind an orderly end: tasks, connections, timers."""
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                yield f"task {getattr(task.get_coro(), '__qualname__', task)}"
        for client, server in self.loop.network.open_pairs():
            port = client.far.port
            if not (client if port in self.loop.network.faulty_ports else server).is_gone:
                yield f"connection to {port}"
        for timer in self.loop.pending_timers():
            # What is in flight belongs to the network; a bomb sees a millisecond late that its
            # client has gone, whose connection is told above if it has not. A process does not
            # wait for a model's answer (exit_without_waiting).
            if not timer.startswith(("Transport.", "Bomb.", "a thread of model")):
                yield f"timer {timer}"
        for file in sorted((_open_files() - self._files).elements()):
            if not file.endswith("leaking_drawn.py"):  # a class that closes nothing
                yield f"file {file}"

    def _daemon(self, side: list[asyncio.Task[None]]) -> Daemon:
        spec, exchange = self.spec, self.exchange
        sections = dict(spec.config)
        sections["exchange"] = {
            **sections["exchange"],
            "rest_url": exchange.rest_url,
            "stream_url": exchange.stream_url,
            "time_scale": spec.speed,
        }
        if self.proxy is not None:
            for name, scheme in (("rest_url", "http"), ("stream_url", "ws")):
                sections["exchange"][name] = f"{scheme}://{EXCHANGE}:{PORT}"

        operators: list[asyncio.Task[None]] = []

        def listening(url: str) -> None:
            if operators:  # the daemon listens again, for a rotated file
                operators.pop().cancel()
            if spec.command_bars:
                operators.append(asyncio.create_task(self._operate(url)))
                side.append(operators[0])

        return Daemon(
            load(sections),
            self.folder / "run.db",
            kind=RunKind.LIVE,
            opened=self._note_run,
            watch=self._watch,
            listening=listening,
            rng=self._stream("jitter"),
            entropy=self._stream("entropy").randbytes,
            start_process=self._start_process,
            sender=lambda _section: self._send,
        )

    def _note_run(self, run: RunRow) -> None:
        """Write which run this life opened, and by what."""
        inputs = run.code_version, run.config_sha256, run.strategy_sha256 or "-"
        self._write("opened", " ".join((str(self._number), run.run_id, *inputs)))

    def _watch(self, step: Step) -> bool:
        event, report = step.event, self.report
        line = f"{step.sequence} {event.seen_ms} {type(event).__name__};"
        self._digest.update(line.encode())
        if step.decision is not None:
            report.decided += 1
            report.decided_s.append(round(self.loop.now_s, 3))
        self._follow(step)
        if isinstance(event, Bar | Quote):
            is_late = event.seen_ms - event.market_ms > self.spec.interval_ms
            # Settlements may wait behind a backlog.
            if is_late or self.exchange.clock.now_ms() < self.spec.calm_ms:
                self._calm_s = self.loop.now_s
            is_calm = self.loop.now_s >= max(self._calm_s, self._explained_s) + CALM_S
            report.is_done |= is_calm and event.market_ms >= self.spec.end_ms
        self._share()
        if report.is_done or self.loop.now_s >= self._stop_s:
            self._stop_asked_s = self._stop_asked_s or self.loop.now_s
            self._has_ended = True
        return not self._has_ended

    def _follow(self, step: Step) -> None:
        """Note what is open: a gap, a position, an order, or a notice that was not sent."""
        instrument = getattr(step.event, "instrument", "")
        if step.position is not None:
            self._positions[instrument] = step.position.quantity
        for order in step.orders:
            if order.status in OPEN:
                self._orders.add(order.order_id)
            else:
                self._orders.discard(order.order_id)
        if isinstance(step.event, Command) and "notices" in self.spec.traits:
            self._untold.add(step.event.note)
        is_open = {
            "gap": isinstance(step.event, Gap),
            "notice": bool(self._untold),
            "order": bool(self._orders),
            "position": any(self._positions.values()),
        }
        self._phase = next((name for name, is_so in is_open.items() if is_so), "flat")

    async def _operate(self, url: str) -> None:
        """Send commands and ask for pages, as an operator does."""
        rng, bar_s = self._stream("operator"), self.spec.bar_s
        with self._own_files():
            token = read_token(self.folder / "run.db")
        headers = {"Authorization": f"Bearer {token}"}
        timeout = aiohttp.ClientTimeout(total=20)
        kind = "RESUME"  # the life before may have ended in between
        connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers
        ) as session:
            for number in self._numbers:
                kind = "RESUME" if kind != "RESUME" else rng.choice(COMMANDS)
                bars = self.spec.command_bars if kind != "RESUME" else HALTED_BARS
                await asyncio.sleep(rng.expovariate(1 / (bars * bar_s)))
                note, path = f"{self.seed}:{number}", rng.choice(PATHS)
                self._write("sent", note)
                try:
                    body = {"kind": kind, "note": note}
                    async with session.post(f"{url}/command", json=body) as answer:
                        await answer.read()
                        self._counts[f"command {answer.status}"] += 1
                        if answer.status == 200:
                            self._write("answered", f"{note} {kind}")
                            self._kill_answer -= 1
                            if not self._kill_answer:
                                self._kill("kill_when_answered")
                    async with session.get(url + path) as answer:
                        await answer.read()
                        self._counts[f"get {answer.status}"] += 1
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    self._counts[f"command {type(error).__name__}"] += 1

    def _write(self, name: str, line: str) -> None:
        """Write a *line* for the judge, even where a class has left the life no file to open."""
        with self._own_files(), (self.folder / name).open("a") as file:
            file.write(f"{line}\n")

    @contextlib.contextmanager
    def _own_files(self) -> Iterator[None]:
        """Open files of the world, or of another process: what a class leaks is not theirs."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files_limit)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def renamed(exchange: EmbeddedExchange) -> SimulatedMarket:
    """Return the market of the second symbol under its later name, with its filters."""
    settings = exchange.settings
    candles = next(each for each in settings.candles if each.symbol == SYMBOLS[1])
    market = SimulatedMarket(
        replace(candles, symbol=RENAMED), seed=settings.seed, frames=settings.frames_per_candle
    )
    names = {name: market.listing.item[name] for name in ("symbol", "baseCoin")}
    before = list_instrument(candles)
    listing = replace(before, item=before.item | names, base_coin=names["baseCoin"])
    setattr(market, "listing", listing)  # noqa: B010 - it is final
    return market


def _unmasked(body: bytes) -> bytes:
    """Return *body* as a server's websocket frame of text."""
    length = bytes([len(body)]) if len(body) < 126 else b"\x7e" + struct.pack(">H", len(body))
    return b"\x81" + length + body


def _open_files() -> Counter[str]:
    """Count the open descriptors of this process by the name of what they have open."""
    names = Counter[str]()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names[str(descriptor.readlink())] += 1
    return names
