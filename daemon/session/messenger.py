"""``Messenger``: sends the notices of a run with Apprise, in a separate process.

No decision waits for it, and its faults never end a run. Notices wait in a bounded queue. Those
that exceed the rate limit share one message. A message that an address does not accept in time is
counted, logged and given up. The rules are docs/operations.md, O25 to O28.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiolimiter import AsyncLimiter

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.notify import NotifySection
from tracepaper.daemon.config.secrets import is_reference, read_secret
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.apprise_worker import Delivery, Message
from tracepaper.daemon.session.child import (
    ChildFailed,
    ChildProcess,
    Companion,
    StartProcess,
    TimeLimits,
    repeat,
)
from tracepaper.daemon.session.notices import Notice, Notices
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.types.decisions import RunRow, Step
from tracepaper.strategies.units import minute_text

PROGRAM = (sys.executable, "-m", "tracepaper.daemon.session.apprise_worker")
"""The process that sends."""
QUEUE_MOST: Final = 256
"""Most notices that wait; any further one is dropped and counted."""
LINES_MOST: Final = 20
BODY_MOST: Final = 1_800
"""Most notices, and most characters, of one message; services reject longer ones. The message
counts the notices that did not fit, by kind."""
URGENT: Final = frozenset({"limits", "halt", "stops", "feed"})
FEED_EVERY_S: Final = 5.0
END_S: Final = 10.0
"""Wall seconds to send waiting notices at the daemon's end; part of an orderly stop's time."""
MINUTE_S: Final = 60.0
NEEDED_BY: Final = "[notify] addresses"

log = Logger("notify")


def check_notify(section: NotifySection, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ``ConfigInvalid`` if Apprise is missing or an address of *section* cannot be read."""
    require("apprise", NEEDED_BY, section.addresses)
    for address in filter(is_reference, section.addresses):
        try:
            read_secret(address, environment)
        except ConfigInvalid as error:
            raise ConfigInvalid(f"[notify] addresses: {error}") from None


class Sender:
    """Sends to *addresses* by a separate process."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        limit_s: float,
        start_process: StartProcess = ChildProcess,
    ) -> None:
        self._addresses = tuple(addresses)
        self.child = start_process(
            "sending",
            PROGRAM,
            TimeLimits(limit_s, f"notify.timeout_s, {limit_s:g} s"),
            opening=self._addresses,
            errors=subprocess.DEVNULL,  # a plugin may print a secret
        )

    async def send(self, message: Message) -> list[Delivery]:
        """Send *message*; return the result at each address, in their order.

        If an address does not answer in time, the process is ended and that delivery has failed.
        """
        deliveries: dict[str, Delivery] = {}
        error = ""
        try:
            async with self.child.exchange():
                self.child.write(message)
                while len(deliveries) < len(self._addresses):
                    delivery = await self.child.read(Delivery)
                    deliveries[delivery.address] = delivery
        except ChildFailed as fault:
            error = str(fault)
        return [deliveries.get(name, Delivery(name, error)) for name in self._addresses]


class Messenger(Companion):
    """Observes the steps of a run and sends the notices that [notify] of *config* selects.

    *breach* returns the limit that halts the run, *set_aside* the failed strategies with their
    errors, and *frame_age_s* the age of the feed's newest frame. ``counts`` has the deliveries that
    succeeded (sent) and failed, and the notices for which the queue was full (dropped).
    """

    key = "notices"

    def __init__(
        self,
        config: Config,
        run: RunRow,
        clock: Clock,
        *,
        breach: Callable[[], str],
        set_aside: Callable[[], Mapping[str, str]],
        frame_age_s: Callable[[], float | None],
        start_process: StartProcess = ChildProcess,
    ) -> None:
        self.counts: dict[str, int] = {"sent": 0, "failed": 0, "dropped": 0}
        self._section, self._run, self._clock = config.notify, run, clock
        self._breach, self._set_aside, self._frame_age_s = breach, set_aside, frame_age_s
        self._notices = Notices(config.notify, run, on_breach=config.risk.on_breach)
        self._sender = Sender(
            config.notify.addresses, limit_s=config.notify.timeout_s, start_process=start_process
        )
        self._queue: deque[Notice] = deque()
        self._has_notices = asyncio.Event()
        self._started_s = clock.network_s()
        self._limiter = AsyncLimiter(config.notify.per_minute, MINUTE_S)
        self._turn = asyncio.Lock()

    def status(self) -> dict[str, int]:
        """Return ``counts``."""
        return dict(self.counts)

    def observe(self, step: Step) -> None:
        """Queue the notices of a stored *step*; never wait and never raise."""
        try:
            self._put(self._notices.of_step(step, self._breach(), self._set_aside()))
        except Exception:
            self.counts["dropped"] += 1
            log.exception("notice not made", sequence=step.sequence)

    def _put(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            if len(self._queue) >= QUEUE_MOST:
                self.counts["dropped"] += 1
                continue
            self._queue.append(notice)
            self._has_notices.set()

    @asynccontextmanager
    async def in_background(self, failed: Callable[[], object]) -> AsyncIterator[None]:
        """Send while the block runs; then send what waits, within a bounded time."""
        sending = asyncio.create_task(repeat(self._send, self._clock, _log_fault), name="notify")
        try:
            async with super().in_background(failed):
                yield
        finally:
            before = self.counts["dropped"]
            try:
                await self._send_rest(sending)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
                await self._sender.child.stop()
                self.counts["dropped"] += len(self._queue)
                if lost := self.counts["dropped"] - before:
                    log.warning("notices given up at the end", count=lost)

    async def _work(self) -> None:
        await repeat(self._watch_feed, self._clock, _log_fault)

    async def _send_rest(self, sending: asyncio.Task[None]) -> None:
        """Finish the message being sent, then send what waits in one more, ignoring the rate."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S), self._turn:
                sending.cancel()
                if self._queue:
                    await self._deliver()

    async def _watch_feed(self) -> None:
        await self._clock.sleep(FEED_EVERY_S)
        age_s = self._frame_age_s()
        if age_s is None:
            age_s = self._clock.network_s() - self._started_s
        now_ms = self._clock.market_ms()
        self._put(self._notices.of_feed(age_s, self._section.feed_lost_s, now_ms))

    async def _send(self) -> None:
        await self._has_notices.wait()
        await self._limiter.acquire()
        async with self._turn:
            await self._deliver()

    async def _deliver(self) -> None:
        """Send all waiting notices in one message; count them as dropped if that raises."""
        notices = list(self._queue)
        self._queue.clear()
        self._has_notices.clear()
        try:
            deliveries = await self._sender.send(self._message(notices))
        except BaseException:
            self.counts["dropped"] += len(notices)
            raise
        for delivery in deliveries:
            self.counts["failed" if delivery.error else "sent"] += 1
            if delivery.error:
                log.warning("notice given up", address=delivery.address, error=delivery.error)

    def _message(self, notices: Sequence[Notice]) -> Message:
        """Return one message of *notices*, oldest first; if they are too many, urgent ones stay."""
        lines: dict[int, str] = {}
        size = 0
        for index in sorted(range(len(notices)), key=lambda at: notices[at].kind not in URGENT):
            line = self._line(notices[index])[:BODY_MOST]
            size += len(line) + 1
            if len(lines) == LINES_MOST or (lines and size > BODY_MOST):
                break
            lines[index] = line
        text = "\n".join(lines[index] for index in sorted(lines))
        omitted = Counter(notice.kind for index, notice in enumerate(notices) if index not in lines)
        if omitted:
            counts = ", ".join(f"{kind} {count}" for kind, count in omitted.items())
            text += f"\nand {omitted.total()} more: {counts}"
        symbols = {item.symbol for item in self._run.instruments}
        subject = next(iter(symbols)) if len(symbols) == 1 else f"{len(symbols)} symbols"
        topic = notices[0].kind if len({notice.kind for notice in notices}) == 1 else "notices"
        return Message(f"tracepaper {subject}: {topic}", text)

    def _line(self, notice: Notice) -> str:
        time = minute_text(notice.market_ms)
        template = self._section.wording(notice.kind)
        fields = {**notice.fields, "time": time, "run": self._run.run_id}
        text = template.format_map({**fields, "strategy": self._run.strategy})
        return text if notice.kind in self._section.templates else f"{time[11:]} {text}"


async def send_test(section: NotifySection) -> list[Delivery]:
    """Send one message to every address of *section*; return the result at each.

    Raises ``ConfigInvalid`` if there is no address, or one cannot be read.
    """
    if not section.addresses:
        raise ConfigInvalid(
            f'{NEEDED_BY} is empty; name one, such as "env:NAME" or "json://127.0.0.1:8080/hook".'
        )
    check_notify(section)
    sender = Sender(section.addresses, limit_s=section.timeout_s)
    async with sender.child:
        return await sender.send(Message("tracepaper: test", "This is a test of [notify]."))


def _log_fault(error: Exception, pause_s: float) -> None:
    log.error("notices", pause_s=pause_s, exc_info=error)
