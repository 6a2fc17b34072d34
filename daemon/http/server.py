"""The HTTP server on loopback, with limits on connections.

The rule is docs/operations.md, O6.

A client that sends half a request or does not read its answer is disconnected. A client above the
limit replaces the oldest connection without a request in progress; if there is none, it gets 503.
The log counts such connections once a minute. Idle connections are closed without being counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple, Protocol, Self

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tracepaper.daemon.config.sections import HttpSection
from tracepaper.daemon.config.values import host_and_port, is_loopback
from tracepaper.daemon.http.access import (
    AccessControl,
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
"""Headers of every answer, including errors; a handler may override them."""

log = Logger("http")


class ConnectionLimits:
    """Limits the connections of one server; ``protocol`` wraps the server's protocols.

    There are at most *most* connections. Each has ``REQUEST_TIMEOUT_S`` to send a request, and
    again to read the answer and start the next one. A running handler, such as an open websocket,
    has no limit.
    """

    def __init__(self, *, most: int = CONNECTIONS_MAX) -> None:
        self._most = most
        # By connection, the oldest first; None while a handler runs.
        self._timers: dict[asyncio.Transport, asyncio.TimerHandle | None] = {}
        self._counts: Counter[str] = Counter()
        self._logged_s = 0.0
        # A separate logger per server, so that its aiohttp messages can be filtered.
        self.logger = logging.Logger("http.server")  # noqa: LOG001
        self.logger.addFilter(self._pass_on)

    def protocol(self, inner: Callable[[], asyncio.BaseProtocol]) -> Callable[[], _Admission]:
        """Return a factory of connection protocols, each with one of *inner* behind it."""
        return lambda: _Admission(self, inner)

    @property
    def middleware(self) -> Middleware:
        """A middleware that reads each request completely within its time limit."""

        @web.middleware
        async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            if transport is None:
                raise ConnectionResetError("The client has gone before its request was read.")
            try:
                if request.body_exists:
                    self._start_timer(transport)
                    await request.read()
                self._stop_timer(transport)
                return await handler(request)
            finally:
                self._start_timer(transport, is_idle=True)

        return timed

    def close(self) -> None:
        """Abort every remaining connection."""
        for transport in self._timers:
            self._stop_timer(transport)
            transport.abort()

    def admit(self, transport: asyncio.Transport) -> bool:
        """Admit *transport*, or answer 503 at the limit; return whether it is admitted.

        At the limit, the oldest connection that waits for a request is aborted, so that a client
        with many open connections does not lock others out.
        """
        for each in [*self._timers]:
            if each.is_closing() and not each.get_write_buffer_size():
                self._stop_timer(each)
                del self._timers[each]
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
        """Remove the time limit while a handler runs."""
        if (timer := self._timers.get(transport)) is not None:
            timer.cancel()
            self._timers[transport] = None

    def _start_timer(self, transport: asyncio.Transport, *, is_idle: bool = False) -> None:
        """Start the time limit of the next request; *is_idle* if none has begun."""
        self._stop_timer(transport)
        if not transport.is_closing():
            timer = asyncio.get_running_loop().call_later
            self._timers[transport] = timer(REQUEST_TIMEOUT_S, self._expire, transport, is_idle)

    def _expire(self, transport: asyncio.Transport, is_idle: bool) -> None:  # noqa: FBT001 - of call_later
        if transport.get_write_buffer_size() or not (is_idle or transport.is_closing()):
            self.count("too_slow")
            transport.abort()
        else:
            transport.close()  # idle, so no request is lost

    def count(self, reason: str) -> None:
        """Count a refused connection; log the counts once a minute."""
        self._counts[reason] += 1
        now_s = asyncio.get_running_loop().time()
        if not self._logged_s or now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("connections refused", **self._counts)
            self._counts.clear()

    def _pass_on(self, record: logging.LogRecord) -> bool:
        """Count malformed requests; log everything else, which is a fault of this server."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.HTTPException | ConnectionError):
            self.count("malformed")
        elif record.levelno >= logging.WARNING:
            logging.getLogger("http.server").handle(record)
        return False


class _Admission(asyncio.Protocol):
    """Passes an admitted connection to the server's protocol."""

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
    """The body of ``POST /command``; the page and the command line set ``origin``."""

    kind: CommandKind
    note: str = ""
    origin: CommandOrigin = CommandOrigin.HTTP


class Caller(NamedTuple):
    """The sender of a request."""

    token: str  # the label of the request's token
    user: str  # the user of the sender's process; empty if unknown


Submit = Callable[[CommandRequest, Caller], Awaitable[int]]


class MountedPage(Protocol):
    """A page that the server mounts at ``/``."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a GET of ``/``, ``/assets/`` or ``/api/v1/``."""
        ...

    def wake(self) -> None:
        """Notify the page that a step was stored."""
        ...

    async def close(self) -> None:
        """Release the page's resources."""
        ...


class HttpServer:
    """Serves ``/livez``, ``/readyz``, ``/metrics``, ``/status`` and ``/command`` on loopback.

    *section* may name two further addresses: one that serves ``/metrics`` alone, and one for the
    page, where every request needs one of *tokens* (by label) or a cookie, and must name one of the
    section's hosts. *status* returns plain values, including ``ready``. *submit* queues a command,
    for a request with a token, and returns the sequence of its step. *page* creates the page at the
    first request. An async context manager; ``url``, ``metrics_url`` and ``page_url`` contain the
    chosen port if the configured one is 0.
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
        """Listen; raise ``ConfigInvalid`` if an address cannot be bound."""
        section, metrics = self._section, web.get("/metrics", self._metrics)
        probes = [web.get("/livez", self._livez), web.get("/readyz", self._readyz)]
        shown = [web.get("/status", self._show_status), web.post("/command", self._command)]
        if self._make_page is not None:
            paths = ("/", "/assets/{_:.+}", "/api/v1/{_:.+}")
            shown += [web.get(path, self._show_page) for path in paths]
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._close_page)
            self.url = await stack.enter_async_context(
                listening(
                    [*probes, metrics, *shown],
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
                access = AccessControl(self._tokens, section.hosts)
                shown.append(web.post("/session", access.sign_in))
                at = host_and_port(section.page)
                listener = listening(shown, access.middleware, at=at, key="[http] page")
                self.page_url = await stack.enter_async_context(listener)
                log.info("page served to who has a token", url=self.page_url)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening; answers in progress get ``CLOSE_WITHIN_S``."""
        await self._stack.aclose()

    def wake(self) -> None:
        """Notify the page, if it was opened, that a step was stored."""
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
        # Another site's page cannot send this type without a CORS preflight.
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

    Raises ``ConfigInvalid``, which names *key*, if the address cannot be bound.
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
        handler_cancellation=True,  # cancel the handler of a client that disconnects
    )
    await runner.setup()
    assert runner.server is not None
    try:
        server = await asyncio.get_running_loop().create_server(
            limits.protocol(runner.server), host, port
        )
    except OSError as error:
        await runner.cleanup()
        code = error.errno or 0  # not asyncio's text, which repeats the address
        reason = os.strerror(code) if code > 0 else error.strerror
        raise ConfigInvalid(
            f"{host}:{port} cannot be listened on ({reason}); set another {key}."
        ) from None
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
    """Refuse requests of other machines, and of other sites' pages in a browser on this one."""
    if not (is_loopback(request.remote or "") and is_own_site(request, is_loopback)):
        return refusal(403, "Ask from this machine, by its loopback address.")
    return await answered(request, handler)


def _require_token(tokens: Mapping[str, str]) -> Middleware:
    """Require a token except for GET and HEAD: other users of this machine may only read."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method in {"GET", "HEAD"} or label_of(request, tokens) is not None:
            return await handler(request)
        return unauthorized()

    return check


def _json(document: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")
