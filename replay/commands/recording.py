"""Live recordings of ``tracepaper data record``."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

from tracepaper.daemon.bybit.order_book import DepthRequest
from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.session.shutdown import run_loop, signals_call
from tracepaper.replay.archive.download import record_live
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import time_of

_SECONDS: Final = re.compile(r"(\d{1,6}) ?s")


def record_session(
    exchange: ExchangeSection, request: DepthRequest, out: Path, *, lasting: str | None = None
) -> str:
    """Record until *lasting* is over or a signal comes; return a message about a torn end."""
    seconds = None if lasting is None else _seconds(lasting)

    async def session() -> str:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def end() -> None:
            if not done.done():
                done.set_result(None)

        if seconds is not None:
            loop.call_later(seconds, end)
        clock = SystemClock(exchange.time_scale)
        with signals_call(end):
            return await record_live(exchange, request, out, clock=clock, done=done)

    return run_loop(session())


def exchange_of(config: Path | None, url: str | None) -> ExchangeSection:
    """Return [exchange] of *config*, with *url* if given."""
    if url is None:
        return load(config).exchange
    stream = f"ws{url.removeprefix('http')}"
    return load(config, {"exchange": {"rest_url": url, "stream_url": stream}}).exchange


def _seconds(text: str) -> float:
    """Parse a duration in seconds; raise ``ConfigInvalid`` if *text* is none."""
    if match := _SECONDS.fullmatch(text.strip()):
        length_ms: int | None = int(match[1]) * 1000
    else:
        length_ms = time_of(text)
    if not length_ms:
        raise ConfigInvalid(f"--for is {text!r}: write a time such as 30s, 10m or 8h.")
    return length_ms / 1000
