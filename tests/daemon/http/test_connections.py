"""Slow, silent, malformed and too many: the real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, Gauge
from waiting import deadline, pass_time

from tracepaper.daemon.config.sections import HttpSection
from tracepaper.daemon.http.server import (
    CONNECTIONS_MAX,
    REQUEST_TIMEOUT_S,
    Caller,
    CommandRequest,
    ConnectionLimits,
    HttpServer,
    Submit,
)
from tracepaper.daemon.terminal import console

pytestmark = pytest.mark.usefixtures("lines_on_stderr")

MOST = 8
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def lines_on_stderr() -> None:
    console.configure(output="json")


async def submit(_request: CommandRequest, _caller: Caller) -> int:
    return 1


@asynccontextmanager
async def served(
    *,
    metrics: str | None = None,
    submit: Submit = submit,
    limits: ConnectionLimits | None = None,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[HttpServer]:
    async with HttpServer(
        HttpSection(port=0, metrics=metrics),
        tokens={"database": "t"},
        status=lambda: {"ready": True},
        submit=submit,
        registry=registry or CollectorRegistry(),
        limits=limits or ConnectionLimits(most=MOST),
    ) as server:
        yield server


async def connect(server: HttpServer, sent: bytes = b"") -> Streams:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def ended(streams: Streams) -> bytes:
    """Return what was answered before the server ended the connection."""
    async with deadline():
        try:
            return await streams[0].read()
        except ConnectionResetError:
            return b""
        finally:
            streams[1].close()


async def cut(streams: Streams) -> bytes:
    """Let time pass until the server has ended the connection; return what it answered."""
    answer = asyncio.create_task(ended(streams))
    while not answer.done():
        pass_time(REQUEST_TIMEOUT_S)
        await asyncio.sleep(0)
    return answer.result()


async def answers(server: HttpServer) -> bool:
    async with aiohttp.ClientSession() as client, client.get(f"{server.url}/livez") as answer:
        return answer.ok


POST = b"POST /command HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer t\r\n"
JSON = b"Content-Type: application/json\r\nContent-Length: 15\r\n\r\n"
HALF_OPEN = {
    "nothing": b"",
    "half a line": b"GET /sta",
    "a line": b"GET /status HTTP/1.1\r\n",
    "half the head": b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ",
    "no body": POST + JSON,
    "half a body": POST + JSON + b'{"kind"',
    "an answered request, and no other": b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "an answered request, and half another": b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET",
}


@pytest.mark.parametrize("sent", HALF_OPEN.values(), ids=HALF_OPEN)
async def test_half_a_request_is_cut_off(sent: bytes) -> None:
    async with served() as server:
        connections = [await connect(server, sent) for _ in range(MOST)]
        for connection in connections:
            await cut(connection)
        assert await answers(server)


async def test_one_byte_at_a_time_does_not_buy_time() -> None:
    async with served() as server:
        connection = await connect(server)

        async def drip() -> None:
            for letter in b"GET /status HTTP/1.1\r\nX-Slow: " + b"x" * 10_000:
                connection[1].write(bytes([letter]))
                await asyncio.sleep(0.002)

        dripping = asyncio.create_task(drip())
        await cut(connection)
        assert not dripping.done(), "it was ended in the middle of its request"
        dripping.cancel()
        assert await answers(server)


@pytest.mark.parametrize("after", [b"keep-alive", b"close"])
async def test_an_answer_that_nobody_reads_is_not_kept(
    after: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, size = CollectorRegistry(), 16 << 20  # more than sockets hold
    Gauge("tracepaper_large", "x" * size, registry=registry)
    async with served(registry=registry) as server:
        request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: %b\r\n\r\n"
        connection = await connect(server, request % after)
        await connection[0].readuntil(b"200 OK")
        while "too_slow" not in capsys.readouterr().err:
            pass_time(REQUEST_TIMEOUT_S)
            await asyncio.sleep(0)
        assert len(await ended(connection)) < size
        assert await answers(server)


async def test_connections_over_the_limit_are_answered_503_and_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun = asyncio.Semaphore(0)
    may_end = asyncio.Event()

    async def work(_request: CommandRequest, _caller: Caller) -> int:
        begun.release()
        await may_end.wait()
        return 1

    async with served(submit=work) as server:
        held = [await connect(server, POST + JSON + b'{"kind":"HALT"}') for _ in range(MOST)]
        for _ in held:
            await begun.acquire()
        for _ in range(200):
            assert (await ended(await connect(server))).startswith(b"HTTP/1.1 503 ")
        may_end.set()
        for reader, writer in held:
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            writer.close()
        assert await answers(server)
    assert capsys.readouterr().err.count("connections refused") == 1


@pytest.mark.parametrize("sent", [b"", *list(HALF_OPEN.values())[2:6]])
async def test_sockets_that_are_held_open_keep_nobody_out(sent: bytes) -> None:
    async with served(limits=ConnectionLimits()) as server:
        held = [await connect(server, sent) for _ in range(2 * CONNECTIONS_MAX)]
        for _ in range(3):
            assert await answers(server)
        cut = [streams for streams in held if streams[0].at_eof() or streams[0].exception()]
        assert len(cut) > CONNECTIONS_MAX  # the others are held still, and no more than the limit
        for _, writer in held:
            writer.transport.abort()


async def test_a_listener_for_metrics_serves_nothing_else() -> None:
    registry = CollectorRegistry()
    Gauge("tracepaper_ready", "Whether it is ready.", registry=registry).set(1)
    server = served(metrics="0.0.0.0:0", registry=registry)
    async with server as listening, aiohttp.ClientSession() as client:
        # Another address than the commands'.
        address = listening.metrics_url.replace("0.0.0.0", "127.0.0.2")
        name = {"Host": "tracepaper.example:9187"}  # as a scraper of containers names it
        async with client.get(f"{address}/metrics", headers=name) as answer:
            assert answer.status == 200
            assert "tracepaper_ready 1.0" in await answer.text()
        token = {"Authorization": "Bearer t", "Content-Type": "application/json"}
        for method, path, status in (
            ("POST", "/metrics", 405),
            ("POST", "/command", 404),
            *(("GET", path, 404) for path in ("/", "/status", "/readyz", "/livez", "/command")),
        ):
            async with client.request(method, address + path, headers=token) as answer:
                assert answer.status == status, path


async def test_an_idle_connection_is_closed_and_not_counted_as_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = HALF_OPEN["an answered request, and no other"]
    async with served() as server:
        kept = await connect(server, request)
        assert b"200 OK" in await kept[0].readuntil(b"\r\n\r\n")
        kept[1].write(request)  # the connection serves again
        assert b"200 OK" in await kept[0].readuntil(b"\r\n\r\n")
        await cut(kept)
    assert "connections refused" not in capsys.readouterr().err


GARBAGE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    "a bad method": b"G\x00T / HTTP/1.1\r\n\r\n",
    "a head without end": b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * 100_000,
    "a bad chunk": POST
    + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a body too long": POST
    + b"Content-Type: application/json\r\nContent-Length: 99999\r\n\r\n"
    + b"x" * 9_000,
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
async def test_what_is_no_request_leaves_no_traceback(
    sent: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served() as server:
        for _ in range(20):
            reader, writer = await connect(server, sent)
            assert (await reader.read(10)).startswith(b"HTTP/1.")
            writer.close()
        assert await answers(server)
    assert len(capsys.readouterr().err.splitlines()) <= 1


async def status_of(handler: Handler) -> int:
    """Return the status of the answer of *handler* behind the limits."""
    limits = ConnectionLimits()
    application = web.Application(middlewares=[limits.middleware])
    application.router.add_get("/", handler)
    runner = web.AppRunner(application, access_log=None, logger=limits.logger)
    await runner.setup()
    assert runner.server is not None
    listening = await asyncio.get_running_loop().create_server(
        limits.protocol(runner.server), "127.0.0.1", 0
    )
    port = listening.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/") as answer:
        status = answer.status
    listening.close()
    await runner.cleanup()
    return status


async def test_a_fault_of_ours_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    async def fails(_request: web.Request) -> web.Response:
        raise ZeroDivisionError

    assert await status_of(fails) == 500
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_a_handler_at_work_is_not_hurried() -> None:
    async def works(_request: web.Request) -> web.Response:
        waiting = asyncio.create_task(asyncio.sleep(REQUEST_TIMEOUT_S + 1))
        await asyncio.sleep(0)
        pass_time(REQUEST_TIMEOUT_S + 1)
        await waiting  # no limit that was begun before it is still to come
        return web.Response()

    assert await status_of(works) == 200
