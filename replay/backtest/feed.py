"""``ArchiveFeed``: candle files and recorded order books as events.

The rule is docs/orderbook.md, D15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, pairwise
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from tracepaper.daemon.config.market import MarketSection
from tracepaper.replay.archive import Candles, FundingRates, merge_candles, slice_candles
from tracepaper.replay.archive.candles import Span, bars_of, resample
from tracepaper.replay.archive.columns import IntArray
from tracepaper.replay.archive.corporate_actions import ActionRow, PlacedActions, place_actions
from tracepaper.replay.archive.order_book import DepthSource
from tracepaper.replay.archive.series import missing_settlements
from tracepaper.strategies.api.timeframes import frame_bar_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import BLOCK_BOOKS, Integers, packed_books
from tracepaper.strategies.sessions import Sessions
from tracepaper.strategies.types.market import (
    Bar,
    Closed,
    CorporateAction,
    Depths,
    Event,
    Funding,
    Gap,
    GapCause,
    Instrument,
    UniverseChange,
)
from tracepaper.strategies.units import interval_start, iso

_AFTER_BARS: Final = frozenset({Funding, CorporateAction, UniverseChange})
"""Kinds of events that come after the bars that close at their time."""
SECOND_MS: Final = 1_000
BEGUN: Final = "stopped"
"""Why the first books of a feed go on from none."""


class Scale(NamedTuple):
    """What numbers of one scale are multiplied by, or divided by, to be those of another."""

    times: int = 1
    over: int = 1

    def of(self, numbers: Integers) -> Integers:
        """Return *numbers* in the other scale."""
        return numbers * self.times // self.over

    def one(self, number: int) -> int:
        """Return *number* in the other scale."""
        return number * self.times // self.over


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
    """Cut the books of *recorded* at each of *closes_ms*; later ones are dropped.

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
        scale_of(units.price, header.price_decimals, instrument.price_decimals, "prices"),
        scale_of(units.size, header.quantity_decimals, instrument.quantity_decimals, "sizes"),
        cuts,
    )


def scale_of(unit: int, decimals: int, wanted: int, what: str, option: str = "--depth") -> Scale:
    """Return how multiples of *unit* of 10^-*decimals* become integers of 10^-*wanted*, exactly."""
    if wanted >= decimals:
        return Scale(times=10 ** (wanted - decimals))
    coarser = 10 ** (decimals - wanted)
    if unit % coarser:
        raise DataInvalid(
            f"The {what} of {option} need {decimals} decimals, and the candles' instrument has "
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


BATCH_BARS: Final = 16_384
"""Bars built at once: enough to be fast, few enough that a year stays small in memory."""


class _Track(NamedTuple):
    """The events of one instrument: their times in feed order, and what yields them anew."""

    times: IntArray
    events: Callable[[], Iterator[Event]]


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

    *chosen* returns the choices of a universe, given all candles and the start of the period; each
    comes after the bars that close at its time.

    *frames* are candles of higher timeframes, and how many of each are handed on. Those that the
    bars above do not reach come before the bar that closes with them.

    Raises ``DataInvalid`` where the period holds no bar, where instruments differ in interval,
    where an instrument is coarser than its candles, or where a candle of a higher timeframe says
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
        actions: Sequence[ActionRow] = (),
        closes_together: bool = False,
        frames: Sequence[tuple[Candles, int]] = (),
        depth: Callable[[Mapping[str, IntArray]], Sequence[DepthTrack]] = lambda _closes_ms: (),
        chosen: Callable[[Sequence[Candles], int], Sequence[UniverseChange]] = lambda _all, _at: (),
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
        self._tracks += [_Track(one.times, one.events) for one in books if one.cuts]
        self._tracks += [_Track(_times_of(part), partial(_bars, part)) for part in self.candles]
        self._tracks += _funding_tracks(self.candles, funding, self.period_start_ms)
        self.actions = place_actions(actions, whole)
        """The splits and dividends, each before the bar that opens at its time."""
        self._tracks += _action_tracks(self.candles, self.actions)
        end_ms = max(int(part.closes_ms[-1]) for part in self.candles)
        made = chosen([*whole.values()], self.period_start_ms)
        if changes := [one for one in made if one.market_ms <= end_ms]:
            times = np.array([one.market_ms for one in changes], dtype=np.int64)
            self._tracks.append(_Track(times, partial(iter, changes)))

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
            elif type(event) in _AFTER_BARS:
                after.append(event)
            else:
                yield event
        if bars:
            here = {bar.instrument for bar in bars}
            absent = () if len(here) == len(names) else tuple(n for n in names if n not in here)
            yield Closed(bars[0].open_time_ms, len(bars), absent, market_ms, market_ms)
            yield from bars
        yield from after


def _bars(candles: Candles) -> Iterator[Event]:
    """Return the bars, made in batches, each hole as a Gap before the bar that shows it."""
    holes = dict(zip((after for _, after in candles.gaps), candles.gaps, strict=True))
    starts = range(0, len(candles), BATCH_BARS)
    batches = (bars_of(slice_candles(candles, slice(at, at + BATCH_BARS))) for at in starts)
    if holes:
        return chain.from_iterable(_with_gaps(bars, holes) for bars in batches)
    return chain.from_iterable(batches)


def _frame_bars(candles: Candles) -> Iterator[Event]:
    return (frame_bar_of(bar, seen_ms=bar.close_time_ms) for bar in bars_of(candles))


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
    """Return the candles of higher timeframes that the instrument's own bars do not reach."""
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
            tracks.append(_Track(cut.closes_ms, partial(_frame_bars, cut)))
    return tracks


def refuse_contradiction(higher: Candles, bars: Candles) -> None:
    """Refuse candles of a higher timeframe that contradict *bars*, of which they are made."""
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
                    rates.path,
                    rates.symbol,
                    rates.time_ms[inside],
                    rates.rate[inside],
                    None if rates.interval_ms is None else rates.interval_ms[inside],
                )
                first_ms = max(from_ms, int(part.open_time_ms[0]))
                missing = dict(missing_settlements(rates, first_ms, part.until_ms))
                times = np.union1d(cut.time_ms, np.array([*missing], dtype=np.int64))
                known_ms = _after_the_bar(times, part)
                tracks.append(_Track(known_ms, partial(_settlements, cut, missing, times)))
    return tracks


def _after_the_bar(times_ms: IntArray, candles: Candles) -> IntArray:
    """Return *times_ms*, of those inside a bar of *candles* the close of that bar.

    A bar fills orders at its open once it is closed. What is dated inside it must find the position
    that these fills made, so it comes after the bar. Exchanges stamp a settlement some milliseconds
    late: the second counts.
    """
    opens, closes = candles.open_time_ms, candles.closes_ms
    at = np.searchsorted(opens, times_ms, side="right") - 1
    is_inside = (at >= 0) & (times_ms >= opens[at] + SECOND_MS) & (times_ms < closes[at])
    return np.where(is_inside, closes[at], times_ms)


def _action_tracks(candles: Sequence[Candles], placed: PlacedActions) -> list[_Track]:
    """Return the splits and dividends between two bars of *candles*, per instrument."""
    tracks: list[_Track] = []
    for part in candles:
        first_ms, last_ms = part.open_time_ms[[0, -1]].tolist()
        known = placed.events.get(part.instrument, ())
        if inside := [event for event in known if first_ms < event.market_ms <= last_ms]:
            times = np.array([event.market_ms for event in inside], dtype=np.int64)
            tracks.append(_Track(times, partial(iter, inside)))
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
