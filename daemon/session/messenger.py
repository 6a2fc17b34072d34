"""``Messenger``: sends the notices of a run by Apprise, in a process of its own.

No decision waits for it, and no fault of it ends a run. Notices wait in a bounded queue; what comes
faster than the limit goes together; what an address does not take in time is counted, logged and
given up. The rules are docs/operations.md, O25 to O28.
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
    TimeLimits,
    keep,
)
from tracepaper.daemon.session.notices import Notice, Notices
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.types.decisions import Run, Step
from tracepaper.strategies.units import minute_text

PROGRAM = (sys.executable, "-m", "tracepaper.daemon.session.apprise_worker")
"""The process that sends."""
QUEUE_MOST: Final = 256
"""Notices that wait; a further one is dropped and counted."""
LINES_MOST: Final = 20
BODY_MOST: Final = 1_800
"""Notices, and characters of them, in one message; services refuse longer ones. Of what is left out
it names the kinds."""
URGENT: Final = frozenset({"limits", "halt", "stops", "feed"})
FEED_EVERY_S: Final = 5.0
END_S: Final = 10.0
"""Wall seconds for what waits at the daemon's end, within those of an orderly stop."""
MINUTE_S: Final = 60.0
NEEDED_BY: Final = "[notify] addresses"

log = Logger("notify")


def check_notify(section: NotifySection, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ``ConfigInvalid`` where *section* has addresses and nothing could be sent to them."""
    require("apprise", NEEDED_BY, section.addresses)
    for address in filter(is_reference, section.addresses):
        try:
            read_secret(address, environment)
        except ConfigInvalid as error:
            raise ConfigInvalid(f"[notify] addresses: {error}") from None


class Sender(ChildProcess):
    """The process that sends to *addresses*."""

    def __init__(self, addresses: Sequence[str], *, limit_s: float) -> None:
        self._addresses = tuple(addresses)
        super().__init__(
            "sending",
            PROGRAM,
            TimeLimits(limit_s, f"notify.timeout_s, {limit_s:g} s"),
            opening=self._addresses,
            errors=subprocess.DEVNULL,  # a plugin may print a secret
        )

    async def send(self, message: Message) -> list[Delivery]:
        """Send *message*; return what became of it at each address, in their order.

        An address that has not answered in time is given up, and the process ended.
        """
        deliveries: dict[str, Delivery] = {}
        error = ""
        try:
            async with self.exchange():
                self.write(message)
                while len(deliveries) < len(self._addresses):
                    delivery = await self.read(Delivery)
                    deliveries[delivery.address] = delivery
        except ChildFailed as fault:
            error = str(fault)
        return [deliveries.get(name, Delivery(name, error)) for name in self._addresses]


class Messenger(Companion):
    """Observes the steps of a run and tells *config*'s addresses what [notify] asks for.

    *breach* returns the limit that halts the run, *set_aside* why which strategies failed, and
    *frame_age_s* the age of the feed's newest frame.
    ``counts`` has the deliveries that were taken (sent) and not (failed), and the notices that
    found the queue full (dropped).
    """

    key = "notices"

    def __init__(
        self,
        config: Config,
        run: Run,
        clock: Clock,
        *,
        breach: Callable[[], str],
        set_aside: Callable[[], Mapping[str, str]],
        frame_age_s: Callable[[], float | None],
    ) -> None:
        self.counts: dict[str, int] = {"sent": 0, "failed": 0, "dropped": 0}
        self._section, self._run, self._clock = config.notify, run, clock
        self._breach, self._set_aside, self._frame_age_s = breach, set_aside, frame_age_s
        self._notices = Notices(config.notify, run, on_breach=config.risk.on_breach)
        self._sender = Sender(config.notify.addresses, limit_s=config.notify.timeout_s)
        self._queue: deque[Notice] = deque()
        self._has_notices = asyncio.Event()
        self._started_s = clock.network_s()
        self._limiter = AsyncLimiter(config.notify.per_minute, MINUTE_S)
        self._turn = asyncio.Lock()

    def status(self) -> dict[str, int]:
        """Return the counts."""
        return dict(self.counts)

    def observe(self, step: Step) -> None:
        """Queue the notices of a stored *step*; never wait, and never fail."""
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
    async def at_work(self, failed: Callable[[], object]) -> AsyncIterator[None]:
        """Send in the background of the block; what waits at its end has a bounded time."""
        sending = asyncio.create_task(keep(self._send, self._clock, _log_fault), name="notify")
        try:
            async with super().at_work(failed):
                yield
        finally:
            before = self.counts["dropped"]
            try:
                await self._send_rest(sending)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
                await self._sender.stop()
                self.counts["dropped"] += len(self._queue)
                if lost := self.counts["dropped"] - before:
                    log.warning("notices given up at the end", count=lost)

    async def _work(self) -> None:
        await keep(self._watch_feed, self._clock, _log_fault)

    async def _send_rest(self, sending: asyncio.Task[None]) -> None:
        """Let a message that is under way end, and send what waits in one more, without a limit."""
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
        """Send what waits in one message; what was not answered is dropped."""
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
        """Return one message of all *notices*, oldest first."""
        lines: dict[int, str] = {}
        size = 0
        for index in sorted(range(len(notices)), key=lambda at: notices[at].kind not in URGENT):
            line = self._line(notices[index])[:BODY_MOST]
            size += len(line) + 1
            if len(lines) == LINES_MOST or (lines and size > BODY_MOST):
                break
            lines[index] = line
        text = "\n".join(lines[index] for index in sorted(lines))
        left = Counter(notice.kind for index, notice in enumerate(notices) if index not in lines)
        if left:
            counts = ", ".join(f"{kind} {count}" for kind, count in left.items())
            text += f"\nand {left.total()} more: {counts}"
        symbols = {item.symbol for item in self._run.instruments}
        about = next(iter(symbols)) if len(symbols) == 1 else f"{len(symbols)} symbols"
        what = notices[0].kind if len({notice.kind for notice in notices}) == 1 else "notices"
        return Message(f"tracepaper {about}: {what}", text)

    def _line(self, notice: Notice) -> str:
        time = minute_text(notice.market_ms)
        template = self._section.wording(notice.kind)
        fields = {**notice.fields, "time": time, "run": self._run.run_id}
        text = template.format_map({**fields, "strategy": self._run.strategy})
        return text if notice.kind in self._section.templates else f"{time[11:]} {text}"


async def send_test(section: NotifySection) -> list[Delivery]:
    """Send one message to every address of *section*; return what became of it at each.

    Raises ``ConfigInvalid`` where there is no address, or one cannot be read.
    """
    if not section.addresses:
        raise ConfigInvalid(
            f'{NEEDED_BY} is empty; name one, such as "env:NAME" or "json://127.0.0.1:8080/hook".'
        )
    check_notify(section)
    async with Sender(section.addresses, limit_s=section.timeout_s) as sender:
        return await sender.send(Message("tracepaper: test", "This is a test of [notify]."))


def _log_fault(error: Exception, pause_s: float) -> None:
    log.error("notices", pause_s=pause_s, exc_info=error)
