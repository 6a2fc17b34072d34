"""Live recordings of ``tracepaper data record``: one symbol to a file, several to a folder.

With ``--service`` it is a daemon's recording process (docs/orderbook.md, D28 to D31).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from tracepaper.daemon.bybit.order_book import DepthRequest
from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import tell
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.session.child import on_input_end
from tracepaper.daemon.session.processes import NICE, file_of
from tracepaper.daemon.session.shutdown import run_loop, signals_call
from tracepaper.replay.archive.download import record_live
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import time_of

_SECONDS: Final = re.compile(r"(\d{1,6}) ?s")


def requests_of(
    request: DepthRequest, symbols: Sequence[str], out: Path
) -> Mapping[Path, DepthRequest]:
    """Return the request of each file: *out* for one symbol, files in that folder for several."""
    if len(symbols) == 1 and not out.is_dir():
        return {out: request}
    if not request.events:
        raise ConfigInvalid("Several symbols, or a folder, are for --events; add it.")
    out.mkdir(parents=True, exist_ok=True)
    return {file_of(out, symbol): replace(request, symbol=symbol) for symbol in symbols}


def record_session(
    exchange: ExchangeSection,
    requests: Mapping[Path, DepthRequest],
    *,
    lasting: str | None = None,
    service: bool = False,
) -> str:
    """Record until *lasting* is over or a signal comes; return a message about torn ends.

    A *service* ends with the daemon that started it, and skips symbols that are not listed.
    """
    seconds = None if lasting is None else _seconds(lasting)

    async def session() -> str:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def end() -> None:
            if not done.done():
                done.set_result(None)

        if seconds is not None:
            loop.call_later(seconds, end)
        skips: Callable[[str], None] | None = None
        if service:
            # The daemon's end closes standard input; the recorder then writes its buffers. On
            # Linux that thread, which exists already, keeps the daemon's priority.
            on_input_end(lambda: loop.call_soon_threadsafe(end))
            with suppress(OSError):
                os.nice(NICE)
            skips = tell
        clock = SystemClock(exchange.time_scale)
        with signals_call(end):
            return await record_live(exchange, requests, clock=clock, done=done, skips=skips)

    return run_loop(session())


def exchange_of(config: Path | None, url: str | None, service: str | None) -> ExchangeSection:
    """Return [exchange] from the JSON *service*, else from *config*, with *url* if given."""
    if service is not None:
        return load({"exchange": msgspec.json.decode(service)}).exchange
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
