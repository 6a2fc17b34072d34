"""A proxy between the daemon and the exchange: it forwards plain requests and opens tunnels."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Self

HEAD_END: Final = b"\r\n\r\n"
PIECE: Final = 1 << 16


class Proxy:
    """Listens on *port* and connects to *exchange_port*; ``asked`` counts the connections.

    Until ``broken_until_s`` it answers that it cannot.
    """

    def __init__(self, port: int, exchange_port: int) -> None:
        self.port, self.asked, self.broken_until_s = port, 0, 0.0
        self._exchange_port = exchange_port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        for task in sorted(self._tasks, key=hash):
            task.cancel()
        await asyncio.gather(*sorted(self._tasks, key=hash), return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the end of this task
                await self._join(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the first request of a connection; what follows it belongs to the exchange."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(HEAD_END)
            if asyncio.get_running_loop().time() < self.broken_until_s:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            self.asked += 1
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._exchange_port)
            try:
                if head.startswith(b"CONNECT "):
                    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    far_writer.write(head)
                there = asyncio.create_task(_pass_on(reader, far_writer))
                back = asyncio.create_task(_pass_on(far_reader, writer))
                try:
                    await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in (there, back):
                        each.cancel()
            finally:
                far_writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
