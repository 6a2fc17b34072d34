"""Answers and frames of the exchange that never end: an answer also inflates."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from typing import Final

from world.network import TimedLoop, Transport

MIB: Final = 1 << 20
MOST_MIB: Final = 64
"""What a client may take of one answer or frame before it gives up."""
IN_FLIGHT: Final = 4 * MIB
PAUSE_S: Final = 0.001
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
)
TEXT_FRAME: Final = b"\x81"


def _inflating() -> tuple[bytes, bytes]:
    """Return the first and every later chunk, each a mebibyte of zeros once it is inflated."""
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, later = (stream.compress(bytes(MIB)) + stream.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    chunks = [f"{len(each):x}\r\n".encode() + each + b"\r\n" for each in (first, later)]
    return chunks[0], chunks[1]


class Bomb:
    """Replaces the next answer, or the next frame, that the exchange at *port* sends.

    *taken* is called if a client takes more than ``MOST_MIB`` of it.
    """

    def __init__(
        self, loop: TimedLoop, port: int, rng: random.Random, taken: Callable[[str], None]
    ) -> None:
        self._loop, self._port, self._taken = loop, port, taken
        self._is_frame = rng.random() < 0.5
        self._first = rng.choice((b"\x82", b"\xc2"))  # plain, or compressed as nobody agreed to
        self._side: Transport | None = None
        self._mib = 0

    def __call__(self, side: Transport, content: bytes) -> bytes:
        """Return what *side* sends in place of *content*."""
        if side is self._side:
            return b""
        starts = TEXT_FRAME if self._is_frame else b"HTTP/1.1 200"
        is_met = side.peer.far.port == self._port and content.startswith(starts)
        if self._side is not None or not is_met:
            return content
        self._side = side
        self._loop.call_soon(self._go_on)
        if self._is_frame:
            return self._first + b"\x7f" + struct.pack(">Q", 1 << 40)
        first, self._later = _inflating()
        return HEAD + first

    def _go_on(self) -> None:
        """Send a mebibyte as soon as the last ones were taken, until the client has gone."""
        side = self._side
        assert side is not None
        if side.is_gone or side.peer.is_gone:
            return
        if self._mib > MOST_MIB:
            what = "a frame" if self._is_frame else "an answer"
            self._taken(f"{self._mib} MiB of {what} that never ends")
            return
        if side._in_flight < (IN_FLIGHT if self._is_frame else len(self._later)):
            side._send(bytes(MIB) if self._is_frame else self._later)
            self._mib += 1
        self._loop.call_at(self._loop.now_s + PAUSE_S, self._go_on)
