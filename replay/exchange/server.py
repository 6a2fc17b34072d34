"""``EmbeddedExchange``: one exchange on one loopback port.

Live use::

    async with EmbeddedExchange(ExchangeSettings(data=("BTCUSDT=btc.csv.gz",), speed=2000)) as it:
        ...                                  # it.rest_url, it.stream_url, it.control_url

A test moves market time itself and never sleeps::

    settings = ExchangeSettings(candles=(candles,), manual=True)
    async with EmbeddedExchange(settings) as exchange:
        ...                                  # connect and subscribe a client
        await exchange.advance(61_000)       # every frame due in 61 s has been written
        exchange.arm("wrong_close", form="missing")

Time: the clock starts ``start`` bars and 5 s into the data. It jumps over a hole that all symbols
share, with a warning. It stops 10 s after the last bar, and REST still answers. With ``hold`` it
stands still until a client subscribes a kline topic; with ``wall_ms`` it is the wall clock, to
which the candles are shifted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from tracepaper.daemon.session.child import on_input_end
from tracepaper.daemon.session.shutdown import signals_call
from tracepaper.replay.archive import Candles, merge_candles, read_candles
from tracepaper.replay.exchange.channels import Channel, FramePace, TopicRequest, encode
from tracepaper.replay.exchange.fault_kinds import Fault
from tracepaper.replay.exchange.faults import FaultPlan, Faults, TimedFault, fault_from
from tracepaper.replay.exchange.handlers import Control, RestHandler, StreamHandler
from tracepaper.replay.exchange.hub import Hub, MarketClock
from tracepaper.replay.exchange.market import (
    END_LINGER_MS,
    HOLE_LINGER_MS,
    SimulatedMarket,
    Venue,
    shifted,
)
from tracepaper.replay.exchange.surface import find_channel
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Category

HOST: Final = "127.0.0.1"
SHUTDOWN_S: Final = 2.0
FIRE_WITHIN_S_MIN: Final = 10.0
FIRE_WITHIN_GAPS: Final = 10.0
ROUNDS_PER_GAP: Final = 4

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExchangeSettings:
    """What to serve and how. ``data`` are paths or ``SYMBOL=PATH``; ``candles`` are served as well.

    ``speed`` scales market time; ``manual`` leaves it to ``EmbeddedExchange.advance``. With
    ``wall_ms`` the candles are shifted by whole bars, so that market time is the value it returns;
    time then neither jumps over holes nor stops at the end of the data. ``frames_per_candle``
    limits the pushes, books and trades of a candle.
    """

    data: tuple[str, ...] = ()
    candles: tuple[Candles, ...] = ()
    category: Category | None = None
    columns: tuple[str, ...] = ()
    port: int = 0
    speed: float = 1.0
    start: int | None = None
    seed: int = 0
    hold: bool = False
    manual: bool = False
    faults: FaultPlan | None = None
    wall_ms: Callable[[], int] | None = None
    frames_per_candle: int | None = None


class EmbeddedExchange:
    """The running exchange. Raises ``ConfigInvalid`` or ``DataInvalid`` before it starts."""

    def __init__(self, settings: ExchangeSettings) -> None:
        if not 0 < settings.speed < math.inf:
            raise ConfigInvalid(f"--speed is {settings.speed}: give a number above 0.")
        if settings.wall_ms and (settings.speed != 1 or settings.hold):
            raise ConfigInvalid("--now is the wall clock: leave out --speed and --hold.")
        self.settings: Final = settings
        candles = [*settings.candles]
        if settings.data:
            category, columns = settings.category, settings.columns
            parts = [read_candles(at, category=category, columns=columns) for at in settings.data]
            candles += merge_candles(parts)
        if settings.wall_ms:
            candles = shifted(candles, settings.wall_ms(), settings.start)
        for note in (f"{each.path}: {note}" for each in candles for note in each.notes):
            LOG.warning(note)
        self.venue: Final = Venue(
            [
                SimulatedMarket(each, seed=settings.seed, frames=settings.frames_per_candle)
                for each in candles
            ]
        )
        self.faults: Final = Faults(speed=settings.speed)
        self._plan = settings.faults or FaultPlan()
        self._stack = AsyncExitStack()
        self._port = settings.port

    async def __aenter__(self) -> Self:
        """Bind the port and start time."""
        loop = asyncio.get_running_loop()
        settings = self.settings
        start_ms = settings.wall_ms() if settings.wall_ms else self.venue.start_ms(settings.start)
        self.clock = MarketClock(
            start_ms,
            speed=settings.speed,
            monotonic=loop.time,
            manual=settings.manual,
            held=settings.hold,
        )
        self.hub = Hub(self.clock, self.faults, self._channel)
        self._plan_timeline(start_ms)
        async with AsyncExitStack() as stack:
            await self._listen(stack)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            for work in (self.hub.pump(), self._schedule_faults()):
                stack.callback(tasks.create_task(work).cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cut every connection and free the port; an error of the body propagates."""
        del kind, error, trace
        self.hub.cut_all()
        await self._stack.aclose()

    # ------------------------------------------------------------ addresses

    @property
    def rest_url(self) -> str:
        """The base of the REST paths: ``/v5/market/time`` is added."""
        return f"http://{HOST}:{self._port}"

    @property
    def stream_url(self) -> str:
        """The base of the streams: ``/v5/public/linear`` is added."""
        return f"ws://{HOST}:{self._port}"

    @property
    def control_url(self) -> str:
        """The base of the control calls: ``/fault``, ``/hold``, ``/speed``."""
        return f"{self.rest_url}/control"

    def announcement(self) -> dict[str, Any]:
        """Return the line that the command prints when it is ready."""
        markets = list(self.venue.markets.values())
        return {
            "rest_url": self.rest_url,
            "stream_url": self.stream_url,
            "control_url": self.control_url,
            "symbols": [market.symbol for market in markets],
            "categories": sorted({market.category.value for market in markets}),
            "interval": markets[0].interval,
            "start_ms": self.clock.now_ms(),
            "end_ms": self.venue.end_ms,
            "speed": self.settings.speed,
            "held": self.clock.held,
        }

    # ------------------------------------------------------------ control

    async def advance(self, ms: int) -> None:
        """Move a manual clock by *ms*; every frame due by then is written when this returns."""
        await self.hub.advance_to(self.clock.now_ms() + ms)

    async def advance_to(self, time_ms: int) -> None:
        """Move a manual clock to *time_ms*, as ``advance`` does."""
        await self.hub.advance_to(time_ms)

    def arm(self, kind: str, **parameters: str | float | bool) -> None:
        """Arm a fault by name, as ``POST /control/fault`` does; raises ``ConfigInvalid``."""
        self.hub.arm(fault_from({"kind": kind, **parameters}))

    # ------------------------------------------------------------ channels, port, time

    def _channel(self, category: str, topic: str) -> Channel | None:
        settings = self.settings
        pacing = FramePace(settings.speed, len(self.venue.markets), settings.frames_per_candle)
        return find_channel(TopicRequest(self.venue, category, topic, pacing, self.faults))

    async def _listen(self, stack: AsyncExitStack) -> None:
        """Serve REST, stream and control calls on one port."""
        application = web.Application()
        application.add_routes(Control(self.hub).routes())
        stream = StreamHandler(self.hub, self.settings.seed)
        application.router.add_get("/v5/public/{category}", stream.handle)
        rest = RestHandler(self.hub, self.venue)
        application.router.add_get("/v5/{path:.*}", rest.handle)
        runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=SHUTDOWN_S,
            handler_cancellation=True,  # an answer that hangs ends with its connection
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, HOST, self.settings.port).start()
        except OSError as error:
            raise ConfigInvalid(
                f"Port {self.settings.port} cannot be bound ({error.strerror}): "
                "give a free one, or --port 0."
            ) from None
        self._port = runner.addresses[0][1]

    def _plan_timeline(self, start_ms: int) -> None:
        """Plan the jumps over holes and the end of time."""
        end_ms = self.venue.end_ms + END_LINGER_MS
        self.hub.at(end_ms, partial(LOG.warning, "The data ends; REST answers on."))
        if self.settings.wall_ms:
            return
        self.clock.stop_at(end_ms)
        for from_ms, until_ms in self.venue.holes():
            if until_ms > start_ms:
                self.hub.at(from_ms + HOLE_LINGER_MS, partial(self._jump, from_ms, until_ms))

    def _jump(self, from_ms: int, until_ms: int) -> None:
        self.clock.set(until_ms)
        LOG.warning("Time jumps over a hole in the data, from %d to %d ms.", from_ms, until_ms)

    async def _schedule_faults(self) -> None:
        """Arm the plan's faults, the listed and then the seeded ones, while a client listens."""
        for timed in self._plan.listed():
            await self._arm_later(timed)
        for timed in self._plan.scheduled():
            if self.clock.ended:
                return
            await self._arm_later(timed)
            await self._until_fired(timed.fault)

    async def _arm_later(self, timed: TimedFault) -> None:
        """Arm a fault after its wait, unless the data has ended and nothing can be hit."""
        await self.hub.subscribed.wait()
        await asyncio.sleep(timed.wait_s)
        await self.hub.subscribed.wait()
        if not self.clock.ended:
            self.hub.arm(timed.fault)

    async def _until_fired(self, fault: Fault) -> None:
        """Wait until *fault* has fired, but not forever: perhaps no client listens to its topic."""
        limit_s = max(FIRE_WITHIN_S_MIN, FIRE_WITHIN_GAPS * self._plan.every_s)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limit_s
        rounds = 0
        while self.faults.pending(fault.kind) and loop.time() < until_s:
            await asyncio.sleep(self._plan.every_s / ROUNDS_PER_GAP)
            rounds += 1
            again = rounds % ROUNDS_PER_GAP == 0
            if again and fault.provoke and self.faults.pending(fault.kind):
                self.hub.cut_all()


# ------------------------------------------------------------ one process


async def serve(settings: ExchangeSettings, *, until_eof: bool = False) -> None:
    """Announce the addresses on stdout, then serve until a signal.

    With *until_eof* the end of standard input, which shows that the parent is gone, ends it too.
    Raises ``ConfigInvalid`` or ``DataInvalid`` where the settings cannot be served.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    if until_eof:
        on_input_end(lambda: loop.call_soon_threadsafe(stopped.set))
    with signals_call(stopped.set):
        async with EmbeddedExchange(settings) as exchange:
            sys.stdout.write(encode(exchange.announcement()).decode() + "\n")
            sys.stdout.flush()
            await stopped.wait()
