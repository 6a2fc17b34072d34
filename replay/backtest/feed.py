"""``ArchiveFeed``: candle files as events in the exchange's time order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter
from typing import Final

import numpy as np

from tracepaper.replay.archive import Candles, FundingRates, merge_candles, slice_candles
from tracepaper.replay.archive.candles import Span, bars_of, resample
from tracepaper.replay.archive.decimals import IntArray
from tracepaper.replay.archive.funding import missing_settlements
from tracepaper.replay.archive.times import iso
from tracepaper.replay.backtest.depth import DepthTrack
from tracepaper.strategies.calendar import Sessions
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.frames import frame_bar_of
from tracepaper.strategies.market import interval_start
from tracepaper.strategies.types import (
    Bar,
    Closed,
    Event,
    Funding,
    Gap,
    GapCause,
    Instrument,
)

BATCH_BARS: Final = 16_384
"""Bars built at once: enough to be fast, few enough that a year stays small in memory."""


@dataclass(frozen=True, eq=False)
class _Track:
    """The events of one instrument: their times in feed order, and how to make them."""

    times: IntArray
    candles: Candles | None
    funding: FundingRates | None
    missing: Mapping[int, int] = field(default_factory=dict)  # settlements due: the next one's time
    is_frame: bool = False  # the candles are those of a higher frame
    depth: DepthTrack | None = None

    def events(self) -> Iterator[Event]:
        """Yield the events, whose times are ``times``."""
        if self.depth is not None:
            return self.depth.events()
        if self.is_frame:
            assert self.candles is not None
            return (frame_bar_of(bar, seen_ms=bar.close_time_ms) for bar in bars_of(self.candles))
        if self.candles is not None:
            return chain.from_iterable(_batches(self.candles))
        assert self.funding is not None
        return _settlements(self.funding, self.missing, self.times)


class ArchiveFeed:
    """Archived bars of one or more instruments, oldest first, as events.

    Events are ordered by the bar's close, then by the order of *candles*; a ``Gap`` stands
    before the bar after a hole, and a ``Funding`` after the bars that close with it. An
    archive's bar is seen at its close, which with a calendar is that of its session at the latest:
    ``market_ms = seen_ms``.

    Bars that open in [*from_ms*, *until_ms*) are the period; of each instrument the last
    *warmup_bars* before it are fed first. *instruments* give the scales: at least as many
    decimals as the candles have. With *closes_together* the bars of one close follow a ``Closed``.

    *depth* are recorded order books, cut at the closes of these candles: those that stood so at a
    bar's close or before come before it.

    *frames* are candles of higher frames, and how many of each are handed on. Those that the bars
    above do not reach come before the bar that closes with them.

    Raises ``DataInvalid`` where the period holds no bar, where instruments differ in interval,
    where an instrument is coarser than its candles, or where a candle of a higher frame says
    otherwise than the bars that it is made of.
    """

    def __init__(  # noqa: PLR0913 - the options of a replay
        self,
        candles: Sequence[Candles],
        instruments: Sequence[Instrument],
        *,
        from_ms: int | None = None,
        until_ms: int | None = None,
        warmup_bars: int = 0,
        funding: Sequence[FundingRates] = (),
        closes_together: bool = False,
        frames: Sequence[tuple[Candles, int]] = (),
        depth: Callable[[Mapping[str, IntArray]], Sequence[DepthTrack]] = lambda _closes_ms: (),
    ) -> None:
        joined = merge_candles(candles)
        self.sessions: Sessions | None = _sessions_of(joined)
        """The sessions by which the bars are counted; None where every interval is one."""
        _refuse_mixed_intervals(joined)
        known = {instrument.id: instrument for instrument in instruments}
        self._together = tuple(known) if closes_together else ()
        parts = [_cut(_scaled(part, known), from_ms, until_ms, warmup_bars) for part in joined]
        self.candles: tuple[Candles, ...] = tuple(part for part in parts if len(part))
        starts = [_first_of_period(part, from_ms) for part in self.candles]
        if not any(start is not None for start in starts):
            raise DataInvalid(_empty_period(joined, from_ms, until_ms))
        self.interval_ms: int = joined[0].interval_ms
        self.period_start_ms: int = (
            min(start for start in starts if start is not None) if from_ms is None else from_ms
        )
        """Bars that open before this are warm-up."""
        self.bar_count: int = sum(len(part) for part in self.candles)
        whole = {part.instrument: _scaled(part, known) for part in joined}
        higher = [(_scaled(part, known), wanted) for part, wanted in frames]
        for part, _ in higher:
            refuse_contradiction(part, whole[part.instrument])
        # Before the bars: what closed with a bar is known when it is decided.
        self._tracks = _frame_tracks(higher, self.candles)
        books = depth({part.instrument: part.closes_ms for part in self.candles})
        self._tracks += [_Track(one.times, None, None, depth=one) for one in books if one.cuts]
        self._tracks += [_Track(_times_of(part), part, None) for part in self.candles]
        self._tracks += _funding_tracks(self.candles, funding, self.period_start_ms)

    def events(self) -> Iterator[Event]:
        """Yield every event, from the start at each call; no clock and no loop are asked."""
        alone = len(self._tracks) == 1
        events = self._tracks[0].events() if alone else self._interleaved()
        return _closed_together(events, self._together) if self._together else events

    def _interleaved(self) -> Iterator[Event]:
        """Draw from each track in the order of all events' times, ties in track order."""
        times = np.concatenate([track.times for track in self._tracks])
        owners = np.repeat(
            np.arange(len(self._tracks)), [track.times.size for track in self._tracks]
        )
        order = owners[np.argsort(times, kind="stable")]
        # As Python's numbers only a batch at a time: a year of fifty instruments is long.
        starts = range(0, order.size, BATCH_BARS)
        batches = (order[start : start + BATCH_BARS].tolist() for start in starts)
        tracks = [track.events() for track in self._tracks]
        return map(next, map(tracks.__getitem__, chain.from_iterable(batches)))


def _closed_together(events: Iterable[Event], names: Sequence[str]) -> Iterator[Event]:
    """Yield *events*, the bars of one close together and behind the ``Closed`` that counts them.

    *names* are the run's instruments. What stands between the bars of a close comes before them,
    settlements of that time come after them.
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
            here = {bar.instrument for bar in bars}
            absent = () if len(here) == len(names) else tuple(n for n in names if n not in here)
            yield Closed(bars[0].open_time_ms, len(bars), absent, market_ms, market_ms)
            yield from bars
        yield from after


def _batches(candles: Candles) -> Iterator[Iterable[Event]]:
    """Yield bars in batches, each hole as a Gap before the bar that shows it."""
    holes = dict(zip((after for _, after in candles.gaps), candles.gaps, strict=True))
    for start in range(0, len(candles), BATCH_BARS):
        bars = bars_of(slice_candles(candles, slice(start, start + BATCH_BARS)))
        yield _with_gaps(bars, holes) if holes else bars


def _with_gaps(bars: Iterable[Bar], holes: Mapping[int, Span]) -> Iterator[Event]:
    """Yield *bars*; *holes* are by the open time of the bar after them."""
    for bar in bars:
        if hole := holes.get(bar.open_time_ms):
            at = bar.market_ms
            yield Gap(bar.instrument, *hole, GapCause.ARCHIVE, "", market_ms=at, seen_ms=at)
        yield bar


def _settlements(
    funding: FundingRates, missing: Mapping[int, int], times_ms: IntArray
) -> Iterator[Event]:
    """Yield the settlements, and a gap where one was due and is not in the file."""
    rates = dict(zip(funding.time_ms.tolist(), funding.rate.tolist(), strict=True))
    for at in times_ms.tolist():
        if at in rates:
            yield Funding(funding.instrument, rates[at], market_ms=at, seen_ms=at)
        else:
            yield Gap(funding.instrument, at, missing[at], GapCause.FUNDING, "", at, at)


def _times_of(candles: Candles) -> IntArray:
    """Return the time of every bar and gap of *candles*, in order: the close of its bar."""
    closes = candles.closes_ms
    after_hole = np.flatnonzero(candles.steps != 1) + 1
    return np.insert(closes, after_hole, closes[after_hole])


def _scaled(candles: Candles, known: dict[str, Instrument]) -> Candles:
    """Return *candles* at the decimals of their instrument."""
    instrument = known.get(candles.instrument)
    if instrument is None:
        raise DataInvalid(
            f"{candles.path} holds {candles.instrument}, which is not among the run's "
            f"instruments ({', '.join(known)}): leave it out or add the symbol."
        )
    scaled = candles.rescaled(
        price_decimals=instrument.price_decimals,
        volume_decimals=instrument.volume_decimals,
        turnover_decimals=instrument.turnover_decimals,
    )
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


def _cut(candles: Candles, from_ms: int | None, until_ms: int | None, warmup_bars: int) -> Candles:
    """Return the period's candles with the warm-up before them."""
    times = candles.open_time_ms
    first = 0 if from_ms is None else int(np.searchsorted(times, from_ms))
    last = len(candles) if until_ms is None else int(np.searchsorted(times, until_ms))
    return slice_candles(candles, slice(max(first - warmup_bars, 0), last))


def _first_of_period(candles: Candles, from_ms: int | None) -> int | None:
    """Return the open time of the first candle of the period, or None without any."""
    times = candles.open_time_ms
    row = 0 if from_ms is None else int(np.searchsorted(times, from_ms))
    return int(times[row]) if row < len(candles) else None


def _frame_tracks(
    higher: Sequence[tuple[Candles, int]], candles: Sequence[Candles]
) -> list[_Track]:
    """Return the candles of higher frames that the instrument's own bars do not reach."""
    first_ms = {part.instrument: int(part.open_time_ms[0]) for part in candles}
    tracks: list[_Track] = []
    for part, wanted in higher:
        if (begun_ms := first_ms.get(part.instrument)) is None:
            continue
        length_ms = part.interval_ms
        from_ms = interval_start(begun_ms, length_ms) - wanted * length_ms
        inside = (part.open_time_ms >= from_ms) & (part.open_time_ms < begun_ms)
        if inside.any():
            cut = slice_candles(part, np.flatnonzero(inside))
            tracks.append(_Track(cut.open_time_ms + length_ms, cut, None, is_frame=True))
    return tracks


def refuse_contradiction(higher: Candles, bars: Candles) -> None:
    """Refuse candles of a higher frame that say otherwise than *bars*, of which they are made."""
    first_ms = interval_start(int(bars.open_time_ms[0]), higher.interval_ms)
    if bars.until_ms - first_ms < 2 * higher.interval_ms:
        return  # no candle of the frame is whole for certain
    made = resample(bars, higher.interval_ms)
    _, one, two = np.intersect1d(higher.open_time_ms, made.open_time_ms, return_indices=True)
    for name in ("open", "high", "low", "close", "volume"):
        said, sums = getattr(higher, name)[one], getattr(made, name)[two]
        if (wrong := np.flatnonzero(said != sums)).size:
            at = iso(int(higher.open_time_ms[one][wrong[0]]))
            raise DataInvalid(
                f"{higher.path} contradicts {bars.path} in {name} of the {higher.symbol} candle of "
                f"{at} that its bars add up to: leave it out, or mend one of them."
            )


def _funding_tracks(
    candles: Sequence[Candles], funding: Sequence[FundingRates], from_ms: int
) -> list[_Track]:
    """Return the settlements that fall into the period, per instrument."""
    tracks: list[_Track] = []
    for part in candles:
        for rates in funding:
            if rates.instrument != part.instrument:
                continue
            inside = (rates.time_ms > from_ms) & (rates.time_ms <= part.until_ms)
            if inside.any():
                cut = FundingRates(
                    rates.path, rates.symbol, rates.time_ms[inside], rates.rate[inside]
                )
                first_ms = max(from_ms, int(part.open_time_ms[0]))
                missing = dict(missing_settlements(rates, first_ms, part.until_ms))
                times = np.union1d(cut.time_ms, np.array([*missing], dtype=np.int64))
                tracks.append(_Track(times, None, cut, missing))
    return tracks


def _sessions_of(candles: Sequence[Candles]) -> Sessions | None:
    """Return the sessions that all of *candles* are counted by."""
    first = candles[0].calendar if candles else None
    for part in candles:
        if (part.calendar is None) is not (first is None) or (
            first is not None
            and part.calendar is not None
            and part.calendar.sessions != first.sessions
        ):
            raise DataInvalid(
                f"{candles[0].path} and {part.path} are counted by different sessions: read them "
                "together, by one calendar."
            )
    return None if first is None else first.sessions


def _refuse_mixed_intervals(candles: Sequence[Candles]) -> None:
    if not candles:
        raise DataInvalid("No candles were given: name a file with --data.")
    for part in candles:
        if part.interval_ms != candles[0].interval_ms:
            raise DataInvalid(
                f"{candles[0].path} has an interval of {candles[0].interval_ms // 1000} s and "
                f"{part.path} one of {part.interval_ms // 1000} s: give one interval to one run."
            )


def _empty_period(candles: Sequence[Candles], from_ms: int | None, until_ms: int | None) -> str:
    first = min(int(part.open_time_ms[0]) for part in candles)
    last = max(part.until_ms for part in candles)
    wanted = f"from {iso(from_ms)}" if from_ms is not None else ""
    wanted += f" to {iso(until_ms)}" if until_ms is not None else ""
    return (
        f"No bar opens {wanted.strip() or 'in the data'}: the data goes from {iso(first)} to "
        f"{iso(last)}, choose a period inside it."
    )
