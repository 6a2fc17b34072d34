"""Limits on the connections of an HTTP server: how many, and how long a request may take to come.

A client that sends half a request or reads no answer is cut off. One that comes when the limit is
reached takes the place of the oldest that has no request at work; where all have, it is answered
503. A line a minute in the log says how many. An idle connection is closed and
not counted.
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

CONNECTIONS_MAX: Final = 64
REQUEST_TIMEOUT_S: Final = 10.0
SAID_EVERY_S: Final = 60.0
SCARCE: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
UNAVAILABLE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

log = structlog.get_logger("http")


class ConnectionLimits:
    """Bounds the connections of one server; ``protocol`` wraps the server's own protocols.

    At most *most* connections. Each has *timeout_s* for a whole request from its first byte, and
    as long to read the answer; a running handler, an open websocket among them, has no limit.
    """

    def __init__(
        self, *, most: int = CONNECTIONS_MAX, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self._most = most
        self.timeout_s = timeout_s
        self._connections: dict[asyncio.BaseTransport, _Connection] = {}
        self._counts: Counter[str] = Counter()
        self._said_s = 0.0
        self._restore_handler: Callable[[], None] = lambda: None
        # What aiohttp has to say goes through here; a logger of this server's own.
        self.logger = logging.Logger("http.server")  # noqa: LOG001
        self.logger.addFilter(self._pass_on)

    def protocol(self, inner: Callable[[], asyncio.BaseProtocol]) -> Callable[[], _Connection]:
        """Return what makes a connection's protocol, with one of *inner* behind it."""
        return lambda: _Connection(self, inner)

    @property
    def middleware(self) -> Middleware:
        """The server's middleware, by which a request is known to be whole."""

        @web.middleware
        async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            connection = None if transport is None else self._connections.get(transport)
            try:
                if request.body_exists:
                    await request.read()  # within the time of the request
                if connection is not None:
                    connection.stop_timer()
                return await handler(request)
            finally:
                if connection is not None:
                    connection.start_timer(is_idle=True)

        return timed

    def close(self) -> None:
        """Cut every connection that is left."""
        self._restore_handler()
        for transport in list(self._connections):
            if isinstance(transport, asyncio.Transport):
                transport.abort()

    def admit(self, connection: _Connection, transport: asyncio.Transport) -> bool:
        """Count *connection* in, or answer 503 at the limit; return whether it is in.

        Who only holds connections open keeps nobody else out: one that waits for its request gives
        way, the oldest first.
        """
        if len(self._connections) >= self._most:
            self.count("over_limit")
            oldest = next((one for one in self._connections.items() if one[1].is_waiting), None)
            if oldest is None:
                transport.write(UNAVAILABLE)
                transport.close()
                return False
            del self._connections[oldest[0]]
            oldest[1].abort()
        self._connections[transport] = connection
        connection.start_timer()
        return True

    def release(self, transport: asyncio.BaseTransport | None) -> None:
        """Count the connection of *transport* out."""
        if transport is not None:
            self._connections.pop(transport, None)

    def count_exhaustion(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count what *loop* could not accept for want of descriptors: a hundred each second."""
        before = loop.get_exception_handler()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            is_scarce = isinstance(error, OSError) and error.errno in SCARCE
            if is_scarce and "accept" in context["message"]:
                self.count("without_descriptor")
            elif before is not None:
                before(loop, context)
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)
        self._restore_handler = lambda: loop.set_exception_handler(before)

    def count(self, what: str) -> None:
        """Count what was not let through; say so once a minute."""
        self._counts[what] += 1
        now_s = asyncio.get_running_loop().time()
        if not self._said_s or now_s - self._said_s >= SAID_EVERY_S:
            self._said_s = now_s
            log.warning("connections refused", **self._counts)
            self._counts.clear()

    def _pass_on(self, record: logging.LogRecord) -> bool:
        """Count what is no HTTP; hand on the rest, which is a fault of this server."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.HTTPException | ConnectionError):
            self.count("malformed")
        elif record.levelno >= logging.WARNING:
            logging.getLogger("http.server").handle(record)
        return False


class _Connection(asyncio.Protocol):
    """One connection: passes everything on to the protocol behind it, and limits its time."""

    def __init__(self, limits: ConnectionLimits, inner: Callable[[], asyncio.BaseProtocol]) -> None:
        self._limits = limits
        self._make = inner
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_idle = False  # between an answer and the next request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if not self._limits.admit(self, transport):
            return
        self._transport = transport
        inner = self._make()
        assert isinstance(inner, asyncio.Protocol)
        self._inner = inner
        inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self.start_timer()  # of the request that begins
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
        self.stop_timer()
        self._limits.release(self._transport)
        if self._inner is not None:
            self._inner.connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether no whole request is at work: one is awaited, or an answer is being read."""
        return self._timer is not None

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def stop_timer(self) -> None:
        """Let the handler of a whole request take its time."""
        self._is_idle = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def start_timer(self, *, is_idle: bool = False) -> None:
        """Give the next request its time, and the answer before it where *is_idle*."""
        self.stop_timer()
        if self._transport is not None and self._transport.is_closing():
            return
        self._is_idle = is_idle
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.timeout_s, self._expire)

    def _expire(self) -> None:
        if self._transport is None:
            return
        if self._is_idle and not self._transport.get_write_buffer_size():
            self._transport.close()  # it waited for nothing, so nothing is refused
            return
        self._limits.count("too_slow")
        self._transport.abort()
