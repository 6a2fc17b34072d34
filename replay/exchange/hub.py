"""Market time, connections, topics, and the loop that sends due frames."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Final

from aiohttp import WSMsgType, web

from tracepaper.replay.exchange.channels import Channel, Due, Frame
from tracepaper.replay.exchange.fault_kinds import FAULTS, Fault, FaultEffect
from tracepaper.replay.exchange.faults import Faults

# ------------------------------------------------------------ market time


class MarketClock:
    """Server time in ms. It never goes back.

    ``monotonic`` gives machine seconds; it is an argument, so a test needs no machine time. A
    *manual* clock moves only by ``set``; a *held* one stands still until ``release``.
    """

    def __init__(
        self,
        start_ms: int,
        *,
        speed: float,
        monotonic: Callable[[], float],
        manual: bool = False,
        held: bool = False,
    ) -> None:
        self.speed = speed
        self.manual = manual
        self._monotonic = monotonic
        self.held = held  # stands still until a client has subscribed a candle topic
        self._anchor_ms = float(start_ms)
        self._anchor_s = monotonic()
        self._end_ms: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the data has ended; time then stands at its end."""
        return self._end_ms is not None and self.now_ms() >= self._end_ms

    def now_ms(self) -> int:
        """Return server time."""
        if self.manual or self.held:
            now = int(self._anchor_ms)
        else:
            elapsed_s = self._monotonic() - self._anchor_s
            now = int(self._anchor_ms + elapsed_s * 1000 * self.speed)
        return now if self._end_ms is None else min(now, self._end_ms)

    def seconds_until(self, time_ms: float) -> float | None:
        """Return machine seconds until *time_ms*; None where time does not run by itself."""
        if self.manual or self.held:
            return None
        return max(0.0, (time_ms - self.now_ms()) / (1000 * self.speed))

    def set(self, time_ms: float) -> None:
        """Move forward to *time_ms*; an earlier time changes nothing."""
        if time_ms > self.now_ms():
            self._anchor_ms = time_ms
            self._anchor_s = self._monotonic()

    def release(self) -> None:
        """Let a held clock run."""
        if self.held:
            self.held = False
            self._anchor_s = self._monotonic()

    def hold(self) -> None:
        """Stop time until ``release``."""
        self._anchor_ms = self.now_ms()
        self.held = True

    def set_speed(self, speed: float) -> None:
        """Let time pass *speed* times as fast as the machine's from now on."""
        self._anchor_ms = self.now_ms()
        self._anchor_s = self._monotonic()
        self.speed = speed

    def stop_at(self, end_ms: int) -> None:
        """Stop time at *end_ms*."""
        self._end_ms = end_ms


# ------------------------------------------------------------ clients

OUTBOX_FRAMES_MAX: Final = 20_000


class Connection:
    """A client's connection to one category; *identity* is its ``conn_id``."""

    def __init__(self, category: str, identity: str, request: web.Request) -> None:
        self.category: Final = category
        self.identity: Final = identity
        self.topics: Final[set[str]] = set()
        self._stalled_until_s = 0.0
        self._request = request
        self._outbox: deque[bytes] = deque()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self.is_cut = False

    def stall(self, until_s: float) -> None:
        """Withhold data until *until_s* in machine time."""
        self._stalled_until_s = until_s

    def is_served(self, now_s: float) -> bool:
        """Return whether data is sent to it now."""
        return self._stalled_until_s <= now_s and not self.is_cut

    def send(self, body: bytes) -> None:
        """Queue *body*; a client that does not read is cut off, as the exchange would."""
        if self.is_cut:
            return
        if len(self._outbox) >= OUTBOX_FRAMES_MAX:
            self.cut()
            return
        self._outbox.append(body)
        self._drained.clear()
        self._filled.set()

    async def write(self, socket: web.WebSocketResponse) -> None:
        """Write the queued bodies until the connection is cut."""
        try:
            while not self.is_cut:
                await self._filled.wait()
                self._filled.clear()
                while self._outbox:
                    await socket.send_frame(self._outbox.popleft(), WSMsgType.TEXT)
                self._drained.set()
        except ConnectionResetError:
            self.cut()
        finally:
            self._drained.set()  # nobody waits for a connection that is gone

    async def drained(self) -> None:
        """Wait until everything queued so far is written, or the connection is cut."""
        await self._drained.wait()

    def cut(self) -> None:
        """Drop the connection without a closing handshake."""
        self.is_cut = True
        self._outbox.clear()
        self._drained.set()
        if self._request.transport is not None:
            self._request.transport.abort()


WAKE_S_MIN: Final = 0.001

Key = tuple[str, str]
"""(category, topic)."""
FindChannel = Callable[[str, str], Channel | None]
Action = Callable[[], None]


@dataclass
class Subscription:
    """An active channel and its listeners."""

    channel: Channel
    steps: Iterator[Due]
    listeners: list[Connection] = field(default_factory=list)


class Hub:
    """Connections, subscriptions, the queue of due frames, and the faults that meet them."""

    def __init__(
        self,
        clock: MarketClock,
        faults: Faults,
        find_channel: FindChannel,
    ) -> None:
        self.clock: Final = clock
        self.faults: Final = faults
        self.connections: Final[set[Connection]] = set()
        self._find_channel = find_channel
        self._channels: dict[Key, Channel] = {}
        self._subscriptions: dict[Key, Subscription] = {}
        self._due: list[tuple[float, int, Action]] = []
        self._serial = 0
        self._held_back: list[tuple[Key, bytes]] = []
        self._woken = asyncio.Event()
        self.subscribed: Final = asyncio.Event()

    # ------------------------------------------------------------ subscriptions

    def channel(self, category: str, topic: str) -> Channel | None:
        """Return the channel of *topic*, or None where there is no such topic."""
        key = (category, topic)
        if key not in self._channels:
            channel = self._find_channel(category, topic)
            if channel is None:
                return None
            self._channels[key] = channel
        return self._channels[key]

    def subscribe(self, connection: Connection, topic: str) -> list[bytes]:
        """Add *connection* to a known *topic*; return its opening frames."""
        key = (connection.category, topic)
        channel = self.channel(*key)
        if channel is None or topic in connection.topics:
            return []
        now_ms = self.clock.now_ms()
        opening = channel.opening(now_ms)
        if key not in self._subscriptions:
            self._subscriptions[key] = Subscription(channel, channel.steps(now_ms))
            self._schedule_next(key, self._subscriptions[key])
        self._subscriptions[key].listeners.append(connection)
        connection.topics.add(topic)
        if self.clock.held and topic.startswith("kline."):
            self.clock.release()
        self.subscribed.set()
        self.apply_connection_faults()
        self._woken.set()
        return [frame.body for frame in opening]

    def unsubscribe(self, connection: Connection, topic: str) -> None:
        """Remove *connection* from *topic*; the last listener to leave stops the channel."""
        key = (connection.category, topic)
        connection.topics.discard(topic)
        subscription = self._subscriptions.get(key)
        if subscription is None or connection not in subscription.listeners:
            return
        subscription.listeners.remove(connection)
        if not subscription.listeners:
            del self._subscriptions[key]
            subscription.channel.reset()
            if not self._subscriptions:
                self.subscribed.clear()

    def leave(self, connection: Connection) -> None:
        """Forget *connection*."""
        for topic in list(connection.topics):
            self.unsubscribe(connection, topic)
        self.connections.discard(connection)

    # ------------------------------------------------------------ time

    def at(self, time_ms: float, action: Action) -> None:
        """Run *action* when market time reaches *time_ms*, after those queued earlier for it."""
        self._serial += 1
        heappush(self._due, (time_ms, self._serial, action))

    def wake(self) -> None:
        """Make the pump read the clock again, after its hold or speed changed."""
        self._woken.set()

    def _schedule_next(self, key: Key, subscription: Subscription) -> None:
        step = next(subscription.steps, None)
        if step is None:
            return
        time_ms, build = step

        def fire() -> None:
            if self._subscriptions.get(key) is not subscription:
                return
            for frame in build():
                if frame.at_ms > time_ms:
                    self.at(frame.at_ms, partial(self.publish, key, frame))
                else:
                    self.publish(key, frame)
            self._schedule_next(key, subscription)

        self.at(time_ms, fire)

    def fire_until(self, limit_ms: float) -> None:
        """Run all actions that are due at or before *limit_ms*, in time order."""
        while self._due and self._due[0][0] <= limit_ms:
            heappop(self._due)[2]()

    async def pump(self) -> None:
        """Run due actions as market time passes; wake at most once a millisecond."""
        while True:
            self.fire_until(self.clock.now_ms())
            wait_s = self.clock.seconds_until(self._due[0][0]) if self._due else None
            try:
                async with asyncio.timeout(None if wait_s is None else max(WAKE_S_MIN, wait_s)):
                    await self._woken.wait()
            except TimeoutError:
                continue
            self._woken.clear()

    async def advance_to(self, time_ms: int) -> None:
        """Move a manual clock to *time_ms*, running each due action at its own time."""
        while self._due and self._due[0][0] <= max(time_ms, self.clock.now_ms()):
            moment = self._due[0][0]
            self.clock.set(moment)
            self.fire_until(moment)
        self.clock.set(time_ms)
        for connection in list(self.connections):
            await connection.drained()

    # ------------------------------------------------------------ sending

    def publish(self, key: Key, frame: Frame) -> None:
        """Send *frame* to its listeners, as an armed fault changes it."""
        self.apply_connection_faults()
        if not self._receivers(key):
            return
        held_back, self._held_back = self._held_back, []
        now_ms = self.clock.now_ms()
        effect = FaultEffect((frame.body,))
        if change := self.faults.hit("frame", now_ms, frame.topic):
            effect = change(frame.body)
        for body in effect.now:
            self._deliver(key, body)
        for by_ms, body in effect.later:
            self.at(now_ms + by_ms, partial(self._deliver, key, body))
        self._held_back += ((key, body) for body in effect.after_next)
        for late_key, late_body in held_back:
            self._deliver(late_key, late_body)

    def _deliver(self, key: Key, body: bytes) -> None:
        for connection in self._receivers(key):
            connection.send(body)

    def _receivers(self, key: Key) -> list[Connection]:
        subscription = self._subscriptions.get(key)
        if subscription is None:
            return []
        now_s = asyncio.get_running_loop().time()
        return [each for each in subscription.listeners if each.is_served(now_s)]

    # ------------------------------------------------------------ connection faults

    def arm(self, fault: Fault) -> None:
        """Arm *fault*, and cut the stream at once where its kind asks for that."""
        self.faults.arm(fault)
        if fault.provoke or FAULTS[fault.kind].stage == "handshake":
            self.cut_all()
        self.apply_connection_faults()

    def apply_connection_faults(self) -> None:
        """Apply an armed connection fault, once a connection listens to a topic."""
        if any(each.topics and not each.is_cut for each in self.connections) and (
            disturb := self.faults.hit("connection", self.clock.now_ms())
        ):
            disturb(self)

    def stall(self, seconds: float) -> None:
        """Withhold data from every open connection for *seconds* of machine time."""
        until_s = asyncio.get_running_loop().time() + seconds
        for connection in self.connections:
            connection.stall(until_s)

    def cut_all(self) -> None:
        """Cut every connection."""
        for connection in list(self.connections):
            connection.cut()
