"""Receivers of notices on loopback, of every temper: webhooks and mail servers by hand."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

SLOW_S = 0.3


class Receivers:
    """One webhook and one mail server of each temper; what the willing ones took."""

    def __init__(self) -> None:
        self.hooks: list[str] = []
        self.mails: list[str] = []
        self.address: dict[tuple[str, str], str] = {}
        self.connections = 0
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, kind: str, temper: str, serve: Callable[..., Awaitable[None]]) -> None:
        async def connected(reader: Reader, writer: Writer) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            self.connections += 1
            try:
                await serve(temper, reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the other side is gone, or the test is over
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        self.address[kind, temper] = (
            f"json://127.0.0.1:{port}/{temper}"
            if kind == "hook"
            else f"mailto://127.0.0.1:{port}?from=bot@example.com&to={temper}@example.com"
        )

    async def hook(self, temper: str, reader: Reader, writer: Writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1])
            for line in head.splitlines()
            if line.lower().startswith("content-length")
        )
        body = (await reader.readexactly(length)).decode()
        await _moods(temper, writer, b"HTTP/1.1 200 OK\r\nX: ")
        if temper in {"takes", "slow"}:
            self.hooks.append(body)
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        elif temper == "refuses":  # and says all that it was told
            text = f"no: {head}".encode()
            writer.write(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        await writer.drain()

    async def mail(self, temper: str, reader: Reader, writer: Writer) -> None:
        await _moods(temper, writer, b"220-")
        writer.write(b"220 here\r\n")
        while line := await reader.readline():
            word = line[:4].upper()
            if word == b"RCPT" and temper == "refuses":
                writer.write(b"550 " + line.strip() + b"\r\n")
            elif word == b"DATA":
                writer.write(b"354 go\r\n")
                self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                writer.write(b"250 taken\r\n")
            elif word == b"QUIT":
                writer.write(b"221 bye\r\n")
                return
            else:
                writer.write(b"250 yes\r\n")
            await writer.drain()

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _moods(temper: str, writer: Writer, drop: bytes) -> None:
    """Wait, hang, drip or close, as the *temper* is; return where an answer follows."""
    if temper == "slow":
        await asyncio.sleep(SLOW_S)
    elif temper == "hangs":
        await asyncio.Event().wait()
    elif temper == "closes":
        raise ConnectionResetError
    elif temper == "drips":  # a byte within every timeout of a read, and no end
        writer.write(drop)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def receivers(*tempers: str) -> AsyncIterator[Receivers]:
    """Serve a webhook and a mail server of each of *tempers*."""
    servers = Receivers()
    try:
        for temper in tempers:
            await servers.listen("hook", temper, servers.hook)
            await servers.listen("mail", temper, servers.mail)
        yield servers
    finally:
        await servers.close()
