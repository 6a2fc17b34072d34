"""``http.client`` on the world's loop: a blocking call lets the loop go on until it is answered."""

from __future__ import annotations

import asyncio
import io
from http.client import HTTPConnection
from typing import Any

from world.loop import VirtualLoop


class _Stream(io.RawIOBase):
    """What ``HTTPConnection`` needs of a socket."""

    def __init__(
        self, loop: VirtualLoop, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._loop, self._reader, self._writer = loop, reader, writer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._loop.drive(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def sendall(self, data: bytes) -> None:
        self._writer.write(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        self._writer.close()
        super().close()


def install() -> None:
    """Let every blocking HTTP request that a ``VirtualLoop`` makes stay in that loop."""
    usual = HTTPConnection.connect

    def connect(connection: HTTPConnection) -> None:
        loop = asyncio._get_running_loop()
        if not isinstance(loop, VirtualLoop):
            usual(connection)
            return
        opening = asyncio.open_connection(connection.host, connection.port)
        setattr(connection, "sock", _Stream(loop, *loop.drive(opening)))  # noqa: B010 - no socket

    setattr(HTTPConnection, "connect", connect)  # noqa: B010 - a method may not be assigned to
