"""The HTTP server on loopback, with limits on connections.

The rule is docs/operations.md, O6.

A client that sends half a request or reads no answer is cut off. One that comes when the limit is
reached takes the place of the oldest that has no request at work; where all have, it is answered
503. A line a minute in the log says how many. An idle connection is closed and
not counted.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, NamedTuple, Protocol, Self

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tracepaper.daemon.config.sections import HttpSection
from tracepaper.daemon.config.values import host_and_port, is_loopback
from tracepaper.daemon.http.entrance import (
    Entrance,
    answered,
    is_own_site,
    label_of,
    refusal,
    unauthorized,
)
from tracepaper.daemon.http.peer import user_of
from tracepaper.daemon.log import Logger
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError
from tracepaper.strategies.types.market import CommandKind, CommandOrigin

CONNECTIONS_MAX: Final = 64
REQUEST_TIMEOUT_S: Final = 10.0
LOG_EVERY_S: Final = 60.0
SCARCE: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
UNAVAILABLE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

GUARDS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer, errors among them; a handler may set its own policy."""

log = Logger("http")


class ConnectionLimits:
    """Bounds the connections of one server; ``protocol`` wraps the server's own protocols.

    At most *most* connections. Each has *timeout_s* for a whole request, and as long to read the
    answer and to begin another; a running handler, an open websocket among them, has no limit.
    """

    def __init__(
        self, *, most: int = CONNECTIONS_MAX, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self._most = most
        self.timeout_s = timeout_s
        # By connection, the oldest first; None while a handler works.
        self._timers: dict[asyncio.Transport, asyncio.TimerHandle | None] = {}
        self._counts: Counter[str] = Counter()
        self._logged_s = 0.0
        self._restore_handler: Callable[[], None] = lambda: None
        # aiohttp logs through a logger of this server's own.
        self.logger = logging.Logger("http.server")  # noqa: LOG001
        self.logger.addFilter(self._pass_on)

    def protocol(self, inner: Callable[[], asyncio.BaseProtocol]) -> Callable[[], _Admission]:
        """Return a factory of connection protocols, each with one of *inner* behind it."""
        return lambda: _Admission(self, inner)

    @property
    def middleware(self) -> Middleware:
        """The server's middleware, by which a request is known to be whole."""

        @web.middleware
        async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            if transport is None:
                raise ConnectionResetError("The client has gone before its request was read.")
            try:
                if request.body_exists:
                    self._start_timer(transport)
                    await request.read()  # within the time of the request
                self._stop_timer(transport)
                return await handler(request)
            finally:
                self._start_timer(transport, is_idle=True)

        return timed

    def close(self) -> None:
        """Cut every connection that is left."""
        self._restore_handler()
        for transport in self._timers:
            self._stop_timer(transport)
            transport.abort()

    def admit(self, transport: asyncio.Transport) -> bool:
        """Count *transport* in, or answer 503 at the limit; return whether it is in.

        A client that only holds connections open keeps nobody else out: a connection that waits for
        its request gives way, the oldest first.
        """
        self._timers = {
            each: timer
            for each, timer in self._timers.items()
            if not each.is_closing() or each.get_write_buffer_size()
        }
        if len(self._timers) >= self._most:
            self.count("over_limit")
            oldest = next((each for each, timer in self._timers.items() if timer is not None), None)
            if oldest is None:
                transport.write(UNAVAILABLE)
                transport.close()
                return False
            self._stop_timer(oldest)
            oldest.abort()
            del self._timers[oldest]
        self._start_timer(transport)
        return True

    def _stop_timer(self, transport: asyncio.Transport) -> None:
        """Let the handler of a whole request take its time."""
        if (timer := self._timers.get(transport)) is not None:
            timer.cancel()
            self._timers[transport] = None

    def _start_timer(self, transport: asyncio.Transport, *, is_idle: bool = False) -> None:
        """Give the next request its time, and the answer before it where *is_idle*."""
        self._stop_timer(transport)
        if not transport.is_closing():
            timer = asyncio.get_running_loop().call_later
            self._timers[transport] = timer(self.timeout_s, self._expire, transport, is_idle)

    def _expire(self, transport: asyncio.Transport, is_idle: bool) -> None:  # noqa: FBT001 - of call_later
        if transport.get_write_buffer_size() or not (is_idle or transport.is_closing()):
            self.count("too_slow")
            transport.abort()
        else:
            transport.close()  # an idle connection: no request is refused

    def count_exhaustion(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count the connections that *loop* cannot accept for want of file descriptors."""
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

    def count(self, reason: str) -> None:
        """Count a refused connection; log the counts once a minute."""
        self._counts[reason] += 1
        now_s = asyncio.get_running_loop().time()
        if not self._logged_s or now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("connections refused", **self._counts)
            self._counts.clear()

    def _pass_on(self, record: logging.LogRecord) -> bool:
        """Count what is no HTTP; log the rest, which is a fault of this server."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.HTTPException | ConnectionError):
            self.count("malformed")
        elif record.levelno >= logging.WARNING:
            logging.getLogger("http.server").handle(record)
        return False


class _Admission(asyncio.Protocol):
    """Hands a connection that is admitted to the protocol behind it."""

    def __init__(self, limits: ConnectionLimits, inner: Callable[[], asyncio.BaseProtocol]) -> None:
        self._limits, self._make = limits, inner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._limits.admit(transport):
            inner = self._make()
            transport.set_protocol(inner)
            inner.connection_made(transport)


NOTE_LIMIT: Final = 500
BODY_LIMIT_BYTES: Final = 4_096
CLOSE_WITHIN_S: Final = 1.0
SUBMIT_WITHIN_S: Final = 5.0

Status = Callable[[], Mapping[str, object]]


class CommandRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /command``; page and command line name themselves in ``origin``."""

    kind: CommandKind
    note: str = ""
    origin: CommandOrigin = CommandOrigin.HTTP


class Caller(NamedTuple):
    """Who sent a request, as far as this machine can tell."""

    token: str  # the label of its token
    user: str  # of its process; empty where it cannot be told


Submit = Callable[[CommandRequest, Caller], Awaitable[int]]


class MountedPage(Protocol):
    """A page that the server shows beside its own addresses."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a GET of ``/``, ``/assets/`` or ``/api/v1/``."""
        ...

    def wake(self) -> None:
        """Take note that a step was stored."""
        ...

    async def close(self) -> None:
        """End what the page started."""
        ...


class HttpServer:
    """Serves ``/livez``, ``/readyz``, ``/metrics``, ``/status`` and ``/command`` on loopback.

    *section* also names the addresses beyond it: of ``/metrics`` alone, and of the page, where
    every request needs one of *tokens*, or the cookie that it was traded for, and must name one of
    its hosts. *status* returns plain values, ``ready`` among them. *submit* queues a command and
    returns the sequence of its step; it needs one of *tokens*, which are by label. *page* makes
    what is shown at ``/``; it is called at the first request. An async context manager; ``url``,
    ``metrics_url`` and ``page_url`` have the chosen port where a port is 0.
    """

    def __init__(
        self,
        section: HttpSection,
        *,
        tokens: Mapping[str, str],
        status: Status,
        submit: Submit,
        registry: CollectorRegistry,
        limits: ConnectionLimits | None = None,
        page: Callable[[], MountedPage] | None = None,
    ) -> None:
        self._section = section
        self._make_page = page
        self._page: MountedPage | None = None
        self._tokens = tokens
        self._limits = limits
        self._status = status
        self._submit = submit
        self._registry = registry
        self.url = self.metrics_url = self.page_url = ""

    async def __aenter__(self) -> Self:
        """Listen; raise ``ConfigInvalid`` where an address cannot be had."""
        section, metrics = self._section, web.get("/metrics", self._metrics)
        health = [web.get("/livez", self._livez), web.get("/readyz", self._readyz), metrics]
        shown = [web.get("/status", self._show_status), web.post("/command", self._command)]
        if self._make_page is not None:
            paths = ("/", "/assets/{_:.+}", "/api/v1/{_:.+}")
            shown += [web.get(path, self._show_page) for path in paths]
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._close_page)
            self.url = await stack.enter_async_context(
                listening(
                    [*health, *shown],
                    reject_foreigners,
                    _require_token(self._tokens),
                    at=(section.host, section.port),
                    limits=self._limits,
                )
            )
            if section.metrics is not None:
                at = host_and_port(section.metrics)
                listener = listening([metrics], at=at, key="[http] metrics")
                self.metrics_url = await stack.enter_async_context(listener)
                log.info("metrics served", url=self.metrics_url)
            if section.page is not None:
                entrance = Entrance(self._tokens, section.hosts)
                shown.append(web.post("/session", entrance.sign_in))
                at = host_and_port(section.page)
                listener = listening(shown, entrance.middleware, at=at, key="[http] page")
                self.page_url = await stack.enter_async_context(listener)
                log.info("page served to who has a token", url=self.page_url)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening; answers under way get a second."""
        await self._stack.aclose()

    def wake(self) -> None:
        """Tell the page, if somebody has opened it, that a step was stored."""
        if self._page is not None:
            self._page.wake()

    async def _show_page(self, request: web.Request) -> web.StreamResponse:
        if self._page is None:
            assert self._make_page is not None
            self._page = self._make_page()
        return await self._page.handle(request)

    async def _close_page(self) -> None:
        if self._page is not None:
            await self._page.close()

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        status = self._status()
        if status["ready"]:
            return web.Response(text="ready\n")
        reasons = status.get("not_ready")
        lines = reasons if isinstance(reasons, list) and reasons else ["not ready"]
        return web.Response(status=503, text="".join(f"{line}\n" for line in lines))

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _show_status(self, _request: web.Request) -> web.Response:
        return _json(self._status())

    async def _command(self, request: web.Request) -> web.Response:
        # A form on a page of another site cannot send this type without asking first.
        if request.content_type != "application/json":
            return refusal(415, "Send the command as application/json.")
        try:
            command = msgspec.json.decode(await request.read(), type=CommandRequest)
        except (msgspec.DecodeError, RecursionError):
            kinds = ", ".join(CommandKind)
            return refusal(400, f'Send {{"kind", "note"}}, where kind is one of {kinds}.')
        if len(command.note) > NOTE_LIMIT:
            return refusal(400, f"Keep the note within {NOTE_LIMIT} characters.")
        caller = Caller(label_of(request, self._tokens) or "", user_of(request.transport))
        try:
            async with asyncio.timeout(SUBMIT_WITHIN_S):
                sequence = await self._submit(command, caller)
        except TracepaperError as error:
            return refusal(503, str(error))
        except TimeoutError:
            return refusal(
                504, "The command waits in line; look at `tracepaper status` before you repeat it."
            )
        return _json({"kind": command.kind.value, "sequence": sequence})


@asynccontextmanager
async def listening(
    routes: Iterable[web.RouteDef],
    *middlewares: Middleware,
    at: tuple[str, int],
    key: str = "[http] port, or 0 to pick one",
    limits: ConnectionLimits | None = None,
    body_bytes: int = BODY_LIMIT_BYTES,
) -> AsyncIterator[str]:
    """Serve *routes* behind *middlewares* on a host and port; yield its URL.

    Raises ``ConfigInvalid``, which names *key*, where the address cannot be had.
    """
    (host, port), limits = at, limits or ConnectionLimits()
    application = web.Application(
        middlewares=[limits.middleware, *middlewares], client_max_size=body_bytes
    )
    application.add_routes(routes)
    application.on_response_prepare.append(_guard)
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=limits.logger,
        shutdown_timeout=CLOSE_WITHIN_S,
        handler_cancellation=True,  # a client that goes away ends what was begun for it
    )
    await runner.setup()
    assert runner.server is not None
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(limits.protocol(runner.server), host, port)
    except OSError as error:
        await runner.cleanup()
        code = error.errno or 0  # asyncio's own text names the address again
        reason = os.strerror(code) if code > 0 else error.strerror
        raise ConfigInvalid(
            f"{host}:{port} cannot be listened on ({reason}); set another {key}."
        ) from None
    limits.count_exhaustion(loop)
    named, picked = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://[{named}]:{picked}" if ":" in named else f"http://{named}:{picked}"
    finally:
        server.close()
        await runner.cleanup()
        limits.close()


async def _guard(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in GUARDS.items():
        response.headers.setdefault(name, value)


@web.middleware
async def reject_foreigners(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other machines, and pages of other sites in a browser on this one."""
    if not (is_loopback(request.remote or "") and is_own_site(request, is_loopback)):
        return refusal(403, "Ask from this machine, by its loopback address.")
    return await answered(request, handler)


def _require_token(tokens: Mapping[str, str]) -> Middleware:
    """Require a token for all but GET and HEAD: other users of this machine may only look."""

    @web.middleware
    async def ask(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method in {"GET", "HEAD"} or label_of(request, tokens) is not None:
            return await handler(request)
        return unauthorized()

    return ask


def _json(document: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")
