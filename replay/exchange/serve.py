"""Run one exchange until it is told to stop: the shell of ``tracepaper exchange``."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Final

from tracepaper.replay.exchange.channels import encode
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def serve(settings: ExchangeSettings) -> None:
    """Announce the addresses on stdout, then serve until SIGTERM or Ctrl-C.

    Raises ``ConfigInvalid`` or ``DataInvalid`` where the settings cannot be served.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    async with EmbeddedExchange(settings) as exchange:
        sys.stdout.write(encode(exchange.announcement()).decode() + "\n")
        sys.stdout.flush()
        await stopped.wait()
