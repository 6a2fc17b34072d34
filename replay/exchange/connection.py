"""One client of the stream: what it subscribed, and what waits to be written to it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from aiohttp import WSMsgType, web

OUTBOX_FRAMES_MAX: Final = 20_000


class Connection:
    """A connection of one category, known to its client by *identity*."""

    def __init__(self, category: str, identity: str, request: web.Request) -> None:
        self.category: Final = category
        self.identity: Final = identity
        self.topics: Final[set[str]] = set()
        self.stalled_until_s = 0.0
        self._request = request
        self._outbox: deque[bytes] = deque()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self.is_cut = False

    def send(self, body: bytes) -> None:
        """Queue *body*; a client that does not read is cut off, as the exchange would."""
        if self.is_cut:
            return
        if len(self._outbox) >= OUTBOX_FRAMES_MAX:
            self.cut()
            return
        self._outbox.append(body)
        self._drained.clear()
        self._filled.set()

    async def write(self, socket: web.WebSocketResponse) -> None:
        """Write what waits, for as long as the connection lives."""
        try:
            while not self.is_cut:
                await self._filled.wait()
                self._filled.clear()
                while self._outbox:
                    await socket.send_frame(self._outbox.popleft(), WSMsgType.TEXT)
                self._drained.set()
        except ConnectionResetError:
            self.cut()
        finally:
            self._drained.set()  # nobody waits for a connection that is gone

    async def drained(self) -> None:
        """Wait until everything queued so far is written, or the connection is cut."""
        await self._drained.wait()

    def cut(self) -> None:
        """Drop the connection without a closing handshake."""
        self.is_cut = True
        self._outbox.clear()
        self._drained.set()
        if self._request.transport is not None:
            self._request.transport.abort()
