"""The events of each source of data, as tracks that a feed merges by time.

The rule of order books is docs/orderbook.md, D15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from tracepaper.daemon.config.market import MarketSection
from tracepaper.replay.archive import Candles, FundingRates, merge_candles
from tracepaper.replay.archive.books import RecordedDepth
from tracepaper.replay.archive.candles import Span
from tracepaper.replay.archive.columns import IntArray
from tracepaper.replay.archive.series import missing_settlements
from tracepaper.strategies.api.timeframes import frame_bar_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import BLOCK_BOOKS, Integers, packed_books
from tracepaper.strategies.types.market import (
    Bar,
    Depths,
    Event,
    Funding,
    Gap,
    GapCause,
    Instrument,
)
from tracepaper.strategies.units import interval_start, iso

BATCH_BARS: Final = 16_384
"""Bars built at once: enough to be fast, few enough to save memory over a year."""


class Track(NamedTuple):
    """The events of one instrument: their times in feed order, and a function that yields them."""

    times: IntArray
    events: Callable[[], Iterator[Event]]


class DataLookback(NamedTuple):
    """How far back strategy and model read other data than bars."""

    frames: Mapping[int, int] = MappingProxyType({})  # by length in milliseconds: how many candles
    books: int = 0
    levels: int = 0  # per side of each book


@dataclass(frozen=True)
class BarSpan:
    """The bars of a run, and what placing the events of other sources between them needs."""

    candles: tuple[Candles, ...]  # of the period and its warm-up, in the instruments' scales
    whole: Mapping[str, Candles]  # by instrument: all candles
    instruments: Mapping[str, Instrument]
    from_ms: int  # the start of the period
    lookback: DataLookback


def candle_tracks(_given: Sequence[Candles], bars: BarSpan) -> list[Track]:
    """Return the bars of each instrument, and the gaps between them."""
    tracks = []
    for part in bars.candles:
        closes = part.closes_ms
        after_hole = np.flatnonzero(part.steps != 1) + 1
        times = np.insert(closes, after_hole, closes[after_hole])
        tracks.append(Track(times, partial(_bars, part)))
    return tracks


BEGUN: Final = "stopped"
"""The cause of the first books of a feed, which follow no others."""


class Scale(NamedTuple):
    """The factor and divisor that convert integers between two scales."""

    times: int = 1
    over: int = 1

    def of(self, numbers: Integers) -> Integers:
        """Return *numbers* converted."""
        return numbers * self.times // self.over


def _depths(
    source: RecordedDepth,
    cuts: Sequence[tuple[int, int, str]],
    levels: int,
    price: Scale,
    size: Scale,
) -> Iterator[Depths]:
    """Yield the books of each cut, given as its first index, the index after its last, a cause."""
    header = source.header
    for start, stop, cause in cuts:
        read = source.part(start, stop).shallower(levels)
        books = replace(read, price=price.of(read.price), size=size.of(read.size))
        at_ms = int(books.seen_ms[-1])
        yield packed_books(
            header.instrument.id, books, every_ms=header.every_ms, cause=cause, seen_ms=at_ms
        )


def depth_tracks(given: Sequence[RecordedDepth], bars: BarSpan) -> list[Track]:
    """Return the order books; those until a bar's close precede that bar."""
    closes_ms = {part.instrument: part.closes_ms for part in bars.candles}
    interval_ms = bars.candles[0].interval_ms
    cut = [
        depth_track(
            recorded,
            bars.instruments[recorded.header.instrument.id],
            closes_ms[recorded.header.instrument.id],
            interval_ms,
            bars.lookback,
        )
        for recorded in given
        if recorded.header.instrument.id in closes_ms
    ]
    return [track for track in cut if track.times.size]


def depth_track(
    recorded: RecordedDepth,
    instrument: Instrument,
    closes_ms: Integers,
    interval_ms: int,
    lookback: DataLookback,
) -> Track:
    """Cut the books of *recorded* at each of *closes_ms*; drop later ones.

    It begins *lookback*.books before the first bar. An event has the time of its newest book, and
    is read and packed when it is drawn.

    Raises ``DataInvalid`` if the instrument cannot represent its prices and sizes exactly.
    """
    header, times = recorded.header, recorded.times
    begin_ms = int(closes_ms[0]) - interval_ms - lookback.books * header.every_ms
    begin = int(np.searchsorted(times, begin_ms, side="right"))
    stop = int(np.searchsorted(times, closes_ms[-1], side="right"))
    of_bar = np.searchsorted(closes_ms, times[:stop])  # by book: the bar that it precedes
    bounds = {int(start) for start in recorded.starts if begin < start < stop}
    causes = dict(zip(recorded.starts.tolist(), recorded.causes, strict=True))
    bounds |= {cut for cut in (np.flatnonzero(np.diff(of_bar)) + 1).tolist() if cut > begin}
    cuts: list[tuple[int, int, str]] = []
    edges = [begin, *sorted(bounds), stop] if begin < stop else []
    for first, last in pairwise(edges):
        for start in range(first, last, BLOCK_BOOKS):
            cause = causes.get(start, "") or (BEGUN if start == begin else "")
            cuts.append((start, min(start + BLOCK_BOOKS, last), cause))
    price, size = _scales(recorded, instrument)
    newest = np.array([stop - 1 for _, stop, _ in cuts], np.intp)
    return Track(times[newest], partial(_depths, recorded, cuts, lookback.levels, price, size))


def _scales(recorded: RecordedDepth, instrument: Instrument) -> tuple[Scale, Scale]:
    """Return the conversions of prices and sizes of *recorded* to the scales of *instrument*."""
    of, units = recorded.header.instrument, recorded.units
    return (
        _scale(units.price, of.price_decimals, instrument.price_decimals, "prices"),
        _scale(units.size, of.quantity_decimals, instrument.quantity_decimals, "sizes"),
    )


def _scale(unit: int, decimals: int, wanted: int, what: str) -> Scale:
    """Return the exact conversion of multiples of *unit* in 10^-*decimals* to 10^-*wanted*."""
    if wanted >= decimals:
        return Scale(times=10 ** (wanted - decimals))
    coarser = 10 ** (decimals - wanted)
    if unit % coarser:
        raise DataInvalid(
            f"The {what} of --depth need {decimals} decimals, and the candles' instrument has "
            f"{wanted}; give candles that were not rounded."
        )
    return Scale(over=coarser)


def with_depth(market: MarketSection, books: Sequence[RecordedDepth]) -> MarketSection:
    """Return *market*, with the levels and sampling interval of *books* unless it sets them.

    Raises ``ConfigInvalid`` if a file has fewer levels, another interval or an untraded symbol, or
    if two files have one symbol.
    """
    traded = [f"{market.category}:{symbol}" for symbol in market.symbols]
    named = [recorded.header.instrument.id for recorded in books]
    for key in named:
        if key not in traded:
            raise ConfigInvalid(
                f"--depth holds books of {key}, and the run trades {', '.join(traded)}; leave it "
                "out."
            )
        if named.count(key) > 1:
            raise ConfigInvalid(f"--depth names two files of {key}; give one a symbol.")
    if not books:
        return market
    if not market.depth:
        first = books[0].header
        market = market.model_copy(update={"depth": first.levels, "depth_every_ms": first.every_ms})
    for recorded in books:
        header = recorded.header
        if header.levels < market.depth or header.every_ms != market.depth_every_ms:
            raise ConfigInvalid(
                f"--depth holds {header.words()}, and the run reads {market.depth} levels each "
                f"{market.depth_every_ms:,} ms; set market.depth and market.depth_every_ms to "
                "what was recorded."
            )
    return market


def _bars(candles: Candles) -> Iterator[Event]:
    """Return the bars, built in batches, with a ``Gap`` before the bar after each hole."""
    holes = dict(zip((after for _, after in candles.gaps), candles.gaps, strict=True))
    starts = range(0, len(candles), BATCH_BARS)
    batches = (candles[at : at + BATCH_BARS].bars() for at in starts)
    if holes:
        return chain.from_iterable(_with_gaps(bars, holes) for bars in batches)
    return chain.from_iterable(batches)


def _with_gaps(bars: Iterable[Bar], holes: Mapping[int, Span]) -> Iterator[Event]:
    """Yield *bars* and gaps; *holes* are keyed by the open time of the bar after them."""
    for bar in bars:
        if hole := holes.get(bar.open_time_ms):
            at = bar.market_ms
            yield Gap(bar.instrument, *hole, GapCause.ARCHIVE, "", market_ms=at, seen_ms=at)
        yield bar


def _settlements(
    settled: FundingRates, missing: Mapping[int, int], times_ms: IntArray
) -> Iterator[Event]:
    """Yield the settlements, and a gap for each that the file lacks."""
    rates = dict(zip(settled.time_ms.tolist(), settled.rate.tolist(), strict=True))
    for at in times_ms.tolist():
        if at in rates:
            yield Funding(settled.instrument, rates[at], market_ms=at, seen_ms=at)
        else:
            yield Gap(settled.instrument, at, missing[at], GapCause.FUNDING, "", at, at)


def aligned(candles: Candles, instruments: Mapping[str, Instrument]) -> Candles:
    """Return *candles* in the decimals of their instrument."""
    instrument = instruments.get(candles.instrument)
    if instrument is None:
        raise DataInvalid(
            f"{candles.path} holds {candles.instrument}, which is not among the run's "
            f"instruments ({', '.join(instruments)}): leave it out or add the symbol."
        )
    scaled = candles.aligned(instrument)
    finer = (
        scaled.price_decimals > instrument.price_decimals
        or scaled.volume_decimals > instrument.volume_decimals
        or scaled.turnover_decimals > instrument.turnover_decimals
    )
    if finer:
        raise DataInvalid(
            f"{candles.path} has more decimals than the instrument {instrument.id}: "
            "take the instrument from the data."
        )
    return scaled


def frame_tracks(given: Sequence[Candles], bars: BarSpan) -> list[Track]:
    """Return the candles of higher timeframes from before the instrument's own bars.

    A candle precedes the bars that close with it, since their decisions may read it.
    """
    first_ms = {part.instrument: int(part.open_time_ms[0]) for part in bars.candles}
    tracks: list[Track] = []
    for length_ms in sorted({part.interval_ms for part in given}):
        for merged in merge_candles([part for part in given if part.interval_ms == length_ms]):
            part = aligned(merged, bars.instruments)
            reject_contradiction(part, bars.whole[part.instrument])
            if (begun_ms := first_ms.get(part.instrument)) is None:
                continue
            wanted_ms = bars.lookback.frames[length_ms] * length_ms
            from_ms = interval_start(begun_ms, length_ms) - wanted_ms
            inside = (part.open_time_ms >= from_ms) & (part.open_time_ms < begun_ms)
            if inside.any():
                cut = part[inside]
                closed = [frame_bar_of(bar, seen_ms=bar.close_time_ms) for bar in cut.bars()]
                tracks.append(Track(cut.closes_ms, partial(iter, closed)))
    return tracks


def reject_contradiction(higher: Candles, bars: Candles) -> None:
    """Reject candles of a higher timeframe that contradict the *bars* within them."""
    first_ms = interval_start(int(bars.open_time_ms[0]), higher.interval_ms)
    if bars.until_ms - first_ms < 2 * higher.interval_ms:
        return  # it may contain no complete candle of the frame
    resampled = bars.resampled(higher.interval_ms)
    _, rows, sum_rows = np.intersect1d(
        higher.open_time_ms, resampled.open_time_ms, return_indices=True
    )
    for name in ("open", "high", "low", "close", "volume"):
        values, sums = getattr(higher, name)[rows], getattr(resampled, name)[sum_rows]
        if (wrong := np.flatnonzero(values != sums)).size:
            at = iso(int(higher.open_time_ms[rows][wrong[0]]))
            raise DataInvalid(
                f"{higher.path} contradicts {bars.path} in {name} of the {higher.symbol} candle of "
                f"{at} that its bars add up to: leave it out, or mend one of them."
            )


def funding_tracks(given: Sequence[FundingRates], bars: BarSpan) -> list[Track]:
    """Return the settlements within the period, per instrument."""
    tracks: list[Track] = []
    for part in bars.candles:
        for rates in given:
            if rates.instrument != part.instrument:
                continue
            inside = (rates.time_ms > bars.from_ms) & (rates.time_ms <= part.until_ms)
            if inside.any():
                first_ms = max(bars.from_ms, int(part.open_time_ms[0]))
                missing = dict(missing_settlements(rates, first_ms, part.until_ms))
                settled = rates.select(inside)
                times = np.union1d(settled.time_ms, np.array([*missing], dtype=np.int64))
                tracks.append(Track(times, partial(_settlements, settled, missing, times)))
    return tracks
