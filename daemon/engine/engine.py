"""``Engine.step(event, prediction) -> Step``: all that an event causes.

One descent: the broker matches the event, the instrument observes it, its strategy and its gates
decide, the broker takes the intent, and the step holds all of that. An order is filled at the
earliest by the event after its cause. What a start needs is ``Restart`` in ``state``.

The rules are docs/time.md, T2, and docs/decisions.md, G13 to G18.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple, assert_never

import msgspec
from msgspec import Struct
from msgspec.structs import astuple, replace

from tracepaper.daemon.broker.account import ENTRIES, Intent, Ownership, PaperAccount, part_of
from tracepaper.daemon.broker.broker import (
    NO_WISHES,
    NOTHING_FILLED,
    Broker,
    FilledEvent,
    Refusals,
    Save,
    Wishes,
)
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.engine.history import InstrumentState, Lookback
from tracepaper.daemon.engine.instrument_state import MemberState, checked
from tracepaper.daemon.engine.member import (
    NEVER,
    UNCHANGED,
    Member,
    NetStrategy,
    Portfolio,
    net_signal,
    one_step,
    period_of,
)
from tracepaper.daemon.engine.price_checks import Price
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.state import (
    BOUND,
    BUY_AND_HOLD,
    INTEGRITY,
    WITHOUT,
    EngineState,
    MemberTerms,
    ModelTerms,
    Shadows,
    SharesState,
)
from tracepaper.daemon.engine.units import UnitQueue
from tracepaper.strategies.api.columns import ColumnRecord
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.api.timeframes import FrameRange
from tracepaper.strategies.types.decisions import (
    BookMarks,
    Decision,
    Fill,
    FillModel,
    GateSet,
    LastDecision,
    Order,
    Position,
    Prediction,
    QuietStretch,
    Regime,
    Repeat,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    BookUpdate,
    Close,
    CloseStart,
    Command,
    CommandKind,
    CorporateAction,
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
    Prune,
    Quote,
    RetrainingEnd,
    RunEnd,
    Trade,
    UniverseChange,
)
from tracepaper.strategies.units import DAY_MS, divide_half_even

STATE_EVERY_STEPS: Final = 1_024
"""A confirmed position alone has the state stored this often: a prune cuts where it was."""

_NOTED: Final = frozenset({RunEnd, Prune})
"""What the log notes by itself: no engine sees it as it happens, so none stores its state there."""

_QUIET: Final = frozenset({Bar, Close})
"""What may change nothing but prices."""

# Read at every bar: looking a member up on its class costs ten times as much (Python 3.11).
_NO, _LATER, _NOW = Save.NO, Save.LATER, Save.NOW

_ALWAYS_STORED: Final = 8
"""Fields of the state up to the declared one; later ones are left out where they are empty."""


class BarOutcome(Struct, frozen=True, gc=False):
    """What a step holds of the decision on its bar."""

    decision: Decision | None = None
    prediction: Prediction = None
    orders: tuple[Order, ...] = ()  # born or changed by it
    shadows: tuple[ShadowStep, ...] = ()


NOT_DECIDED: Final = BarOutcome()


class MemberAnswers(NamedTuple):
    """What several strategies decided on a bar, and what that is together."""

    decisions: list[Decision]
    wishes: Wishes
    signal: Signal  # of the account, for its gates to judge


_ALONE: Final = MemberAnswers([], NO_WISHES, UNCHANGED)
"""Of an account of one strategy."""


class QuietUnits(NamedTuple):
    """What is taken of the units of a stretch: ``closes`` has the event of each close."""

    bars: list[Bar]
    closes: list[CloseStart]
    plausible: list[float]  # of each bar


class Engine:
    """The pure heart: the same events and predictions always cause the same steps."""

    def __init__(
        self,
        instruments: Sequence[Instrument],
        account: MemberTerms,
        *,
        members: Sequence[MemberTerms] = (),
        reset: str = NEVER,
    ) -> None:
        """Take what decides for the *account*.

        Several *members* share it, and its strategies net them; their shares are given anew at each
        *reset*.
        """
        strategies, settings = account.strategies, account.settings
        self.risk = RiskWatch(
            settings.risk,
            flattens=settings.flatten_on_breach,
            calendar=settings.calendar,
            closes_outside=settings.closes_outside,
        )
        self.is_hedged = settings.broker.is_hedged
        lookbacks = {item.id: [Lookback(item, terms) for terms in members] for item in instruments}
        if members:  # each has a size of its own, and the account what they want together
            account = account._replace(sizers={of.id: one_step(of) for of in instruments})
        self.markets: dict[str, InstrumentState] = {}
        for item in instruments:
            of_members = lookbacks[item.id]
            whole = [Lookback(item, account, of_members), *of_members]
            self.markets[item.id] = InstrumentState(item, whole, (account, *members))
        self.states = {
            key: MemberState(market, account, self.risk) for key, market in self.markets.items()
        }
        """Who decides for the account on each instrument: its strategy, or what nets several."""
        self.members = tuple(Member(terms, self.markets) for terms in members)
        self._portfolios = [
            owner
            for member in (None, *self.members)
            if (owner := Portfolio.of(self.states if member is None else member.states, member))
        ]
        declared = {key: state.declared for key, state in self.states.items()}
        for member in self.members:
            declared |= {f"{member.name}/{key}": of.declared for key, of in member.states.items()}
        # One object has one state, of no instrument.
        declared |= {owner.name: owner.declared for owner in self._portfolios}
        self.declared = {key: state for key, state in declared.items() if state is not None}
        self.beliefs = {key: market.belief for key, market in self.markets.items()}
        """What is believed of prices: a feed asks which of them belong together."""
        shadows = {item.id: strategies[item.id].shadows for item in instruments}
        self.shadows = {
            of.name: Shadows(shadows, of.settings.model.passing) for of in members or [account]
        }
        """What shadow accounts follow: of the account's one strategy, "", or of each member."""
        self.counts = any(of.counts for of in self.shadows.values())
        """Whether one depends on what the run did at each bar: see :meth:`count`."""
        every = [
            (key, of)
            for by_id in (strategies, *(terms.strategies for terms in members))
            for key, of in by_id.items()
        ]
        self.broker = Broker(
            instruments,
            settings.broker,
            {key: market.day_range for key, market in self.markets.items()},
            shadows={name for names in shadows.values() for name in names},
            reports_fills=[key for key, of in strategies.items() if of.sees_account],
            confirms=[key for key, of in every if of.horizon is not None],
            owners={
                terms.name: Ownership(
                    terms.settings.broker,
                    terms.share,
                    [key for key, of in terms.strategies.items() if of.sees_account],
                )
                for terms in members
            },
        )
        # A strategy without equity is closed.
        self.sees_account = (
            bool(members)
            or any(of.sees_account for of in strategies.values())
            or any(of.sees_account for of in account.sizers.values())
        )
        """Whether decisions depend on fills: of a strategy that sees the account, or by size."""
        self._reset, self.shared_out = reset, -1
        """The day, week or month in which shares were given anew."""
        self.failures_stored = 0  # members, as the state was stored last
        for member in self.members:
            member.account = self.broker.account.owners[member.name]
        self._on = {
            key: [(member, member.states[key]) for member in self.members] for key in self.states
        }
        self._columns = self._declared_columns()
        self._raised: Exception | None = None  # by a strategy that was shown a bar before its step
        self._by_quotes = settings.broker.execution is FillModel.QUOTE
        self._interval_ms, self._period_start_ms = settings.interval_ms, settings.period_start_ms
        # Whether a stretch is ever possible: nothing decides but bars, and no limit watches.
        self._may_repeat = not (
            self.risk.active
            or self.declared
            or self._portfolios
            or settings.calendar
            or (self.members and (self.broker.shadows or self.broker.account.sides))
        ) and all(of.may_repeat for market in self.markets.values() for of in market.deciders)
        # By the model's hash: of the account, "", and of each member that asks it.
        self._prepared: dict[str, Mapping[str, ModelTerms]] = {}
        self.stores_state = True
        """Whether steps hold the state, which only what goes on from them reads."""
        self.halted = False
        """Whether the operator halted trading."""
        self._observed: dict[str, Mapping[str | None, Position]] = {}
        self.sequence = 0

    # ------------------------------------------------------------ what others ask

    @property
    def gate_sets(self) -> tuple[GateSet, ...]:
        """The gate sets of the account and of all members, without repeats."""
        every = (self.states, *(member.states for member in self.members))
        evaluators = (state.gates.evaluator for states in every for state in states.values())
        return tuple(dict.fromkeys(evaluator.gate_set for evaluator in evaluators))

    @property
    def set_aside(self) -> dict[str, str]:
        """Of several strategies those that failed, and why."""
        return {member.name: member.failed for member in self.members if member.failed}

    @property
    def instruments(self) -> tuple[str, ...]:
        """The id of every instrument, in their order."""
        return tuple(self.states)

    @property
    def is_portfolio(self) -> bool:
        """Whether a strategy decides for all instruments of a close."""
        return bool(self._portfolios)

    @property
    def since_decided(self) -> dict[str, LastDecision]:
        """What became of the last decision on each instrument, and the fills since."""
        return {
            key: LastDecision(
                state.outcomes.verdict,
                tuple(self.broker.account.fills.get(key, ())),
                {
                    member.name: LastDecision(
                        member.states[key].outcomes.verdict,
                        tuple(member.account.fills.get(key, ())),
                    )
                    for member in self.members
                },
            )
            for key, state in self.states.items()
        }

    def states_of(self, name: str) -> Mapping[str, MemberState]:
        """Return who decides on each instrument: for the account, or of several that *name*."""
        return {"": self.states, **{member.name: member.states for member in self.members}}[name]

    def warm_at(self, instrument: str, now_ms: int) -> int | None:
        """Return when *instrument* is decided on from enough bars; None where it is, at *now_ms*.

        No exchange's word is in it: bars that are missing by then make it later.
        """
        return self.markets[instrument].warm_at(now_ms)

    def bars_before(self, start_ms: int) -> int:
        """Return how many bars of each instrument a new run wants before its period."""
        return max(market.bars_before(start_ms) for market in self.markets.values())

    def lacking_frames(self, now_ms: int) -> list[FrameRange]:
        """Return which candles of higher frames the known bars do not reach at *now_ms*."""
        markets = self.markets.values()
        return [lacking for market in markets for lacking in market.lacking_frames(now_ms)]

    def _declared_columns(self) -> dict[str, list[ColumnRecord]]:
        """Return the columns that the strategies on each instrument declare."""
        declared: dict[str, list[ColumnRecord]] = {}
        for key, market in self.markets.items():
            for decider in market.deciders:
                if (columns := decider.lookback.record.columns) is not None:
                    declared.setdefault(key, []).append(columns)
        return declared

    def foresee(self, events: Iterable[Event]) -> None:
        """Show declared columns the bars among *events*, which come: a block takes one call."""
        for event in events:
            if type(event) is Bar:
                for columns in self._columns.get(event.instrument, ()):
                    columns.foresee(event)

    @property
    def has_columns(self) -> bool:
        """Whether a strategy declares columns."""
        return bool(self._columns)

    def columns_of(self, instrument: str) -> tuple[tuple[str, Any], ...]:
        """Return the names and the newest values of what strategies on *instrument* declare."""
        return tuple(
            value for columns in self._columns.get(instrument, ()) for value in columns.newest()
        )

    # ------------------------------------------------------------ one step

    def begin(self, sequence: int) -> None:
        """Let the next step be number *sequence*."""
        self.sequence = sequence
        self.broker.begin(sequence)

    def step(self, event: Event, prediction: Prediction) -> Step:  # noqa: C901, PLR0911, PLR0912 - one case an event
        """Return all that *event* caused, given what the model predicted at it."""
        match event:
            case Bar():
                filled = self._observe(event)
                if self._portfolios:
                    self._ask([event], [filled], [prediction])
                return self._decide(event, filled, prediction, event.market_ms)
            case Quote() | Mark() | Trade():
                return self._price(event)
            case BookUpdate():
                self._act(event)
                return self._finish(event, event.instrument)
            case Funding():
                return self._settle(event)
            case CorporateAction():
                if event.is_split:
                    self.markets[event.instrument].adjust(event)
                self.broker.on_action(event)
                return self._finish(event, event.instrument)
            case Command():
                return self._command(event)
            case ModelChange():
                self._change_model(event)
            case InstrumentChange():
                self._change_instrument(event.instrument)
            case UniverseChange():
                self.risk.choose(event.chosen)
                self.broker.save = Save.NOW
            case Gap():
                self.broker.on_gap(event)
                return self._finish(event, event.instrument)
            case FrameBar() | Depths():
                market = self.markets[event.instrument]
                is_part = market.take(event)
                belief = market.doubt_of(event) if isinstance(event, Depths) else None
                return self._finish(event, event.instrument, accepted=is_part, belief=belief)
            case (
                CloseStart()
                | RunEnd()
                | Prune()
                | CovariatesRead()
                | RetrainingEnd()
                | ParityCheck()
            ):
                pass
            case _:
                assert_never(event)
        return self._finish(event, None)

    def close(
        self, closed: CloseStart, bars: Sequence[Bar], predictions: Sequence[Prediction]
    ) -> list[Step]:
        """Return the step of *closed* and that of each of its *bars*, predicted at once.

        Every bar fills, marks and is observed before the first of them is decided, so that no
        decision depends on the place of its instrument among them. The state is stored by the last
        step alone: before it, the account has fills that belong to later steps.
        """
        steps = [self._finish(closed, None, saves=not bars)]
        first = self.sequence
        observed = []
        for place, bar in enumerate(bars):
            self.broker.begin(first + place)
            observed.append(self._observe(bar, is_last=place == len(bars) - 1))
            if self.broker.is_cross:  # a later bar may take the position away: in its own step
                self._observed[bar.instrument] = self.broker.positions(bar.instrument)
        self.broker.begin(first)
        if self._portfolios:
            self._ask(bars, observed, predictions)
        for bar, filled, prediction in zip(bars, observed, predictions, strict=True):
            at_ms = max(bar.market_ms, closed.market_ms)
            is_last = len(steps) == len(bars)
            steps.append(self._decide(bar, filled, prediction, at_ms, saves=is_last))
        self._observed.clear()
        return steps

    # ------------------------------------------------------------ steps that change only prices

    def stretch(self, units: UnitQueue, room: int) -> QuietStretch | None:
        """Take *units* while they change nothing but prices, of *room* steps at most.

        Return None where the next one may do more: :meth:`step` or :meth:`close` takes it. Either
        way the engine comes to the same state, and a strategy is shown each bar and asked about it
        once: what it answered to the unit that ends the stretch is used by that unit's step.
        """
        if not self._may_repeat or self.halted or type(units.peek()) not in _QUIET:
            return None
        for state in self.states.values():
            if state.ahead is not None:
                return None
        if not self.broker.is_still():
            return None
        first = self.sequence
        repeats: dict[str, Repeat] = {}
        for key in self.states:
            if (repeat := self._begin_stretch(key)) is None:
                return None
            repeats[key] = repeat
        # An entry confirms its position at every bar, which has the state stored now and then.
        confirms = any(
            repeat.decision.action in ENTRIES or any(shadow.confirmed for shadow in repeat.shadows)
            for repeat in repeats.values()
        )
        if confirms or self.broker.save:
            room = min(room, -first % STATE_EVERY_STEPS)
        taken = self._take_repeats(units, room, repeats)
        if not taken.bars:
            return None
        stretch = self._valued(first, taken, repeats)
        self.begin(stretch.next_sequence)
        if confirms:
            self.broker.save = self.broker.save or _LATER
        return stretch

    def _begin_stretch(self, key: str) -> Repeat | None:
        """Return the decisions that following bars of *key* would repeat, of all who decide on it.

        None where anything may differ.
        """
        state = self.states[key]
        repeat = state.begin_stretch(self.broker.account.books[0].lines[key])
        if repeat is None or not self.members:
            return repeat
        if state.signal is not UNCHANGED:
            return None
        shadows = []
        for member, of_member in self._on[key]:
            (book,) = member.account.books
            account, wish = book.subtotal(), of_member.intent
            share = of_member.begin_stretch(book.lines[key])
            if (
                share is None
                or isinstance(wish, Orders)
                or (account.equity <= 0) is not member.is_empty
                # Else the share has a measure of its own at each bar.
                or (share.plausible_at is None) is not (repeat.plausible_at is None)
            ):
                return None
            confirms = wish is not None and wish.action in ENTRIES
            decided = member.keep(key, share.decision, repeat.decision)
            shadows.append(ShadowStep(member.name, share.position, account, (), confirms, decided))
        return replace(repeat, shadows=tuple(shadows))

    def _take_repeats(  # noqa: C901, PLR0912 - the path of every bar, without calls
        self, units: UnitQueue, room: int, repeats: Mapping[str, Repeat]
    ) -> QuietUnits:
        """Take the units whose bars follow at once, close within a quarter, and repeat the last.

        What strategies answer to the unit that ends it waits for that unit's step, an error too.
        """
        markets, interval_ms = self.markets, self._interval_ms
        # Where the last bars of instruments differ, no close follows all of them at once.
        opened = {bar.open_time_ms for of in markets.values() if (bar := of.last_bar)}
        due_ms = max(opened) + interval_ms if len(opened) == 1 else -1
        taken = QuietUnits([], [], [])
        every_bar, measured, unit = taken.bars, taken.plausible, units.peek()
        kind, is_repeated = type(unit), True
        keys, width = tuple(repeats), len(repeats) + (kind is Close)
        if self._reset != NEVER:  # the first close of a day may give shares anew
            room = min(room, self._left_of_day(due_ms) * width)
        resting = self.broker.resting()
        takes, asks = [], []
        for place, (key, repeat) in enumerate(repeats.items()):
            market, mark = markets[key], self.broker.account.books[0].lines[key].mark
            closes = mark * 3 // 4, mark * 5 // 4
            deciders = [of_member for _, of_member in self._on[key]] or [self.states[key]]
            plans = [decider.look_ahead(closes, repeat) for decider in deciders]
            take = market.follow_at_once([observe for observe, _ in plans if observe])
            most = min(decider.gates.evaluator.plausible_limit for decider in market.deciders)
            takes.append((place, take, most))
            asks += [(place, ask) for _, ask in plans]
        while room >= width and type(unit) is kind:
            bars = (unit,) if type(unit) is Bar else unit.bars if type(unit) is Close else ()
            if not _follows(bars, keys, due_ms, interval_ms):
                break
            if resting and not all(
                of.is_passed_by(bar) for bar in bars if (of := resting.get(bar.instrument))
            ):
                break
            try:
                for place, take, plausible_limit in takes:
                    plausible = take(bars[place])
                    measured.append(plausible)
                    if plausible > plausible_limit:
                        is_repeated = False
                for place, ask in asks:
                    if not ask(bars[place]):
                        is_repeated = False
            except Exception as error:  # noqa: BLE001 - whatever a strategy raises, later
                self._raised, is_repeated = error, False
            if not is_repeated:
                for bar in bars:
                    for decider in markets[bar.instrument].deciders:
                        decider.ahead = bar
                break
            every_bar.extend(bars)
            if type(unit) is Close:
                taken.closes.append(unit.closed)
            room -= width
            due_ms += interval_ms
            unit = units.advance()
        del measured[len(every_bar) :]
        return taken

    def _left_of_day(self, due_ms: int) -> int:
        """Return how many bars from the one that opens *due_ms* on close before shares may move."""
        close_ms = due_ms + self._interval_ms
        if period_of(self._reset, close_ms) > self.shared_out:
            return 0
        return -(-(DAY_MS - close_ms % DAY_MS) // self._interval_ms)

    @property
    def may_wait(self) -> bool:
        """Whether bars may be waited through: one account follows one strategy on one instrument.

        No limit watches it, and no stretch looks ahead.
        """
        return (
            len(self.states) == 1
            and not (self.members or self._portfolios or self.declared or self.has_columns)
            and not (self.risk.active or self.broker.shadows or self._may_repeat)
            and all(state.may_wait for state in self.states.values())
        )

    def waiting(self) -> Line | None:
        """Return the positions where bars that hold them only value them; None elsewhere.

        Up to a quarter away, of an engine that :attr:`may_wait`.
        """
        if self.halted or not self.broker.is_still() or self.broker.resting():
            return None
        (line,) = self.broker.account.books[0].lines.values()
        (state,) = self.states.values()
        if line.orders.is_guarded:
            return None  # a signal that a gate refuses may end the wait after an exit
        if line.held and state.strategy.horizon is not None:
            return None  # it may outlive that
        return line if line.orders.target == line.held else None

    def wait(
        self, bars: Sequence[Bar], signal: Signal, passed: int, regime: Regime, cell: int | None
    ) -> list[int]:
        """Take *bars* at which *signal* left what is held; return the equity after each.

        Gates let *passed* at the last of them, in that *regime* and *cell*.
        """
        (state,) = self.states.values()
        (book,) = self.broker.account.books
        (line,) = book.lines.values()
        account = book.subtotal()
        worth = account.equity - account.unrealized_pnl
        equity = [worth + profit for profit in line.profits_at([bar.close for bar in bars])]
        state.regimes.regime, state.regimes.cell = regime, cell
        state.wait(bars, signal, passed, line.held)
        self.broker.follow(bars)
        self.begin(self.sequence + len(bars))
        return equity

    def _valued(self, first: int, taken: QuietUnits, repeats: Mapping[str, Repeat]) -> QuietStretch:
        """Return the stretch of the units *taken*; accounts and strategies go on after it."""
        bars, count = taken.bars, len(repeats)
        of_instruments = [bars[place::count] for place in range(count)]
        prices = [[bar.close for bar in of_instrument] for of_instrument in of_instruments]
        of_books = []
        for book in self.broker.account.every_book:
            lines = map(book.lines.__getitem__, repeats)
            columns = [line.profits_at(closes) for line, closes in zip(lines, prices, strict=True)]
            totals, profits = columns[0], columns[0]
            if count > 1:
                totals = [*map(sum, zip(*columns, strict=True))]
                profits = [*chain.from_iterable(zip(*columns, strict=True))]
            of_books.append(BookMarks(book.subtotal(), profits, totals))
        for of_instrument in of_instruments:
            self.broker.follow(of_instrument)
        marks, *shadows = of_books
        return QuietStretch(first, bars, taken.closes, taken.plausible, repeats, marks, shadows)

    # ------------------------------------------------------------ a bar, from top to bottom

    def _observe(self, bar: Bar, *, is_last: bool = True) -> FilledEvent | None:
        """Let *bar* fill what rests, mark and be observed; None where it is not the newest."""
        state = self.states[bar.instrument]
        before = state.market.last_bar
        is_ahead = bar is state.ahead
        if before is not None and bar.open_time_ms <= before.open_time_ms and not is_ahead:
            return None
        if bar.open_time_ms < self._period_start_ms:
            self.recall(bar)
            self.broker.warm_up(bar)
            return NOTHING_FILLED
        self.broker.on_bar(bar, is_last=is_last)
        filled = self._take()
        self._show(bar)
        return filled

    def _show(self, bar: Bar) -> None:
        """Show *bar* to all that looks back on bars, once."""
        key = bar.instrument
        state = self.states[key]
        if bar is state.ahead:
            if self._raised is not None:
                raise self._raised
            return
        self.markets[key].observe(bar)
        if not self.members:
            state.observe(bar)
        for member, of_member in self._on[key]:
            if not member.failed:
                member.observe(of_member, bar)

    def recall(self, bar: Bar) -> None:
        """Observe a bar that only warms up: what is declared stays as it is."""
        self._show(bar)
        declared = [decider.declared for decider in self.markets[bar.instrument].deciders]
        for state in (*(owner.declared for owner in self._portfolios), *declared):
            if state is not None:
                state.restore(state.encoded)

    def _take(self) -> FilledEvent:
        """Return the fills and orders since the last call; limits count them."""
        filled = self.broker.take()
        if filled.entries and self.risk.active:
            for entry in filled.entries:
                self.risk.count_fill(*entry)
        return filled

    def _ask(
        self,
        bars: Sequence[Bar],
        observed: Sequence[FilledEvent | None],
        predictions: Sequence[Prediction],
    ) -> None:
        """Ask each portfolio once for all of *bars* that are to be decided and warm."""
        decided = [
            (bar, *checked(prediction))
            for bar, filled, prediction in zip(bars, observed, predictions, strict=True)
            if filled is not None and bar.open_time_ms >= self._period_start_ms
        ]
        for bar, _, _ in decided:
            self._share_out_if_due(bar)
        for owner in self._portfolios:
            pending = {}
            for bar, forecast, is_finite in decided:
                state = owner.states[bar.instrument]
                regime, cell = state.regimes.regime, state.regimes.cell
                account = self.broker.account if owner.member is None else owner.member.account
                context = state.ask_with(bar, forecast, account, is_finite=is_finite)
                if state.regimes.regime is not regime or state.regimes.cell != cell:
                    self.broker.save = Save.NOW
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
        if filled is None or bar.open_time_ms < self._period_start_ms:
            # A revision is evidence, nothing more; an early bar only warms up.
            is_newest = filled is not None
            return self._finish(bar, key, filled or NOTHING_FILLED, accepted=is_newest, saves=saves)
        state, broker = self.states[key], self.broker
        is_finite = None
        if prediction is not None:
            prediction, is_finite = checked(prediction)
        regimes, risk = state.regimes, self.risk.state
        regime, cell = regimes.regime, regimes.cell
        is_running, answers = not self.halted, _ALONE
        if self.members:
            answers = self._ask_members(bar, prediction, at_ms, is_finite=is_finite)
            assert isinstance(state.strategy, NetStrategy)
            state.ahead, state.strategy.signal = None, answers.signal
        decision = state.decide(
            bar, prediction, broker.account, is_running=is_running, is_finite=is_finite,
            wishes=answers.wishes,
        )  # fmt: skip
        if regimes.regime is not regime or regimes.cell != cell or self.risk.state is not risk:
            self.broker.save = Save.NOW
        outcome = self._submit(bar, filled, decision, prediction, answers, at_ms)
        step = self._finish(bar, key, filled, outcome, saves=saves)
        if self.counts:
            self.count(step)  # from the next bar on
        return step

    def count(self, step: Step) -> None:
        """Add *step* to what shadow accounts depend on; a start does so behind the stored state."""
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
        """Ask the account for its *decision*, and its members for their *answers*.

        Shadow accounts are asked for their own.
        """
        key, broker, state = bar.instrument, self.broker, self.states[bar.instrument]
        of_members, wishes, intent = answers.decisions, answers.wishes, state.intent
        if isinstance(state.signal, Signal):
            broker.on_signal(key, state.signal)
        refusals: Refusals = {}
        if intent is None:
            # What only reduces is not held up, and what a command left opposing crosses still.
            if of_members:
                broker.route(None, self._reducing(bar, wishes, decision), bar, at_ms)
        else:
            if isinstance(intent, Intent) and intent.ends_lists:
                wishes = wishes.closed(intent, broker.account.owners)
            refusals = broker.route(intent, wishes, bar, at_ms)
            decision = state.unfilled(decision, refusals[""])
        if broker.shadows and decision.refused_by not in INTEGRITY:
            self._follow_shadows(bar, prediction, of_members, decision, at_ms)
        done = broker.take()
        if done.orders and self.risk.active:
            self.risk.count_orders(done.orders, at_ms)
        if not broker.others:
            return BarOutcome(decision, prediction, done.orders)
        observed, decided_ms = self._observed.get(key), bar.open_time_ms
        shown = partial(Shadows.steps, fills=filled.of_others, positions=observed)
        shadows = (
            *shown(broker.sides, key, decided_ms=decided_ms),
            *self._member_steps(key, (filled, done), decision, of_members, wishes, refusals),
            *shown(broker.shadows, key, decided_ms=decided_ms),
        )
        return BarOutcome(decision, prediction, done.orders, shadows)

    # ------------------------------------------------------------ several strategies

    def _ask_members(
        self, bar: Bar, prediction: Prediction, at_ms: int, *, is_finite: bool | None
    ) -> MemberAnswers:
        """Return each strategy's decision on *bar*, as if its sub-account were the account."""
        self._share_out_if_due(bar)
        key, is_running, failed = bar.instrument, not self.halted, 0
        decisions = []
        for member, of_member in self._on[key]:
            account = member.account
            if (account.subtotal().equity <= 0) is not member.is_empty:
                member.know(is_empty=not member.is_empty)
            decisions.append(
                of_member.decide(
                    bar, prediction, account, is_running=is_running, is_finite=is_finite
                )
            )
            if member.failed:
                failed += 1
        if failed != self.failures_stored:
            self.failures_stored = failed
            self.broker.save = Save.NOW
        intents = [of_member.intent for _, of_member in self._on[key]]
        wishes, signal = self._netted(bar, self.broker.account, intents, decisions, at_ms)
        return MemberAnswers(decisions, wishes, signal)

    def _netted(
        self,
        bar: Bar,
        account: PaperAccount,
        requested: Sequence[Intent | Orders | None],
        decisions: Sequence[Decision],
        at_ms: int,
    ) -> tuple[Wishes, Signal]:
        """Net what is *requested* of the shares in *account* at the *decisions* on *bar*."""
        key, broker, state = bar.instrument, self.broker, self.states[bar.instrument]
        intents: dict[str, Intent | Orders] = {}
        net, reasons = {book.side: 0 for book in account.books}, []
        for (member, of_member), intent, decision in zip(
            self._on[key], requested, decisions, strict=True
        ):
            name, signal, has_changed = member.name, of_member.signal, False
            if intent is not None:
                intents[name] = intent
            for book in account.owners[name].books:
                line = book.lines[key]
                if isinstance(signal, Signal):
                    line.protector.on_signal(signal.action)
                if member.closed:
                    line.orders.withdraw("", member.closed)
                target = before = line.orders.target
                part = None if intent is None else part_of(intent, book.side)
                if isinstance(part, Intent) and not broker.planned(line, part, bar, at_ms)[1]:
                    target = part.target
                has_changed |= target != before
                net[book.side] += target
            if has_changed:
                reasons.append(f"{name}: {decision.reason}")
        quote, price = state.market.quote, bar.close
        if quote is not None and self._by_quotes:
            price = divide_half_even(quote.bid + quote.ask, 2)
        return Wishes(intents, net, price), net_signal(net, reasons)

    def _member_steps(
        self,
        key: str,
        both: tuple[FilledEvent, FilledEvent],
        decision: Decision,
        of_members: Sequence[Decision],
        wishes: Wishes,
        refusals: Refusals,
    ) -> list[ShadowStep]:
        """Return each member's part of a step, with the fills before its decision and by it."""
        shadows: list[ShadowStep] = []
        filled, done = both
        refused_by = decision.refused_by
        are_filled = filled.of_others or done.of_others
        for (member, of_member), wished in zip(self._on[key], of_members, strict=True):
            name, account = member.name, member.account
            refusal, confirms, is_asked = None, False, name in refusals
            if is_asked:
                refusal, wish = refusals[name], wishes.intents[name]
                confirms = refusal is None and isinstance(wish, Intent) and wish.action in ENTRIES
            elif of_member.intent is not None and refused_by is not None:
                is_asked = True
                refusal = f"the account's gate {refused_by} refused what was netted"
            decided = of_member.unfilled(wished, refusal) if is_asked else wished
            fills: tuple[Fill, ...] = ()
            if are_filled:
                fills = (*filled.of_others.get(name, ()), *done.of_others.get(name, ()))
            shadows.append(
                ShadowStep(
                    name,
                    account.position(key),
                    account.subtotal(),
                    fills,
                    confirms,
                    member.keep(key, decided, decision),
                )
            )
        return shadows

    def _reducing(self, bar: Bar, wishes: Wishes, decision: Decision) -> Wishes:
        """Return the orders of *wishes* that the refusal of *decision* lets through."""
        allowed = {
            member.name: of_member.allowed_of(wish, bar, member.account, decision.refused_by)
            for member, of_member in self._on[bar.instrument]
            if isinstance(wish := wishes.intents.get(member.name), Orders)
        }
        kept = {name: orders for name, orders in allowed.items() if isinstance(orders, Orders)}
        return wishes._replace(intents=kept)

    def _follow_shadows(
        self,
        bar: Bar,
        prediction: Prediction,
        of_members: Sequence[Decision],
        decision: Decision,
        at_ms: int,
    ) -> None:
        """Let each shadow account act at what the account decided, or all of its strategies did.

        A limit was measured on the run's own sum, so it does not refuse less exposure.
        """
        key, state = bar.instrument, self.states[bar.instrument]
        inputs, evaluator = state.gates.inputs, state.gates.evaluator
        for name, account in self.broker.shadows.items():
            if not self.members:
                if name in state.strategy.shadows:
                    wish = self.shadows[""].wish(name, state, bar, prediction, decision, account)
                    if wish is not None:
                        self.broker.route(wish, NO_WISHES, bar, at_ms, shadow=name)
                continue
            wanted = [
                self.shadows[member.name].wish(
                    name, of_member, bar, prediction, decided, account.owners[member.name]
                )
                for (member, of_member), decided in zip(self._on[key], of_members, strict=True)
            ]
            wishes, signal = self._netted(bar, account, wanted, of_members, at_ms)
            intent = state.net_intent(signal, wishes.targets, account, key)
            if name in BOUND or (inputs.is_outside and name != BUY_AND_HOLD):
                refused = evaluator.first_failed(
                    decision.passed, reduces=inputs.reduces, without=WITHOUT.get(name)
                )
                is_less = all(
                    abs(target) <= abs(line.held) and target * line.held >= 0
                    for line in account.lines_of(key)
                    for target in [wishes.targets[line.book.side]]
                )
                if (closing := state.closing(refused)) is not None:
                    intent, wishes = closing, wishes.closed(closing, account.owners)
                elif refused is not None and not is_less:
                    continue
            self.broker.route(intent, wishes, bar, at_ms, shadow=name)

    def _share_out_if_due(self, bar: Bar) -> None:
        """Share out again at the first close of each day, week or month."""
        if self._reset == NEVER:
            return
        period = period_of(self._reset, bar.close_time_ms)
        if period > self.shared_out:
            if self.shared_out >= 0:
                self.broker.share_out()
            self.shared_out = period
            self.broker.save = Save.NOW

    # ------------------------------------------------------------ prices and settlements

    def _price(self, price: Price) -> Step:
        """Let *price* act if it is believed, and then what was believed on it."""
        key = price.instrument
        taken = self.markets[key].belief.take(price)
        if taken.is_believed:
            self._act(price)
        elif isinstance(price, Quote):
            self.markets[key].quote = price  # gates ask how old it is
            self.broker.expire(key, price.market_ms)
        for held in taken.released:
            self._act(held)
        return self._finish(price, key, belief=taken.words)

    def _act(self, price: Price | BookUpdate) -> None:
        """Fill by a quote or a book, or mark and liquidate by a mark; a trade is evidence alone."""
        if type(price) is BookUpdate:
            self.broker.on_book(price)
        elif type(price) is Quote:
            self.markets[price.instrument].quote = price
            self.broker.on_quote(price)
        elif type(price) is Mark:
            self.broker.on_mark(price)

    def _settle(self, funding: Funding) -> Step:
        """Book a settlement once: one that is not newer than the last is recorded, no more.

        Nor is one whose rate is not believed.
        """
        key, belief = funding.instrument, self.beliefs[funding.instrument]
        if funding.market_ms <= belief.settled_ms:
            return self._finish(funding, key, accepted=False)
        is_believed, words = belief.belief_in_rate(funding)
        if not is_believed:
            return self._finish(funding, key, accepted=False, belief=words)
        belief.settled_ms = funding.market_ms
        self.broker.on_funding(funding)
        return self._finish(funding, key, belief=words)

    # ------------------------------------------------------------ commands and changes

    def _command(self, command: Command) -> Step:
        """HALT holds everything, RESUME lifts it, FLATTEN halts and closes what is held.

        Of the orders by list, HALT cancels those that could open a position, FLATTEN all, and
        protection with them.
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
        """Use the exchange's new filters: for targets, orders and prices from now on."""
        self.markets[instrument.id].change(instrument)
        self.broker.change(instrument)
        # A restart begins with filters, and knows no marks: the record must value it alike.
        self.mark_at_closes()

    def prepare(self, model_sha256: str, terms: Mapping[str, ModelTerms]) -> None:
        """Keep the *terms* of a model for the change to it, which is an event.

        They are those of the account, by an empty name, and of each member that asks the model.
        """
        self._prepared[model_sha256] = terms

    def _change_model(self, change: ModelChange) -> None:
        """Go on after a start, or with another model: a promotion drops nothing of the market."""
        terms = self._prepared.pop(change.model_sha256, None)
        if terms is None or change.warm_from:
            self.forget_passing()
        if terms is not None:
            for name, of in terms.items():
                for state in self.states_of(name).values():
                    state.change_model(of)
            for market in self.markets.values():
                market.regimes.change_model(terms.values())
            for name, shadows in self.shadows.items():
                shadows.passing = terms[name].passing if name in terms else shadows.passing
            self.broker.save = Save.NOW  # the regimes are others

    def forget_passing(self) -> None:
        """Drop what a restart drops, so that a replay of the record does the same here."""
        for market in self.markets.values():
            market.forget_passing()
        self.broker.forget()
        self.mark_at_closes()

    def mark_at_closes(self) -> None:
        """Value what is held at the newest closes alone."""
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
        belief: str | None = None,
        saves: bool = True,
    ) -> Step:
        """Return the step of *event*.

        It *saves* the state where that is due; within a close only the last step does.
        """
        broker = self.broker
        orders, shadows = outcome.orders, outcome.shadows
        if filled is None:
            filled = self._take()
        position, account, entries = broker.account.report(instrument)
        if self._observed and instrument is not None:
            position = self._observed[instrument][None]
        is_shown = filled.of_others or self.is_hedged or type(event) is Funding
        if not shadows and instrument is not None and is_shown:
            observed = self._observed.get(instrument)
            shadows = Shadows.steps(broker.others, instrument, filled.of_others, positions=observed)
        sequence = self.sequence
        state: bytes | None = None
        if self.declared and type(event) is Bar and self._has_declared(event.instrument):
            broker.save = Save.NOW
        if broker.save:
            if sequence % STATE_EVERY_STEPS == 0 and type(event) not in _NOTED:
                broker.save = _NOW
            if broker.save is _NOW and saves:
                state = self._encoded_state() if self.stores_state else None
                broker.save = _NO
        self.begin(sequence + 1)
        halted, self.risk.halted = self.risk.halted, None
        return Step(
            sequence, event, accepted, outcome.decision, outcome.prediction,
            _as_they_stand(filled.orders, orders) if orders else filled.orders,
            filled.fills, position, account, shadows, state, entries, belief, halted,
        )  # fmt: skip

    def _has_declared(self, instrument: str) -> bool:
        """Return whether a declared state on *instrument* has changed."""
        declared = self.declared.get(instrument)
        has_changed = declared is not None and declared.changed()
        for member in self.members:
            has_changed |= member.has_declared(instrument)
        return has_changed

    def state(self) -> EngineState:
        """Return the state that must survive a restart."""
        regimes = {key: market.regimes for key, market in self.markets.items()}
        return EngineState(
            self.halted,
            {key: of.regime for key, of in regimes.items() if of.regime is not Regime.UNKNOWN},
            self.risk.state,
            *self.broker.state(),
            {key: of.settled_ms for key, of in self.beliefs.items() if of.settled_ms >= 0},
            {
                f"{name}/{key}" if name else key: basis
                for name, shadows in self.shadows.items()
                for key, basis in shadows.bases.items()
            },
            # A portfolio's state has no instrument.
            {key: declared.encoded for key, declared in self.declared.items()},
            {key: of.cell for key, of in regimes.items() if of.cell is not None},
            self.risk.chosen,
            SharesState(self.broker.reserves, self.set_aside, self.shared_out)
            if self.members
            else None,
        )

    def _encoded_state(self) -> bytes:
        fields = list(astuple(self.state()))
        while len(fields) > _ALWAYS_STORED and fields[-1] in ({}, None):
            fields.pop()
        return msgspec.msgpack.encode(fields)


def _follows(bars: Sequence[Bar], keys: Sequence[str], due_ms: int, interval_ms: int) -> bool:
    """Return whether *bars* are one of each of *keys*, on time, that open at *due_ms*."""
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


def _as_they_stand(before: tuple[Order, ...], after: tuple[Order, ...]) -> tuple[Order, ...]:
    """Return each order once, as it stood *after* where it changed again."""
    if not before:
        return after
    return tuple({order.order_id: order for order in (*before, *after)}.values())
