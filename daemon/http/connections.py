"""The door of an HTTP server: not too many at once, and nobody who does not get to the point.

A client that sends half a request, reads no answer, or only holds on, is cut off; one that comes
when all places are taken is turned away with 503. A line a minute in the log says how many.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

PLACES: Final = 64
REQUEST_WITHIN_S: Final = 10.0
SAID_EVERY_S: Final = 60.0
SCARCE: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
TURNED_AWAY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

log = structlog.get_logger("http")


class Door:
    """Bounds the connections of one server; ``protocol`` stands before its own protocols.

    At most *places* connections. Each has *within_s* for its whole next request, and as long to
    read the answer; a handler at work, an open websocket among them, is not hurried.
    """

    def __init__(self, *, places: int = PLACES, within_s: float = REQUEST_WITHIN_S) -> None:
        self._places = places
        self._within_s = within_s
        self._guests: dict[asyncio.BaseTransport, _Guest] = {}
        self._counts: Counter[str] = Counter()
        self._said_s = 0.0
        self._unhear: Callable[[], None] = lambda: None
        # What aiohttp has to say goes through here; a logger of this server's own.
        self.logger = logging.Logger("http.server")  # noqa: LOG001
        self.logger.addFilter(self._pass_on)

    def protocol(self, inner: Callable[[], asyncio.BaseProtocol]) -> Callable[[], _Guest]:
        """Return what makes a connection's protocol, with one of *inner* behind it."""
        return lambda: _Guest(self, inner)

    @property
    def watch(self) -> Middleware:
        """The server's middleware, by which a request is known to be whole."""

        @web.middleware
        async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            guest = None if transport is None else self._guests.get(transport)
            try:
                if request.body_exists:
                    await request.read()  # within the time of the request
                if guest is not None:
                    guest.work()
                return await handler(request)
            finally:
                if guest is not None:
                    guest.wait(self._within_s)

        return watch

    def close(self) -> None:
        """Cut every connection that is left."""
        self._unhear()
        for transport in list(self._guests):
            if isinstance(transport, asyncio.Transport):
                transport.abort()

    def enter(self, guest: _Guest, transport: asyncio.Transport) -> bool:
        """Give *guest* a place; turn it away where there is none."""
        if len(self._guests) >= self._places:
            self.count("turned_away")
            transport.write(TURNED_AWAY)
            transport.close()
            return False
        self._guests[transport] = guest
        guest.wait(self._within_s)
        return True

    def leave(self, transport: asyncio.BaseTransport | None) -> None:
        """Take the place back."""
        if transport is not None:
            self._guests.pop(transport, None)

    def hear(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count what *loop* could not accept for want of descriptors: a hundred each second."""
        before = loop.get_exception_handler()

        def handle(told: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            is_scarce = isinstance(error, OSError) and error.errno in SCARCE
            if is_scarce and "accept" in context["message"]:
                self.count("without_descriptor")
            elif before is not None:
                before(told, context)
            else:
                told.default_exception_handler(context)

        loop.set_exception_handler(handle)
        self._unhear = lambda: loop.set_exception_handler(before)

    def count(self, what: str) -> None:
        """Count what was not let through; say so once a minute."""
        self._counts[what] += 1
        now_s = asyncio.get_running_loop().time()
        if not self._said_s or now_s - self._said_s >= SAID_EVERY_S:
            self._said_s = now_s
            log.warning("connections refused", **self._counts)
            self._counts.clear()

    def _pass_on(self, record: logging.LogRecord) -> bool:
        """Count what is no HTTP; hand on the rest, which is a fault of ours."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.HTTPException | ConnectionError):
            self.count("malformed")
        elif record.levelno >= logging.WARNING:
            logging.getLogger("http.server").handle(record)
        return False


class _Guest(asyncio.Protocol):
    """One connection: passes everything on to the protocol behind it, and minds the time."""

    def __init__(self, door: Door, inner: Callable[[], asyncio.BaseProtocol]) -> None:
        self._door = door
        self._make = inner
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if not self._door.enter(self, transport):
            return
        self._transport = transport
        inner = self._make()
        assert isinstance(inner, asyncio.Protocol)
        self._inner = inner
        inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.work()
        self._door.leave(self._transport)
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def work(self) -> None:
        """Stop the clock: the request is whole."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wait(self, within_s: float) -> None:
        """Start the clock for the next request."""
        self.work()
        if self._transport is not None and self._transport.is_closing():
            return
        self._timer = asyncio.get_running_loop().call_later(within_s, self._reap)

    def _reap(self) -> None:
        self._door.count("too_slow")
        if self._transport is not None:
            self._transport.abort()
