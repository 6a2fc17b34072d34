"""Health, metrics, status and commands over HTTP, on loopback alone; metrics elsewhere by request.

The rule is docs/operations.md, O6.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tracepaper.daemon.http.connections import ConnectionLimits
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError
from tracepaper.strategies.types import CommandKind

NOTE_LIMIT: Final = 500
BODY_LIMIT_BYTES: Final = 4_096
CLOSE_WITHIN_S: Final = 1.0
SUBMIT_WITHIN_S: Final = 5.0
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Status = Callable[[], Mapping[str, object]]
Submit = Callable[[CommandKind, str], Awaitable[int]]


class CommandRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /command``."""

    kind: CommandKind
    note: str = ""


class HttpServer:
    """Serves ``/livez``, ``/readyz``, ``/metrics``, ``/status`` and ``/command``.

    *status* answers with plain values, ``ready`` among them. *submit* puts a command in line and
    returns the sequence of the step that carried it out; only who sends *token* may do so. Use it
    as an async context manager; ``url`` is the address, with the port that was picked for port 0.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        token: str,
        status: Status,
        submit: Submit,
        registry: CollectorRegistry,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._token = token
        self._limits = limits or ConnectionLimits()
        self._stack = AsyncExitStack()
        self._host = host
        self._port = port
        self._status = status
        self._submit = submit
        self._registry = registry
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen; raise ``ConfigInvalid`` where the address cannot be had."""
        application = web.Application(
            middlewares=[self._limits.middleware, _refuse_foreigners, _token_asked(self._token)],
            client_max_size=BODY_LIMIT_BYTES,
        )
        application.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/status", self._show_status),
                web.post("/command", self._command),
            ]
        )
        self.url = await self._stack.enter_async_context(
            _listening(application, self._limits, self._host, self._port)
        )
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Stop listening; answers under way get a second."""
        await self._stack.aclose()

    async def _livez(self, _request: web.Request) -> web.Response:
        """Answer as long as the event loop turns."""
        return web.Response(text="live\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        status = self._status()
        if status["ready"]:
            return web.Response(text="ready\n")
        reasons = status.get("not_ready")
        lines = reasons if isinstance(reasons, list) and reasons else ["not ready"]
        return web.Response(status=503, text="".join(f"{line}\n" for line in lines))

    async def _metrics(self, _request: web.Request) -> web.Response:
        return _exposed(self._registry)

    async def _show_status(self, _request: web.Request) -> web.Response:
        return _json(self._status())

    async def _command(self, request: web.Request) -> web.Response:
        # A form on a page of another site cannot send this type without asking first.
        if request.content_type != "application/json":
            return _refusal(415, "Send the command as application/json.")
        try:
            command = msgspec.json.decode(await request.read(), type=CommandRequest)
        except (msgspec.DecodeError, RecursionError):
            kinds = ", ".join(CommandKind)
            return _refusal(400, f'Send {{"kind", "note"}}, where kind is one of {kinds}.')
        if len(command.note) > NOTE_LIMIT:
            return _refusal(400, f"Keep the note within {NOTE_LIMIT} characters.")
        try:
            async with asyncio.timeout(SUBMIT_WITHIN_S):
                sequence = await self._submit(command.kind, command.note)
        except TracepaperError as error:
            return _refusal(503, str(error))
        except TimeoutError:
            return _refusal(504, "The command waits in line; look at /status before you repeat it.")
        return _json({"kind": command.kind.value, "sequence": sequence})


@asynccontextmanager
async def metrics_listener(
    host: str, port: int, registry: CollectorRegistry, *, limits: ConnectionLimits | None = None
) -> AsyncIterator[str]:
    """Serve ``/metrics`` alone on *host*, which may be any address; yield where.

    Nothing else is there: no status, no page, no command. Raises ``ConfigInvalid`` where the
    address cannot be had.
    """

    async def metrics(_request: web.Request) -> web.Response:
        return _exposed(registry)

    limits = limits or ConnectionLimits()
    application = web.Application(middlewares=[limits.middleware], client_max_size=1)
    application.add_routes([web.get("/metrics", metrics)])
    async with _listening(application, limits, host, port, key="metrics") as url:
        yield url


@asynccontextmanager
async def _listening(
    application: web.Application,
    limits: ConnectionLimits,
    host: str,
    port: int,
    *,
    key: str = "port, or 0 to pick one",
) -> AsyncIterator[str]:
    """Serve *application* on *host* and *port*; yield its URL."""
    runner = web.AppRunner(
        application, access_log=None, logger=limits.logger, shutdown_timeout=CLOSE_WITHIN_S
    )
    await runner.setup()
    assert runner.server is not None
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(limits.protocol(runner.server), host, port)
    except OSError as error:
        await runner.cleanup()
        raise ConfigInvalid(
            f"{host}:{port} cannot be listened on ({error.strerror}); set another [http] {key}."
        ) from None
    limits.count_exhaustion(loop)
    named, picked = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://[{named}]:{picked}" if ":" in named else f"http://{named}:{picked}"
    finally:
        server.close()
        await runner.cleanup()
        limits.close()


def _exposed(registry: CollectorRegistry) -> web.Response:
    """Return the metrics in Prometheus's text format."""
    return web.Response(
        body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


@web.middleware
async def _refuse_foreigners(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other machines, and pages of other sites that a browser here has open.

    A foreign name that resolves to this machine (DNS rebinding) shows in ``Host``; a page of
    another site shows in ``Origin``.
    """
    origin = request.headers.get("Origin")
    host = request.headers.get("Host", "")
    is_home = (
        _is_loopback(request.remote or "")
        and _names_loopback(f"//{host}")
        and origin in {None, f"http://{host}"}
    )
    if not is_home:
        return _refusal(403, "Ask from this machine, by its loopback address.")
    response = await handler(request)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    return response


def _token_asked(token: str) -> Middleware:
    """Let only who knows *token* do more than look: other users of this machine do not."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def ask(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode(errors="replace")
        # Compared in constant time: how long it takes must not tell how much of it was right.
        if request.method in {"GET", "HEAD"} or hmac.compare_digest(given, expected):
            return await handler(request)
        refusal = _refusal(
            401,
            "Send the token that lies beside the database as Authorization: Bearer TOKEN; "
            "`tracepaper command` does so.",
        )
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal

    return ask


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _names_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host in LOOPBACK_NAMES or _is_loopback(host)


def _json(document: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def _refusal(status: int, sentence: str) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": sentence}),
        content_type="application/json",
    )
