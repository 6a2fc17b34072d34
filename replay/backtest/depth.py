"""Recorded order books beside candles: in the instrument's units, cut at the closes of its bars.

The rule is docs/orderbook.md, D15.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from tracepaper.daemon.config.sections import MarketSection
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.depth import DepthSource
from tracepaper.replay.archive.times import iso
from tracepaper.strategies.book_record import BLOCK_BOOKS
from tracepaper.strategies.books import Integers, packed_books
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types import Depths, Instrument

BEGUN: Final = "stopped"
"""Why the first books of a feed go on from none."""


class Scale(NamedTuple):
    """What numbers of one scale are multiplied by, or divided by, to be those of another."""

    times: int = 1
    over: int = 1

    def of(self, numbers: Integers) -> Integers:
        """Return *numbers* in the other scale."""
        scaled: Integers = numbers * self.times // self.over
        return scaled


@dataclass(frozen=True, eq=False)
class DepthTrack:
    """The books of one instrument as a feed hands them on: event *i* holds ``cuts[i]``."""

    source: DepthSource
    levels: int
    price: Scale
    size: Scale
    cuts: Sequence[tuple[int, int, str]]  # first book, the one after the last, and the cause

    @property
    def times(self) -> Integers:
        """The time of each event, that of its newest book."""
        return self.source.times[[stop - 1 for _, stop, _ in self.cuts]]

    def events(self) -> Iterator[Depths]:
        """Yield the events; each is read and packed when it is drawn."""
        header = self.source.header
        for start, stop, cause in self.cuts:
            read = self.source.part(start, stop).shallower(self.levels)
            books = replace(read, price=self.price.of(read.price), size=self.size.of(read.size))
            at_ms = int(books.seen_ms[-1])
            yield packed_books(
                header.instrument, books, every_ms=header.every_ms, cause=cause, seen_ms=at_ms
            )


def depth_track(
    recorded: DepthSource,
    instrument: Instrument,
    market: MarketSection,
    closes_ms: Integers,
    *,
    wanted: int,
) -> DepthTrack:
    """Return what *recorded* holds until the last of *closes_ms*, cut at each of them.

    It begins *wanted* books before the first bar.

    Raises ``DataInvalid`` where the instrument cannot count its prices and sizes exactly.
    """
    header, times, units = recorded.header, recorded.times, recorded.units
    begin_ms = int(closes_ms[0]) - market.interval_ms - wanted * header.every_ms
    begin = int(np.searchsorted(times, begin_ms, side="right"))
    stop = int(np.searchsorted(times, closes_ms[-1], side="right"))
    of_bar = np.searchsorted(closes_ms, times[:stop])  # the bar before which each is handed on
    bounds = {int(start) for start in recorded.starts if begin < start < stop}
    causes = dict(zip(recorded.starts.tolist(), recorded.causes, strict=True))
    bounds |= {cut for cut in (np.flatnonzero(np.diff(of_bar)) + 1).tolist() if cut > begin}
    cuts: list[tuple[int, int, str]] = []
    edges = [begin, *sorted(bounds), stop] if begin < stop else []
    for first, last in pairwise(edges):
        for start in range(first, last, BLOCK_BOOKS):
            cause = causes.get(start, "") or (BEGUN if start == begin else "")
            cuts.append((start, min(start + BLOCK_BOOKS, last), cause))
    return DepthTrack(
        recorded,
        market.depth,
        _scale(units.price, header.price_decimals, instrument.price_decimals, "prices"),
        _scale(units.size, header.quantity_decimals, instrument.quantity_decimals, "sizes"),
        cuts,
    )


def _scale(unit: int, decimals: int, wanted: int, what: str) -> Scale:
    """Return how multiples of *unit* of 10^-*decimals* become integers of 10^-*wanted*, exactly."""
    if wanted >= decimals:
        return Scale(times=10 ** (wanted - decimals))
    coarser = 10 ** (decimals - wanted)
    if unit % coarser:
        raise DataInvalid(
            f"The {what} of --depth need {decimals} decimals, and the candles' instrument has "
            f"{wanted}; give candles that were not rounded."
        )
    return Scale(over=coarser)


def refuse_elsewhere(
    depth: Sequence[DepthSource],
    candles: Sequence[Candles],
    from_ms: int | None = None,
    until_ms: int | None = None,
) -> None:
    """Raise ``DataInvalid`` for books of which none stood so within the candles of the period."""
    for one in depth:
        for part in candles:
            if part.instrument != one.header.instrument or not len(part):
                continue
            begin_ms = max(int(part.open_time_ms[0]), from_ms or 0)
            end_ms = int(part.closes_ms[-1])
            end_ms = end_ms if until_ms is None else min(end_ms, until_ms)
            first, last = np.searchsorted(one.times, (begin_ms, end_ms), side="right").tolist()
            if begin_ms < end_ms and first == last:
                raise DataInvalid(
                    f"--depth holds books of {part.instrument} from {iso(int(one.times[0]))} to "
                    f"{iso(int(one.times[-1]))}, and the bars are of {iso(begin_ms)} to "
                    f"{iso(end_ms)}; give books and candles of one time."
                )


def with_depth(market: MarketSection, depth: Sequence[DepthSource]) -> MarketSection:
    """Return *market* with levels and pace of *depth* where it names none.

    Raises ``ConfigInvalid`` where *depth* has fewer levels, another pace or another symbol than
    it names, or where two files are of one symbol.
    """
    named: set[str] = set()
    for one in depth:
        header = one.header
        category, _, symbol = header.instrument.partition(":")
        if category != market.category or symbol not in market.symbols:
            raise ConfigInvalid(
                f"--depth holds books of {header.instrument}, and the run trades "
                f"{market.category}:{', '.join(market.symbols)}; leave it out."
            )
        if symbol in named:
            raise ConfigInvalid(f"--depth names two files of {symbol}; give one a symbol.")
        named.add(symbol)
    if not depth:
        return market
    if not market.depth:
        first = depth[0].header
        market = market.model_copy(update={"depth": first.levels, "depth_every_ms": first.every_ms})
    for one in depth:
        header = one.header
        if header.levels < market.depth or header.every_ms != market.depth_every_ms:
            raise ConfigInvalid(
                f"--depth holds {header.words()}, and the run reads {market.depth} levels each "
                f"{market.depth_every_ms:,} ms; set market.depth and market.depth_every_ms to "
                "what was recorded."
            )
    return market
