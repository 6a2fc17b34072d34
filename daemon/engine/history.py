"""``InstrumentHistory``: what decisions on an instrument look back on; regimes and outcomes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from msgspec.structs import replace

from tracepaper.daemon.broker.execution import RANGE_BARS, DayRange
from tracepaper.daemon.engine.state import EngineSettings, ModelTerms
from tracepaper.strategies.api.columns import ColumnRecord
from tracepaper.strategies.api.context import BarRecord
from tracepaper.strategies.api.sizing import Sizer
from tracepaper.strategies.api.strategy import Strategy, remembered
from tracepaper.strategies.api.timeframes import (
    FrameRange,
    Row,
    TimeframeAggregator,
    frame_bars,
    open_frames_ms,
)
from tracepaper.strategies.corporate_actions import adjusted_bar
from tracepaper.strategies.gates.evaluator import (
    YARDSTICK_MEMORY,
    GateEvaluator,
    Plausibility,
    next_regime,
)
from tracepaper.strategies.order_book import OrderBookHistory
from tracepaper.strategies.sessions import WATCHED_SESSIONS, SplitWatch
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    DecisionOutcome,
    Explanation,
    Regime,
)
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    CorporateAction,
    Depths,
    FrameBar,
    Instrument,
)
from tracepaper.strategies.units import DAY_MS, interval_start

OUTCOMES_KEPT: Final = 64
"""ForecastOutcomes remembered at a time; reasons without end must not fill the memory."""

OutcomeKey = tuple[Action, str, int, Regime, int | None, float | None]
"""Action, reason, gates passed, regime, cell and factor: what outcomes are told apart by."""


class FollowingBars(NamedTuple):
    """What a bar without a hole before it is shown to; None where nothing looks."""

    judge: Callable[[Bar, int], float] | None  # of the bar and the tick, how plausible it is
    record: Callable[[Bar], None] | None
    tick: int


class InstrumentHistory:
    """Bars, higher timeframes and order books of one instrument, as far as decisions depend on it.

    Memory is finite: a start that is fed as many bars again knows the same.
    """

    # By slots: of so many attributes a dictionary is slower at every access.
    __slots__ = (
        "_base_ms",
        "_calendar",
        "_needed",
        "_of",
        "_parts",
        "_recent",
        "_record",
        "_splits",
        "_strategy_needs",
        "_tick",
        "_writes_record",
        "bars",
        "books",
        "day_range",
        "frames",
        "knows_bars",
        "last_bar",
        "missing_bars",
        "plausibility",
        "plausible",
        "reach",
        "record",
        "remembered",
    )

    def __init__(
        self,
        instrument: Instrument,
        strategy: Strategy,
        sizer: Sizer,
        settings: EngineSettings,
        *,
        judges_bars: bool,
    ) -> None:
        """Keep what *strategy* and *sizer* look back on; *judges_bars* adds the usual range."""
        self._base_ms, self._calendar = settings.interval_ms, settings.calendar
        self._of = instrument, strategy, settings
        self._tick = instrument.tick_size
        self.last_bar: Bar | None = None
        self._parts: list[InstrumentHistory] = []  # of each of several strategies
        # As many as strategy and sizer look back on.
        self._strategy_needs, self._needed = strategy.warmup, max(strategy.warmup, sizer.bars)
        self.bars, self.knows_bars = 0, False
        declared = strategy.columns
        columns = None if declared is None else ColumnRecord(instrument, strategy.warmup, declared)
        self.record = BarRecord(instrument, strategy.warmup, columns)
        self._writes_record = strategy.reads_history or columns is not None
        self.books = OrderBookHistory(strategy.books) if strategy.books else None
        self.frames = self._new_frames()
        self._splits = SplitWatch() if instrument.category is Category.STOCK else None
        self.day_range = DayRange(settings.interval_ms)  # for distances in volatility
        exits = settings.broker.exits
        self.remembered = max(
            remembered(strategy),
            sizer.bars,
            self.day_range.bars + 1 if exits is not None and exits.uses_atr else 0,
            0 if self._splits is None else watched_bars(settings),
            RANGE_BARS + 1 if settings.broker.costs.ranges else 0,
        )
        reach = (frame.reach for frame in self.frames.values())
        self.reach = max(self.remembered, *reach) if self.frames else self.remembered
        # The bars that a split adjusts; only shares have any.
        self._recent: deque[Bar] | None = None
        if instrument.category is Category.STOCK:
            self._recent = deque(maxlen=self.reach)
        # What gates ask about the newest bar.
        self.plausibility = Plausibility() if judges_bars else None
        self.missing_bars, self.plausible = 0, 0.0

    def _new_frames(self) -> dict[str, TimeframeAggregator]:
        instrument, strategy, settings = self._of
        sessions = None if settings.calendar is None else settings.calendar.sessions
        return {
            name: TimeframeAggregator(instrument, name, settings.interval_ms, count, sessions)
            for name, count in frame_bars(strategy).items()
        }

    def adjust(self, action: CorporateAction) -> None:
        """Take the bars before a split as those of the shares after it: as if fed anew so."""
        assert self._recent is not None
        bars = [adjusted_bar(action, bar) for bar in self._recent]
        self._recent.clear()
        self.last_bar, self.bars, self.knows_bars = None, 0, False
        self.record.clear()
        self.frames = self._new_frames()
        self._splits = SplitWatch()
        if self.plausibility is not None:
            self.plausibility = Plausibility()
        for bar in bars:
            self.observe(bar)
        self.day_range.adjust(action)

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters."""
        self._tick = instrument.tick_size

    # ------------------------------------------------------------ a bar

    def share(self, whole: InstrumentHistory) -> None:
        """Take from *whole*, which is shown each bar first, all that no strategy changes.

        Of higher timeframes each history has its own. The whole is warm where one part is.
        """
        whole._parts.append(self)
        self.plausibility, self.day_range = whole.plausibility, whole.day_range

    def observe(self, bar: Bar) -> None:
        """Take in the next closed bar."""
        last = self.last_bar
        self.missing_bars = 0
        if last is not None:
            # As ``bars_between`` says it, without the call.
            gap_ms = bar.open_time_ms - last.open_time_ms
            if self._calendar is None:
                self.missing_bars = gap_ms // bar.interval_ms - 1
            else:
                self.missing_bars = self.bars_between(last.open_time_ms, bar) - 1
        if self.plausibility is not None:
            self._judge(bar, self.plausibility)
        if self._writes_record:
            self.record.append(bar)
        if self.frames:
            for frame in self.frames.values():
                frame.add(bar)
        if self._recent is not None:
            self._recent.append(bar)
        self.last_bar = bar
        if self.bars < self._needed:
            self.bars += 1
            self.knows_bars = self.bars >= self._strategy_needs

    def follow_at_once(self) -> FollowingBars:
        """Return what takes in bars that follow the last one at once, where bars alone decide."""
        self.missing_bars = 0
        return FollowingBars(
            None if self.plausibility is None else self.plausibility.add,
            self.record.append if self._writes_record else None,
            self._tick,
        )

    def observe_part(self, bar: Bar, whole: InstrumentHistory) -> None:
        """Take in *bar* as far as it is not that of the *whole*, which was shown it first."""
        self.last_bar, self.missing_bars = bar, whole.missing_bars
        self.plausible = whole.plausible
        if self._writes_record:
            self.record.append(bar)
        if self.frames:
            for frame in self.frames.values():
                frame.add(bar)
        if self.bars < self._needed:
            self.bars += 1
            self.knows_bars = self.bars >= self._strategy_needs

    def _judge(self, bar: Bar, plausibility: Plausibility) -> None:
        self.plausible = plausibility.add(bar, self._tick)
        if self._splits is not None and self._is_split(self._splits, bar):
            self.plausible = math.nan  # in usual ranges of other shares it means nothing

    def _is_split(self, splits: SplitWatch, bar: Bar) -> bool:
        """Return whether *bar* shows a split that was not adjusted."""
        open_ms, calendar = bar.open_time_ms, self._calendar
        day = open_ms // DAY_MS if calendar is None else calendar.day_of(open_ms)
        return splits.add(day, open_ms, (bar.open, bar.close), bar.volume) is not None

    def bars_between(self, open_ms: int, bar: Bar) -> int:
        """Return how many bars *bar* is after the one that opened at *open_ms*."""
        if self._calendar is not None:
            return self._calendar.between(open_ms, bar.open_time_ms)
        return (bar.open_time_ms - open_ms) // bar.interval_ms

    def bars_held(self, opened_ms: int, bar: Bar) -> int:
        """Return how many bars a position is held that was opened at *opened_ms*, at *bar*."""
        if self._calendar is None:
            opened_ms = interval_start(opened_ms, bar.interval_ms)
        return self.bars_between(opened_ms, bar) + 1

    def take(self, given: FrameBar | Depths) -> bool:
        """Take in a candle of a higher timeframe, or order books where the strategy looks at any.

        Return whether they are what they say: a candle may be none of its timeframe.
        """
        if isinstance(given, Depths):
            if self.books is not None:
                self.books.add(given)
            return True
        for part in self._parts:
            part.take(given)
        for frame in self.frames.values():
            if frame.length_ms == given.interval_ms:
                return frame.take(given)
        return False

    # ------------------------------------------------------------ what is known

    @property
    def is_warm(self) -> bool:
        """Whether the last bars are known that the strategy looks back on."""
        if self._parts:
            return any(part.is_warm for part in self._parts)
        return self.knows_bars and (
            not self.frames or all(frame.is_warm for frame in self.frames.values())
        )

    @property
    def is_full(self) -> bool:
        """Whether all bars are known that strategy and size look back on."""
        return self.bars >= self._needed

    @property
    def warm_bars(self) -> int:
        """The bars that are known, for the gate ``warm``: what a timeframe lacks is lacking too."""
        if self.frames and not self.is_warm:
            return min(self.bars, (self._strategy_needs if self._parts else self._needed) - 1)
        return self.bars

    def warm_at(self, now_ms: int) -> int | None:
        """Return when all will be known that is looked back on; None where it is, at *now_ms*."""
        if self.is_warm and self.is_full:
            return None
        bars_ms = now_ms + (self._needed - self.bars) * self._base_ms
        frames = (frame.warm_at(now_ms) for frame in self.frames.values() if not frame.is_warm)
        return max([bars_ms, *frames])

    def usual_range(self) -> int | None:
        """Return twice the median true range above zero of the last 60 bars; None under ten bars.

        Without the gate ``plausible`` at most as many are known again after a start as a day has.
        """
        if self.plausibility is not None:
            return self.plausibility.doubled_median
        yardstick = Plausibility()
        for bar in reversed(self.day_range.last(YARDSTICK_MEMORY)):
            yardstick.add(bar, self._tick)
        return yardstick.doubled_median

    # ------------------------------------------------------------ what a start has to feed again

    @property
    def range_bars(self) -> int:
        """How many of the last bars decide the range of a day."""
        return self.day_range.bars + 1

    def bars_before(self, start_ms: int) -> int:
        """Return how many bars a new run wants before *start_ms*; its frames' older ones come."""
        from_ms = open_frames_ms(self.frames, start_ms)
        return max(self.remembered, (start_ms - from_ms) // self._base_ms)

    def lacking_frames(self, now_ms: int) -> Iterator[FrameRange]:
        """Yield which candles of each timeframe are still wanted at *now_ms*."""
        for frame in self.frames.values():
            if (wanted := frame.lacking(now_ms)) is not None:
                yield wanted

    @property
    def newest_frames(self) -> tuple[tuple[int, int, Row | None], ...]:
        """Of each timeframe its length, how many bars are wanted, and the newest handed on."""
        return tuple(
            (frame.length_ms, frame.wanted, frame.bars.newest) for frame in self.frames.values()
        )


class RegimeTracker:
    """The regime of an instrument, and the cell of the card's own regimes, by what a model says."""

    __slots__ = ("_bounds", "_cells", "_hysteresis", "cell", "regime")

    def __init__(self, settings: EngineSettings) -> None:
        self._bounds, self._cells = settings.bounds, settings.cells
        self._hysteresis = settings.hysteresis
        self.regime = Regime.UNKNOWN
        self.cell: int | None = None

    def change_model(self, terms: ModelTerms) -> None:
        """Forget what the old model's attention said: another card has other bounds."""
        self._bounds, self._cells = terms.bounds, terms.cells
        self.regime, self.cell = Regime.UNKNOWN, None

    def follow(self, explanation: Explanation | None) -> None:
        """Go on with what the model looked at."""
        mass = None if explanation is None else explanation.recent_mass
        if mass is not None and self._bounds is not None:
            self.regime = next_regime(self.regime, mass, self._bounds)
        if explanation is not None and self._cells is not None:
            values = [getattr(explanation, name) for name in self._cells.names]
            self.cell = self._cells.next_cell(self.cell, values, self._hysteresis)


class ForecastOutcomes:
    """What became of the decisions: the newest one, and outcomes that may come again."""

    __slots__ = ("_known", "newest", "restored")

    def __init__(self) -> None:
        self.newest: Decision | None = None  # the newest decision that was not a repetition
        self.restored: DecisionOutcome | None = None  # of the last decision before a start
        self._known: dict[OutcomeKey, DecisionOutcome] = {}

    @property
    def verdict(self) -> DecisionOutcome | None:
        """What became of the newest decision, those before a start of the same run included."""
        return self.restored if self.newest is None else self.newest.outcome

    def forget(self) -> None:
        """Forget all but the verdict: another model's gates judge from now on."""
        self.restored, self.newest = self.verdict, None
        self._known = {}

    def of(
        self,
        action: Action,
        reason: str,
        refused: str | None,
        passed: int,
        factor: float | None,
        regimes: RegimeTracker,
        evaluator: GateEvaluator,
    ) -> DecisionOutcome:
        """Return the outcome; where it comes again it is the same object, and stored quickly.

        Why a target was not filled is no part of the question: :meth:`unfilled` follows.
        """
        regime, cell = regimes.regime, regimes.cell
        last = None if self.newest is None else self.newest.outcome
        if (
            last is not None
            and last.passed == passed
            and last.action is action
            and last.reason == reason
            and last.regime is regime
            and last.regime_cell == cell
            and last.size_factor == factor
        ):
            return last
        key = action, reason, passed, regime, cell, factor
        outcome = self._known.get(key)
        if outcome is None:
            if len(self._known) >= OUTCOMES_KEPT:
                self._known.clear()
            outcome = self._known[key] = DecisionOutcome(
                action, reason, refused is None, refused, evaluator.gate_set, passed, regime,
                regime_cell=cell, size_factor=factor,
            )  # fmt: skip
        return outcome

    def unfilled(self, decision: Decision, refusal: str | None) -> Decision:
        """Return *decision* with the reason why its target is neither reached nor ordered."""
        outcome = replace(decision.outcome, unfilled_reason=refusal)
        self.newest = decision = replace(decision, outcome=outcome)
        return decision


def watched_bars(settings: EngineSettings) -> int:
    """Return how many bars hold the sessions that a ``SplitWatch`` depends on."""
    if settings.calendar is not None:
        return WATCHED_SESSIONS * settings.calendar.bars_a_day
    return WATCHED_SESSIONS * max(DAY_MS // settings.interval_ms, 1)
