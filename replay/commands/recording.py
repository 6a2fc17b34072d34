"""``tracepaper data record``, and ``data check`` of recorded files."""

from __future__ import annotations

import asyncio
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Final

from tracepaper.daemon.bybit.order_book import DepthRequest
from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.session.shutdown import run_loop
from tracepaper.replay.archive.columns import iso
from tracepaper.replay.archive.download import ReceivedFrame, record_live, sample_frames
from tracepaper.replay.archive.order_book import DepthQuality, depth_quality
from tracepaper.replay.exchange.recorded import Recording, read_recording
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import duration, time_of

GAPS_SHOWN: Final = 5
_SECONDS: Final = re.compile(r"(\d{1,6}) ?s")
_HTTP: Final = re.compile(r"http(s?)://.+")


def record_session(
    config: Path | None, url: str | None, request: DepthRequest, out: Path, *, lasting: str | None
) -> tuple[DepthQuality, str]:
    """Record live until *lasting* is over, Ctrl-C or SIGTERM; return what the file holds then.

    The second is what was found of an older recorder's torn end.
    """
    exchange = _exchange(config, url)
    seconds = None if lasting is None else _seconds(lasting)

    async def session() -> str:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def end() -> None:
            if not done.done():
                done.set_result(None)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end)
        if seconds is not None:
            loop.call_later(seconds, end)
        clock = SystemClock(exchange.time_scale)
        return await record_live(exchange, request, out, clock=clock, done=done)

    said = run_loop(session())
    return depth_quality(out), said


def record_frames(
    frames: Path, config: Path | None, request: DepthRequest, out: Path, category: Category | None
) -> tuple[DepthQuality, str]:
    """Write the books of a recorded session to *out*; return what the file holds then, as above.

    A *category* chooses among the frames where the session holds several.
    """
    session = read_recording(frames, category)
    request = replace(request, category=Category(session.category))
    topic = _topic(session, frames, request)
    item = next(each for each in session.instruments() if each["symbol"] == request.symbol)
    said = sample_frames(
        (ReceivedFrame(each.received_ms, each.body) for each in session.frames(topic)),
        item,
        request,
        out,
        topic=topic,
        ahead_ms=load(config).exchange.ahead_ms,
    )
    return depth_quality(out), said


def _topic(session: Recording, frames: Path, request: DepthRequest) -> str:
    """Return the shallowest topic that has the levels asked for."""
    depths = session.depths(request.symbol)
    deep = [depth for depth in depths if depth >= request.levels]
    if deep:
        return f"orderbook.{deep[0]}.{request.symbol}"
    if depths:
        raise ConfigInvalid(
            f"{frames} holds {depths[-1]} levels of {request.symbol}; give --depth {depths[-1]} or "
            "less."
        )
    raise DataInvalid(
        f"{frames} holds no order book of {request.symbol}; its symbols are "
        f"{', '.join(session.symbols) or 'none'}."
    )


def _exchange(config: Path | None, url: str | None) -> ExchangeSection:
    """Return ``[exchange]``, of another address where *url* is given."""
    if url is None:
        return load(config).exchange
    if _HTTP.fullmatch(url) is None:
        raise ConfigInvalid(f"--url is {url!r}: write it as http://127.0.0.1:8080.")
    stream = f"ws{url.removeprefix('http')}"
    return load(config, {"exchange": {"rest_url": url, "stream_url": stream}}).exchange


def _seconds(text: str) -> float:
    """Return how many seconds *text* is; raise ``ConfigInvalid`` for no time."""
    if found := _SECONDS.fullmatch(text.strip()):
        length_ms: int | None = int(found[1]) * 1000
    else:
        length_ms = time_of(text)
    if not length_ms:
        raise ConfigInvalid(f"--for is {text!r}: write a time such as 30s, 10m or 8h.")
    return length_ms / 1000


def depth_lines(found: DepthQuality) -> list[str]:
    """Return the report of one file of books for people."""
    head = (
        f"  {found.instrument}, {found.levels} levels a side each {found.every_ms:,} ms, "
        f"from {found.source}"
    )
    lines = [f"✓ {found.path}", head]
    if found.first_ms is None or found.last_ms is None or found.bytes_a_book is None:
        lines.append("  no books yet")
    else:
        whole = f", {duration(found.recorded_ms)} without the gaps"
        lines += [
            f"  {found.books:,} books from {iso(found.first_ms)} to {iso(found.last_ms)}{whole}",
            f"  {found.bytes:,} bytes, {found.bytes_a_book:,.0f} a book",
            f"  {len(found.gaps)} gaps{_gaps(found)}",
        ]
    if found.thin:
        lines.append(f"  {found.thin:,} books lack levels on a side")
    return lines + ([f"  {found.torn}"] if found.torn else [])


def _gaps(found: DepthQuality) -> str:
    shown = [
        f"{iso(gap.from_ms)} to {iso(gap.until_ms)} ({gap.cause})"
        for gap in found.gaps[:GAPS_SHOWN]
    ]
    if len(found.gaps) > GAPS_SHOWN:
        shown.append(f"and {len(found.gaps) - GAPS_SHOWN} more")
    return f": {'; '.join(shown)}" if shown else ""
