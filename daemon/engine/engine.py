"""``Engine.step(event, prediction) -> Step``: everything that an event causes.

One descent: the broker matches the event, the instrument observes it, the strategy and its gates
decide, the broker takes the intent, and the step records all of it. An order is filled at the
earliest by the event after the one that caused it. ``restart.Restart`` restores an engine.

The rules are docs/time.md, T2, and docs/decisions.md, G13 to G18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import inf
from types import MappingProxyType
from typing import Any, Final, NamedTuple, assert_never

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from tracepaper.daemon.broker.account import ENTRIES
from tracepaper.daemon.broker.broker import NOTHING_FILLED, Broker, Save
from tracepaper.daemon.broker.ledger import FilledEvent
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.settlements import NOTES_MOST, STAMPED_LATE_MS
from tracepaper.daemon.engine.decider import Decider, checked_prediction
from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.daemon.engine.price_checks import Price
from tracepaper.daemon.engine.risk import BookShortfall, RiskWatch
from tracepaper.daemon.engine.settings import EngineTerms
from tracepaper.daemon.engine.shadow_course import JudgedBar, ShadowCourse, enters, is_kept
from tracepaper.daemon.engine.shadows import Shadows
from tracepaper.daemon.engine.state import EngineState
from tracepaper.daemon.engine.units import UnitQueue
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import (
    NOT_NAMED,
    SIGNALS,
    DeclaredState,
    PortfolioMember,
    PortfolioStrategy,
    portfolio_of,
)
from tracepaper.strategies.api.timeframes import FrameRange
from tracepaper.strategies.sessions import joint
from tracepaper.strategies.types.decisions import (
    Account,
    AccountMarks,
    Answer,
    Decision,
    ForecastColumns,
    GateSet,
    Order,
    Position,
    Prediction,
    QuietStretch,
    Regime,
    Repeat,
    ShadowSpan,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    BarColumns,
    Close,
    CloseStart,
    Command,
    CommandKind,
    CovariatesRead,
    Depths,
    Event,
    FrameBar,
    Funding,
    Gap,
    Instrument,
    InstrumentChange,
    Mark,
    ModelChange,
    ParityCheck,
    Quote,
    RunEnd,
    Trade,
    Unit,
)
from tracepaper.strategies.units import iso

STATE_EVERY_STEPS: Final = 1_024
"""How often the state is stored if positions are only confirmed."""

_QUIET: Final = frozenset({Bar, Close})
"""The units that may change nothing but prices."""

# Read at every bar: looking up a member of an enum class is ten times slower (Python 3.11).
_NO, _LATER, _NOW = Save.NO, Save.LATER, Save.NOW

OF_PORTFOLIO: Final = ""
"""The key of the declared state of a portfolio strategy; no instrument has it."""

_ALWAYS_STORED: Final = 5
"""The number of state fields without a default; later ones are omitted if empty."""


class BarOutcome(Struct, frozen=True, gc=False):
    """The decision on a bar and its effects, for the step."""

    decision: Decision | None = None
    prediction: Prediction = None
    orders: tuple[Order, ...] = ()  # created or changed by the decision
    shadows: tuple[ShadowStep, ...] = ()


NOT_DECIDED: Final = BarOutcome()


class QuietUnits(NamedTuple):
    """The bars of the units taken in a stretch, and the event of each close among them."""

    bars: list[Bar]
    closes: list[CloseStart]
    plausible: list[float]  # the measure of the gate, by bar


Predict = Callable[[Unit], Sequence[Prediction]]
"""Returns the forecast at each event of a unit."""
Asks = Callable[[Bar, Prediction], bool]
"""Returns whether the step of a bar that was observed keeps positions, targets and orders."""
Takes = tuple[int, Callable[[Bar], float], float]
"""A bar's place in its unit, the function that observes it, and the highest usual measure."""


class Engine:
    """The pure core: the same events and predictions always cause the same steps."""

    def __init__(self, instruments: Sequence[Instrument], terms: EngineTerms) -> None:
        """Build an engine for *instruments* by *terms*."""
        strategies, settings = terms.strategies, terms.settings
        self.markets = {item.id: InstrumentState(item, terms) for item in instruments}
        self.risk = RiskWatch(
            settings.risk,
            flattens=settings.flatten_on_breach,
            sessions=joint(calendar.sessions for calendar in settings.calendars.values()),
            book=BookShortfall(self.markets, ignores_few=settings.ignores_few_days),
        )
        self.deciders = {
            key: Decider(market, terms, self.risk) for key, market in self.markets.items()
        }
        """The strategy on each instrument."""
        self._portfolio = portfolio_of(strategies.values())
        declared = {key: decider.declared for key, decider in self.deciders.items()}
        if self._portfolio is not None:  # it has one state for all instruments
            declared[OF_PORTFOLIO] = DeclaredState.of(self._portfolio)
        self.declared = {key: state for key, state in declared.items() if state is not None}
        self.accepted_prices = {key: market.accepted_prices for key, market in self.markets.items()}
        """The accepted prices of each instrument; a feed asks in which order to show them."""
        shadows = {item.id: strategies[item.id].shadows for item in instruments}
        self.shadows = Shadows(shadows, settings.model.passing)
        """The intents of shadow accounts."""
        self.broker = Broker(
            instruments,
            settings.broker,
            {key: market.day_range for key, market in self.markets.items()},
            shadows=self.shadows.names,
            reports_fills=[key for key, strategy in strategies.items() if strategy.sees_account],
            confirms=[key for key, strategy in strategies.items() if strategy.horizon is not None],
        )
        self.sees_account = any(strategy.sees_account for strategy in strategies.values()) or any(
            sizer.sees_account for sizer in terms.sizers.values()
        )
        """Whether decisions depend on fills: through strategies or sizers."""
        self._columns = {
            key: columns
            for key, market in self.markets.items()
            if (columns := market.record.columns) is not None
        }
        """The declared columns, by instrument."""
        self._raised: Exception | None = None  # the error of a strategy at a bar before its step
        self._interval_ms, self._period_start_ms = settings.interval_ms, settings.period_start_ms
        self._may_repeat, self._may_decide_ahead = self._stretches(
            has_calendar=bool(settings.calendars)
        )
        self.stores_state = True
        """Whether steps hold the state, which only restarts from them need."""
        self.halted = False
        """Whether the operator halted trading."""
        self._observed: dict[str, Mapping[str | None, Position]] = {}
        self.sequence = 0

    # ------------------------------------------------------------ questions of callers

    @property
    def gate_sets(self) -> tuple[GateSet, ...]:
        """The distinct gate sets of all instruments."""
        evaluators = (decider.evaluator for decider in self.deciders.values())
        return tuple(dict.fromkeys(evaluator.gate_set for evaluator in evaluators))

    @property
    def instruments(self) -> tuple[str, ...]:
        """The id of every instrument, in their order."""
        return tuple(self.deciders)

    @property
    def is_portfolio(self) -> bool:
        """Whether a strategy decides on all instruments of a close at once."""
        return self._portfolio is not None

    def warm_at(self, instrument: str, now_ms: int) -> int | None:
        """Return when *instrument* will be warm, as estimated at *now_ms*; None if it is.

        The estimate assumes that no bar will be missing.
        """
        return self.markets[instrument].warm_at(now_ms)

    def warming(self, instrument: str) -> str:
        """Return what *instrument* holds of the warm-up it lacks, in words; empty if it is warm."""
        return self.markets[instrument].warming()

    @property
    def bars_before(self) -> int:
        """The number of bars of each instrument that a new run needs before its first decision."""
        return max(market.bars_before for market in self.markets.values())

    @property
    def first_ms(self) -> dict[str, int]:
        """The open time of the first bar that is decided, by instrument.

        It is the period's start. A run that took over an account begins by instrument, where the
        run before ended; the period begins with the last of them.
        """
        return {key: market.first_ms for key, market in self.markets.items()}

    @property
    def begun_ms(self) -> int:
        """The open time of the first bar of any instrument that is decided."""
        return min(self.first_ms.values())

    def lacking_frames(self, now_ms: int) -> list[FrameRange]:
        """Return the ranges of candles of higher timeframes that are still lacking at *now_ms*."""
        markets = self.markets.values()
        return [lacking for market in markets for lacking in market.lacking_frames(now_ms)]

    def precompute_columns(self, events: Iterable[Event]) -> None:
        """Pass the bars among coming *events* to declared columns, which compute in blocks."""
        for event in events:
            if type(event) is Bar and (columns := self._columns.get(event.instrument)):
                columns.precompute_columns(event)

    def probe_columns(self) -> None:
        """Compute sampled rows of declared columns again without the bars after them."""
        for columns in self._columns.values():
            columns.probes = True

    def expect(self, columns: Mapping[str, BarColumns]) -> None:
        """Know all coming bars of each instrument as *columns*, or of none that it lacks."""
        for key, market in self.markets.items():
            market.expect(columns.get(key))

    @property
    def has_columns(self) -> bool:
        """Whether a strategy declares columns."""
        return bool(self._columns)

    def columns_of(self, instrument: str) -> tuple[tuple[str, Any], ...]:
        """Return names and newest values of the columns declared on *instrument*."""
        columns = self._columns.get(instrument)
        return () if columns is None else tuple(columns.newest())

    # ------------------------------------------------------------ one step

    def begin(self, sequence: int) -> None:
        """Set the number of the next step to *sequence*."""
        self.sequence = self.broker.step.number = sequence

    def step(self, event: Event, prediction: Prediction) -> Step:  # noqa: C901, PLR0911 - one case an event
        """Return everything that *event* causes, given the model's *prediction* at it."""
        match event:
            case Bar():
                filled = self._observe(event)
                if self._portfolio is not None:
                    self._ask(self._portfolio, [event], [filled], [prediction])
                return self._decide(event, filled, prediction, _sent_ms(event))
            case Quote() | Mark() | Trade():
                return self._step_of_price(event)
            case Funding():
                return self._step_of_funding(event)
            case Command():
                return self._step_of_command(event)
            case ModelChange():
                self.clear_transient()
            case InstrumentChange():
                self._change_instrument(event.instrument)
            case Gap():
                self.broker.on_gap(event)
                self.broker.on_hole(event)
                return self._finish(event, event.instrument)
            case FrameBar() | Depths():
                is_part = self.markets[event.instrument].take(event)
                return self._finish(event, event.instrument, accepted=is_part)
            case CloseStart() | RunEnd() | CovariatesRead() | ParityCheck():
                pass
            case _:
                assert_never(event)
        return self._finish(event, None)

    def close(
        self, closed: CloseStart, bars: Sequence[Bar], predictions: Sequence[Prediction]
    ) -> list[Step]:
        """Return the step of *closed* and the step of each of its *bars*.

        All bars are matched, marked and observed before the first is decided, so that no decision
        depends on the order of instruments. Only the last step stores the state, since before it
        the account has fills that belong to later steps.
        """
        steps = [self._finish(closed, None, saves=not bars)]
        first = self.sequence
        observed = []
        for place, bar in enumerate(bars):
            self.broker.step.number = first + place
            observed.append(self._observe(bar, is_last=place == len(bars) - 1))
            if self.broker.is_cross:  # a later bar may liquidate the position, in its own step
                self._observed[bar.instrument] = self.broker.positions(bar.instrument)
        self.broker.step.number = first
        if self._portfolio is not None:
            self._ask(self._portfolio, bars, observed, predictions)
        for bar, filled, prediction in zip(bars, observed, predictions, strict=True):
            at_ms = max(_sent_ms(bar), closed.market_ms)
            is_last = len(steps) == len(bars)
            steps.append(self._decide(bar, filled, prediction, at_ms, saves=is_last))
        self._observed.clear()
        return steps

    # ------------------------------------------------------------ steps that change only prices

    def stretch(
        self,
        units: UnitQueue,
        room: int,
        predict: Predict | None = None,
        columns: Mapping[str, ForecastColumns] = MappingProxyType({}),
    ) -> QuietStretch | None:
        """Take *units* while they change only prices for the run, for at most *room* steps.

        Returns None if the next unit may do more; :meth:`step` or :meth:`close` then takes it. Both
        ways lead to the same state. A strategy observes each bar and answers to it only once: the
        step of the unit that ends the stretch uses the answer that the stretch got. *predict* is
        given if there is a model; then each bar is decided by the same code as in a step, shadow
        accounts trade, and only what broker and record would do for the run's account is left out.
        Its forecasts may be rows of *columns*, by instrument: these need no check of their numbers.
        """
        may_repeat = self._may_repeat if predict is None else self._may_decide_ahead
        if not may_repeat or self.halted or type(units.unit) not in _QUIET:
            return None
        for decider in self.deciders.values():
            if decider.ahead is not None:
                return None
        if not self.broker.is_quiet():
            return None
        first, course = self.sequence, None
        repeats = self._begun(self._begin_stretch if predict is None else self._begin_answers)
        if repeats is None:
            return None
        if predict is not None:
            course = ShadowCourse(self.broker, self.shadows, self.deciders, self._stored_state)
        # An entry confirms its position at every bar, so the state is stored periodically.
        confirms = course is None and any(
            repeat.decision.action in ENTRIES for repeat in repeats.values()
        )
        if confirms or self.broker.save or course is not None:
            room = min(room, -first % STATE_EVERY_STEPS)
        quiet = self._take_repeats(units, room, repeats, predict, course, columns)
        if not quiet.bars:
            return None
        stretch = self._quiet_stretch(first, quiet, repeats, course, columns)
        self.begin(stretch.next_sequence)
        if confirms:
            self.broker.save = self.broker.save or _LATER
        return stretch

    def _stretches(self, *, has_calendar: bool) -> tuple[bool, bool]:
        """Return whether a stretch is ever possible without a model, and with one.

        Decisions must depend on bars alone, or on bars and forecasts, without limits.
        """
        if self.risk.active or self.declared or self._portfolio is not None or has_calendar:
            return False, False
        deciders = self.deciders.values()
        may_repeat = not self.broker.shadows and all(each.may_repeat for each in deciders)
        may_decide = not self.shadows.counts and all(each.may_decide_ahead for each in deciders)
        return may_repeat, may_decide

    def _begun(self, begin: Callable[[str], Repeat | None]) -> dict[str, Repeat] | None:
        """Return what *begin* gives for each instrument; None if it gives None for any."""
        begun = {}
        for key in self.deciders:
            if (of_instrument := begin(key)) is None:
                return None
            begun[key] = of_instrument
        return begun

    def _begin_answers(self, key: str) -> Repeat | None:
        """Return what the directly following bars on *key* repeat besides their decisions.

        None if an order of the run waits or its target is not reached: the next bar may change it.
        """
        decider = self.deciders[key]
        newest = decider.newest
        if newest is None or not decider.market.is_full or not self.broker.is_settled(key):
            return None
        return Repeat(newest, None, self.broker.account.lines[key].position, {})

    def _asks_ahead(
        self,
        key: str,
        closes: tuple[int, int],
        judged: list[JudgedBar],
        columns: ForecastColumns | None,
    ) -> Asks:
        """Return the function that decides on the following bars of *key*; it adds to *judged*.

        It confirms the position of the run if its entry repeats. *columns* may have its forecasts.
        """
        decider, broker = self.deciders[key], self.broker
        line, (lowest, highest) = broker.account.lines[key], closes
        usable_ids = {} if columns is None else columns.rows

        def keeps(bar: Bar, prediction: Prediction) -> bool:
            is_known = id(prediction) in usable_ids
            usable, is_finite = (prediction, True) if is_known else checked_prediction(prediction)
            decision = decider.decide_ahead(bar, usable, broker.account, is_finite=is_finite)
            if not lowest <= bar.close <= highest or not is_kept(decider.intent, line):
                return False
            if enters(decider.intent):
                broker.confirm(line, bar)
            judged.append((bar, decision, usable))
            return True

        return keeps

    def _begin_stretch(self, key: str) -> Repeat | None:
        """Return the decision on *key* that the directly following bars would repeat, or None."""
        return self.deciders[key].begin_stretch(self.broker.account.lines[key])

    def _take_repeats(  # noqa: C901, PLR0912, PLR0915 - the path of every bar, without calls
        self,
        units: UnitQueue,
        room: int,
        repeats: Mapping[str, Repeat],
        predict: Predict | None,
        course: ShadowCourse | None,
        columns: Mapping[str, ForecastColumns],
    ) -> QuietUnits:
        """Take the units whose bars follow directly, close within a quarter, and repeat *repeats*.

        With a model, *course* takes them for the shadow accounts.

        The answers of strategies to the unit that ends the stretch, or their error, are kept for
        the step of that unit.
        """
        interval_ms = self._interval_ms
        # If the last bars of instruments differ, no close directly follows all of them.
        opened = {bar.open_time_ms for market in self.markets.values() if (bar := market.last_bar)}
        due_ms = max(opened) + interval_ms if len(opened) == 1 else -1
        quiet = QuietUnits([], [], [])
        every_bar, measured, unit = quiet.bars, quiet.plausible, units.unit
        kind, is_repeated = type(unit), True
        keys, width = tuple(repeats), len(repeats) + (kind is Close)
        resting = self.broker.resting()
        predictions: Sequence[Prediction] = (None,) * width
        judged: list[JudgedBar] = []
        sequence, closed_ms, is_over = self.sequence + (kind is Close), 0, False
        takes, asks = self._plans(repeats, None if course is None else judged, columns)
        keeps = None
        if course is None and kind is Bar and len(keys) == 1 and not resting:
            keeps = self.deciders[keys[0]].slice_keeper(self.broker.account.lines[keys[0]])
        while not is_over and room >= width and type(unit) is kind:
            if keeps is not None and (count := self._take_slice(units, room, due_ms, keeps, quiet)):
                room -= count
                due_ms += count * interval_ms
                unit = units.unit
                continue
            bars = (unit,) if type(unit) is Bar else unit.bars if type(unit) is Close else ()
            if not _follows(bars, keys, due_ms, interval_ms):
                break
            if resting and not all(
                market.is_passed_by(bar) for bar in bars if (market := resting.get(bar.instrument))
            ):
                break
            if predict is not None:
                predictions = units.predictions(predict)[-len(bars) :]
            try:
                for place, take, plausible_limit in takes:
                    plausible = take(bars[place])
                    measured.append(plausible)
                    if plausible > plausible_limit:
                        is_repeated = False
                for place, ask in asks:
                    if not ask(bars[place], predictions[place]):
                        is_repeated = False
                if course is not None and is_repeated:
                    closed_ms = unit.closed.market_ms if type(unit) is Close else 0
                    is_over = not course.take(every_bar, judged, sequence, closed_ms)
                    judged.clear()
            except Exception as error:  # noqa: BLE001 - whatever a strategy raises, later
                self._raised, is_repeated = error, False
            if not is_repeated:
                for bar in bars:
                    self.deciders[bar.instrument].ahead = bar
                break
            every_bar.extend(bars)
            if type(unit) is Close:
                quiet.closes.append(unit.closed)
            room -= width
            sequence += width
            due_ms += interval_ms
            unit = units.advance()
        del measured[len(every_bar) :]
        if is_repeated:  # the last decision was taken
            for decider in self.deciders.values():
                decider.decided = None
        return quiet

    def _take_slice(
        self,
        units: UnitQueue,
        room: int,
        due_ms: int,
        keeps: Callable[[Sequence[Bar]], bool],
        quiet: QuietUnits,
    ) -> int:
        """Take the next bars into *quiet* at once, if their answers are known and *keeps* holds.

        Returns how many.
        """
        ((key, market),) = self.markets.items()
        assert market.record.columns is not None
        bars = market.record.columns.same_ahead(SIGNALS)[:room]
        if not bars or not keeps(bars):
            return 0
        measures = market.measured_ahead(bars)
        line, interval_ms = self.broker.account.lines[key], self._interval_ms
        lowest, highest = line.mark * 3 // 4, line.mark * 5 // 4
        limit = self.deciders[key].evaluator.plausible_limit
        count, unit = 0, units.unit
        for bar, measure in zip(bars, measures, strict=False):
            is_next = unit is bar and bar.open_time_ms == due_ms
            due_ms += interval_ms  # its close, at which it must be seen
            is_usual = lowest <= bar.close <= highest and measure <= limit
            if not is_next or not is_usual or bar.seen_ms != due_ms:
                break
            count += 1
            unit = units.advance()
        if count:
            quiet.bars.extend(bars[:count])
            quiet.plausible.extend(measures[:count])
            market.follow_slice(bars[:count], measures[:count])
        return count

    def _plans(
        self,
        repeats: Mapping[str, Repeat],
        judged: list[JudgedBar] | None,
        columns: Mapping[str, ForecastColumns],
    ) -> tuple[list[Takes], list[tuple[int, Asks]]]:
        """Return the functions that take and ask each bar of a unit, with the bar's place in it.

        The decisions on bars are added to *judged*, if there is a model.
        """
        takes: list[Takes] = []
        asks: list[tuple[int, Asks]] = []
        for place, (key, repeat) in enumerate(repeats.items()):
            line, decider, most = self.broker.account.lines[key], self.deciders[key], inf
            closes = line.mark * 3 // 4, line.mark * 5 // 4
            if judged is None:
                asks.append((place, decider.look_ahead(closes, repeat, line, self.broker.planned)))
                most = decider.evaluator.plausible_limit
            else:
                asks.append((place, self._asks_ahead(key, closes, judged, columns.get(key))))
            takes.append((place, self.markets[key].follow_at_once(decider.observer), most))
        return takes, asks

    @property
    def may_wait(self) -> bool:
        """Whether :meth:`wait` may be used: one strategy on one instrument, without limits.

        It never is where :meth:`stretch` is possible.
        """
        return (
            len(self.deciders) == 1
            and not (self._portfolio is not None or self.declared or self.has_columns)
            and not (self.risk.active or self.broker.shadows or self._may_repeat)
            and all(decider.may_wait for decider in self.deciders.values())
        )

    def waiting(self) -> Line | None:
        """Return the position if bars on which the strategy holds only value it, or None.

        That is true of prices within a quarter. The engine must allow waiting: :attr:`may_wait`.
        """
        if self.halted or not self.broker.is_quiet() or self.broker.resting():
            return None
        (line,) = self.broker.account.lines.values()
        (decider,) = self.deciders.values()
        if line.is_guarded:
            return None  # even a refused signal may end the wait after an exit
        if line.held and decider.strategy.horizon is not None:
            return None  # the position may outlive its horizon
        return line if line.target == line.held else None

    def wait(
        self, bars: Sequence[Bar], signal: Signal, passed: int, regime: Regime, cell: int | None
    ) -> list[int]:
        """Take *bars* at which *signal* kept the position; return the equity after each.

        *passed* has the gates that passed at the last of them, in *regime* and *cell*.
        """
        (decider,) = self.deciders.values()
        (line,) = self.broker.account.lines.values()
        account = self.broker.account.balance()
        base = account.equity - account.unrealized_pnl
        equity = [
            base + profit for profit in line.profits_at([bar.close for bar in bars], line.holding)
        ]
        decider.regimes.regime, decider.regimes.cell = regime, cell
        decider.wait(bars, signal, passed, line.held)
        self.broker.follow(bars)
        self.begin(self.sequence + len(bars))
        return equity

    def _quiet_stretch(
        self,
        first: int,
        quiet: QuietUnits,
        repeats: Mapping[str, Repeat],
        course: ShadowCourse | None,
        columns: Mapping[str, ForecastColumns],
    ) -> QuietStretch:
        """Value the accounts by the units *quiet*, and return their stretch."""
        bars, count = quiet.bars, len(repeats)
        lines = [self.broker.account.lines[key] for key in repeats]
        places = [self.markets[bar.instrument].place_of(bar) for bar in bars[:count]]
        prices = [[bar.close for bar in bars[place::count]] for place in range(count)]
        positions = [repeat.position for repeat in repeats.values()]
        marks = _marked(self.broker.account.balance(), positions, lines, prices)
        shadows = []
        spans = {} if course is None else course.spans
        ends = [*spans, len(prices[0])][1:]
        for (begin, steps), end in zip(spans.items(), ends, strict=True):
            of_span = [closes[begin:end] for closes in prices]
            of_accounts = [
                _marked(of_lines[0].account, [step.position for step in of_lines], lines, of_span)
                for of_lines in zip(*steps.values(), strict=True)
            ]
            if of_accounts:
                shadows.append(ShadowSpan(begin, steps, of_accounts))
        answers: Sequence[Answer] = ()
        states: Mapping[int, bytes] = {}
        if course is None:
            for place in range(count):
                self.broker.follow(bars[place::count])
        else:
            course.follow(bars)
            answers, states = course.answers, course.states
        return QuietStretch(
            first, bars, quiet.closes, quiet.plausible, repeats, marks, shadows, answers, states,
            [place for place in places if place is not None], {**columns},
        )  # fmt: skip

    # ------------------------------------------------------------ a bar, from top to bottom

    def _observe(self, bar: Bar, *, is_last: bool = True) -> FilledEvent | None:
        """Match, mark and observe *bar*; return None if it is not newer than the last."""
        market = self.markets[bar.instrument]
        before, is_ahead = market.last_bar, bar is self.deciders[bar.instrument].ahead
        if before is not None and bar.open_time_ms <= before.open_time_ms and not is_ahead:
            return None
        if bar.open_time_ms < market.first_ms:
            self.recall(bar)
            self.broker.warm_up(bar)
            return NOTHING_FILLED
        filled = self._counted(self.broker.on_bar(bar, is_last=is_last))
        self._show(bar)
        return filled

    def _show(self, bar: Bar) -> None:
        """Show *bar* to market and strategy, unless a stretch already did."""
        decider = self.deciders[bar.instrument]
        if bar is decider.ahead:
            if self._raised is not None:
                raise self._raised
            return
        decider.market.observe(bar)
        if decider.observer is not None:
            decider.observer(bar)

    def recall(self, bar: Bar) -> None:
        """Observe a bar that only warms up, and reset declared states to their stored values."""
        self._show(bar)
        for key in (OF_PORTFOLIO, bar.instrument):
            if (declared := self.declared.get(key)) is not None:
                declared.restore(declared.encoded)

    def _counted(self, filled: FilledEvent) -> FilledEvent:
        """Count the fills of *filled* for the limits, and return it."""
        if filled.entries and self.risk.active:
            for entry in filled.entries:
                self.risk.count_fill(*entry)
        return filled

    def _ask(
        self,
        portfolio: PortfolioStrategy,
        bars: Sequence[Bar],
        observed: Sequence[FilledEvent | None],
        predictions: Sequence[Prediction],
    ) -> None:
        """Ask *portfolio* once about all warm instruments among *bars*."""
        contexts, asked = dict[str, BarContext](), list[PortfolioMember]()
        for bar, filled, prediction in zip(bars, observed, predictions, strict=True):
            decider = self.deciders[bar.instrument]
            market, strategy = decider.market, decider.strategy
            if filled is None or bar.open_time_ms < market.first_ms:
                continue
            usable, is_finite = checked_prediction(prediction)
            context = decider.portfolio_context(
                bar, usable, self.broker.account, is_finite=is_finite
            )
            if market.is_warm:
                assert isinstance(strategy, PortfolioMember)
                contexts[market.instrument.symbol] = context
                asked.append(strategy)
        answers = portfolio.decide(contexts) if contexts else {}
        for symbol, strategy in zip(contexts, asked, strict=True):
            strategy.answer = answers.get(symbol, NOT_NAMED)
        declared = self.declared.get(OF_PORTFOLIO)
        if declared is not None and declared.changed():
            self.broker.save = Save.NOW

    def _decide(
        self,
        bar: Bar,
        filled: FilledEvent | None,
        prediction: Prediction,
        at_ms: int,
        *,
        saves: bool = True,
    ) -> Step:
        """Return the step of *bar*, which was observed; orders are sent at market time *at_ms*."""
        key = bar.instrument
        if filled is None or bar.open_time_ms < self.markets[key].first_ms:
            # A revision of a bar is only recorded; a bar before the first only warms up.
            is_newest = filled is not None
            return self._finish(bar, key, filled or NOTHING_FILLED, accepted=is_newest, saves=saves)
        is_finite = None
        if prediction is not None:
            prediction, is_finite = checked_prediction(prediction)
        risk = self.risk.state
        decision = self.deciders[key].decide(
            bar, prediction, self.broker.account, is_running=not self.halted, is_finite=is_finite
        )
        if self.risk.state is not risk:
            self.broker.save = Save.NOW
        outcome = self._submit(bar, filled, decision, prediction, at_ms)
        step = self._finish(bar, key, filled, outcome, saves=saves)
        if self.shadows.counts:
            self.count(step)  # shadow accounts use it from the next bar on
        return step

    def count(self, step: Step) -> None:
        """Add *step* to the totals of shadow accounts; a start does so after the stored state."""
        bar = step.event
        if isinstance(bar, Bar) and self.shadows.count(step, self.deciders[bar.instrument]):
            self.broker.save = self.broker.save or _LATER

    def _submit(
        self,
        bar: Bar,
        filled: FilledEvent,
        decision: Decision,
        prediction: Prediction,
        at_ms: int,
    ) -> BarOutcome:
        """Apply the *decision* to the broker's accounts, and return the outcome for the step."""
        key, broker, decider = bar.instrument, self.broker, self.deciders[bar.instrument]
        if isinstance(decider.signal, Signal):
            broker.on_signal(key, decider.signal)
        broker.place_following(bar, at_ms)
        if (intent := decider.intent) is not None:
            decision = decider.unfilled(decision, broker.route(intent, bar, at_ms))
        if broker.shadows and not decider.stands_still(decision.refused_by):
            self._follow_shadows(bar, prediction, decider, decision, at_ms)
        routed = broker.take()
        if routed.orders and self.risk.active:
            self.risk.count_orders(routed.orders, at_ms)
        if not broker.shadows:
            return BarOutcome(decision, prediction, routed.orders)
        shadows = Shadows.steps(
            broker.shadows, key, filled.shadow_fills, bar.open_time_ms, self._observed.get(key)
        )
        return BarOutcome(decision, prediction, routed.orders, shadows)

    def _follow_shadows(
        self, bar: Bar, prediction: Prediction, decider: Decider, decision: Decision, at_ms: int
    ) -> None:
        """Let each shadow account act on the *decision* of *decider*."""
        for name, account in self.broker.shadows.items():
            if name not in decider.strategy.shadows:
                continue
            intent = self.shadows.intent(name, decider, bar, prediction, decision, account)
            if intent is not None:
                self.broker.route(intent, bar, at_ms, shadow=name)

    # ------------------------------------------------------------ prices and settlements

    def _step_of_price(self, price: Price) -> Step:
        """Apply *price* if it is believed, and the held prices that it confirms."""
        key = price.instrument
        verdict = self.markets[key].accepted_prices.take(price)
        if verdict.is_believed:
            self._apply_price(price)
        elif isinstance(price, Quote):
            self.markets[key].quote = price  # for the gate on its age
            self.broker.expire(key, price.market_ms)
        for held in verdict.released:
            self._apply_price(held)
        return self._finish(price, key, price_verdict=verdict.reason)

    def _apply_price(self, price: Price) -> None:
        """Match a quote, or mark and liquidate by a mark; a trade is only evidence."""
        if type(price) is Quote:
            self.markets[price.instrument].quote = price
            self.broker.on_quote(price)
        elif type(price) is Mark:
            self.broker.on_mark(price)

    def _step_of_funding(self, funding: Funding) -> Step:
        """Settle *funding* once, on what was held at its time.

        One that is less than a second newer than the last, or has a rate that is not believed, is
        only recorded.
        """
        key, prices = funding.instrument, self.accepted_prices[funding.instrument]
        if funding.market_ms < prices.settled_ms + STAMPED_LATE_MS:
            return self._finish(funding, key, accepted=False)
        if (doubt := prices.doubt_of_rate(funding)) is not None:
            return self._finish(funding, key, accepted=False, price_verdict=doubt)
        prices.settled_ms = funding.market_ms
        last = self.markets[key].last_bar
        self.broker.on_funding(funding, -1 if last is None else last.close_time_ms)
        return self._finish(funding, key)

    # ------------------------------------------------------------ commands and changes

    def _step_of_command(self, command: Command) -> Step:
        """HALT stops new positions, RESUME allows them, FLATTEN halts and closes all positions.

        HALT cancels the orders by list that could open a position, FLATTEN all orders by list. Exit
        orders stay until the position is closed.
        """
        halted = command.kind is not CommandKind.RESUME
        flattens = command.kind is CommandKind.FLATTEN
        if halted is not self.halted:
            self.broker.save = Save.NOW
        self.halted = halted
        if not halted and self.risk.state.breach is not None:
            self.risk.resume()
            self.broker.save = Save.NOW
        if halted:
            self.broker.cancel(command.kind.value, opening_only=not flattens)
        if flattens:
            self.broker.flatten(self._closes(), command.market_ms)
        return self._finish(command, None)

    def _closes(self) -> dict[str, int]:
        """Return the newest close of each instrument that has one."""
        return {
            key: bar.close
            for key, market in self.markets.items()
            if (bar := market.last_bar) is not None
        }

    def _change_instrument(self, instrument: Instrument) -> None:
        """Use the exchange's new filters from now on."""
        self.markets[instrument.id].instrument = instrument  # decimals never change within a run
        self.deciders[instrument.id].change(instrument)
        self.broker.change(instrument)
        # A restart sets new filters and has no marks: every change must value positions alike.
        self.mark_at_closes()

    def clear_transient(self) -> None:
        """Forget what a restart loses, so that a replay of the record has the same state."""
        for market in self.markets.values():
            market.clear_transient()
        self.broker.forget()
        self.mark_at_closes()

    def mark_at_closes(self) -> None:
        """Value the positions at the newest closes."""
        for key, close in self._closes().items():
            self.broker.mark_at_close(key, close)

    # ------------------------------------------------------------ the record

    def _finish(
        self,
        event: Event,
        instrument: str | None,
        filled: FilledEvent | None = None,
        outcome: BarOutcome = NOT_DECIDED,
        *,
        accepted: bool = True,
        price_verdict: str | None = None,
        saves: bool = True,
    ) -> Step:
        """Return the step of *event*.

        With *saves* it stores the state if that is due; within a close only the last step does.
        """
        broker = self.broker
        orders, shadows = outcome.orders, outcome.shadows
        if filled is None:
            filled = self._counted(self.broker.take())
        position, account, entries = broker.account.report(instrument)
        if self._observed and instrument is not None:
            position = self._observed[instrument][None]
        is_shown = filled.shadow_fills or type(event) is Funding
        if not shadows and instrument is not None and is_shown:
            observed = self._observed.get(instrument)
            shadows = Shadows.steps(
                broker.shadows, instrument, filled.shadow_fills, positions=observed
            )
        sequence = self.sequence
        state: bytes | None = None
        if broker.settlements.given_up:
            price_verdict = "; ".join(filter(None, (price_verdict, *self._given_up())))
        if self.declared and type(event) is Bar and self._has_declared(event.instrument):
            broker.save = Save.NOW
        if broker.save:
            # The log writes the run's end by itself: no engine sees it live.
            if sequence % STATE_EVERY_STEPS == 0 and type(event) is not RunEnd:
                broker.save = _NOW
            if broker.save is _NOW and saves:
                state = self._stored_state()
                broker.save = _NO
        self.begin(sequence + 1)
        halted, self.risk.halted = self.risk.halted, None
        return Step(
            sequence, event, accepted, outcome.decision, outcome.prediction,
            _newest_states(filled.orders, orders) if orders else filled.orders,
            filled.fills, position, account, shadows, state, entries, price_verdict, halted,
        )  # fmt: skip

    def _given_up(self) -> Iterator[str]:
        """Yield a sentence for each settlement that is given up; its rate is only recorded."""
        for key, at_ms in self.broker.settlements.given_up:
            prices = self.accepted_prices[key]
            prices.settled_ms = max(prices.settled_ms, at_ms)
            yield (
                f"the settlement of {key} at {iso(at_ms)} is given up: {NOTES_MOST} later ones "
                "wait for their rates"
            )
        self.broker.settlements.given_up.clear()

    def _has_declared(self, instrument: str) -> bool:
        """Return whether a declared state on *instrument* has changed."""
        declared = self.declared.get(instrument)
        return declared is not None and declared.changed()

    def state(self) -> EngineState:
        """Return the state to store."""
        regimes = {key: market.regimes for key, market in self.markets.items()}
        return EngineState(
            self.halted,
            {
                key: tracker.regime
                for key, tracker in regimes.items()
                if tracker.regime is not Regime.UNKNOWN
            },
            self.risk.state,
            *self.broker.state(),
            {
                key: prices.settled_ms
                for key, prices in self.accepted_prices.items()
                if prices.settled_ms >= 0
            },
            dict(self.shadows.bases),
            {key: declared.encoded for key, declared in self.declared.items()},
            {key: tracker.cell for key, tracker in regimes.items() if tracker.cell is not None},
            # In the order of the instruments, as after a restart, whichever was settled first.
            {
                key: list(waits)
                for key in self.accepted_prices
                if (waits := self.broker.settlements.waiting.get(key))
            },
            {key: at for key, at in self.first_ms.items() if at != self._period_start_ms},
            self.broker.notes(),
        )

    def _stored_state(self) -> bytes | None:
        """Return the encoded state if steps hold it."""
        return self.encoded_state() if self.stores_state else None

    def encoded_state(self) -> bytes:
        """Return the state as a step stores it."""
        fields = list(astuple(self.state()))
        while len(fields) > _ALWAYS_STORED and not fields[-1]:
            fields.pop()
        return msgspec.msgpack.encode(fields)


def _sent_ms(bar: Bar) -> int:
    """Return when the orders of *bar* are sent: when it was seen, if the next had closed by then.

    Otherwise they could be filled in a past that only a backlog makes known.
    """
    is_late = bar.seen_ms - bar.close_time_ms > bar.interval_ms
    return bar.seen_ms if is_late else bar.market_ms


def _marked(
    account: Account,
    positions: Sequence[Position],
    lines: Sequence[Line],
    closes: Sequence[Sequence[int]],
) -> AccountMarks:
    """Return the marks of *account* with *positions* in the instruments of *lines* at *closes*."""
    columns = [
        line.profits_at(prices, position)
        for line, position, prices in zip(lines, positions, closes, strict=True)
    ]
    totals, profits = columns[0], columns[0]
    if len(columns) > 1:
        totals = [*map(sum, zip(*columns, strict=True))]
        profits = [*chain.from_iterable(zip(*columns, strict=True))]
    return AccountMarks(account, profits, totals)


def _follows(bars: Sequence[Bar], keys: Sequence[str], due_ms: int, interval_ms: int) -> bool:
    """Return whether *bars* are one punctual bar for each of *keys*, all opened at *due_ms*."""
    if len(bars) != len(keys):
        return False
    for key, bar in zip(keys, bars):  # noqa: B905 - of one length, at every bar
        if (
            bar.instrument != key
            or bar.open_time_ms != due_ms
            or bar.seen_ms - due_ms != interval_ms
            or bar.interval_ms != interval_ms
        ):
            return False
    return True


def _newest_states(before: tuple[Order, ...], after: tuple[Order, ...]) -> tuple[Order, ...]:
    """Return each order once, in its newest state: *after* if it changed again."""
    if not before:
        return after
    return tuple({order.order_id: order for order in (*before, *after)}.values())
