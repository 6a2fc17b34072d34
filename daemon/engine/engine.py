"""``Engine.step(event, prediction) -> Step``: all that an event causes.

One descent: the broker matches the event, the instrument observes it, its strategy and its gates
decide, the broker takes the intent, and the step holds all of that. An order is filled at the
earliest by the event after its cause. What a start needs is ``Restart`` in ``state``.

The rules are docs/time.md, T2, and docs/decisions.md, G13 to G18.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, assert_never

import msgspec

from tracepaper.daemon.broker.account import ENTRIES, Ownership
from tracepaper.daemon.broker.broker import NOTHING_FILLED, Broker, Filled, Save
from tracepaper.daemon.broker.orders import Sent, as_they_stand
from tracepaper.daemon.engine.instrument_state import InstrumentState, checked
from tracepaper.daemon.engine.price_checks import PLAIN, Price, Prices
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.state import (
    NOT_DECIDED,
    Decided,
    EngineSettings,
    EngineState,
    ModelTerms,
    Shadows,
)
from tracepaper.daemon.engine.units import UnitQueue
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.api.sizing import Sizer
from tracepaper.strategies.api.strategy import (
    NOT_NAMED,
    DeclaredState,
    PortfolioMember,
    Strategy,
    portfolio_of,
)
from tracepaper.strategies.api.timeframes import FrameRange, Row
from tracepaper.strategies.gates.evaluator import GateEvaluator
from tracepaper.strategies.types.decisions import (
    GateSet,
    Order,
    Position,
    Prediction,
    QuietStretch,
    Regime,
    Repeat,
    SinceDecided,
    Step,
    TwinStep,
)
from tracepaper.strategies.types.market import (
    Bar,
    BookUpdate,
    Close,
    Closed,
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
    Retrained,
    RunEnd,
    Trade,
    Unit,
    UniverseChange,
)

STATE_EVERY_STEPS: Final = 1_024
"""A confirmed position alone has the state stored this often: a prune cuts where it was."""

_NOTED: Final = frozenset({RunEnd, Prune})
"""What the log notes by itself: no engine sees it as it happens, so none stores its state there."""

_QUIET: Final = frozenset({Bar, Close})
"""The units that may change nothing but prices."""

# Read at every bar: looking a member up on its class costs ten times as much (Python 3.11).
_NO, _LATER, _NOW = Save.NO, Save.LATER, Save.NOW

OF_THE_RUN: Final = ""
"""Stands where an instrument does, for the state that a portfolio strategy declares."""


class Engine:
    """The pure heart: the same events and predictions always cause the same steps."""

    state_type: type[InstrumentState] = InstrumentState
    is_hedged = False  # a step then holds both sides of its instrument, changed or not

    def __init__(
        self,
        instruments: Sequence[Instrument],
        strategies: Mapping[str, Strategy],
        sizers: Mapping[str, Sizer],
        gates: Mapping[str, GateEvaluator],
        settings: EngineSettings,
        *,
        owners: Mapping[str, Ownership] | None = None,
        confirms: Collection[str] = (),
    ) -> None:
        """Take what decides on each instrument, by id.

        *owners* share the account, and let their positions stand for another horizon on the
        instruments *confirms*.
        """
        self.risk = RiskWatch(
            settings.risk,
            flattens=settings.flatten_on_breach,
            calendar=settings.calendar,
            closes_outside=settings.closes_outside,
        )
        self._portfolio = portfolio_of(strategies.values())
        # One object has one state, whose owner is the run.
        declared = {key: DeclaredState.of(strategy) for key, strategy in strategies.items()}
        if self._portfolio is not None:
            declared = {OF_THE_RUN: DeclaredState.of(self._portfolio)}
        self.declared = {key: one for key, one in declared.items() if one is not None}
        self._declared_by_all = self.declared.get(OF_THE_RUN)
        self.states = {
            item.id: self.state_type(
                item,
                strategies[item.id],
                sizers[item.id],
                gates[item.id],
                settings,
                self.risk,
                self._declared_by_all or self.declared.get(item.id),
            )
            for item in instruments
        }
        self.prices = Prices({key: state.belief for key, state in self.states.items()})
        self.shadows = Shadows(
            {item.id: strategies[item.id] for item in instruments}, settings.passing
        )
        seen = [key for key, strategy in strategies.items() if strategy.sees_account]
        self.broker = Broker(
            instruments,
            settings.broker,
            {key: state.history.day_range for key, state in self.states.items()},
            shadows=self.shadows.names,
            reports_fills=seen,
            confirms=[
                *confirms,
                *(key for key, of in strategies.items() if of.horizon is not None),
            ],
            is_hedged=self.is_hedged,
            owners=owners,
        )
        self.sees_account = bool(seen) or any(sizer.sees_account for sizer in sizers.values())
        """Whether decisions depend on fills: of a strategy that sees the account, or by size."""
        self._interval_ms, self._period_start_ms = settings.interval_ms, settings.period_start_ms
        # Whether a stretch is ever possible: nothing decides but bars, and no limit watches.
        self._may_repeat = not (
            self.risk.active or self.declared or self._portfolio or settings.calendar
        ) and all(state.may_repeat for state in self.states.values())
        self._prepared: dict[str, ModelTerms] = {}  # by the model's hash
        self.halted = False
        self._observed: dict[str, Mapping[str | None, Position]] = {}
        """Whether the operator halted trading."""
        self.save = Save.NOW
        self.sequence = 0

    # ------------------------------------------------------------ what others ask

    @property
    def gate_sets(self) -> tuple[GateSet, ...]:
        """The gate sets of all instruments, without repeats, in the instruments' order."""
        evaluators = (state.gates.evaluator for state in self.states.values())
        return tuple(dict.fromkeys(one.gate_set for one in evaluators))

    @property
    def breach(self) -> str:
        """The limit that halts new exposure until the operator says RESUME; empty if none."""
        return self.risk.breach

    @property
    def set_aside(self) -> Mapping[str, str]:
        """Of several strategies those that failed, and why."""
        return {}

    @property
    def instruments(self) -> tuple[str, ...]:
        """The id of every instrument, in their order."""
        return tuple(self.states)

    @property
    def is_portfolio(self) -> bool:
        """Whether one strategy decides for all instruments of a close."""
        return self._portfolio is not None

    def signal_of(self, instrument: str) -> Signal | Orders | None:
        """Return the newest signal of *instrument*'s strategy, before gates and account."""
        return self.states[instrument].signal

    @property
    def since_decided(self) -> dict[str, SinceDecided]:
        """What became of the last decision on each instrument, and the fills since."""
        return {
            key: SinceDecided(state.outcomes.verdict, self.broker.fills_since_decided(key))
            for key, state in self.states.items()
        }

    def strategy_of(self, instrument: str) -> Strategy:
        """Return the object that decides on *instrument*."""
        return self.states[instrument].strategy

    def warmup_of(self, instrument: str) -> int:
        """Return how many of the last bars decide on *instrument*."""
        return self.states[instrument].history.reach

    def warm_at(self, instrument: str, now_ms: int) -> int | None:
        """Return when *instrument* is decided on from enough bars; None where it is, at *now_ms*.

        No exchange's word is in it: bars that are missing by then make it later.
        """
        return self.states[instrument].history.warm_at(now_ms)

    def bars_before(self, start_ms: int) -> int:
        """Return how many bars of each instrument a new run wants before its period."""
        return max(state.history.bars_before(start_ms) for state in self.states.values())

    def lacking_frames(self, now_ms: int) -> list[FrameRange]:
        """Return which candles of higher frames the known bars do not reach at *now_ms*."""
        known = (state.history for state in self.states.values())
        return [one for history in known for one in history.lacking_frames(now_ms)]

    def frames_of(self, instrument: str) -> tuple[tuple[int, int, Row | None], ...]:
        """Return of each frame its length, how many bars are wanted, and the newest handed on."""
        return self.states[instrument].history.newest_frames

    def books_of(self, instrument: str) -> int:
        """Return how many of the newest order books of *instrument* its strategy looks at."""
        return self.states[instrument].strategy.books

    def range_bars_of(self, instrument: str) -> int:
        """Return how many of the last bars decide the range of a day of *instrument*."""
        return self.states[instrument].history.range_bars

    # ------------------------------------------------------------ one step

    def step(self, event: Event, prediction: Prediction) -> Step:  # noqa: C901, PLR0911, PLR0912 - one case an event
        """Return all that *event* caused, given what the model predicted at it."""
        match event:
            case Bar():
                filled = self._observe(event, self.sequence)
                if self._portfolio is not None:
                    self._ask([event], [filled], [prediction])
                return self._decide(event, filled, prediction, event.market_ms)
            case Quote() | Mark() | Trade():
                return self._price(event)
            case BookUpdate():
                return self._finish(event, event.instrument, self._act(event))
            case Funding():
                return self._settle(event)
            case CorporateAction():
                if event.is_split:
                    self.states[event.instrument].adjust(event)
                changed = self.broker.on_action(event)
                return self._finish(event, event.instrument, Filled(orders=changed))
            case Command():
                return self._command(event)
            case ModelChange():
                self._change_model(event)
            case InstrumentChange():
                self._change_instrument(event.instrument)
            case UniverseChange():
                self.risk.choose(event.chosen)
                self.save = Save.NOW
            case Gap():
                self.broker.on_gap(event)
                return self._finish(event, event.instrument)
            case FrameBar() | Depths():
                state = self.states[event.instrument]
                is_part = state.history.take(event)
                belief = state.doubt_of(event) if isinstance(event, Depths) else None
                return self._finish(event, event.instrument, accepted=is_part, belief=belief)
            case Closed() | RunEnd() | Prune() | CovariatesRead() | Retrained() | ParityCheck():
                pass
            case _:
                assert_never(event)
        return self._finish(event, None)

    def close(
        self, closed: Closed, bars: Sequence[Bar], predictions: Sequence[Prediction]
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
            observed.append(self._observe(bar, first + place, is_last=place == len(bars) - 1))
            if self.broker.is_cross:  # a later bar may take the position away: in its own step
                self._observed[bar.instrument] = self.broker.positions(bar.instrument)
        if self._portfolio is not None:
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
        if not self._may_repeat or self.halted or self.save is _NOW or not self.broker.is_still():
            return None
        if type(units.peek()) not in _QUIET or any(
            state.is_noted for state in self.states.values()
        ):
            return None
        book, first = self.broker.own.books[0], self.sequence
        if (most := book.closes_most()) is None:
            return None
        repeats: dict[str, Repeat] = {}
        for key, state in self.states.items():
            repeat = state.begin_stretch(book.lines[key], most[key])
            if repeat is None:
                return None
            repeats[key] = repeat
        # An entry confirms its position at every bar, which has the state stored now and then.
        confirms = any(repeat.decision.action in ENTRIES for repeat in repeats.values())
        if confirms or self.save:
            room = min(room, -first % STATE_EVERY_STEPS)
        taken, plausible = self._take_repeats(units, room, repeats, most)
        if not taken:
            return None
        stretch = self._valued(first, taken, plausible, repeats)
        self.sequence = stretch.next_sequence
        if confirms:
            self.save = self.save or _LATER
        return stretch

    def _take_repeats(
        self, units: UnitQueue, room: int, repeats: Mapping[str, Repeat], most: Mapping[str, int]
    ) -> tuple[list[Bar | Close], list[float]]:
        """Take the units whose bars follow at once and repeat *repeats*; return how plausible."""
        states, interval_ms = self.states, self._interval_ms
        # Where the last bars of instruments differ, no close follows all of them at once.
        opened = {bar.open_time_ms for key in states if (bar := states[key].history.last_bar)}
        due_ms = max(opened) + interval_ms if len(opened) == 1 else -1
        taken, plausible = list[Bar | Close](), list[float]()
        unit = units.peek()
        while bars := self._following(unit, room, due_ms):
            assert isinstance(unit, Bar | Close)
            if (measured := self._look_ahead(bars, repeats, most)) is None:
                return taken, plausible
            taken.append(unit)
            plausible += measured
            room -= len(bars) + isinstance(unit, Close)
            due_ms += interval_ms
            unit = units.advance()
        for state in states.values():
            state.ahead = None
        return taken, plausible

    def _following(self, unit: Unit | None, room: int, due_ms: int) -> Sequence[Bar]:
        """Return the bars of *unit*, where every instrument has one, on time, that opens *due_ms*.

        None of any other unit, and of one that takes more than *room* steps.
        """
        states, interval_ms = self.states, self._interval_ms
        bars: Sequence[Bar] = ()
        if type(unit) is Bar:
            if room > 0 and unit.instrument in states and len(states) == 1:
                bars = (unit,)
        elif (
            type(unit) is Close
            and len(unit.bars) == len(states) < room
            and {bar.instrument for bar in unit.bars} == states.keys()
        ):
            bars = unit.bars
        for bar in bars:
            if (
                bar.open_time_ms != due_ms
                or bar.seen_ms - due_ms != interval_ms
                or bar.interval_ms != interval_ms
            ):
                return ()
        return bars

    def _look_ahead(
        self, bars: Sequence[Bar], repeats: Mapping[str, Repeat], most: Mapping[str, int]
    ) -> list[float] | None:
        """Show *bars*, and ask about each; return how plausible, None where one does not repeat.

        An error waits for the step.
        """
        states, bar = self.states, bars[0]
        is_repeat = True
        try:
            for bar in bars:
                states[bar.instrument].look_ahead(bar)
            for bar in bars:
                key = bar.instrument
                if not states[key].repeats_at(bar, repeats[key], most[key]):
                    is_repeat = False
        except Exception as error:  # noqa: BLE001 - whatever a strategy raises
            states[bar.instrument].fail_at(bar, error)
            return None
        if not is_repeat:
            return None
        return [states[bar.instrument].history.plausible for bar in bars]

    def _valued(
        self,
        first: int,
        taken: Sequence[Bar | Close],
        plausible: Sequence[float],
        repeats: Mapping[str, Repeat],
    ) -> QuietStretch:
        """Return the stretch of the units *taken*; accounts and strategies go on after it."""
        broker, bars = self.broker, list[Bar]()
        account, lines = broker.own.balance(), broker.own.books[0].lines
        for unit in taken:
            if isinstance(unit, Bar):
                bars.append(unit)
            else:
                bars += unit.bars
        profits = [lines[bar.instrument].profit_at(bar.close) for bar in bars]
        count = len(repeats)
        totals = profits
        if count > 1:
            totals = [sum(profits[at : at + count]) for at in range(0, len(profits), count)]
        for key, repeat in repeats.items():
            broker.follow([bar for bar in bars if bar.instrument == key])
            self.states[key].end_stretch(repeat)
        return QuietStretch(first, taken, plausible, profits, totals, repeats, account)

    # ------------------------------------------------------------ a bar, from top to bottom

    def _observe(self, bar: Bar, sequence: int, *, is_last: bool = True) -> Filled | None:
        """Let *bar* fill what rests, mark and be observed; None where it is not the newest.

        Its step will be number *sequence*.
        """
        state = self.states[bar.instrument]
        before = state.history.last_bar
        is_ahead = bar is state.ahead
        if before is not None and bar.open_time_ms <= before.open_time_ms and not is_ahead:
            return None
        if bar.open_time_ms < self._period_start_ms:
            state.recall(bar)
            self.broker.warm_up(bar)
            return NOTHING_FILLED
        filled = self.broker.on_bar(bar, sequence, is_last=is_last)
        if filled.booked and self.risk.active:
            self.risk.count_fills(filled.booked)
        state.observe(bar)
        return filled

    def _ask(
        self,
        bars: Sequence[Bar],
        observed: Sequence[Filled | None],
        predictions: Sequence[Prediction],
    ) -> None:
        """Ask the portfolio once for all of *bars* that are to be decided and warm."""
        assert self._portfolio is not None
        asked = {}
        for bar, filled, prediction in zip(bars, observed, predictions, strict=True):
            if filled is None or bar.open_time_ms < self._period_start_ms:
                continue
            state = self.states[bar.instrument]
            regime, cell = state.regimes.regime, state.regimes.cell
            said, is_finite = checked(prediction)
            seen = state.ask_with(bar, said, self.broker.own, is_finite=is_finite)
            if state.regimes.regime is not regime or state.regimes.cell != cell:
                self.save = Save.NOW
            if state.history.is_warm:
                asked[state.instrument.symbol] = state, seen
        if asked:
            answers = self._portfolio.decide({symbol: seen for symbol, (_, seen) in asked.items()})
            for symbol, (state, _) in asked.items():
                assert isinstance(state.strategy, PortfolioMember)
                state.strategy.answer = answers.get(symbol, NOT_NAMED)
        if self._declared_by_all is not None and self._declared_by_all.changed():
            self.save = Save.NOW

    def _decide(
        self,
        bar: Bar,
        filled: Filled | None,
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
        decision = state.decide(
            bar, prediction, broker.own, is_running=not self.halted, is_finite=is_finite
        )
        if regimes.regime is not regime or regimes.cell != cell or self.risk.state is not risk:
            self.save = Save.NOW
        if isinstance(state.signal, Signal):
            broker.on_signal(key, state.signal)
        sent: Sent | None = None
        if (intent := state.intent) is not None:
            sent = broker.submit(intent, bar, sequence=self.sequence, at_ms=at_ms)
            if sent.orders and self.risk.active:
                self.risk.count_orders(sent.orders, at_ms)
        confirmed: Sequence[str] = ()
        if broker.shadows:
            confirmed = self.shadows.follow(
                broker, state, bar, prediction, decision, sequence=self.sequence, at_ms=at_ms
            )
        decided = state.settle(decision, prediction, sent)
        step = self._conclude(bar, filled, decided, confirmed, saves=saves)
        if self.shadows.bases and self.shadows.count(step, state):  # from the next bar on
            self.save = self.save or _LATER
        return step

    def _conclude(
        self, bar: Bar, filled: Filled, decided: Decided, confirmed: Sequence[str], *, saves: bool
    ) -> Step:
        """Return the step of *bar*; *confirmed* names the twins whose position it confirmed."""
        twins: tuple[TwinStep, ...] = ()
        if self.broker.beside:
            twins = self.shadows.steps(
                self.broker, bar.instrument, filled.shadows, confirmed,
                self._observed.get(bar.instrument),
            )  # fmt: skip
        return self._finish(bar, bar.instrument, filled, decided, twins, saves=saves)

    # ------------------------------------------------------------ prices and settlements

    def _price(self, price: Price) -> Step:
        """Let *price* act if it is believed, and then what was believed on it."""
        key = price.instrument
        taken = self.states[key].belief.take(price)
        if taken is PLAIN:
            return self._finish(price, key, self._act(price))
        filled = NOTHING_FILLED
        if taken.is_believed:
            filled = self._act(price)
        elif isinstance(price, Quote):
            self.states[key].quote = price  # gates ask how old it is
            filled = self.broker.expire(key, price.market_ms)
        for held in taken.released:
            filled = filled.followed_by(self._act(held))
        return self._finish(price, key, filled, belief=taken.words)

    def _act(self, price: Price | BookUpdate) -> Filled:
        """Fill by a quote or a book, or mark and liquidate by a mark; a trade is evidence alone."""
        if type(price) is BookUpdate:
            filled = self.broker.on_book(price, self.sequence)
        elif type(price) is Quote:
            self.states[price.instrument].quote = price
            filled = self.broker.on_quote(price, self.sequence)
        elif type(price) is Mark:
            filled = self.broker.on_mark(price, self.sequence)
        else:
            return NOTHING_FILLED
        if filled.booked and self.risk.active:
            self.risk.count_fills(filled.booked)
        return filled

    def _settle(self, funding: Funding) -> Step:
        """Book a settlement once: one that is not newer than the last is recorded, no more.

        Nor is one whose rate is not believed.
        """
        key = funding.instrument
        if funding.market_ms <= self.prices.settled_ms(key):
            return self._finish(funding, key, accepted=False)
        is_believed, words = self.states[key].belief.belief_in_rate(funding)
        if not is_believed:
            return self._finish(funding, key, accepted=False, belief=words)
        self.prices.settled[key] = funding.market_ms
        filled = self.broker.on_funding(funding, self.sequence)
        if filled.booked and self.risk.active:
            self.risk.count_fills(filled.booked)
        return self._finish(funding, key, filled, belief=words)

    # ------------------------------------------------------------ commands and changes

    def _command(self, command: Command) -> Step:
        """HALT holds everything, RESUME lifts it, FLATTEN halts and closes what is held.

        Of the orders by list, HALT cancels those that could open a position, FLATTEN all, and
        protection with them.
        """
        halted = command.kind is not CommandKind.RESUME
        flattens = command.kind is CommandKind.FLATTEN
        if halted is not self.halted:
            self.save = Save.NOW
        self.halted = halted
        if not halted and self.risk.state.breach is not None:
            self.risk.resume()
            self.save = Save.NOW
        orders: tuple[Order, ...] = ()
        if halted:
            orders = self.broker.cancel(command.kind.value, opening_only=not flattens)
        if flattens:
            orders += self.broker.flatten(
                self._closes(), sequence=self.sequence, at_ms=command.market_ms
            )
        return self._finish(command, None, Filled(orders=orders))

    def _closes(self) -> dict[str, int]:
        """Return the newest close of each instrument that has one."""
        return {
            key: bar.close
            for key, state in self.states.items()
            if (bar := state.history.last_bar) is not None
        }

    def _change_instrument(self, instrument: Instrument) -> None:
        """Use the exchange's new filters: for targets, orders and prices from now on."""
        self.states[instrument.id].change(instrument)
        self.broker.change(instrument)
        # A restart begins with filters, and knows no marks: the record must value it alike.
        self.mark_at_closes()

    def prepare(self, model_sha256: str, terms: ModelTerms) -> None:
        """Keep the *terms* of a model for the change to it, which is an event."""
        self._prepared[model_sha256] = terms

    def _change_model(self, change: ModelChange) -> None:
        """Go on after a start, or with another model: a promotion drops nothing of the market."""
        terms = self._prepared.pop(change.model_sha256, None)
        if terms is None or change.warm_from:
            self.forget_passing()
        if terms is not None:
            for state in self.states.values():
                state.change_model(terms)
            self.shadows.passing = terms.passing
            self.save = Save.NOW  # the regimes are others

    def forget_passing(self) -> None:
        """Drop what a restart drops, so that a replay of the record does the same here."""
        for state in self.states.values():
            state.forget_passing()
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
        filled: Filled = NOTHING_FILLED,
        decided: Decided = NOT_DECIDED,
        twins: tuple[TwinStep, ...] = (),
        *,
        accepted: bool = True,
        belief: str | None = None,
        saves: bool = True,
    ) -> Step:
        """Return the step of *event*.

        It *saves* the state where that is due; within a close only the last step does.
        """
        broker = self.broker
        position, account, entries = broker.own.report(instrument)
        if self._observed and instrument is not None:
            position = self._observed[instrument][None]
        if not twins and instrument is not None and (filled.shadows or self.is_hedged):
            twins = self.shadows.steps(broker, instrument, filled.shadows)
        sequence = self.sequence
        state: bytes | None = None
        if broker.save:
            self.save = max(self.save, broker.save)
            broker.save = _NO
        if self.declared and type(event) is Bar:
            declared = self.declared.get(event.instrument)
            if declared is not None and declared.changed():
                self.save = Save.NOW
        if self.save:
            if sequence % STATE_EVERY_STEPS == 0 and type(event) not in _NOTED:
                self.save = _NOW
            if self.save is _NOW and saves:
                state = self._encoded_state()
                self.save = _NO
        self.sequence = sequence + 1
        halted, self.risk.halted = self.risk.halted, None
        return Step(
            sequence, event, accepted, decided.decision, decided.prediction,
            as_they_stand(filled.orders, decided.orders) if decided.orders else filled.orders,
            filled.fills, position, account, twins, state, entries, belief, halted,
        )  # fmt: skip

    def state(self) -> EngineState:
        """Return the state that must survive a restart."""
        return EngineState(*self._carried(*self.broker.state()))

    def _encoded_state(self) -> bytes:
        """Return the encoding of :meth:`state`, of which most instruments' part is known already.

        With fifty instruments it is stored at each trade of any of them.
        """
        *parts, cells, chosen = self._carried(*self.broker.encoded_state())
        if chosen is not None:
            parts += [cells, chosen]
        elif cells:
            parts.append(cells)
        return msgspec.msgpack.encode(parts)

    def _carried(self, account: object, twins: object) -> tuple[Any, ...]:
        """Return the fields of ``EngineState``, with *account* and *twins* as they are given."""
        regimes = {key: state.regimes for key, state in self.states.items()}
        return (
            self.halted,
            {key: of.regime for key, of in regimes.items() if of.regime is not Regime.UNKNOWN},
            self.risk.state,
            account,
            twins,
            dict(self.prices.settled),
            dict(self.shadows.bases),
            # A portfolio's state has no instrument.
            {key: declared.encoded for key, declared in self.declared.items()},
            {key: of.cell for key, of in regimes.items() if of.cell is not None},
            self.risk.chosen,
        )
