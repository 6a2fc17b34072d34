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
import sqlite3
import struct
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

import aiohttp
import msgspec
from world.disk import FULL, IOERR, KILLED, Faults, Operation, install
from world.loop import Stuck, VirtualLoop, guard
from world.spec import SYMBOLS, Spec

import tracepaper.daemon.clock as clock_module
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.http.client import read_token
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.replay.exchange.fault_kinds import FAULTS, Stage
from tracepaper.replay.exchange.server import EmbeddedExchange
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.decisions import OrderStatus, Step
from tracepaper.strategies.types.market import Gap, RunKind

PORT: Final = 9_000
WALL_S: Final = 1_750_000_000.0
"""The machine's clock when virtual time is 0."""
LATE_S: Final = 150.0
"""Network time after a history's end at which a life is stopped that has seen no bar since: more
than the law of recovery allows."""
STOP_WITHIN_S: Final = 18.0
"""Network time within which an orderly stop ends (docs/operations.md, O3)."""
ALTERING: Final = {"close", "push", "rows", "frame", "body"}
"""Stages at which a fault may change a candle."""
COMMANDS: Final = ("HALT", "FLATTEN", "RESUME")
BURST_FRAMES: Final = 10_000
HALTED_BARS: Final = 2.0
"""Mean bars from a command that halts to the RESUME that follows it."""
OPEN: Final = {OrderStatus.NEW, OrderStatus.ACCEPTED, OrderStatus.PARTIALLY_FILLED}
PATHS: Final = ("/status", "/metrics", "/readyz", "/livez")


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
    faults: list[tuple[float, str, float]] = []
    """When what struck, and until when nothing need be decided by what was drawn."""
    decided_s: list[float] = []
    """Network time of each decision."""
    errors_met: int = 0
    left: list[str] = []
    """What an orderly end left behind."""
    unhandled: list[str] = []
    start_s: float = 0.0
    stop_s: float = 0.0


class Shared:
    """What survives a kill: virtual time, acknowledged steps, market time, kinds of strokes."""

    _FORMAT = struct.Struct("dqqq")

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)

    def put(self, now_s: float, steps: int, market_ms: int, is_open: int) -> None:
        """Store the state of a life."""
        self._FORMAT.pack_into(self._map, 0, now_s, steps, market_ms, is_open)

    def get(self) -> tuple[float, int, int, int]:
        """Return virtual time, acknowledged steps, market time and whether anything was open."""
        return self._FORMAT.unpack_from(self._map, 0)


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
        self.loop.network.faulty_ports = frozenset({PORT})
        self.loop.network.latency_s, self.loop.work_s = spec.latency_s, spec.work_s
        self.report = Report(start_s=start_s)
        self.wall_s = WALL_S
        self._counts: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._acknowledged = 0
        self._explained_s = 0.0
        self._is_open = False
        self._positions: dict[str, int] = {}
        self._orders: set[object] = set()
        self._stop_asked_s = 0.0
        self._rng = random.Random(f"{self.seed}:life")
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
        report.now_s, report.ticks = self.loop.now_s, self.loop.ticks
        report.market_ms = self.exchange.clock.now_ms()
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
        loop.set_exception_handler(self._unhandled)
        loop.on_tick = self._tick
        self._draw_host()
        install(self._disk)
        self._note_altered()
        self._files = _open_files()

    def _note_altered(self) -> None:
        """Write the market time of each candle that a fault of the exchange changes."""
        faults = self.exchange.faults
        hit = faults.hit

        def noted(stage: Stage, now_ms: int, topic: str = "") -> Callable[..., Any] | None:
            effect = hit(stage, now_ms, topic)
            if effect is not None and stage in ALTERING:
                self._write("altered", str(now_ms))
            return effect

        setattr(faults, "hit", noted)  # noqa: B010 - a method may not be assigned to

    def _unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        self.report.unhandled.append(str(context.get("exception") or context["message"])[:200])

    def _acknowledge(self, steps: int) -> None:
        self._acknowledged = max(self._acknowledged, steps)
        self._share()

    def _share(self) -> None:
        market_ms = self.exchange.clock.now_ms()
        self.shared.put(self.loop.now_s, self._acknowledged, market_ms, int(self._is_open))

    # ------------------------------------------------------------ what strikes it

    def _draw_host(self) -> None:
        """Draw the kill and the errors of this life; each kind has a stream of its own."""
        spec, bar_s = self.spec, self.spec.bar_s
        host = spec.host if self.begin_ms < spec.calm_ms else ()
        self._kill_s, self._kill_ticks = 1e18, 0
        if "kill" in host and (rng := self._stream("kill")).random() < 0.35:
            self._kill_s = self.start_s + rng.expovariate(1 / (spec.life_bars * bar_s))
            self._kill_ticks = rng.randrange(400)
        if "kill_in_operation" in host and (rng := self._stream("operation")).random() < 0.35:
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
                self._share()
                os._exit(KILLED)

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
            now_s = round(self.loop.now_s, 3)
            self._counts[f"fault {name}"] += 1
            self._counts["faults while open"] += self._is_open
            self._hit(name, streams[name])
            self.report.faults.append((now_s, name, round(self._explained_s, 3)))
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
                if kind == "refuse":
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
                seconds = rng.choice((1.0, 10.0, 40.0))
                loop.now_s += seconds
                self._explain(0.0)
            case "busy":  # what runs in a thread takes long: a model, a commit
                loop.busy_until_s = loop.now_s + rng.uniform(1, 20)
                self._explain(loop.busy_until_s - loop.now_s)
            case "suspended":  # network time stands, market time goes on
                bars = rng.choice((1, 10, 40))
                clock.set(clock.now_ms() + bars * self.spec.interval_ms)
            case "burst":
                self._flood(rng)
            case "exchange":
                options = {"provoke": True} if FAULTS[detail].is_provoked else {}
                try:
                    self.exchange.arm(detail, **options)
                except TracepaperError:
                    self._counts[f"not armed: {detail}"] += 1
            case _:
                raise ValueError(name)

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

    def _explain(self, seconds: float) -> None:
        """Note that nothing may be decided for *seconds*, by what was just drawn."""
        self._explained_s = max(self._explained_s, self.loop.now_s + seconds)

    # ------------------------------------------------------------ daemon, exchange, operator

    async def _serve(self) -> None:
        spec, exchange, report = self.spec, self.exchange, self.report
        async with exchange:
            clock = exchange.clock
            clock._anchor_ms, clock._anchor_s = self.begin_ms, self.loop.now_s
            side: list[asyncio.Task[None]] = []
            daemon = self._daemon(side)
            side.append(asyncio.create_task(self._end_with_data(daemon)))
            if spec.gone_bar:
                side.append(asyncio.create_task(self._take_away()))
            if spec.rates:
                side.append(asyncio.create_task(self._strike()))
            runner = asyncio.create_task(daemon.run())
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
            if self._stop_asked_s:
                report.stop_s = self.loop.now_s - self._stop_asked_s
        if report.end == "orderly":
            report.left = [*self._left()]

    async def _take_away(self) -> None:
        """Delist the second symbol once its time has come."""
        gone_ms = self.spec.first_ms + self.spec.gone_bar * self.spec.interval_ms
        while self.exchange.clock.now_ms() < gone_ms:  # noqa: ASYNC110 - it may be suspended
            await asyncio.sleep(self.spec.bar_s)
        markets = self.exchange.venue.markets
        for key in [key for key, market in markets.items() if market.symbol == SYMBOLS[1]]:
            del markets[key]

    async def _end_with_data(self, daemon: Daemon) -> None:
        """Stop *daemon* a while after the history's end, should no bar of it arrive any more."""
        late_ms = self.spec.end_ms + int(LATE_S * 1000 * self.spec.speed)
        while self.exchange.clock.now_ms() < late_ms:  # noqa: ASYNC110 - it may be suspended
            await asyncio.sleep(self.spec.bar_s)
        self.report.is_done = True
        self._stop_asked_s = self._stop_asked_s or self.loop.now_s
        daemon.stop()

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
            if not (client if port == PORT else server).is_gone:
                yield f"connection to {port}"
        for timer in self.loop.pending_timers():
            if not timer.startswith("Transport."):  # what is in flight belongs to the network
                yield f"timer {timer}"
        for file in sorted(_open_files() - self._files):
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

        def listening(url: str) -> None:
            if spec.command_bars:
                side.append(asyncio.create_task(self._operate(url)))

        return Daemon(
            load(sections),
            self.folder / "run.db",
            kind=RunKind.LIVE,
            watch=self._watch,
            listening=listening,
            rng=self._stream("jitter"),
            entropy=self._stream("entropy").randbytes,
        )

    def _watch(self, step: Step) -> bool:
        event, report = step.event, self.report
        line = f"{step.sequence} {event.seen_ms} {type(event).__name__};"
        self._digest.update(line.encode())
        if step.decision is not None:
            report.decided += 1
            report.decided_s.append(round(self.loop.now_s, 3))
        self._follow(step)
        report.is_done = report.is_done or event.market_ms >= self.spec.end_ms
        self._share()
        if report.is_done or self.loop.now_s >= self._stop_s:
            self._stop_asked_s = self.loop.now_s
            return False
        return True

    def _follow(self, step: Step) -> None:
        """Note whether a position or an order is open, or the last event was a gap."""
        instrument = getattr(step.event, "instrument", "")
        if step.position is not None:
            self._positions[instrument] = step.position.quantity
        for order in step.orders:
            if order.status in OPEN:
                self._orders.add(order.order_id)
            else:
                self._orders.discard(order.order_id)
        is_gap = isinstance(step.event, Gap)
        self._is_open = is_gap or bool(self._orders) or any(self._positions.values())

    async def _operate(self, url: str) -> None:
        """Send commands and ask for pages, as an operator does."""
        rng, bar_s = self._stream("operator"), self.spec.bar_s
        headers = {"Authorization": f"Bearer {read_token(self.folder / 'run.db')}"}
        timeout = aiohttp.ClientTimeout(total=20)
        kind = "RESUME"  # the life before may have ended in between
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            for number in itertools.count():
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
                                self._share()
                                os._exit(KILLED)
                    async with session.get(url + path) as answer:
                        await answer.read()
                        self._counts[f"get {answer.status}"] += 1
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    self._counts[f"command {type(error).__name__}"] += 1

    def _write(self, name: str, line: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(f"{line}\n")


def _unmasked(body: bytes) -> bytes:
    """Return *body* as a server's websocket frame of text."""
    length = bytes([len(body)]) if len(body) < 126 else b"\x7e" + struct.pack(">H", len(body))
    return b"\x81" + length + body


def _open_files() -> set[str]:
    """Return what this process has open, by name."""
    names = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.add(str(descriptor.readlink()))
    return names
