"""Run one exchange until it is told to stop: the shell of ``tracepaper exchange``."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
import threading
from contextlib import suppress
from typing import Final

from tracepaper.replay.exchange.channels import encode
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings

CHUNK_BYTES: Final = 65_536
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def serve(settings: ExchangeSettings, *, until_eof: bool = False) -> None:
    """Announce the addresses on stdout, then serve until SIGTERM or Ctrl-C.

    With *until_eof* the end of standard input ends it as well: whoever started us is gone.
    Raises ``ConfigInvalid`` or ``DataInvalid`` where the settings cannot be served.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    if until_eof:
        await _watch_end(stopped)
    async with EmbeddedExchange(settings) as exchange:
        sys.stdout.write(encode(exchange.announcement()).decode() + "\n")
        sys.stdout.flush()
        await stopped.wait()


async def _watch_end(ended: asyncio.Event) -> None:
    """Set *ended* when standard input ends; a closed one has ended already.

    Pipes, sockets and terminals can be waited for. Files and ``/dev/null`` cannot, and are read
    to their end by a thread of their own.
    """
    loop = asyncio.get_running_loop()
    if sys.stdin is None:  # closed: its number may be another file's by now
        ended.set()
        return
    kind = os.fstat(0).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(0):
        await loop.connect_read_pipe(lambda: _AtEnd(ended), sys.stdin)
        return

    def read() -> None:
        with suppress(OSError):  # what cannot be read cannot be waited for
            while os.read(0, CHUNK_BYTES):
                pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()


class _AtEnd(asyncio.Protocol):
    """Sets an event when its pipe ends; what is written into it is not read."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_lost(self, _error: Exception | None) -> None:
        """Note the end."""
        self._ended.set()
