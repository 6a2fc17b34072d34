"""``Messenger``: sends the notices of a run. The rules are docs/operations.md, O25 to O28."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiolimiter import AsyncLimiter
from msgspec import Struct

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.config.secrets import read_secret, without
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import Companion, repeat
from tracepaper.daemon.session.notices import TEXT_MOST, Notice, Notices
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.units import minute_text

if TYPE_CHECKING:
    from apprise import Apprise

QUEUE_MOST: Final = 256
"""Most notices that wait; any further one is dropped and counted."""
LINES_MOST: Final = 20
BODY_MOST: Final = 1_800
"""Most notices, and most characters, of one message; services reject longer ones."""
URGENT: Final = frozenset({"limits", "halt", "stops", "feed"})
TICK_S: Final = 5.0
"""Seconds between two looks at the feed, and at notices that the rate holds back."""
END_S: Final = 10.0
"""Wall seconds to send waiting notices at the daemon's end; part of an orderly stop's time."""
MINUTE_S: Final = 60.0
ADDRESSES: Final = "[notify] addresses"

log = Logger("notify")


class Message(Struct, frozen=True):
    """Notices for every address."""

    title: str
    body: str


class Delivery(Struct, frozen=True):
    """The result of sending a message to one address; ``error`` is empty on success."""

    address: str  # the reference, as configured
    error: str


Send = Callable[[str, Message], Awaitable[str]]
"""Sends a message to a configured address; returns the error, empty on success."""


def services_of(
    section: NotifySection, environment: Mapping[str, str] = os.environ
) -> dict[str, tuple[Apprise, str]]:
    """Return the service of each configured address, and the address with its secret.

    Raises ``ConfigInvalid`` if Apprise is missing, or an address cannot be read or is none.
    """
    services: dict[str, tuple[Apprise, str]] = {}
    for address in section.addresses:
        require("apprise", ADDRESSES)
        import apprise

        apprise.logger.propagate = False  # its lines may contain secrets
        try:
            secret = read_secret(address, environment)
        except ConfigInvalid as error:
            raise ConfigInvalid(f"{ADDRESSES}: {error}") from None
        # A limit of Apprise's own would need its thread pool, which the interpreter's end joins.
        service = apprise.Apprise(asset=apprise.AppriseAsset(service_timeout=0))
        if not service.add(secret):
            raise ConfigInvalid(f"{ADDRESSES}: Apprise knows no such address as {address}.")
        services[address] = service, secret
    return services


class AppriseSender:
    """Sends by Apprise in one thread, which nothing waits for: a send that hangs stays behind."""

    def __init__(self, section: NotifySection) -> None:
        self._services = services_of(section)
        self._queue = queue.Queue[tuple[str, Message, Future[str]]](maxsize=1)
        threading.Thread(target=self._work, name="notify", daemon=True).start()

    async def __call__(self, address: str, message: Message) -> str:
        """Send *message* to *address*; return the error, empty on success."""
        result = Future[str]()
        try:
            self._queue.put_nowait((address, message, result))
        except queue.Full:
            return "an earlier send has not ended; start the daemon again if it never does"
        return await asyncio.wrap_future(result)

    def _work(self) -> None:
        while True:
            address, message, result = self._queue.get()
            if result.set_running_or_notify_cancel():  # else it was given up while it waited
                result.set_result(self._deliver(address, message))

    def _deliver(self, address: str, message: Message) -> str:
        service, secret = self._services[address]
        try:
            # Plain text: Apprise escapes it for services that expect HTML.
            result = service.notify(message.body, title=message.title, body_format="text")
            text = "" if result else " ".join(entry.message for entry in result.logs())
        except Exception as error:  # noqa: BLE001 - a plugin's fault is a failed delivery
            result, text = None, f"{type(error).__name__}: {error}"
        if result:
            return ""
        text = " ".join(text.split()) or "the service did not accept it"
        return without(text, secret)[:TEXT_MOST]


async def deliver(send: Send, section: NotifySection, message: Message) -> list[Delivery]:
    """Send *message* to one address of *section* after the other; return what became of it."""
    deliveries = []
    for address in section.addresses:
        error = f"it took longer than notify.timeout_s, {section.timeout_s:g} s"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(section.timeout_s):
                error = await send(address, message)
        deliveries.append(Delivery(address, error))
    return deliveries


class Messenger(Companion):
    """Observes the steps of a run and sends the notices that [notify] of *config* selects.

    *frame_age_s* returns the age of the feed's newest frame. ``counts`` has the deliveries that
    succeeded (sent) and failed, and the notices that were never sent (dropped).
    """

    key = "notices"

    def __init__(
        self,
        config: Config,
        run: RunRow,
        clock: Clock,
        send: Send,
        *,
        frame_age_s: Callable[[], float | None],
    ) -> None:
        self.counts: dict[str, int] = {"sent": 0, "failed": 0, "dropped": 0}
        self._section, self._run, self._clock, self._send = config.notify, run, clock, send
        self._frame_age_s, self._started_s = frame_age_s, clock.network_s()
        self._notices = Notices(config.notify, run, on_breach=config.risk.on_breach)
        self._queue: list[Notice] = []
        self._has_notices, self._turn = asyncio.Event(), asyncio.Lock()
        self._limiter = AsyncLimiter(config.notify.per_minute, MINUTE_S)

    def status(self) -> dict[str, int]:
        """Return ``counts``."""
        return dict(self.counts)

    def observe(self, step: Step) -> None:
        """Queue the notices of a stored *step*; never wait and never raise."""
        try:
            self._put(self._notices.of_step(step))
        except Exception:
            self.counts["dropped"] += 1
            log.exception("notice not made", sequence=step.sequence)

    def _put(self, notices: Sequence[Notice]) -> None:
        room = QUEUE_MOST - len(self._queue)
        self._queue += notices[:room]
        self.counts["dropped"] += len(notices[room:])
        if notices:
            self._has_notices.set()

    @asynccontextmanager
    async def in_background(self, failed: Callable[[], object]) -> AsyncIterator[None]:
        """Send while the block runs; then send what waits in one message, within ``END_S``."""
        async with super().in_background(failed):
            try:
                yield
            finally:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(END_S):
                        await self._send_waiting()
                self.counts["dropped"] += len(self._queue)

    async def _work(self) -> None:
        await repeat(self._tick, self._clock, _log_fault)

    async def _tick(self) -> None:
        """Look at the feed, then send what waits as soon as the rate allows it."""
        age_s = self._frame_age_s()
        if age_s is None:
            age_s = self._clock.network_s() - self._started_s
        now_ms, lost_s = self._clock.market_ms(), self._section.feed_lost_s
        self._put(self._notices.of_feed(age_s, lost_s, now_ms))
        try:
            async with asyncio.timeout(TICK_S):
                await self._has_notices.wait()
                await self._limiter.acquire()
        except TimeoutError:
            return
        await self._send_waiting()

    async def _send_waiting(self) -> None:
        """Send all waiting notices in one message, behind the message that is being sent."""
        async with self._turn:
            notices, self._queue = self._queue, []
            self._has_notices.clear()
            if not notices:
                return
            try:
                deliveries = await deliver(self._send, self._section, self._message(notices))
            except BaseException:  # a fault, or the end of the time at the daemon's end
                self.counts["dropped"] += len(notices)
                raise
        for delivery in deliveries:
            self.counts["failed" if delivery.error else "sent"] += 1
            if delivery.error:
                log.warning("notice given up", address=delivery.address, error=delivery.error)

    def _message(self, notices: Sequence[Notice]) -> Message:
        """Return one message of *notices*: urgent ones first, and counts of those without room."""
        ordered = sorted(notices, key=lambda notice: notice.kind not in URGENT)
        lines = [self._line(notice)[:BODY_MOST] for notice in ordered[:LINES_MOST]]
        while len("\n".join(lines)) > BODY_MOST:
            lines.pop()
        omitted = Counter(notice.kind for notice in ordered[len(lines) :])
        if omitted:
            counts = ", ".join(f"{kind} {count}" for kind, count in omitted.items())
            lines.append(f"and {omitted.total()} more: {counts}")
        symbols = [item.symbol for item in self._run.instruments]
        subject = symbols[0] if len(symbols) == 1 else f"{len(symbols)} symbols"
        topic = notices[0].kind if len({notice.kind for notice in notices}) == 1 else "notices"
        return Message(f"tracepaper {subject}: {topic}", "\n".join(lines))

    def _line(self, notice: Notice) -> str:
        time, run = minute_text(notice.market_ms), self._run
        fields = {**notice.fields, "time": time, "run": run.run_id, "strategy": run.strategy}
        text = self._section.wording(notice.kind).format_map(fields)
        return text if notice.kind in self._section.templates else f"{time[11:]} {text}"


async def send_test(section: NotifySection) -> list[Delivery]:
    """Send one message to every address of *section*; return the result at each.

    Raises ``ConfigInvalid`` if there is no address, or one cannot be used.
    """
    if not section.addresses:
        raise ConfigInvalid(f'{ADDRESSES} is empty; name one, such as "env:NAME".')
    message = Message("tracepaper: test", "This is a test of [notify].")
    return await deliver(AppriseSender(section), section, message)


def _log_fault(error: Exception, pause_s: float) -> None:
    log.error("notices", pause_s=pause_s, exc_info=error)
