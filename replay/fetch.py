"""Fetch candles over REST, page by page, each kept before the next is asked for: resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import Bar, Instrument

PAGE_BARS: Final = 1_000
"""Candles a request, the exchange's limit."""

Span = tuple[int, int]
"""First open time, and the first after the last: [from, until)."""


class Klines(Protocol):
    """The one call that is needed of ``daemon.bybit.rest.RestClient``."""

    async def klines(
        self, instrument: Instrument, interval_ms: int, start_ms: int, end_ms: int
    ) -> list[Bar]:
        """Return the final bars that open in [*start_ms*, *end_ms*], oldest first."""
        ...


@dataclass(frozen=True)
class Fetched:
    """What came: bars kept, and the spans that the exchange does not have."""

    bars: int
    absent: tuple[Span, ...]


async def fetch(
    rest: Klines,
    instrument: Instrument,
    interval_ms: int,
    spans: Sequence[Span],
    *,
    keep: Callable[[Sequence[Bar]], None],
    progress: Callable[[int], None] = lambda _candles: None,
) -> Fetched:
    """Ask for every candle of *spans* and hand each page to *keep* as it comes.

    *spans* are what the archive lacks, so a fetch that was broken off goes on where it ended.
    *progress* hears how many candle times each page settled. Errors of *rest* pass.
    """
    bars = 0
    absent: list[Span] = []
    for start, until in spans:
        for first, last in pages(start, until, interval_ms):
            page = await rest.klines(instrument, interval_ms, first, last)
            if page:
                keep(page)
            bars += len(page)
            absent += holes([bar.open_time_ms for bar in page], first, last, interval_ms)
            progress((last - first) // interval_ms + 1)
    return Fetched(bars, tuple(joined(absent)))


def pages(start: int, until: int, interval_ms: int) -> list[Span]:
    """Return the first and last open time of each request for [*start*, *until*)."""
    step = PAGE_BARS * interval_ms
    return [(first, min(first + step, until) - interval_ms) for first in range(start, until, step)]


def holes(times: Sequence[int], first: int, last: int, interval_ms: int) -> list[Span]:
    """Return the spans of [*first*, *last*] that the rising *times* leave out."""
    found: list[Span] = []
    expected = first
    for time in (*times, last + interval_ms):
        if time > expected:
            found.append((expected, time))
        expected = time + interval_ms
    return found


def joined(spans: Sequence[Span]) -> list[Span]:
    """Return rising *spans* with those that touch made one."""
    found: list[Span] = []
    for start, until in spans:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], until)
        else:
            found.append((start, until))
    return found


def lacking(stored: Sequence[Span], wanted: Span) -> list[Span]:
    """Return the parts of *wanted* that the rising, separate *stored* spans do not cover."""
    start, until = wanted
    found: list[Span] = []
    for first, after in stored:
        if first > start:
            found.append((start, min(first, until)))
        start = max(start, after)
        if start >= until:
            break
    if start < until:
        found.append((start, until))
    return [(a, b) for a, b in found if a < b]


def whole_span(from_ms: int, until_ms: int, interval_ms: int, *, phase_ms: int = 0) -> Span:
    """Return the candles that lie wholly in [*from_ms*, *until_ms*).

    *phase_ms* is where the grid starts (a Monday for weeks). Raises ``ConfigInvalid`` where
    there is none.
    """
    start = -(-(from_ms - phase_ms) // interval_ms) * interval_ms + phase_ms
    until = (until_ms - phase_ms) // interval_ms * interval_ms + phase_ms
    if start >= until:
        raise ConfigInvalid(
            "No candle closed between the two times: choose an earlier --from or a later --to."
        )
    return start, until
