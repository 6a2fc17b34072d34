"""``Engine.step(event, prediction) -> Step``: all that an event causes.

The order inside a step is fixed: fill, mark, observe, judge, decide, submit. An order is filled at
the earliest by the event after its cause.

The rules are docs/time.md, T2, and docs/decisions.md, G13 to G18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, assert_never

import msgspec
from msgspec.structs import replace

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.broker.execution import DayRange, TrueRange
from tracepaper.daemon.broker.exit_orders import Plan
from tracepaper.daemon.broker.matching import Matched, matters_from, touched
from tracepaper.daemon.broker.orders import FLATTEN, UNCHANGED, Latency, Sent
from tracepaper.daemon.engine.instrument_state import (
    INTEGRITY,
    JUDGEMENT,
    InstrumentState,
    Intent,
    checked,
    is_entry,
)
from tracepaper.daemon.engine.price_checks import PLAIN, Price, PriceBelief
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.state import (
    BUY_AND_HOLD,
    COUNTED,
    RANDOM_GATE,
    EngineSettings,
    EngineState,
    ModelTerms,
    TwinBasis,
)
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
from tracepaper.strategies.gates.declared import warm
from tracepaper.strategies.gates.evaluator import GateEvaluator
from tracepaper.strategies.types.decisions import (
    Action,
    Confirmation,
    Decision,
    Fill,
    FillModel,
    Forecast,
    GateSet,
    LedgerEntry,
    Order,
    Position,
    Prediction,
    Regime,
    SinceDecided,
    Step,
    TwinStep,
)
from tracepaper.strategies.types.market import (
    Bar,
    Closed,
    Command,
    CommandKind,
    Depths,
    Event,
    FrameBar,
    Funding,
    Gap,
    Instrument,
    InstrumentChange,
    Mark,
    ModelChange,
    Prune,
    Quote,
    Reading,
    Retrained,
    RunEnd,
    Timer,
    Trade,
)

STATE_EVERY_STEPS: Final = 1_024
"""A confirmed position alone has the state stored this often: a prune cuts where it was."""

_NOTED: Final = frozenset({RunEnd, Prune})
"""What the log notes by itself: no engine sees it as it happens, so none stores its state there."""

OF_THE_RUN: Final = ""
"""Stands where an instrument does, for the state that a portfolio strategy declares."""


class Save(IntEnum):
    """Whether the state has to be stored."""

    NO = 0
    LATER = 1  # once in ``STATE_EVERY_STEPS``: only the steps say what has changed
    NOW = 2  # by this step; within a close, by its last one


class Filled(NamedTuple):
    """What an event did to the orders that rested: fills, changed orders, and the twins' fills."""

    fills: tuple[Fill, ...] = ()
    orders: tuple[Order, ...] = ()
    twins: Mapping[str, tuple[Fill, ...]] = {}

    def followed_by(self, later: Filled) -> Filled:
        """Return what both did, one after the other, in one step."""
        if later is NOTHING_FILLED:
            return self
        orders = {order.order_id: order for order in (*self.orders, *later.orders)}
        names = {*self.twins, *later.twins}
        twins = {name: self.twins.get(name, ()) + later.twins.get(name, ()) for name in names}
        return Filled(self.fills + later.fills, tuple(orders.values()), twins)


NOTHING_FILLED: Final = Filled()


class Engine:
    """The pure heart: the same events and predictions always cause the same steps."""

    def __init__(
        self,
        instruments: Sequence[Instrument],
        strategies: Mapping[str, Strategy],
        sizers: Mapping[str, Sizer],
        gates: Mapping[str, GateEvaluator],
        settings: EngineSettings,
    ) -> None:
        self._settings = settings
        self._risk = RiskWatch(
            settings.risk, flattens=settings.flatten_on_breach, calendar=settings.calendar
        )
        self._portfolio = portfolio_of(strategies.values())
        # One object has one state, whose owner is the run.
        owners = {key: DeclaredState.of(strategy) for key, strategy in strategies.items()}
        if self._portfolio is not None:
            owners = {OF_THE_RUN: DeclaredState.of(self._portfolio)}
        self._declared = {key: one for key, one in owners.items() if one is not None}
        self._declared_by_all = self._declared.get(OF_THE_RUN)
        self._day_ranges = {item.id: DayRange(settings.interval_ms) for item in instruments}
        self._states = {
            item.id: InstrumentState(
                item,
                strategies[item.id],
                sizers[item.id],
                gates[item.id],
                settings,
                self._risk,
                self._declared_by_all or self._declared.get(item.id),
                self._day_ranges[item.id],
            )
            for item in instruments
        }
        self._beliefs = {
            item.id: PriceBelief(
                item,
                self._states[item.id],
                ranges=settings.usual_ranges,
                agree_ms=settings.agree_within_ms,
            )
            for item in instruments
        }
        # What moves prices by their range is fed only where it is asked for.
        self._ranges = {item.id: TrueRange() for item in instruments if settings.costs.ranges}
        self._period_start_ms = settings.period_start_ms
        self._passing = settings.passing
        self._prepared: dict[str, ModelTerms] = {}  # by the model's hash
        self._is_on_margin = settings.leverage is not None
        self._account = self._new_account(instruments, keeps_ledger=True)
        seen = [key for key, strategy in strategies.items() if strategy.sees_account]
        self._account.ledger.fills = {key: [] for key in seen}
        self.sees_account = bool(seen) or any(sizer.sees_account for sizer in sizers.values())
        """Whether decisions depend on fills: of a strategy that sees the account, or by size."""
        self.has_horizon = any(one.horizon is not None for one in strategies.values())
        """Whether a signal of some strategy speaks for so many bars alone."""
        names = {name for strategy in strategies.values() for name in strategy.twins}
        self._twins = {name: self._new_account(instruments) for name in sorted(names)}
        self._bases: dict[str, TwinBasis] = {}
        if not COUNTED.isdisjoint(names):
            self._bases = {item.id: TwinBasis() for item in instruments}
        self._accounts = (self._account, *self._twins.values())
        self._ledgers = tuple(account.ledger for account in self._accounts)
        # Of each instrument that of every account: at most bars nothing rests in any of them.
        self._resting = {
            item.id: tuple(account.orders[item.id] for account in self._accounts)
            for item in instruments
        }
        self._by_quotes = settings.execution is FillModel.QUOTE
        self._settled: dict[str, int] = {}
        self._halted = False
        self._save = Save.NOW
        self.sequence = 0

    def _new_account(
        self, instruments: Sequence[Instrument], *, keeps_ledger: bool = False
    ) -> PaperAccount:
        """Return a new account as the settings open it."""
        settings = self._settings
        return PaperAccount(
            {item.id: item for item in instruments},
            settings.costs,
            costs_of=settings.costs_of,
            leverage=settings.leverage,
            cash=settings.cash,
            latency=Latency(settings.latency_ms, settings.latency_jitter_ms, settings.seed),
            fill_within_ms=settings.fill_within_ms,
            ranges=self._ranges,
            keeps_ledger=keeps_ledger,
        )

    # ------------------------------------------------------------ seams

    @property
    def gate_sets(self) -> tuple[GateSet, ...]:
        """The gate sets of all instruments, without repeats, in the instruments' order."""
        return tuple(dict.fromkeys(state.gates.gate_set for state in self._states.values()))

    @property
    def halted(self) -> bool:
        """Whether the operator halted trading."""
        return self._halted

    @property
    def breach(self) -> str:
        """The limit that halts new exposure until the operator says RESUME; empty if none."""
        return self._risk.state.breach

    @property
    def instruments(self) -> tuple[str, ...]:
        """The id of every instrument, in their order."""
        return tuple(self._states)

    @property
    def is_portfolio(self) -> bool:
        """Whether one strategy decides for all instruments of a close."""
        return self._portfolio is not None

    def signal_of(self, instrument: str) -> Signal | Orders | None:
        """Return the newest signal of *instrument*'s strategy, before gates and account."""
        return self._states[instrument].signal

    @property
    def since_decided(self) -> dict[str, SinceDecided]:
        """What became of the last decision on each instrument, and the fills since."""
        fills = self._account.ledger.fills
        return {
            key: SinceDecided(state.verdict, tuple(fills.get(key, ())))
            for key, state in self._states.items()
        }

    def strategy_of(self, instrument: str) -> Strategy:
        """Return the object that decides on *instrument*."""
        return self._states[instrument].strategy

    def warmup_of(self, instrument: str) -> int:
        """Return how many of the last bars decide on *instrument*."""
        return self._states[instrument].reach

    def warm_at(self, instrument: str, now_ms: int) -> int | None:
        """Return when *instrument* is decided on from enough bars; None where it is, at *now_ms*.

        No exchange's word is in it: bars that are missing by then make it later.
        """
        return self._states[instrument].warm_at(now_ms)

    def bars_before(self, start_ms: int) -> int:
        """Return how many bars of each instrument a new run wants before its period."""
        return max(state.bars_before(start_ms) for state in self._states.values())

    def lacking_frames(self, now_ms: int) -> list[FrameRange]:
        """Return which candles of higher frames the known bars do not reach at *now_ms*."""
        return [one for state in self._states.values() for one in state.lacking_frames(now_ms)]

    def frames_of(self, instrument: str) -> tuple[tuple[int, int, Row | None], ...]:
        """Return of each frame its length, how many bars are wanted, and the newest handed on."""
        return self._states[instrument].newest_frames

    def books_of(self, instrument: str) -> int:
        """Return how many of the newest order books of *instrument* its strategy looks at."""
        return self._states[instrument].strategy.books

    def range_bars_of(self, instrument: str) -> int:
        """Return how many of the last bars decide the range of a day of *instrument*."""
        return self._day_ranges[instrument].bars + 1

    def quote_from_ms(self, quote: Quote) -> int | None:
        """Return the market time from which quotes such as *quote* can change an order.

        None where none rests that this one could change.
        """
        if not self._by_quotes:
            return None
        key = quote.instrument
        times = [
            from_ms
            for account in self._accounts
            for order in account.orders[key].orders
            if (from_ms := matters_from(order, quote, account.orders[key].trail)) is not None
        ]
        due = [account.protectors[key].matters_from(quote) for account in self._accounts]
        return min(times + [from_ms for from_ms in due if from_ms is not None], default=None)

    def liquidates(self, mark: Mark) -> bool:
        """Return whether *mark* takes a position away, of the run's account or a twin's."""
        if not self._is_on_margin:
            return False
        bounds = (account.orders[mark.instrument].liquidation for account in self._accounts)
        return any(order is not None and touched(order, mark.price) for order in bounds)

    def doubts(self, price: Quote | Mark | Funding) -> bool:
        """Return whether *price* would not be believed by itself: others should be shown first."""
        belief = self._beliefs[price.instrument]
        if isinstance(price, Funding):
            return not belief.belief_in_rate(price)[0]
        return belief.doubts(price)

    def is_evidence(self, price: Price) -> bool:
        """Return whether *price* is evidence for what was not believed, or for an absurd rate."""
        return self._beliefs[price.instrument].is_evidence(price)

    def settled_ms(self, instrument: str) -> int:
        """Return the time of the newest settlement of *instrument* that was booked, or -1."""
        return self._settled.get(instrument, -1)

    def repeats(self, price: Quote | Mark) -> bool:
        """Return whether *price* only says again what its source said and was not believed."""
        return self._beliefs[price.instrument].repeats(price)

    def holds_quote(self, instrument: str) -> bool:
        """Return whether the newest quote of *instrument* was not believed."""
        return self._beliefs[instrument].holds_quote

    def state(self) -> EngineState:
        """Return what must survive a restart."""
        return EngineState(
            self._halted,
            self._regimes(),
            self._risk.state,
            self._account.state(),
            {name: twin.state() for name, twin in self._twins.items()},
            dict(self._settled),
            dict(self._bases),
            self.declared(),
            self._cells(),
        )

    @property
    def random_shares(self) -> list[float]:
        """The shares of bars, as a card counted them, that ``random_gate`` twins let through."""
        followed = (key for key, one in self._states.items() if RANDOM_GATE in one.strategy.twins)
        return [self._passing[key] for key in followed if key in self._passing]

    @property
    def counts_itself(self) -> bool:
        """Whether a twin depends on what the run did at each bar: see :meth:`count`."""
        return bool(self._bases)

    def count(self, step: Step) -> None:
        """Add what *step* did to what the twins depend on: bars after the warm-up alone count.

        A start does this for the steps behind the stored state.
        """
        bar, decision, position = step.event, step.decision, step.position
        if not isinstance(bar, Bar) or decision is None or position is None:
            return
        if decision.refused_by == warm.name:
            return  # nothing could be held yet
        before = self._bases[bar.instrument]
        value = self._states[bar.instrument].value_of(bar.close, position.quantity)
        judged = decision.refused_by not in INTEGRITY
        equity = step.account.equity
        self._bases[bar.instrument] = TwinBasis(
            before.bars + 1,
            before.judged + judged,
            before.passed + (judged and decision.refused_by not in JUDGEMENT),
            before.exposure + (value / equity if equity > 0 else 0.0),
        )
        self._save = self._save or Save.LATER

    def declared(self) -> dict[str, bytes]:
        """Return what the strategies declared as their state, encoded, by instrument.

        That of a portfolio stands once, under no instrument.
        """
        return {key: declared.encoded for key, declared in self._declared.items()}

    def hand_back(self, declared: Mapping[str, bytes]) -> None:
        """Give the strategies the *declared* state that a step stored, as :meth:`declared` says.

        Raises ``ConfigInvalid`` where one of them declares another kind of state now.
        """
        for key, encoded in declared.items():
            if key in self._declared:
                self._declared[key].hand_back(encoded)

    def restore(
        self,
        state: EngineState,
        *,
        next_sequence: int,
        confirmed: Iterable[Confirmation] = (),
        since: Mapping[str, SinceDecided] = {},
        taken_over: bool = False,
    ) -> None:
        """Take over the state of a run's last step; the bars come by :meth:`recall`.

        *confirmed* are the positions that were confirmed after that state was stored, oldest
        first. *since* is what became of each instrument's last decision in this run.
        *taken_over* says that it is another run's: the first step then stores it anew.
        """
        self._halted = state.halted
        for key, regime in state.regimes.items():
            self._states[key].regime = regime
        for key, cell in state.cells.items():
            self._states[key].cell = cell
        self._risk.state = state.risk
        self._account.restore(state.account, taken_over=taken_over)
        self._settled = dict(state.settled)
        if self._bases and not taken_over:
            self._bases.update(state.bases)
        for name, twin in state.twins.items():
            if name in self._twins:  # another run may have had other ones
                self._twins[name].restore(twin)
        self.hand_back(state.declared)
        self._save = Save.NOW if taken_over else Save.NO
        for one in confirmed:
            self._save = self._save or Save.LATER
            account = self._account if one.twin is None else self._twins.get(one.twin)
            if account is not None and self._states[one.instrument].strategy.horizon is not None:
                account.confirm(one.instrument, one.open_time_ms)
        fills = self._account.ledger.fills
        for key, known in since.items():
            self._states[key].restore(known.verdict)
            if key in fills:
                fills[key] = list(known.fills)
        self.sequence = next_sequence

    def recall(self, bar: Bar) -> None:
        """Observe a bar that the run already holds: it causes nothing, and is not a step."""
        self._look_back(bar)
        self._mark(bar.instrument, bar.close)

    def _warm_up(self, bar: Bar) -> None:
        """Observe a bar that only warms up, and value by it what no mark price values."""
        state = self._states[bar.instrument]
        self._look_back(bar)
        if not state.marked:
            self._mark(bar.instrument, bar.close)
        state.marked = False

    def _look_back(self, bar: Bar) -> None:
        """Observe *bar*, which only warms up, without valuing anything by it."""
        state = self._states[bar.instrument]
        before = state.last_bar
        state.recall(bar)
        if state.books is not None:
            self._beliefs[bar.instrument].hide_false(state.books, bar, before)
        self._day_ranges[bar.instrument].push(bar)
        if self._ranges:
            self._ranges[bar.instrument].push(bar)

    def recall_frame(self, known: FrameBar | Depths) -> None:
        """Take in a candle of a higher frame, or order books, that the run already holds."""
        self._states[known.instrument].take(known)

    def repeat(self, event: Event) -> None:
        """Take in an *event* whose step is known: it causes nothing, and is not a step.

        So the run-in of a derivation that begins in the midst of a run, after :meth:`restore`. Of
        the model's changes only starts are events here: the terms are those of its newest.
        """
        match event:
            case Bar():
                state = self._states[event.instrument]
                if state.last_bar is None or event.open_time_ms > state.last_bar.open_time_ms:
                    self._warm_up(event)
            case Quote() | Mark() | Trade():
                taken = self._beliefs[event.instrument].take(event)
                for price in (event, *taken.released):
                    if price is not event or taken.is_believed or isinstance(event, Quote):
                        self._learn(price)
            case FrameBar() | Depths():
                self.recall_frame(event)
            case Gap():
                self._states[event.instrument].miss(event)
            case ModelChange():
                self._forget_passing()
            case InstrumentChange():
                self._mark_at_closes()
            case _:
                pass

    def recall_range(self, bar: Bar) -> None:
        """Take in a bar before those of :meth:`recall`: the range of a day reaches further back."""
        self._day_ranges[bar.instrument].push(bar)

    # ------------------------------------------------------------ one step

    def step(self, event: Event, prediction: Prediction) -> Step:  # noqa: C901, PLR0911 - one case an event
        """Return all that *event* caused, given what the model predicted at it."""
        match event:
            case Bar():
                filled = self._observe(event, self.sequence)
                if self._portfolio is not None:
                    self._ask_all([event], [filled], [prediction])
                return self._decide(event, filled, prediction, event.market_ms)
            case Quote() | Mark() | Trade():
                return self._price(event)
            case Funding():
                return self._settle(event)
            case Command():
                return self._command(event)
            case ModelChange():
                self._start(event)
                return self._finish(event, None)
            case InstrumentChange():
                self._change(event.instrument)
                return self._finish(event, None)
            case Gap():
                self._states[event.instrument].miss(event)
                return self._finish(event, event.instrument)
            case FrameBar() | Depths():
                state = self._states[event.instrument]
                is_part, belief = state.take(event), None
                if isinstance(event, Depths) and state.books is not None:
                    books = state.books.books_of(event)
                    belief = self._beliefs[event.instrument].doubt_of(books)
                return self._finish(event, event.instrument, accepted=is_part, belief=belief)
            case Timer() | Closed() | RunEnd() | Prune() | Reading() | Retrained():
                return self._finish(event, None)
            case _:
                assert_never(event)

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
        observed = [self._observe(bar, first + place) for place, bar in enumerate(bars)]
        if self._portfolio is not None:
            self._ask_all(bars, observed, predictions)
        for bar, filled, prediction in zip(bars, observed, predictions, strict=True):
            at_ms = max(bar.market_ms, closed.market_ms)
            is_last = len(steps) == len(bars)
            steps.append(self._decide(bar, filled, prediction, at_ms, saves=is_last))
        return steps

    def _observe(self, bar: Bar, sequence: int) -> Filled | None:
        """Let *bar* fill what rests, mark and be observed; None where it is not the newest.

        Its step will be number *sequence*.
        """
        key = bar.instrument
        state = self._states[key]
        before = state.last_bar
        if before is not None and bar.open_time_ms <= before.open_time_ms:
            return None
        filled = NOTHING_FILLED
        if bar.open_time_ms < self._period_start_ms:
            self._warm_up(bar)  # an account that was taken over is younger: it meets nothing
            return filled
        # What rests was decided by an earlier bar; what this one decides waits for the next.
        if self._by_quotes:
            filled = self._fill_missed(bar, sequence)
        else:
            for resting in self._resting[key]:
                if resting.order is not None or resting.others or resting.is_guarded:
                    filled = self._fill(bar, sequence)
                    break
        if state.marked:
            state.marked = False
        else:
            self._mark(key, bar.close)
            if self._is_on_margin:
                taken = self._liquidate(key, bar.close, bar.close_time_ms, sequence)
                filled = filled.followed_by(taken)
        state.observe(bar)
        if state.books is not None:
            self._beliefs[key].hide_false(state.books, bar, before)
        self._day_ranges[key].push(bar)
        if self._ranges:
            self._ranges[key].push(bar)
        return filled

    def _ask_all(
        self,
        bars: Sequence[Bar],
        observed: Sequence[Filled | None],
        predictions: Sequence[Prediction],
    ) -> None:
        """Ask the portfolio about *bars*, and learn whether its state changed since the last."""
        self._ask(bars, observed, predictions)
        if self._declared_by_all is not None and self._declared_by_all.changed():
            self._save = Save.NOW

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
            state = self._states[bar.instrument]
            regime, cell = state.regime, state.cell
            said, is_finite = checked(prediction)
            seen = state.ask_with(bar, said, self._account, is_finite=is_finite)
            if state.regime is not regime or state.cell != cell:
                self._save = Save.NOW
            if state.is_warm:
                asked[state.instrument.symbol] = state, seen
        if not asked:
            return
        answers = self._portfolio.decide({symbol: seen for symbol, (_, seen) in asked.items()})
        for symbol, (state, _) in asked.items():
            assert isinstance(state.strategy, PortfolioMember)
            state.strategy.answer = answers.get(symbol, NOT_NAMED)

    def _decide(  # noqa: C901 - one line from top to bottom; a call costs what it would save
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
        if filled is None:
            # A revision is evidence, nothing more.
            return self._finish(bar, key, accepted=False, saves=saves)
        if bar.open_time_ms < self._period_start_ms:
            return self._finish(bar, key, filled, saves=saves)  # it only warms up
        state = self._states[key]
        is_finite = None
        if prediction is not None:
            prediction, is_finite = checked(prediction)
        regime, cell, risk = state.regime, state.cell, self._risk.state
        decision = state.decide(
            bar, prediction, self._account, is_running=not self._halted, is_finite=is_finite
        )
        if state.regime is not regime or state.cell != cell or self._risk.state is not risk:
            self._save = Save.NOW
        for resting in self._resting[key]:
            if resting.is_guarded:
                self._tell_protectors(key, state.signal)
                break
        sent, outcome = UNCHANGED, decision.outcome
        # A target that was refused by the filters or for want of cash is tried again at each bar
        # that no gate holds, HOLD included: HOLD leaves the last target standing.
        target = decision.target_quantity
        if target is None:
            sent = self._send(self._account, bar, state.allowed_orders, at_ms)
        elif outcome.allowed or outcome.action is not Action.HOLD:
            intent = (outcome.action, target, outcome.reason)
            sent = self._submit(self._account, bar, intent, at_ms, state.signal)
            decision = state.unfilled(decision, sent.refusal)
        if sent.orders and self._risk.active:
            self._risk.count_orders(sent.orders, at_ms)
        confirmed: Sequence[str] = ()
        if self._twins:
            confirmed = self._follow(state, bar, prediction, decision, at_ms)
        window, decided = state.hashes(prediction, decision)
        step = self._finish(
            bar, key, filled, sent.orders, decision, prediction, confirmed, window, decided,
            saves=saves,
        )  # fmt: skip
        if self._bases:
            self.count(step)  # from the next bar on
        return step

    def _tell_protectors(self, key: str, signal: Signal | Orders | None) -> None:
        """Let whoever waits for another signal on instrument *key* learn the newest one."""
        if isinstance(signal, Signal):
            for account in self._accounts:
                if account.on_signal(key, signal.action):
                    self._save = Save.NOW

    def _follow(
        self,
        state: InstrumentState,
        bar: Bar,
        prediction: Prediction,
        decision: Decision,
        at_ms: int,
    ) -> list[str]:
        """Let the twins act at a *decision*; return which of them confirmed their position.

        They skip the judgement gates and the limits; inputs that could not be believed bind them.
        """
        confirmed: list[str] = []
        if decision.refused_by in INTEGRITY:
            return confirmed
        forecast = prediction if isinstance(prediction, Forecast) else None
        for name in state.strategy.twins:
            twin = self._twins[name]
            passes = name != RANDOM_GATE or self._bases[bar.instrument].passes(
                bar.instrument, bar.open_time_ms, self._passing.get(bar.instrument)
            )
            if name == BUY_AND_HOLD:
                intent = state.hold(bar, twin, self._bases[bar.instrument].usual_exposure)
            elif isinstance(state.signal, Orders):
                if passes:
                    self._send(twin, bar, state.signal, at_ms)
                continue
            else:
                intent = state.follow(bar, forecast, twin, None if passes else RANDOM_GATE)
            self._submit(twin, bar, intent, at_ms, None if name == BUY_AND_HOLD else state.signal)
            if is_entry(intent[0]) and state.strategy.horizon is not None:
                confirmed.append(name)
        return confirmed

    def _submit(
        self,
        account: PaperAccount,
        bar: Bar,
        intent: Intent,
        at_ms: int,
        signal: Signal | Orders | None,
    ) -> Sent:
        """Ask *account* for what is intended; a target that HOLD leaves standing keeps its reason.

        What it enters is protected as *signal*, which asks for it, says. An entry confirms the
        position for another horizon. The step says that in a bit: the state is stored for it only
        now and then.
        """
        action, target, reason = intent
        key = bar.instrument
        orders = account.orders[key]
        plan: Plan | None = None
        if action is Action.LONG or action is Action.SHORT:
            state = self._states[key]
            if (refusal := state.size_refusal(signal)) is not None:
                return Sent((), refusal)
            if (orders.is_guarded or state.wants_protection) and isinstance(signal, Signal):
                planned = account.plan(signal, bar, at_ms, self._day_ranges[key])
                if isinstance(planned, str):
                    return Sent((), planned)
                plan = planned
            self._save = self._save or Save.LATER
            if state.strategy.horizon is not None:
                account.confirm(key, bar.open_time_ms)
        before = orders.target
        if orders.order is None and target == before == account.ledger.held(key):
            sent = UNCHANGED  # as at most bars
        else:
            sent = account.submit(
                key,
                target,
                order_id=orders.next_id(self.sequence),
                price=bar.close,
                reason=orders.reason if target == before and action is Action.HOLD else reason,
                at_ms=at_ms,
                opened_ms=bar.open_time_ms,
            )
            if sent.orders or before != target:
                self._save = Save.NOW
        changed: tuple[Order, ...] = ()
        if plan is not None and target:  # also where it was refused: HOLD asks for it again
            changed = account.protect(plan, bar, sequence=self.sequence, at_ms=at_ms)
            self._save = Save.NOW
        elif orders.is_guarded and action is Action.FLAT and target == 0:
            changed = account.leave(key, f"the signal is {action.value}")
            self._save = Save.NOW
        return sent._replace(orders=_as_they_stand(sent.orders, changed)) if changed else sent

    def _send(self, account: PaperAccount, bar: Bar, orders: Orders, at_ms: int) -> Sent:
        """Ask *account* for a list of orders; what it refuses is among them, REJECTED."""
        changed = account.send(orders, bar, sequence=self.sequence, at_ms=at_ms)
        if changed:
            self._save = Save.NOW
        return Sent(changed, None)

    def _fill_missed(self, bar: Bar, sequence: int) -> Filled:
        """Let what rests meet *bar* where its quotes were missed; else end whose time is over."""
        key = bar.instrument
        expired = Filled(orders=self._expire(key, bar.market_ms))
        if bar.open_time_ms >= self._states[key].missed_until_ms:
            for account in self._accounts:
                if account.on_quoted_bar(key):
                    self._save = Save.NOW
            return expired
        filled = self._fill(bar, sequence, while_down=True)
        return filled._replace(orders=_as_they_stand(expired.orders, filled.orders))

    def _fill(self, event: Bar | Quote, sequence: int, *, while_down: bool = False) -> Filled:
        """Let the resting orders of every account meet *event*; *while_down* marks their fills."""
        return self._match(
            lambda account: account.match(event, sequence, is_missed=while_down),
            while_down=while_down,
        )

    def _liquidate(self, instrument: str, mark: int, at_ms: int, sequence: int) -> Filled:
        """Liquidate in every account what *mark* has reached the liquidation price of."""
        if not self._is_on_margin:
            return NOTHING_FILLED
        return self._match(lambda account: account.match_mark(instrument, mark, sequence, at_ms))

    def _match(
        self, match: Callable[[PaperAccount], Matched], *, while_down: bool = False
    ) -> Filled:
        """Return what one event did to every account."""
        matched = match(self._account)
        if matched.ended_plan:
            self._save = Save.NOW
        if matched.orders:
            self._save = Save.NOW
            if self._risk.active:
                for one in matched.booked:
                    self._risk.count_fill(*one)
        twin_fills = {}
        for name, twin in self._twins.items():
            of_twin = match(twin)
            if of_twin.orders or of_twin.ended_plan:
                self._save = Save.NOW
            if of_twin.fills:
                twin_fills[name] = _marked(of_twin.fills, while_down=while_down)
        if not matched.orders and not twin_fills:
            return NOTHING_FILLED
        return Filled(_marked(matched.fills, while_down=while_down), matched.orders, twin_fills)

    def _expire(self, instrument: str, market_ms: int) -> tuple[Order, ...]:
        """Cancel what no quote filled in time, in every account; return the run's own orders."""
        expired = [account.expire(instrument, market_ms) for account in self._accounts]
        if any(expired):
            self._save = Save.NOW
        return expired[0]

    def _price(self, price: Price) -> Step:
        """Let *price* act if it is believed, and then what was believed on it."""
        key = price.instrument
        taken = self._beliefs[key].take(price)
        if taken is PLAIN:
            return self._finish(price, key, self._act(price))
        filled = NOTHING_FILLED
        if taken.is_believed:
            filled = self._act(price)
        elif isinstance(price, Quote):
            self._states[key].quote = price  # gates ask how old it is
            if self._by_quotes:
                filled = Filled(orders=self._expire(key, price.market_ms))
        for held in taken.released:
            filled = filled.followed_by(self._act(held))
        return self._finish(price, key, filled, belief=taken.words)

    def _act(self, price: Price) -> Filled:
        """Fill by a quote, or mark and liquidate by a mark price; a trade is evidence alone."""
        self._learn(price)
        if type(price) is Quote:
            return self._fill(price, self.sequence) if self._by_quotes else NOTHING_FILLED
        if type(price) is Mark:
            return self._liquidate(price.instrument, price.price, price.market_ms, self.sequence)
        return NOTHING_FILLED

    def _learn(self, price: Price) -> None:
        """Know a quote, or value what is held by a mark price."""
        state = self._states[price.instrument]
        if type(price) is Quote:
            state.quote = price
        elif type(price) is Mark:
            state.marked = True
            self._mark(price.instrument, price.price)

    def _settle(self, funding: Funding) -> Step:
        """Book a settlement once: one that is not newer than the last is recorded, no more.

        Nor is one whose rate is not believed.
        """
        key = funding.instrument
        if funding.market_ms <= self._settled.get(key, -1):
            return self._finish(funding, key, accepted=False)
        is_believed, words = self._beliefs[key].belief_in_rate(funding)
        if not is_believed:
            return self._finish(funding, key, accepted=False, belief=words)
        self._settled[key] = funding.market_ms
        self._save = Save.NOW
        for account in self._accounts:
            account.pay_funding(key, funding.rate)
        bounds = [
            a.set_liquidation_price(key, self.sequence, funding.market_ms) for a in self._accounts
        ]
        return self._finish(funding, key, sent=bounds[0], belief=words)

    def _command(self, command: Command) -> Step:
        """HALT holds everything, RESUME lifts it, FLATTEN halts and closes what is held.

        Of the orders by list, HALT cancels those that could open a position, FLATTEN all, and
        protection with them.
        """
        halted = command.kind is not CommandKind.RESUME
        flattens = command.kind is CommandKind.FLATTEN
        if halted is not self._halted:
            self._save = Save.NOW
        self._halted = halted
        if command.kind is CommandKind.RESUME and self._risk.state.breach:
            self._risk.resume()
            self._save = Save.NOW
        orders: tuple[Order, ...] = ()
        for key in self._states if halted else ():
            orders += self._account.withdraw(key, command.kind.value, opening_only=not flattens)
            if orders:
                self._save = Save.NOW
        if flattens:
            for ordinal, (key, state) in enumerate(self._states.items()):
                if state.last_bar is None:
                    continue
                self._save = Save.NOW
                orders += self._account.leave(key, FLATTEN)
                orders += self._account.submit(
                    key,
                    0,
                    order_id=f"{self.sequence}-{ordinal}",
                    price=state.last_bar.close,
                    reason=FLATTEN,
                    at_ms=command.market_ms,
                    by_command=True,
                ).orders
        return self._finish(command, None, sent=orders)

    def _change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters: for targets, orders and prices from now on."""
        self._states[instrument.id].change(instrument)
        self._beliefs[instrument.id].change(instrument)
        for account in self._accounts:
            account.change(instrument)
        # A restart begins with filters, and knows no marks: the record must value it alike.
        self._mark_at_closes()

    def prepare(self, model_sha256: str, terms: ModelTerms) -> None:
        """Keep the *terms* of a model for the change to it, which is an event."""
        self._prepared[model_sha256] = terms

    def _start(self, change: ModelChange) -> None:
        """Go on after a start, or with another model: a promotion drops nothing of the market."""
        terms = self._prepared.pop(change.model_sha256, None)
        if terms is None or change.warm_from:
            self._forget_passing()
        if terms is not None:
            for state in self._states.values():
                state.change_model(terms)
            self._passing = terms.passing
            self._save = Save.NOW  # the regimes are others

    def _forget_passing(self) -> None:
        """Drop what a restart drops, so that a replay of the record does the same here."""
        for key, state in self._states.items():
            state.forget_passing()
            self._beliefs[key].forget()
        self._mark_at_closes()

    def _mark_at_closes(self) -> None:
        for key, state in self._states.items():
            if state.last_bar is not None:
                self._mark(key, state.last_bar.close)

    def _mark(self, instrument: str, price: int) -> None:
        for ledger in self._ledgers:
            ledger.mark(instrument, price)

    # ------------------------------------------------------------ the record

    def _finish(  # noqa: PLR0913, PLR0917 - the fields of a step
        self,
        event: Event,
        instrument: str | None,
        filled: Filled = NOTHING_FILLED,
        sent: tuple[Order, ...] = (),
        decision: Decision | None = None,
        prediction: Prediction = None,
        confirmed: Sequence[str] = (),
        window_sha256: bytes | None = None,
        decision_sha256: bytes | None = None,
        *,
        accepted: bool = True,
        belief: str | None = None,
        saves: bool = True,
    ) -> Step:
        """Return the step of *event*; *confirmed* names the twins whose position it confirmed.

        It *saves* the state where that is due; within a close only the last step does.
        """
        account = self._account.ledger
        position: Position | None = None
        twins: tuple[TwinStep, ...] = ()
        if instrument is not None:
            position = account.position(instrument)
            if self._twins and (decision is not None or filled.twins):
                twins = self._twin_steps(instrument, filled.twins, confirmed)
        sequence = self.sequence
        state: bytes | None = None
        if self._declared and type(event) is Bar and self._has_changed(event.instrument):
            self._save = Save.NOW
        if (
            self._save is Save.LATER
            and sequence % STATE_EVERY_STEPS == 0
            and type(event) not in _NOTED
        ):
            self._save = Save.NOW
        if self._save is Save.NOW and saves:
            state = self._encoded_state()
            self._save = Save.NO
        self.sequence = sequence + 1
        ledger: tuple[LedgerEntry, ...] = ()
        if moved := account.entries:
            ledger = tuple(moved)
            moved.clear()
        return Step(
            sequence,
            event,
            accepted,
            decision,
            prediction,
            _as_they_stand(filled.orders, sent) if sent else filled.orders,
            filled.fills,
            position,
            account.account(),
            twins,
            window_sha256,
            decision_sha256,
            state,
            ledger,
            belief,
        )

    def _has_changed(self, instrument: str) -> bool:
        """Return whether the state of *instrument*'s own object changed at its last bar."""
        declared = self._declared.get(instrument)
        return declared is not None and declared.changed()

    def _regimes(self) -> dict[str, Regime]:
        """Return the regimes that are known."""
        known = ((key, state.regime) for key, state in self._states.items())
        return {key: regime for key, regime in known if regime is not Regime.UNKNOWN}

    def _encoded_state(self) -> bytes:
        """Return the encoding of :meth:`state`, of which most instruments' part is known already.

        With fifty instruments it is stored at each trade of any of them.
        """
        twins = {name: twin.encoded_state() for name, twin in self._twins.items()}
        parts = (
            self._halted,
            self._regimes(),
            self._risk.state,
            self._account.encoded_state(),
            twins,
            self._settled,
            self._bases,
            self.declared(),
        )
        if cells := self._cells():
            return msgspec.msgpack.encode((*parts, cells))
        return msgspec.msgpack.encode(parts)

    def _cells(self) -> dict[str, int]:
        """Return the cells of the card's own regimes that are known."""
        known = ((key, state.cell) for key, state in self._states.items())
        return {key: cell for key, cell in known if cell is not None}

    def _twin_steps(
        self, instrument: str, fills: Mapping[str, tuple[Fill, ...]], confirmed: Sequence[str]
    ) -> tuple[TwinStep, ...]:
        return tuple(
            TwinStep(
                name,
                twin.ledger.position(instrument),
                twin.ledger.account(),
                fills.get(name, ()),
                name in confirmed,
            )
            for name, twin in self._twins.items()
        )


def _marked(fills: Sequence[Fill], *, while_down: bool) -> tuple[Fill, ...]:
    """Return *fills*, marked where they happened *while_down*."""
    return tuple(replace(one, while_down=True) for one in fills) if while_down else tuple(fills)


def _as_they_stand(before: tuple[Order, ...], after: tuple[Order, ...]) -> tuple[Order, ...]:
    """Return each order once, as it stood *after* where it changed again."""
    if not before:
        return after
    return tuple({order.order_id: order for order in (*before, *after)}.values())
