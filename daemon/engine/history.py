"""``InstrumentState``: the bars, prices and regime of one instrument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tracepaper.daemon.broker.execution import RANGE_BARS, MeanRange
from tracepaper.daemon.engine.price_checks import AcceptedPrices, KnownBars
from tracepaper.daemon.engine.settings import EngineTerms, ModelTerms
from tracepaper.strategies.api.columns import ColumnRecord
from tracepaper.strategies.api.context import BarRecord
from tracepaper.strategies.api.strategy import decision_bars
from tracepaper.strategies.api.timeframes import (
    FrameRange,
    TimeframeAggregator,
    TimeframeBars,
    frame_bars,
    open_frames_ms,
)
from tracepaper.strategies.gates.declared import plausible
from tracepaper.strategies.gates.evaluator import Plausibility
from tracepaper.strategies.order_book import OrderBookHistory
from tracepaper.strategies.types.decisions import Explanation, Regime
from tracepaper.strategies.types.market import Bar, BarColumns, Depths, FrameBar, Instrument, Quote
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, interval_start, interval_text

DAY_FRAME: Final = "D"
"""The timeframe of a day."""
_UNITS: Final = {MINUTE_MS: "minutes", HOUR_MS: "hours", DAY_MS: "days"}


class InstrumentState(KnownBars):
    """The bars, prices and regime of one instrument.

    It keeps the bars, candles of higher timeframes and order books on which decisions depend. That
    is a finite number, so a restart that is fed as many bars again has the same state.
    """

    def __init__(self, instrument: Instrument, terms: EngineTerms) -> None:
        """Keep the bars on which the strategy and the sizer of *terms* look back."""
        strategy, sizer = terms.strategies[instrument.id], terms.sizers[instrument.id]
        settings, exits = terms.settings, terms.settings.broker.exits
        self._base_ms = settings.interval_ms
        self._calendar = settings.calendars.get(instrument.id)
        super().__init__(instrument, settings.interval_ms)
        self.warmup, self.needed = strategy.warmup, max(strategy.warmup, sizer.bars)
        declared = strategy.columns
        columns = None if declared is None else ColumnRecord(instrument, strategy.warmup, declared)
        self.record = BarRecord(instrument, strategy.warmup, columns)
        """The bars that the strategy reads."""
        self._writes_record = strategy.reads_history or columns is not None
        self.frame_bars = frame_bars(strategy)
        """The number of bars of each higher timeframe that the strategy reads, by its name."""
        self.first_ms = settings.period_start_ms
        """The open time of the first bar that is decided; the bars before it only warm up."""
        self.regimes = RegimeTracker(settings.model, settings.hysteresis)
        self.quote: Quote | None = None  # the newest, believed or not
        self.accepted_prices = AcceptedPrices(
            self, ranges=settings.usual_ranges, agree_ms=settings.agree_within_ms
        )
        self.bars = 0  # known, at most those needed
        self.books = OrderBookHistory(strategy.books) if strategy.books else None
        self._book_days = settings.book_days + 1 if settings.book_days else 0
        self._is_daily = settings.interval_ms == DAY_MS
        self._days = TimeframeBars((), instrument)  # its bars, if they are days
        self.frames = self._new_frames()
        self.remembered = max(
            decision_bars(strategy),
            sizer.bars,
            MeanRange.of_day(settings.interval_ms).bars + 1 if exits and exits.uses_atr else 0,
            RANGE_BARS + 1 if settings.broker.costs.ranges else 0,
            self._book_days if self._is_daily else 0,
        )
        reach = (frame.reach for frame in self.frames.values())
        self.reach = max(self.remembered, *reach) if self.frames else self.remembered
        # Inputs of the gates from the newest bar.
        judges_bars = plausible.name in settings.model.gates[instrument.id].gate_set.gates
        self.plausibility = Plausibility() if judges_bars else None
        self.missing_bars, self.plausible = 0, 0.0
        self._expected: BarColumns | None = None  # all bars of a replay

    def _new_frames(self) -> dict[str, TimeframeAggregator]:
        """Return an aggregator for each timeframe, with the most candles that are needed of it."""
        counts = dict[str, int]()
        if self._book_days and not self._is_daily:
            counts[DAY_FRAME] = self._book_days
        for name, count in self.frame_bars.items():
            counts[name] = max(count, counts.get(name, 0))
        sessions = None if self._calendar is None else self._calendar.sessions
        return {
            name: TimeframeAggregator(self.instrument, name, self._base_ms, count, sessions)
            for name, count in counts.items()
        }

    @property
    def day_candles(self) -> TimeframeBars:
        """The last closed days by which the limit of the whole book is judged."""
        return self._days if self._is_daily else self.frames[DAY_FRAME].bars

    def _keep_day(self, bar: Bar) -> None:
        """Keep *bar*, which is a day, for the limit of the whole book."""
        opens_ms, calendar = bar.open_time_ms, self._calendar
        place = opens_ms // DAY_MS if calendar is None else calendar.place(opens_ms)
        prices = bar.open, bar.high, bar.low, bar.close
        row = (place, opens_ms, bar.close_time_ms, *prices, bar.volume)
        self._days = self._days.followed_by(row, self._book_days)

    def clear_transient(self) -> None:
        """Forget what a restart loses: prices and order books."""
        self.quote = None
        self.accepted_prices.forget()
        if self.books is not None:
            self.books.forget()

    # ------------------------------------------------------------ a bar

    def observe(self, bar: Bar) -> None:
        """Add the next closed bar."""
        last = self.last_bar
        self.missing_bars = 0
        if last is not None:
            self.missing_bars = self.bars_between(last.open_time_ms, bar) - 1
        if self.plausibility is not None:
            self.plausible = self.plausibility.add(bar, self.instrument.tick_size)
        if self._writes_record:
            self.record.append(bar)
        if self.frames:
            for frame in self.frames.values():
                frame.add(bar)
        if self._book_days and self._is_daily:
            self._keep_day(bar)
        self.last_bar = bar
        if self.bars < self.needed:
            self.bars += 1
        self.day_range.push(bar)

    def _keepers(self) -> list[Callable[[Bar], None]]:
        """Return the functions that record a bar, except for its plausibility."""
        keepers: list[Callable[[Bar], None]] = [frame.add for frame in self.frames.values()]
        if self._book_days and self._is_daily:
            keepers.append(self._keep_day)
        if self._writes_record:
            keepers.append(self.record.append)
        return [*keepers, self.day_range.push]

    def expect(self, columns: BarColumns | None) -> None:
        """Know the coming bars as *columns*, as in a replay of candles; with None no longer."""
        self._expected = columns
        if self.plausibility is not None:
            self.plausibility.expect(columns)

    def place_of(self, bar: Bar) -> tuple[BarColumns, int] | None:
        """Return all expected bars as columns, and the index of *bar* in them; None without."""
        if self._expected is None:
            return None
        return self._expected, int(self._expected.open_time_ms.searchsorted(bar.open_time_ms))

    def follow_at_once(self, observer: Callable[[Bar], None] | None) -> Callable[[Bar], float]:
        """Return a fast function that adds a bar which directly follows the last one.

        It also passes the bar to *observer*, and returns the measure of the gate ``plausible``.
        """
        self.missing_bars, plausible = 0, self.plausible
        judge = None if self.plausibility is None else self.plausibility.add
        tick, receivers = self.instrument.tick_size, self._keepers()
        if observer is not None:
            receivers.append(observer)

        def take(bar: Bar) -> float:
            nonlocal plausible
            if judge is not None:
                self.plausible = plausible = judge(bar, tick)
            self.last_bar = bar
            for receive in receivers:
                receive(bar)
            return plausible

        return take

    def measured_ahead(self, bars: Sequence[Bar]) -> Sequence[float]:
        """Return what the gate ``plausible`` measures at the next *bars*, as far as it is known."""
        if self.plausibility is None:
            return [self.plausible] * len(bars)
        return self.plausibility.measured_ahead(bars, self.instrument.tick_size)

    def follow_slice(self, bars: Sequence[Bar], measures: Sequence[float]) -> None:
        """Add *bars* that directly follow the last one, with their *measures*."""
        if self.plausibility is not None:
            self.plausibility.add_measured(len(bars))
        self.missing_bars, self.plausible, self.last_bar = 0, measures[-1], bars[-1]
        self.record.extend(bars)
        push = self.day_range.push
        for bar in bars:
            push(bar)

    def wait(self, bars: Sequence[Bar]) -> None:
        """Add *bars* at once; the measures of their plausibility are skipped."""
        if self.plausibility is not None:
            self.plausibility.skip(bars)
        for keep in self._keepers():
            for bar in bars:
                keep(bar)
        self.last_bar = bars[-1]
        self.bars = min(self.bars + len(bars), self.needed)

    def bars_between(self, open_ms: int, bar: Bar) -> int:
        """Return the number of bars from the one that opened at *open_ms* to *bar*."""
        if self._calendar is not None:
            return self._calendar.between(open_ms, bar.open_time_ms)
        return (bar.open_time_ms - open_ms) // bar.interval_ms

    def bars_held(self, opened_ms: int, bar: Bar) -> int:
        """Return for how many bars a position opened at *opened_ms* is held, up to *bar*."""
        if self._calendar is None:
            opened_ms = interval_start(opened_ms, bar.interval_ms)
        return self.bars_between(opened_ms, bar) + 1

    def take(self, event: FrameBar | Depths) -> bool:
        """Add a candle of a higher timeframe, or order books if the strategy reads them.

        Returns False for a candle that does not fit its timeframe.
        """
        if isinstance(event, Depths):
            if self.books is not None:
                self.books.add(event)
            return True
        for frame in self.frames.values():
            if frame.length_ms == event.interval_ms:
                return frame.take(event)
        return False

    # ------------------------------------------------------------ warm-up

    @property
    def is_full(self) -> bool:
        """Whether it has all bars that strategy and sizer look back on."""
        return self.bars >= self.needed

    @property
    def is_warm(self) -> bool:
        """Whether it has all bars and candles that the strategy looks back on."""
        if self.bars < self.warmup:
            return False
        return not self.frame_bars or all(
            self.frames[name].reaches(count) for name, count in self.frame_bars.items()
        )

    def warm_at(self, now_ms: int) -> int | None:
        """Return when it will be warm, as estimated at *now_ms*; None if it is.

        Between two closes the estimate stays.
        """
        if self.last_bar is not None:
            now_ms = self.last_bar.close_time_ms
        if self.is_full and self.is_warm:
            return None
        bars_ms = now_ms + (self.needed - self.bars) * self._base_ms
        frames = (
            frame.warm_at(now_ms)
            for name, frame in self.frames.items()
            if not frame.is_warm and name in self.frame_bars
        )
        return max([bars_ms, *frames])

    def warming(self) -> str:
        """Return what it holds of what comes last, such as ``120 of 1,536 hours``; "" if warm."""
        if self.is_full and self.is_warm:
            return ""
        now_ms = 0 if self.last_bar is None else self.last_bar.close_time_ms
        lacking = [
            frame
            for name, frame in self.frames.items()
            if not frame.is_warm and name in self.frame_bars
        ]
        last = max(lacking, key=lambda frame: frame.warm_at(now_ms), default=None)
        if (
            last is None
            or last.warm_at(now_ms) < now_ms + (self.needed - self.bars) * self._base_ms
        ):
            return f"{self.bars:,} of {self.needed:,} bars"
        unit = _UNITS.get(last.length_ms, f"bars of {interval_text(last.length_ms)}")
        return f"{last.known:,} of {last.wanted:,} {unit}"

    # ------------------------------------------------------------ bars that a start feeds again

    @property
    def lookback(self) -> int:
        """The number of last bars on which anything depends, including the mean range of a day."""
        return max(self.reach, self.day_range.bars + 1)

    @property
    def bars_before(self) -> int:
        """The number of bars that a new run needs before its first; older candles are fetched."""
        from_ms = open_frames_ms(self.frames, self.first_ms)
        return max(self.remembered, (self.first_ms - from_ms) // self._base_ms)

    def lacking_frames(self, now_ms: int) -> Iterator[FrameRange]:
        """Yield the ranges of candles that each timeframe lacks at *now_ms*."""
        for frame in self.frames.values():
            if (wanted := frame.lacking(now_ms)) is not None:
                yield wanted


class RegimeTracker:
    """The regime of an instrument, and its cell among the card's learned regimes."""

    __slots__ = ("_bounds", "_hysteresis", "cell", "cells", "regime")

    def __init__(self, model: ModelTerms, hysteresis: float) -> None:
        """Use the card of *model*."""
        self._hysteresis = hysteresis
        self._bounds, self.cells = model.bounds, model.cells
        self.regime = Regime.UNKNOWN
        self.cell: int | None = None

    @property
    def followed_by(self) -> tuple[object, ...]:
        """All settings on which :meth:`follow` depends."""
        return self._bounds, self.cells, self._hysteresis

    def follow(self, explanation: Explanation | None) -> None:
        """Update regime and cell by the *explanation* of the newest forecast."""
        if explanation is None:
            return
        mass, focus = explanation.recent_mass, explanation.event_focus or 0.0
        if mass is not None and self._bounds is not None:
            self.regime = self._bounds.next_regime(self.regime, mass, focus)
        if self.cells is not None:
            values = [getattr(explanation, name) for name in self.cells.names]
            self.cell = self.cells.next_cell(self.cell, values, self._hysteresis)
