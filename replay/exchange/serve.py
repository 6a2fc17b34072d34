"""Run one exchange until it is told to stop: the shell of ``tracepaper exchange``."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Final

from tracepaper.replay.exchange.channels import encode
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings

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
        await loop.connect_read_pipe(lambda: _AtEnd(stopped), sys.stdin)
    async with EmbeddedExchange(settings) as exchange:
        sys.stdout.write(encode(exchange.announcement()).decode() + "\n")
        sys.stdout.flush()
        await stopped.wait()


class _AtEnd(asyncio.Protocol):
    """Sets an event when its pipe ends; what is written into it is not read."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_lost(self, _error: Exception | None) -> None:
        """Note the end."""
        self._ended.set()
