"""The server of the page, the HTTP interface and the stream; child processes read the databases.

The rule is docs/http.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import WSCloseCode, web
from aiohttp.typedefs import Handler

from tracepaper.daemon.http.server import listening, reject_foreigners
from tracepaper.daemon.session.shutdown import signals_call
from tracepaper.replay.page import process
from tracepaper.replay.page.answers import Error, FailedTask, FinishedTask
from tracepaper.replay.page.process import HEAVY, STREAMS, ReaderProcess, ReplyFrame

ASSETS: Final = Path(__file__).parent / "assets"
PREFIX: Final = "/api/v1"
VERIFIED: Final = re.compile(r"/runs/([^/]+)/verify")
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".txt": "text/plain",
    ".md": "text/plain",
}
READERS_MAX: Final = 32
POLL_S: Final = 1.0
MESSAGE_MAX: Final = 1_024
HEARTBEAT_S: Final = 30.0
CLOSE_WITHIN_S: Final = 1.0
QUERY_MAX: Final = 64
AT_WORK_MAX: Final = 56
"""Most simultaneous requests and streams; the server's other connections are for ``/status``,
``/metrics`` and ``/command``."""

Status = Callable[[], Mapping[str, Any]]


class Page:
    """The page over the databases *paths*; the caller must close it.

    *served* is the run that this process writes. *status* returns the state of the running daemon.
    ``wake`` announces a stored step; without it the database is read once a second.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        served: str = "",
        status: Status | None = None,
    ) -> None:
        reader = partial(ReaderProcess, paths, served=served)
        self._quick = reader(is_heavy=False)
        self._heavy = reader(is_heavy=True, builds=True)
        self._of_runs = reader(is_heavy=True, stays=False)
        self._of_decisions = reader(is_heavy=True, derives=True)
        self._served, self._status = served, status
        self._woken: asyncio.Event | None = None  # set at the next step, once ``wake`` was called
        self._verified: dict[str, Any] = {}  # parity of the runs that readers verified, by run
        self._at_work = 0
        self._preparing: asyncio.Task[None] | None = None
        self.readers = 0
        """Readers of the stream."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a GET of ``/``, of an asset, or of the interface."""
        if self._at_work >= AT_WORK_MAX:
            return _refusal(503, "The page has too many simultaneous requests; ask again.")
        self._at_work += 1
        try:
            return await self._handle(request)
        finally:
            self._at_work -= 1

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/":
            self.prepare()
            return _file("index.html")
        if path.startswith("/assets/"):
            return _file(path.removeprefix("/assets/"))
        if path == f"{PREFIX}/stream":
            return await self._stream(request)
        if not path.startswith(f"{PREFIX}/"):
            return _refusal(404, f"There is no such address; {PREFIX}/openapi.json lists all.")
        return await self._api(request, path.removeprefix(PREFIX))

    def prepare(self) -> None:
        """Start the reader processes that are not started yet."""
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.create_task(self._prepare())

    async def _prepare(self) -> None:
        await self._quick.prepare()
        # A reader may verify a decision next; beside a daemon this would cost memory.
        if not self._served:
            await self._of_decisions.prepare()

    def wake(self) -> None:
        """Announce that a step of the served run was stored."""
        woken, self._woken = self._woken, asyncio.Event()
        if woken is not None:
            woken.set()

    async def close(self) -> None:
        """End the reader processes; call this after the server has stopped."""
        readers = (self._quick, self._heavy, self._of_runs, self._of_decisions)
        await asyncio.gather(*(reader.close() for reader in readers))
        if self._preparing is not None:
            await self._preparing

    # ------------------------------------------------------------ answers

    async def _api(self, request: web.Request, path: str) -> web.StreamResponse:
        query = dict(request.query)
        if len(query) > QUERY_MAX or len(query) != len(request.query):
            return _refusal(400, "Give each parameter once.")
        message: dict[str, Any] = {"path": path, "query": query}
        message["verified"] = self._verified.get(path.removeprefix("/runs/").partition("/")[0])
        if STREAMS.fullmatch(path):
            return await self._lines(request, message)
        if path.endswith("/health") and self._status is not None:
            message["status"] = self._status()
        reader = self._heavy if HEAVY.fullmatch(path) else self._quick
        frame = await reader.answer(message)
        if frame.kind == process.LATER:
            frame = await self._heavy.answer(message)
        if "/decisions/" in path:
            self.prepare()
        return _json(frame.status, frame.body)

    async def _lines(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        """Answer in lines, with progress; the work ends if the client disconnects.

        Separate processes do the work, so that neither charts nor decisions wait for it.
        """
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        _secure(response)
        reader = self._of_decisions if "/decisions/" in message["path"] else self._of_runs
        frames = reader.ask(message)
        try:
            first = await anext(frames)
            if first.kind == process.REFUSED and first.status != 200:
                return _json(first.status, first.body)
            await response.prepare(request)
            await response.write(_line(first))
            async for frame in frames:
                self._note(message, frame)
                await response.write(_line(frame))
            await response.write_eof()
        finally:
            await frames.aclose()  # type: ignore[attr-defined]
        return response

    def _note(self, message: dict[str, Any], frame: ReplyFrame) -> None:
        """Keep the parity of a verified run."""
        if frame.kind != process.ANSWER:
            return
        if matched := VERIFIED.fullmatch(message["path"]):
            self._verified[matched[1]] = msgspec.json.decode(frame.body)

    # ------------------------------------------------------------ the stream

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        run_id, transport = request.query.get("run", ""), request.transport
        is_full = self.readers >= READERS_MAX
        # Do not wait for the close of a rejected reader.
        within_s = 0.0 if is_full else CLOSE_WITHIN_S
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_MAX, timeout=within_s
        )
        if not socket.can_prepare(request).ok:
            return _refusal(400, "Open this address as a WebSocket.")
        if is_full:
            await socket.prepare(request)
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return socket
        self.readers += 1
        try:
            hello = await self._quick.answer({"news": run_id, "after": None})
            if hello.status != 200:
                return _json(hello.status, hello.body)
            await socket.prepare(request)
            sender = asyncio.create_task(self._send_steps(socket, hello))
            try:
                async for _ in socket:  # until the reader disconnects; messages are ignored
                    pass
            finally:
                sender.cancel()
        finally:
            self.readers -= 1
            # A close would wait for a reader that never reads, and keep its connection.
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()
        return socket

    async def _send_steps(self, socket: web.WebSocketResponse, hello: ReplyFrame) -> None:
        """Send the steps of a run as they are stored; a slow reader gets the newest."""
        greeting = msgspec.json.decode(hello.body)["hello"]
        run_id, after = greeting["run_id"], greeting["sequence"]
        after = -1 if after is None else after
        with contextlib.suppress(ConnectionError):
            await socket.send_str(json.dumps(greeting))
            while True:
                woken = self._woken if run_id == self._served else None
                frame = await self._quick.answer({"news": run_id, "after": after})
                steps = msgspec.json.decode(frame.body)["steps"] if frame.status == 200 else []
                for step in steps:
                    after = max(after, step["sequence"])
                    await socket.send_str(json.dumps(step))
                await (asyncio.sleep(POLL_S) if woken is None else woken.wait())


def _line(frame: ReplyFrame) -> bytes:
    if frame.kind == process.PROGRESS:
        return frame.body + b"\n"
    if frame.kind == process.ANSWER:
        return msgspec.json.encode(FinishedTask(msgspec.Raw(frame.body))) + b"\n"
    error = msgspec.json.decode(frame.body, type=Error).error
    return msgspec.json.encode(FailedTask(error)) + b"\n"


def _file(name: str) -> web.StreamResponse:
    try:
        path = (ASSETS / name).resolve()
        if not path.is_relative_to(ASSETS.resolve()) or path.suffix not in _TYPES:
            raise FileNotFoundError
        body = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a name with NUL or one that is too long
        return _refusal(404, "There is no such file.")
    response = web.Response(body=body, content_type=_TYPES[path.suffix], charset="utf-8")
    return _secure(response)


def _json(status: int, body: bytes) -> web.Response:
    response = web.Response(status=status, body=body, content_type="application/json")
    if len(body) > 4_096:
        response.enable_compression()
    _secure(response)
    return response


def _refusal(status: int, sentence: str) -> web.Response:
    return _json(status, msgspec.json.encode(Error(sentence)))


def _secure(response: web.StreamResponse) -> web.StreamResponse:
    response.headers["Content-Security-Policy"] = POLICY
    return response


@asynccontextmanager
async def serving(
    paths: Sequence[Path],
    *,
    host: str,
    port: int,
) -> AsyncIterator[str]:
    """Serve the page over recorded databases on loopback; yield its address."""
    page = Page(paths)
    page.prepare()
    try:
        async with listening(
            [web.get("/{path:.*}", page.handle)],
            reject_foreigners,
            _only_reads,
            at=(host, port),
            key="--port, or leave it out",
            body_bytes=MESSAGE_MAX,
        ) as url:
            yield url
    finally:
        await page.close()


@web.middleware
async def _only_reads(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method not in {"GET", "HEAD"}:
        return _refusal(405, "This page is read-only; a daemon's own page takes commands.")
    return await handler(request)


async def serve_until_ended(
    paths: Sequence[Path],
    *,
    host: str,
    port: int,
    listening_at: Callable[[str], Awaitable[None] | None],
) -> None:
    """Serve databases until a signal; call *listening_at* with the address."""
    ended = asyncio.Event()
    with signals_call(ended.set):
        async with serving(paths, host=host, port=port) as url:
            announcement = listening_at(url)
            if announcement is not None:
                await announcement
            await ended.wait()
