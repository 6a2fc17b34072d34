"""``ArchiveFeed``: candle files and recorded order books as events.

The rule is docs/orderbook.md, D15.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from operator import attrgetter
from typing import Final

import numpy as np

from tracepaper.replay.archive import Candles, merge_candles
from tracepaper.replay.archive.candles import on_joint_sessions
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.tracks import BATCH_BARS, BarSpan, DataLookback, aligned
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.sessions import Sessions
from tracepaper.strategies.types.market import Bar, CloseStart, Event, Funding, Instrument
from tracepaper.strategies.units import iso

_BARS_ALONE: Final = DataLookback()


class ArchiveFeed:
    """Archived bars of one or more instruments, oldest first, as events.

    Events are ordered by the bar's close, then by instrument. A ``Gap`` precedes the
    bar after a hole; a ``Funding`` follows the bars that close at its time. A bar is seen at its
    close, ``market_ms = seen_ms``; that of a share closes at its session's end at the latest.

    The period holds the bars that open in [*from_ms*, *until_ms*). Before it the feed yields the
    last *warmup_bars* of each instrument. *instruments* give the scales: they need at least the
    decimals of the candles. With *closes_together* a ``CloseStart`` precedes the bars of a close.

    Candles of higher timeframes from before the first bar precede the bar that closes with them.
    Order books until a bar's close precede that bar. *lookback* says how many of each are needed
    before the first bar.

    Raises ``DataInvalid`` if the period holds no bar, instruments differ in interval, an instrument
    is coarser than its candles, or a candle of a higher timeframe contradicts its bars.
    """

    def __init__(
        self,
        data: MarketData,
        instruments: Sequence[Instrument],
        *,
        from_ms: int | None = None,
        until_ms: int | None = None,
        warmup_bars: int = 0,
        closes_together: bool = False,
        lookback: DataLookback = _BARS_ALONE,
    ) -> None:
        merged = sorted(merge_candles(data.candles), key=attrgetter("instrument"))
        data = replace(data, candles=merged)
        joined = data.candles
        self.sessions: dict[str, Sessions] = {
            part.instrument: part.calendar.sessions for part in joined if part.calendar is not None
        }
        """By instrument id: the sessions of shares, or months, by which bars are counted."""
        _reject_other_hours(joined)
        _reject_mixed_intervals(data)
        traded = {instrument.id: instrument for instrument in instruments}
        self._together = tuple(traded) if closes_together else ()
        whole = {part.instrument: aligned(part, traded) for part in joined}
        begin_ms = -(2**62) if from_ms is None else from_ms  # candles may lie before 1970
        ends = (begin_ms, 2**62 if until_ms is None else until_ms)
        cut = []
        for part in whole.values():
            first, last = np.searchsorted(part.open_time_ms, ends).tolist()
            cut.append(part[max(first - warmup_bars, 0) : last])
        self.candles: tuple[Candles, ...] = tuple(part for part in cut if len(part))
        every = [part.open_time_ms for part in self.candles]
        periods = [opens[np.searchsorted(opens, begin_ms) :] for opens in every]
        if not (starts := [int(opens[0]) for opens in periods if opens.size]):
            raise DataInvalid(_empty_period(data, from_ms, until_ms))
        self.interval_ms: int = joined[0].interval_ms
        self.period_start_ms: int = min(starts) if from_ms is None else from_ms
        """Bars that open before this are warm-up."""
        self.bar_count: int = sum(len(part) for part in self.candles)
        self._tracks = data.tracks(
            BarSpan(self.candles, whole, traded, self.period_start_ms, lookback)
        )

    def events(self) -> Iterator[Event]:
        """Yield every event; each call begins at the start."""
        alone = len(self._tracks) == 1
        events = self._tracks[0].events() if alone else self._interleaved()
        return _closed_together(events, self._together) if self._together else events

    def _interleaved(self) -> Iterator[Event]:
        """Merge the tracks by time; ties follow the order of the tracks."""
        times = np.concatenate([track.times for track in self._tracks])
        owners = np.repeat(
            np.arange(len(self._tracks)), [track.times.size for track in self._tracks]
        )
        order = owners[np.argsort(times, kind="stable")]
        # Convert to Python integers in batches: a year of fifty instruments has 26 million.
        starts = range(0, order.size, BATCH_BARS)
        batches = (order[start : start + BATCH_BARS].tolist() for start in starts)
        tracks = [track.events() for track in self._tracks]
        return map(next, map(tracks.__getitem__, chain.from_iterable(batches)))


def _closed_together(events: Iterable[Event], names: Sequence[str]) -> Iterator[Event]:
    """Yield *events*, with the bars of each close together after a ``CloseStart`` of their count.

    *names* are the run's instruments. Settlements of that time follow the bars; all other events
    precede them.
    """
    for market_ms, group in groupby(events, key=attrgetter("market_ms")):
        bars: list[Bar] = []
        after: list[Event] = []
        for event in group:
            if type(event) is Bar:
                bars.append(event)
            elif type(event) is Funding:
                after.append(event)
            else:
                yield event
        if bars:
            absent: tuple[str, ...] = ()
            if len(bars) < len(names):
                here = {bar.instrument for bar in bars}
                absent = tuple(name for name in names if name not in here)
            yield CloseStart(bars[0].open_time_ms, len(bars), absent, market_ms, market_ms)
            yield from bars
        yield from after


def _reject_other_hours(candles: Sequence[Candles]) -> None:
    """Reject shares whose bars open at different minutes of an interval, as no report counts them.

    Raises ``DataInvalid``.
    """
    for part, placed in zip(candles, on_joint_sessions(candles), strict=True):
        if part.calendar is not None and (part.closes_ms != placed.closes_ms).any():
            raise DataInvalid(
                f"{part.path}: its bars open at other minutes than those of the other shares; "
                "replay the shares of each exchange apart."
            )


def _reject_mixed_intervals(data: MarketData) -> None:
    if not (candles := data.candles):
        raise DataInvalid("No candles were given: name a file with --data.")
    for part in candles:
        if part.interval_ms != candles[0].interval_ms:
            raise DataInvalid(
                f"{candles[0].path} has an interval of {candles[0].interval_ms // 1000} s and "
                f"{part.path} one of {part.interval_ms // 1000} s: give one interval to one run."
            )


def _empty_period(data: MarketData, from_ms: int | None, until_ms: int | None) -> str:
    first, last = data.bounds
    wanted = f"from {iso(from_ms)}" if from_ms is not None else ""
    wanted += f" to {iso(until_ms)}" if until_ms is not None else ""
    return (
        f"No bar opens {wanted.strip() or 'in the data'}: the data goes from {iso(first)} to "
        f"{iso(last)}, choose a period inside it."
    )
