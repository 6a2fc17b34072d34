"""``Engine.step(event, prediction) -> Step``: everything that an event causes.

One descent: the broker matches the event, the instrument observes it, the strategy and its gates
decide, the broker takes the intent, and the step records all of it. An order is filled at the
earliest by the event after the one that caused it. ``state.Restart`` restores an engine.

The rules are docs/time.md, T2, and docs/decisions.md, G13 to G18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from math import inf
from types import MappingProxyType
from typing import Any, Final, NamedTuple, assert_never

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from tracepaper.daemon.broker.account import ENTRIES, Intent, PaperAccount, intent_for_side
from tracepaper.daemon.broker.broker import (
    NO_OWNER_INTENTS,
    NOTHING_FILLED,
    Broker,
    OwnerIntents,
    Refusals,
    Save,
)
from tracepaper.daemon.broker.exit_orders import on_signal
from tracepaper.daemon.broker.ledger import FilledEvent
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.settings import Ownership
from tracepaper.daemon.engine.history import InstrumentState, Lookback
from tracepaper.daemon.engine.instrument_state import MemberState, checked_prediction
from tracepaper.daemon.engine.member import (
    NEVER,
    UNCHANGED,
    Member,
    NetStrategy,
    Portfolio,
    net_signal,
    period_of,
    unit_sizer,
)
from tracepaper.daemon.engine.price_checks import Price
from tracepaper.daemon.engine.risk import BookShortfall, RiskWatch
from tracepaper.daemon.engine.settings import INTEGRITY, MemberTerms
from tracepaper.daemon.engine.shadow_course import JudgedBar, ShadowCourse, enters, is_kept
from tracepaper.daemon.engine.shadows import Shadows
from tracepaper.daemon.engine.state import (
    LIMITED,
    WITHOUT,
    EngineState,
    SharesState,
)
from tracepaper.daemon.engine.units import UnitQueue
from tracepaper.strategies.api.columns import ColumnRecord
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.api.timeframes import FrameRange
from tracepaper.strategies.sessions import joint
from tracepaper.strategies.types.decisions import (
    Account,
    Answer,
    BookMarks,
    Decision,
    Fill,
    FillModel,
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
from tracepaper.strategies.units import DAY_MS, divide_half_even

STATE_EVERY_STEPS: Final = 1_024
"""How often the state is stored if positions are only confirmed."""

_QUIET: Final = frozenset({Bar, Close})
"""The units that may change nothing but prices."""

# Read at every bar: looking up a member of an enum class is ten times slower (Python 3.11).
_NO, _LATER, _NOW = Save.NO, Save.LATER, Save.NOW

_ALWAYS_STORED: Final = 8
"""The number of state fields before ``declared``; later ones are omitted if empty."""


class BarOutcome(Struct, frozen=True, gc=False):
    """The decision on a bar and its effects, for the step."""

    decision: Decision | None = None
    prediction: Prediction = None
    orders: tuple[Order, ...] = ()  # created or changed by the decision
    shadows: tuple[ShadowStep, ...] = ()


NOT_DECIDED: Final = BarOutcome()


class MemberAnswers(NamedTuple):
    """The decisions of several strategies on a bar, their intents, and the net signal."""

    decisions: list[Decision]
    owner_intents: OwnerIntents
    signal: Signal  # judged by the gates of the account


_NO_MEMBERS: Final = MemberAnswers([], NO_OWNER_INTENTS, UNCHANGED)
"""The answers of an account with one strategy."""


class QuietUnits(NamedTuple):
    """The bars of the units taken in a stretch, and the event of each close among them."""

    bars: list[Bar]
    closes: list[CloseStart]
    plausible: list[float]  # the measure of the gate, by bar


Predict = Callable[[Unit], Sequence[Prediction]]
"""Returns the forecast at each event of a unit."""
Asks = Callable[[Bar, Prediction], bool]
"""Returns whether the step of a bar that was observed keeps positions, targets and orders."""
Begun = tuple[Repeat, tuple[ShadowStep, ...]]
"""What the bars of a stretch repeat on one instrument, and its shares before the first of them."""
Takes = tuple[int, Callable[[Bar], float], float]
"""A bar's place in its unit, the function that observes it, and the highest usual measure."""


class Engine:
    """The pure core: the same events and predictions always cause the same steps."""

    def __init__(
        self,
        instruments: Sequence[Instrument],
        account: MemberTerms,
        *,
        members: Sequence[MemberTerms] = (),
        reset: str = NEVER,
    ) -> None:
        """Build the engine of an *account*, or of several *members* that share it.

        With members, the account's strategies net them, and equity is distributed anew at each
        *reset*: never, day, week or month.
        """
        strategies, settings = account.strategies, account.settings
        self.markets: dict[str, InstrumentState] = {}
        self.risk = RiskWatch(
            settings.risk,
            flattens=settings.flatten_on_breach,
            sessions=joint(calendar.sessions for calendar in settings.calendars.values()),
            book=BookShortfall(self.markets, ignores_few=settings.ignores_few_days),
        )
        self.is_hedged = settings.broker.is_hedged
        lookbacks = {item.id: [Lookback(item, terms) for terms in members] for item in instruments}
        if members:  # each member has its own sizer, and the account takes their net target
            account = account._replace(sizers={item.id: unit_sizer(item) for item in instruments})
        for item in instruments:
            members_lookbacks = lookbacks[item.id]
            all_lookbacks = [Lookback(item, account, members_lookbacks), *members_lookbacks]
            self.markets[item.id] = InstrumentState(item, all_lookbacks, (account, *members))
        self.states = {
            key: MemberState(market, account, self.risk) for key, market in self.markets.items()
        }
        """The account's strategy on each instrument: the only one, or the net of several."""
        self.members = tuple(
            Member(terms, self.markets, place) for place, terms in enumerate(members, 1)
        )
        self._portfolios = [
            owner
            for member in (None, *self.members)
            if (owner := Portfolio.of(self.states if member is None else member.states, member))
        ]
        declared = {key: state.declared for key, state in self.states.items()}
        for member in self.members:
            for key, state in member.states.items():
                declared[f"{member.name}/{key}"] = state.declared
        # A portfolio strategy has one state for all instruments.
        declared |= {owner.name: owner.declared for owner in self._portfolios}
        self.declared = {key: state for key, state in declared.items() if state is not None}
        self.accepted_prices = {key: market.accepted_prices for key, market in self.markets.items()}
        """The accepted prices of each instrument; a feed asks in which order to show them."""
        shadows = {item.id: strategies[item.id].shadows for item in instruments}
        self.shadows = {
            terms.name: Shadows(shadows, terms.settings.model.passing)
            for terms in members or [account]
        }
        """The intents of shadow accounts, by member; the only strategy has an empty name."""
        self.counts = any(member_shadows.counts for member_shadows in self.shadows.values())
        """Whether a shadow account depends on the run's bars: see :meth:`count`."""
        all_strategies = [
            (key, strategy)
            for by_id in (strategies, *(terms.strategies for terms in members))
            for key, strategy in by_id.items()
        ]
        self.broker = Broker(
            instruments,
            settings.broker,
            {key: market.day_range for key, market in self.markets.items()},
            shadows={name for names in shadows.values() for name in names},
            reports_fills=[key for key, strategy in strategies.items() if strategy.sees_account],
            confirms=[key for key, strategy in all_strategies if strategy.horizon is not None],
            owners={
                terms.name: Ownership(
                    terms.settings.broker,
                    terms.share,
                    [key for key, strategy in terms.strategies.items() if strategy.sees_account],
                )
                for terms in members
            },
        )
        # A member is closed when it has no equity left, so its decisions depend on fills.
        self.sees_account = (
            bool(members)
            or any(strategy.sees_account for strategy in strategies.values())
            or any(sizer.sees_account for sizer in account.sizers.values())
        )
        """Whether decisions depend on fills: through strategies, sizers or members."""
        self._reset, self.shared_out = reset, -1
        """The day, week or month in which equity was last distributed."""
        self.failures_stored = 0  # the number of failed members in the stored state
        for member in self.members:
            member.account = self.broker.account.owners[member.name]
        self._members_on = {
            key: [(member, member.states[key]) for member in self.members] for key in self.states
        }
        self._deciders = {
            key: [state, *(member.states[key] for member in self.members)]
            for key, state in self.states.items()
        }
        """By instrument: the account's state, then those of its members."""
        self._columns = self._declared_columns()
        self._raised: Exception | None = None  # the error of a strategy at a bar before its step
        self._by_quotes = settings.broker.execution is FillModel.QUOTE
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
        """The distinct gate sets of the account and of all members."""
        every = (self.states, *(member.states for member in self.members))
        evaluators = (state.evaluator for states in every for state in states.values())
        return tuple(dict.fromkeys(evaluator.gate_set for evaluator in evaluators))

    @property
    def set_aside(self) -> dict[str, str]:
        """Why each strategy failed that was set aside, by its name."""
        return {member.name: member.failed for member in self.members if member.failed}

    @property
    def instruments(self) -> tuple[str, ...]:
        """The id of every instrument, in their order."""
        return tuple(self.states)

    @property
    def is_portfolio(self) -> bool:
        """Whether a strategy decides on all instruments of a close at once."""
        return bool(self._portfolios)

    def states_of(self, name: str) -> Mapping[str, MemberState]:
        """Return the states by instrument of the member *name*; of the account if empty."""
        return {"": self.states, **{member.name: member.states for member in self.members}}[name]

    def warm_at(self, instrument: str, now_ms: int) -> int | None:
        """Return when *instrument* will be warm, as estimated at *now_ms*; None if it is.

        The estimate assumes that no bar will be missing.
        """
        return self.markets[instrument].warm_at(now_ms)

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

    def _declared_columns(self) -> dict[str, list[ColumnRecord]]:
        """Return the columns that the strategies on each instrument declare."""
        declared: dict[str, list[ColumnRecord]] = {}
        for key, deciders in self._deciders.items():
            for decider in deciders:
                if (columns := decider.lookback.record.columns) is not None:
                    declared.setdefault(key, []).append(columns)
        return declared

    def precompute_columns(self, events: Iterable[Event]) -> None:
        """Pass the bars among coming *events* to declared columns, which compute in blocks."""
        for event in events:
            if type(event) is Bar:
                for columns in self._columns.get(event.instrument, ()):
                    columns.precompute_columns(event)

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
        return tuple(
            value for columns in self._columns.get(instrument, ()) for value in columns.newest()
        )

    # ------------------------------------------------------------ one step

    def begin(self, sequence: int) -> None:
        """Set the number of the next step to *sequence*."""
        self.sequence = self.broker.step.number = sequence

    def step(self, event: Event, prediction: Prediction) -> Step:  # noqa: C901, PLR0911 - one case an event
        """Return everything that *event* causes, given the model's *prediction* at it."""
        match event:
            case Bar():
                filled = self._observe(event)
                if self._portfolios:
                    self._ask_portfolios([event], [filled], [prediction])
                return self._decide(event, filled, prediction, event.market_ms)
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
        if self._portfolios:
            self._ask_portfolios(bars, observed, predictions)
        for bar, filled, prediction in zip(bars, observed, predictions, strict=True):
            at_ms = max(bar.market_ms, closed.market_ms)
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
        for state in self.states.values():
            if state.ahead is not None:
                return None
        if not self.broker.is_quiet():
            return None
        first, course = self.sequence, None
        begun = self._begun(self._begin_stretch if predict is None else self._begin_answers)
        if begun is None:
            return None
        repeats = {key: repeat for key, (repeat, _) in begun.items()}
        others = {key: shadows for key, (_, shadows) in begun.items()}
        if predict is not None:
            course = ShadowCourse(self.broker, self.shadows[""], self.states, self._stored_state)
        # An entry confirms its position at every bar, so the state is stored periodically.
        confirms = course is None and any(
            repeat.decision.action in ENTRIES or any(shadow.confirmed for shadow in others[key])
            for key, repeat in repeats.items()
        )
        if confirms or self.broker.save or course is not None:
            room = min(room, -first % STATE_EVERY_STEPS)
        quiet = self._take_repeats(units, room, repeats, predict, course, columns)
        if not quiet.bars:
            return None
        spans = {0: others} if course is None else course.spans
        stretch = self._quiet_stretch(first, quiet, repeats, spans, course, columns)
        self.begin(stretch.next_sequence)
        if confirms:
            self.broker.save = self.broker.save or _LATER
        return stretch

    def _stretches(self, *, has_calendar: bool) -> tuple[bool, bool]:
        """Return whether a stretch is ever possible without a model, and with one.

        Decisions must depend on bars alone, or on bars and forecasts, without limits.
        """
        if self.risk.active or self.declared or self._portfolios or has_calendar:
            return False, False
        broker, states = self.broker, self.states.values()
        is_shared = broker.shadows or (self.members and broker.account.sides)
        may_repeat = not is_shared and all(
            decider.may_repeat for deciders in self._deciders.values() for decider in deciders
        )
        may_decide = not (self.members or self.counts)
        return may_repeat, may_decide and all(state.may_decide_ahead for state in states)

    def _begun(self, begin: Callable[[str], Begun | None]) -> dict[str, Begun] | None:
        """Return what *begin* gives for each instrument; None if it gives None for any."""
        begun = {}
        for key in self.states:
            if (of_instrument := begin(key)) is None:
                return None
            begun[key] = of_instrument
        return begun

    def _begin_answers(self, key: str) -> Begun | None:
        """Return what the directly following bars on *key* repeat besides their decisions.

        None if an order of the run waits or its target is not reached: the next bar may change it.
        """
        state = self.states[key]
        newest = state.newest
        if newest is None or not state.market.is_full or not self.broker.is_settled(key):
            return None
        return Repeat(newest, None, self.broker.account.position(key), {}), ()

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
        state, broker = self.states[key], self.broker
        line, (lowest, highest) = broker.account.books[0].lines[key], closes
        usable_ids = {} if columns is None else columns.rows

        def keeps(bar: Bar, prediction: Prediction) -> bool:
            is_known = id(prediction) in usable_ids
            usable, is_finite = (prediction, True) if is_known else checked_prediction(prediction)
            decision = state.decide_ahead(bar, usable, broker.account, is_finite=is_finite)
            if not lowest <= bar.close <= highest or not is_kept(state.intent, line):
                return False
            if enters(state.intent):
                broker.confirm(line, bar)
            judged.append((bar, decision, usable))
            return True

        return keeps

    def _begin_stretch(self, key: str) -> Begun | None:
        """Return the decisions on *key* that the directly following bars would repeat.

        They are those of the account and, with its books, of several strategies. None if any of
        them may change.
        """
        state = self.states[key]
        repeat = state.begin_stretch(self.broker.account.books[0].lines[key])
        if repeat is None:
            return None
        if not self.members:
            return repeat, ()
        if state.signal is not UNCHANGED:
            return None
        shadows = []
        for member, state in self._members_on[key]:
            (book,) = member.account.books
            account, intent = book.subtotal(), state.intent
            share = state.begin_stretch(book.lines[key])
            if (
                share is None
                or isinstance(intent, Orders)
                or (account.equity <= 0) is not member.is_empty
                # If only one of them had the gate, the share would store its measure at each bar.
                or (share.plausible_at is None) is not (repeat.plausible_at is None)
            ):
                return None
            confirms = intent is not None and intent.action in ENTRIES
            decided = member.stored_decision(key, share.decision, repeat.decision)
            shadows.append(ShadowStep(member.name, share.position, account, (), confirms, decided))
        return repeat, tuple(shadows)

    def _take_repeats(  # noqa: C901, PLR0912 - the path of every bar, without calls
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
        if self._reset != NEVER:  # the first close of a day may distribute equity
            room = min(room, self._bars_left_of_day(due_ms) * width)
        resting = self.broker.resting()
        predictions: Sequence[Prediction] = (None,) * width
        judged: list[JudgedBar] = []
        sequence, closed_ms, is_over = self.sequence + (kind is Close), 0, False
        takes, asks = self._plans(repeats, None if course is None else judged, columns)
        while not is_over and room >= width and type(unit) is kind:
            bars = (unit,) if type(unit) is Bar else unit.bars if type(unit) is Close else ()
            if not _follows(bars, keys, due_ms, interval_ms):
                break
            if resting and not all(
                positions.is_passed_by(bar)
                for bar in bars
                if (positions := resting.get(bar.instrument))
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
                    for decider in self._deciders[bar.instrument]:
                        decider.ahead = bar
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
            for state in self.states.values():
                state.decided = None
        return quiet

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
            line, most = self.broker.account.books[0].lines[key], inf
            closes = line.mark * 3 // 4, line.mark * 5 // 4
            if judged is None:
                deciders = [state for _, state in self._members_on[key]] or [self.states[key]]
                planned = self.broker.planned
                plans = [each.look_ahead(closes, repeat, line, planned) for each in deciders]
                limits = [each.evaluator.plausible_limit for each in self._deciders[key]]
                most = min(limits)
            else:
                asks_ahead = self._asks_ahead(key, closes, judged, columns.get(key))
                plans = [(self.states[key].observer, asks_ahead)]
            market = self.markets[key]
            take = market.follow_at_once([observe for observe, _ in plans if observe])
            takes.append((place, take, most))
            asks += [(place, ask) for _, ask in plans]
        return takes, asks

    def _bars_left_of_day(self, due_ms: int) -> int:
        """Return how many bars, from the open *due_ms* on, close before the day's distribution."""
        close_ms = due_ms + self._interval_ms
        if period_of(self._reset, close_ms) > self.shared_out:
            return 0
        return -(-(DAY_MS - close_ms % DAY_MS) // self._interval_ms)

    @property
    def may_wait(self) -> bool:
        """Whether :meth:`wait` may be used: one strategy on one instrument, without limits.

        It never is where :meth:`stretch` is possible.
        """
        return (
            len(self.states) == 1
            and not (self.members or self._portfolios or self.declared or self.has_columns)
            and not (self.risk.active or self.broker.shadows or self._may_repeat)
            and all(state.may_wait for state in self.states.values())
        )

    def waiting(self) -> Line | None:
        """Return the position if bars on which the strategy holds only value it, or None.

        That is true of prices within a quarter. The engine must allow waiting: :attr:`may_wait`.
        """
        if self.halted or not self.broker.is_quiet() or self.broker.resting():
            return None
        (line,) = self.broker.account.books[0].lines.values()
        (state,) = self.states.values()
        if line.is_guarded:
            return None  # even a refused signal may end the wait after an exit
        if line.held and state.strategy.horizon is not None:
            return None  # the position may outlive its horizon
        return line if line.target == line.held else None

    def wait(
        self, bars: Sequence[Bar], signal: Signal, passed: int, regime: Regime, cell: int | None
    ) -> list[int]:
        """Take *bars* at which *signal* kept the position; return the equity after each.

        *passed* has the gates that passed at the last of them, in *regime* and *cell*.
        """
        (state,) = self.states.values()
        (book,) = self.broker.account.books
        (line,) = book.lines.values()
        account = book.subtotal()
        base = account.equity - account.unrealized_pnl
        equity = [
            base + profit for profit in line.profits_at([bar.close for bar in bars], line.holding)
        ]
        state.regimes.regime, state.regimes.cell = regime, cell
        state.wait(bars, signal, passed, line.held)
        self.broker.follow(bars)
        self.begin(self.sequence + len(bars))
        return equity

    def _quiet_stretch(
        self,
        first: int,
        quiet: QuietUnits,
        repeats: Mapping[str, Repeat],
        spans: Mapping[int, Mapping[str, tuple[ShadowStep, ...]]],
        course: ShadowCourse | None,
        columns: Mapping[str, ForecastColumns],
    ) -> QuietStretch:
        """Value the accounts by the units *quiet*, and return their stretch.

        *spans* are the other accounts, each from its unit to that of the next.
        """
        bars, count = quiet.bars, len(repeats)
        lines = [self.broker.account.books[0].lines[key] for key in repeats]
        places = [self.markets[bar.instrument].place_of(bar) for bar in bars[:count]]
        prices = [[bar.close for bar in bars[place::count]] for place in range(count)]
        positions = [repeat.position for repeat in repeats.values()]
        marks = _marked(self.broker.account.subtotal(), positions, lines, prices)
        shadows = []
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
        state = self.states[bar.instrument]
        before = state.market.last_bar
        is_ahead = bar is state.ahead
        if before is not None and bar.open_time_ms <= before.open_time_ms and not is_ahead:
            return None
        if bar.open_time_ms < state.market.first_ms:
            self.recall(bar)
            self.broker.warm_up(bar)
            return NOTHING_FILLED
        filled = self._counted(self.broker.on_bar(bar, is_last=is_last))
        self._show(bar)
        return filled

    def _show(self, bar: Bar) -> None:
        """Show *bar* to the market and all strategies, unless a stretch already did."""
        key = bar.instrument
        state = self.states[key]
        if bar is state.ahead:
            if self._raised is not None:
                raise self._raised
            return
        self.markets[key].observe(bar)
        if state.observer is not None:
            state.observer(bar)
        for member, member_state in self._members_on[key]:
            if not member.failed:
                member_state.observe_guarded(bar)

    def recall(self, bar: Bar) -> None:
        """Observe a bar that only warms up, and reset declared states to their stored values."""
        self._show(bar)
        declared = [decider.declared for decider in self._deciders[bar.instrument]]
        for state in (*(owner.declared for owner in self._portfolios), *declared):
            if state is not None:
                state.restore(state.encoded)

    def _counted(self, filled: FilledEvent) -> FilledEvent:
        """Count the fills of *filled* for the limits, and return it."""
        if filled.entries and self.risk.active:
            for entry in filled.entries:
                self.risk.count_fill(*entry)
        return filled

    def _ask_portfolios(
        self,
        bars: Sequence[Bar],
        observed: Sequence[FilledEvent | None],
        predictions: Sequence[Prediction],
    ) -> None:
        """Ask each portfolio strategy once about all warm instruments among *bars*."""
        decided = [
            (bar, *checked_prediction(prediction))
            for bar, filled, prediction in zip(bars, observed, predictions, strict=True)
            if filled is not None and bar.open_time_ms >= self.markets[bar.instrument].first_ms
        ]
        for bar, _, _ in decided:
            self._share_out_if_due(bar)
        for owner in self._portfolios:
            pending = {}
            for bar, forecast, is_finite in decided:
                state = owner.states[bar.instrument]
                account = self.broker.account if owner.member is None else owner.member.account
                context = state.portfolio_context(bar, forecast, account, is_finite=is_finite)
                if state.lookback.is_warm(state.market):
                    pending[state.market.instrument.symbol] = state, context
            if owner.ask(pending):
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
        state, broker = self.states[key], self.broker
        is_finite = None
        if prediction is not None:
            prediction, is_finite = checked_prediction(prediction)
        risk = self.risk.state
        is_running, answers = not self.halted, _NO_MEMBERS
        if self.members:
            answers = self._ask_members(bar, prediction, at_ms, is_finite=is_finite)
            assert isinstance(state.strategy, NetStrategy)
            state.ahead, state.strategy.signal = None, answers.signal
        decision = state.decide(
            bar, prediction, broker.account, is_running=is_running, is_finite=is_finite,
            owner_intents=answers.owner_intents,
        )  # fmt: skip
        if self.risk.state is not risk:
            self.broker.save = Save.NOW
        outcome = self._submit(bar, filled, decision, prediction, answers, at_ms)
        step = self._finish(bar, key, filled, outcome, saves=saves)
        if self.counts:
            self.count(step)  # shadow accounts use it from the next bar on
        return step

    def count(self, step: Step) -> None:
        """Add *step* to the totals of shadow accounts; a start does so after the stored state."""
        if not isinstance(step.event, Bar):
            return
        for name, shadows in self.shadows.items():
            state = self.states_of(name)[step.event.instrument]
            if shadows.counts and shadows.count(step, name, state):
                self.broker.save = self.broker.save or _LATER

    def _submit(
        self,
        bar: Bar,
        filled: FilledEvent,
        decision: Decision,
        prediction: Prediction,
        answers: MemberAnswers,
        at_ms: int,
    ) -> BarOutcome:
        """Apply the *decision* of the account and the *answers* of its members to the broker.

        Shadow accounts act as well. Returns the outcome for the step.
        """
        key, broker, state = bar.instrument, self.broker, self.states[bar.instrument]
        decisions, owner_intents, intent = answers.decisions, answers.owner_intents, state.intent
        if isinstance(state.signal, Signal):
            broker.on_signal(key, state.signal)
        refusals: Refusals = {}
        if intent is None:
            # Orders that only reduce pass, and shares that a command left opposing still cross.
            if decisions:
                broker.route(None, self._reducing(bar, owner_intents, decision), bar, at_ms)
        else:
            if isinstance(intent, Intent) and intent.ends_lists:
                owner_intents = owner_intents.closed(intent, broker.account.owners)
            refusals = broker.route(intent, owner_intents, bar, at_ms)
            decision = state.unfilled(decision, refusals[""])
        if broker.shadows and decision.refused_by not in INTEGRITY:
            self._follow_shadows(bar, prediction, decisions, decision, at_ms)
        routed = broker.take()
        if routed.orders and self.risk.active:
            self.risk.count_orders(routed.orders, at_ms)
        if not broker.others:
            return BarOutcome(decision, prediction, routed.orders)
        observed, decided_ms = self._observed.get(key), bar.open_time_ms
        steps_of = partial(Shadows.steps, fills=filled.other_fills, positions=observed)
        shadows = (
            *steps_of(broker.sides, key, decided_ms=decided_ms),
            *self._member_steps(
                key, (filled, routed), decision, decisions, owner_intents, refusals
            ),
            *steps_of(broker.shadows, key, decided_ms=decided_ms),
        )
        return BarOutcome(decision, prediction, routed.orders, shadows)

    # ------------------------------------------------------------ several strategies

    def _ask_members(
        self, bar: Bar, prediction: Prediction, at_ms: int, *, is_finite: bool | None
    ) -> MemberAnswers:
        """Return each strategy's decision on *bar* for its sub-account, and their net."""
        self._share_out_if_due(bar)
        key, is_running, failed = bar.instrument, not self.halted, 0
        decisions = []
        for member, state in self._members_on[key]:
            account = member.account
            if (account.subtotal().equity <= 0) is not member.is_empty:
                member.set_status(is_empty=not member.is_empty)
            decisions.append(
                state.decide(bar, prediction, account, is_running=is_running, is_finite=is_finite)
            )
            if member.failed:
                failed += 1
        if failed != self.failures_stored:
            self.failures_stored = failed
            self.broker.save = Save.NOW
        intents = [state.intent for _, state in self._members_on[key]]
        owner_intents, signal = self._net_intents(
            bar, self.broker.account, intents, decisions, at_ms
        )
        return MemberAnswers(decisions, owner_intents, signal)

    def _net_intents(
        self,
        bar: Bar,
        account: PaperAccount,
        requested: Sequence[Intent | Orders | None],
        decisions: Sequence[Decision],
        at_ms: int,
    ) -> tuple[OwnerIntents, Signal]:
        """Net the intents *requested* for the shares in *account* by the *decisions* on *bar*."""
        key, broker = bar.instrument, self.broker
        intents: dict[str, Intent | Orders] = {}
        net, reasons = {book.side: 0 for book in account.books}, []
        for (member, state), intent, decision in zip(
            self._members_on[key], requested, decisions, strict=True
        ):
            name, signal, has_changed = member.name, state.signal, False
            if intent is not None:
                intents[name] = intent
            for book in account.owners[name].books:
                line = book.lines[key]
                if isinstance(signal, Signal):
                    on_signal(line, signal.action)
                if member.closed:
                    line.cancel_listed("", member.closed)
                target = before = line.target
                part = None if intent is None else intent_for_side(intent, book.side)
                if isinstance(part, Intent) and not broker.planned(line, part, bar, at_ms)[1]:
                    target = part.target
                has_changed |= target != before
                net[book.side] += target
            if has_changed:
                reasons.append(f"{name}: {decision.reason}")
        quote, price = self.markets[key].quote, bar.close
        if quote is not None and self._by_quotes:
            price = divide_half_even(quote.bid + quote.ask, 2)
        return OwnerIntents(intents, net, price), net_signal(net, reasons)

    def _member_steps(
        self,
        key: str,
        events: tuple[FilledEvent, FilledEvent],
        net_decision: Decision,
        decisions: Sequence[Decision],
        owner_intents: OwnerIntents,
        refusals: Refusals,
    ) -> list[ShadowStep]:
        """Return each member's part of a step.

        *events* are the fills before the decision and those by the decision, *refusals* those of
        the broker.
        """
        shadows: list[ShadowStep] = []
        filled, routed = events
        refused_by = net_decision.refused_by
        has_fills = filled.other_fills or routed.other_fills
        for (member, state), decision in zip(self._members_on[key], decisions, strict=True):
            name, account = member.name, member.account
            refusal, confirms, is_routed = None, False, name in refusals
            if is_routed:
                refusal, intent = refusals[name], owner_intents.intents[name]
                is_entry = isinstance(intent, Intent) and intent.action in ENTRIES
                confirms = refusal is None and is_entry
            elif state.intent is not None and refused_by is not None:
                is_routed = True
                refusal = f"the account's gate {refused_by} refused the net target"
            decided = state.unfilled(decision, refusal) if is_routed else decision
            fills: tuple[Fill, ...] = ()
            if has_fills:
                fills = (*filled.other_fills.get(name, ()), *routed.other_fills.get(name, ()))
            shadows.append(
                ShadowStep(
                    name,
                    account.position(key),
                    account.subtotal(),
                    fills,
                    confirms,
                    member.stored_decision(key, decided, net_decision),
                )
            )
        return shadows

    def _reducing(self, bar: Bar, owner_intents: OwnerIntents, decision: Decision) -> OwnerIntents:
        """Return *owner_intents* reduced to the lists that pass although *decision* was refused."""
        allowed = {
            member.name: state.reducing_part(orders, bar, member.account, decision.refused_by)
            for member, state in self._members_on[bar.instrument]
            if isinstance(orders := owner_intents.intents.get(member.name), Orders)
        }
        kept = {name: orders for name, orders in allowed.items() if isinstance(orders, Orders)}
        return owner_intents._replace(intents=kept)

    def _follow_shadows(
        self,
        bar: Bar,
        prediction: Prediction,
        decisions: Sequence[Decision],
        decision: Decision,
        at_ms: int,
    ) -> None:
        """Let each shadow account act on the account's *decision*, or on its members' *decisions*.

        Limits were measured on the run's net target, so they do not refuse less exposure.
        """
        key, state = bar.instrument, self.states[bar.instrument]
        inputs, evaluator = state.inputs, state.evaluator
        for name, account in self.broker.shadows.items():
            if not self.members:
                if name in state.strategy.shadows:
                    single = self.shadows[""].intent(
                        name, state, bar, prediction, decision, account
                    )
                    if single is not None:
                        self.broker.route(single, NO_OWNER_INTENTS, bar, at_ms, shadow=name)
                continue
            requested = [
                self.shadows[member.name].intent(
                    name, member_state, bar, prediction, decided, account.owners[member.name]
                )
                for (member, member_state), decided in zip(
                    self._members_on[key], decisions, strict=True
                )
            ]
            owner_intents, signal = self._net_intents(bar, account, requested, decisions, at_ms)
            intent = state.net_intent(signal, owner_intents.targets, account, key)
            if name in LIMITED:
                refused = evaluator.first_failed(
                    decision.passed, reduces=inputs.reduces, without=WITHOUT.get(name)
                )
                is_less = all(
                    abs(target) <= abs(line.held) and target * line.held >= 0
                    for line in account.lines_of(key)
                    for target in [owner_intents.targets[line.book.side]]
                )
                if (closing := state.closing(refused)) is not None:
                    intent, owner_intents = closing, owner_intents.closed(closing, account.owners)
                elif refused is not None and not is_less:
                    continue
            self.broker.route(intent, owner_intents, bar, at_ms, shadow=name)

    def _share_out_if_due(self, bar: Bar) -> None:
        """Distribute the equity anew at the first close of each day, week or month."""
        if self._reset == NEVER:
            return
        period = period_of(self._reset, bar.close_time_ms)
        if period > self.shared_out:
            if self.shared_out >= 0:
                self.broker.share_out()
            self.shared_out = period
            self.broker.save = Save.NOW

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
        """Settle *funding* once.

        A settlement that is not newer than the last, or whose rate is not believed, is only
        recorded.
        """
        key, prices = funding.instrument, self.accepted_prices[funding.instrument]
        if funding.market_ms <= prices.settled_ms:
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
        for decider in self._deciders[instrument.id]:
            decider.change(instrument)
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
        is_shown = filled.other_fills or self.is_hedged or type(event) is Funding
        if not shadows and instrument is not None and is_shown:
            observed = self._observed.get(instrument)
            shadows = Shadows.steps(
                broker.others, instrument, filled.other_fills, positions=observed
            )
        sequence = self.sequence
        state: bytes | None = None
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

    def _has_declared(self, instrument: str) -> bool:
        """Return whether a declared state on *instrument* has changed."""
        declared = self.declared.get(instrument)
        has_changed = declared is not None and declared.changed()
        for member in self.members:
            has_changed |= member.has_declared(instrument)
        return has_changed

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
            {
                f"{name}/{key}" if name else key: basis
                for name, shadows in self.shadows.items()
                for key, basis in shadows.bases.items()
            },
            {key: declared.encoded for key, declared in self.declared.items()},
            {key: tracker.cell for key, tracker in regimes.items() if tracker.cell is not None},
            SharesState(self.broker.reserves, self.set_aside, self.shared_out)
            if self.members
            else None,
            # In the order of the instruments, as after a restart, whichever was settled first.
            {
                key: waits
                for key in self.accepted_prices
                if (waits := self.broker.unsettled.get(key))
            },
            {key: at for key, at in self.first_ms.items() if at != self._period_start_ms},
        )

    def _stored_state(self) -> bytes | None:
        """Return the encoded state if steps hold it."""
        return self.encoded_state() if self.stores_state else None

    def encoded_state(self) -> bytes:
        """Return the state as a step stores it."""
        fields = list(astuple(self.state()))
        while len(fields) > _ALWAYS_STORED and fields[-1] in ({}, None):
            fields.pop()
        return msgspec.msgpack.encode(fields)


def _marked(
    account: Account,
    positions: Sequence[Position],
    lines: Sequence[Line],
    closes: Sequence[Sequence[int]],
) -> BookMarks:
    """Return the marks of *account* with *positions* in the instruments of *lines* at *closes*."""
    columns = [
        line.profits_at(prices, position)
        for line, position, prices in zip(lines, positions, closes, strict=True)
    ]
    totals, profits = columns[0], columns[0]
    if len(columns) > 1:
        totals = [*map(sum, zip(*columns, strict=True))]
        profits = [*chain.from_iterable(zip(*columns, strict=True))]
    return BookMarks(account, profits, totals)


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
