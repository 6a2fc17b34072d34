"""``Decider``: how a strategy decides on one instrument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import nan
from operator import attrgetter
from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.broker.account import ENTRIES, Intent, PaperAccount
from tracepaper.daemon.broker.exit_plans import ExpectedReturn, Plan, ProtectionState
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.rules import below_step
from tracepaper.daemon.engine.history import InstrumentState
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.settings import (
    BLOCKING,
    EXITS_PASS,
    INTEGRITY,
    JUDGEMENT,
    EngineTerms,
)
from tracepaper.daemon.engine.state import RANDOM_GATE
from tracepaper.strategies.api.context import (
    AccountView,
    BarContext,
    Cancel,
    InstrumentContext,
    OrderRequest,
    Orders,
    Signal,
)
from tracepaper.strategies.api.sizing import NO_ACCOUNT, SizingAccount
from tracepaper.strategies.api.strategy import DeclaredState, PortfolioMember, observes
from tracepaper.strategies.gates.declared import edge
from tracepaper.strategies.gates.evaluator import is_finite_forecast
from tracepaper.strategies.gates.gate import GateInputs, refusal
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    DecisionOutcome,
    FillModel,
    Forecast,
    Prediction,
    PredictionTimeout,
    Regime,
    Repeat,
)
from tracepaper.strategies.types.market import Bar, Category, Instrument, Quote, Side

HORIZON: Final = "horizon"
_COLD: Final = Signal(Action.HOLD, "fewer bars than the warm-up")

OUTCOMES_KEPT: Final = 64
"""The most outcomes to remember: a strategy with ever new reasons must not fill the memory."""
TRADING: Final = "Trading"
"""The exchange's status of a symbol that accepts orders."""
OutcomeKey = tuple[Action, str, str | None, int, Regime, int | None, float | None]
"""Action, reason, passed gates, regime, cell and size factor: the identity of an outcome."""
Planned = Callable[[Line, Intent, Bar, int], tuple[Plan | None, str | None]]
"""Returns the exit plan of an entry at a bar and a time, and why it cannot be entered."""


class Decider:
    """The strategy on one instrument: its sizer, its gates, and its last decision.

    At each close it first observes the bar, then decides for the run's account. A shadow account
    follows the same signal by :meth:`follow`.
    """

    def __init__(self, market: InstrumentState, terms: EngineTerms, risk: RiskWatch) -> None:
        """Decide on *market* by *terms*."""
        instrument, settings = market.instrument, terms.settings
        key = instrument.id
        strategy, sizer = terms.strategies[key], terms.sizers[key]
        self.market, self.regimes = market, market.regimes
        self.strategy = strategy
        self._sizer = sizer
        self.observer = strategy.observe if observes(strategy) else None
        """Shows a bar to strategy and sizer; None if neither observes bars."""
        if sizer.bars > 0:
            self.observer = self._observe_with_sizer
        self.declared = DeclaredState.of(strategy)
        self.risk = risk
        model = settings.model
        self.evaluator = model.gates[key]
        self._by_quotes = settings.broker.execution is FillModel.QUOTE
        costs = settings.broker.costs_for(key)
        self._round_trip, self._share_fee = costs.round_trip, costs.per_share_of(instrument)
        self.inputs = GateInputs(
            round_trip_cost=self._round_trip,
            regimes=settings.regimes,
            learned_regimes=settings.learned_regimes,
            horizon_index=model.horizon_index,
            slope=model.slope,
            fitted=model.fitted,
            tails=model.tails,
        )
        """The inputs of the gates at the newest bar."""
        self.newest: Decision | None = None  # the newest that did not repeat the one before
        self.restored: DecisionOutcome | None = None  # of the last decision before a start
        self._outcomes: dict[OutcomeKey, DecisionOutcome] = {}  # those that may repeat
        # The newest decision if it holds nothing and no limit had a part in it: the same signal
        # and the same passed gates repeat it.
        self._flat: Decision | None = None
        self.signal: Signal | Orders | None = None  # the newest, even if a gate refused it
        self._exits = settings.broker.exits
        # Whether the newest signal or [exits] name a stop, a target or a time limit.
        self._wants_protection = False
        self.intent: Intent | Orders | None = None  # of the newest decision; None if refused
        self._context: BarContext | None = None  # the context that a portfolio got at this close
        # In a stretch: the bar that was observed before its step, and the strategy's answer to it.
        self.ahead: Bar | None = None
        self._answer: Signal | Orders | None = None
        self.decided: Decision | None = None  # in a stretch with a model: the decision on ``ahead``
        self._instrument_context = InstrumentContext.of(instrument, market.record, strategy.books)
        # The category of an instrument that cannot be sold short, for the reason of its FLAT.
        self._never_short = instrument.category.value if instrument.category.is_cash else ""
        self._flat_on_refusal = settings.flat_on_refusal

    # ------------------------------------------------------------ a start, new filters

    @property
    def verdict(self) -> DecisionOutcome | None:
        """The outcome of the newest decision, also of one before a restart of the same run."""
        return self.restored if self.newest is None else self.newest.outcome

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters."""
        self._instrument_context = replace(self._instrument_context, instrument=instrument)
        self._sizer.change(instrument)

    # ------------------------------------------------------------ a bar, from top to bottom

    def _observe_with_sizer(self, bar: Bar) -> None:
        self._sizer.observe(bar)
        self.strategy.observe(bar)

    def portfolio_context(
        self, bar: Bar, prediction: Prediction, account: PaperAccount, *, is_finite: bool | None
    ) -> BarContext:
        """Return a portfolio's context at the close of *bar*, before :meth:`decide`."""
        self._context = self._make_context(bar, prediction, account, is_finite=is_finite)
        return self._context

    def decide(
        self,
        bar: Bar,
        prediction: Prediction,
        account: PaperAccount,
        *,
        is_running: bool,
        is_finite: bool | None,
    ) -> Decision:
        """Return the decision for *account* at the close of *bar*, which was observed before.

        Afterwards ``intent`` is the account's intent. *is_finite* says whether the model's numbers
        were finite, None if there are none.
        """
        if (decision := self.decided) is not None:
            self.ahead = self.decided = None
            return decision
        market, inputs = self.market, self.inputs
        inputs.running, inputs.bars = is_running, self._warm_bars
        inputs.missing_bars, inputs.plausible = market.missing_bars, market.plausible
        inputs.late_ms = max(bar.seen_ms - bar.open_time_ms - bar.interval_ms, 0)
        if self._by_quotes:
            inputs.quote_age_ms = _age_ms(market.quote, bar)
            inputs.is_tradable = market.instrument.status == TRADING
        prepared, self._context = self._context, None
        context = prepared or self._make_context(bar, prediction, account, is_finite=is_finite)
        return self._judge(self._answer_to(context), bar, context.forecast, account)

    def _judge(
        self,
        signal: Signal | Orders,
        bar: Bar,
        forecast: Forecast | None,
        account: PaperAccount,
    ) -> Decision:
        """Return the decision on *signal* for *account*, after the gates.

        If a gate refuses a list, its requests that can only reduce still pass, except when the gate
        is one of ``BLOCKING``.
        """
        inputs, evaluator = self.inputs, self.evaluator
        before, self.signal = self.signal, signal
        if isinstance(signal, Signal) and signal is not before:
            names_none = signal.stop is signal.target is signal.trailing is signal.until is None
            self._wants_protection = self._exits is not None or not names_none
        if self.risk.active:
            self._see_signal(signal, bar, forecast, account)
        measures, passed = evaluator.judge(inputs)
        if (
            (last := self.newest) is self._flat
            and last is not None
            and last.outcome.passed == passed
            and last.outcome.regime is self.regimes.regime
            and last.outcome.regime_cell == self.regimes.cell
            and signal == before
            and account.lines[bar.instrument].target == 0
        ):
            self.newest = self._flat = Decision(last.outcome, 0, measures)
            return self._flat
        refused = evaluator.first_failed(passed, reduces=inputs.reduces)
        intent: Intent | Orders
        if isinstance(signal, Signal):
            intent = self.closing(refused) or self.follow(signal, bar, forecast, account, refused)
        else:
            intent = self.reducing_part(signal, bar, account, refused)
        action, target, factor = Action.ORDERS, None, None
        reason = intent.reason if refused is None else refusal(refused)
        if isinstance(intent, Intent):
            action, target, reason = intent.action, intent.target, intent.reason
            factor = self._sizer.factor(forecast) if action in ENTRIES else None
        outcome = self._outcome(action, reason, refused, passed, factor)
        # A target that the filters refused, or for which cash was lacking, is requested again at
        # each bar that no gate refuses. That includes HOLD, which keeps the last target.
        is_held = refused is not None and action is Action.HOLD
        self.intent = None if is_held else intent
        note = None if signal.note is None else dict(signal.note)
        decision = self.newest = Decision(outcome, target, measures, note)
        is_flat = action is Action.HOLD and target == 0 and signal.note is None
        self._flat = decision if is_flat and not self.risk.active else None
        return decision

    def reducing_part(
        self, orders: Orders, bar: Bar, account: PaperAccount, refused: str | None
    ) -> Orders | Intent:
        """Return the part of *orders* that the gate *refused* allows, or an intent instead."""
        if (closing := self.closing(refused)) is not None:
            return closing
        if refused is None:
            return orders
        kept = () if refused in BLOCKING else tuple(filter(self._reduces, orders.requests))
        is_flat = self._flat_on_refusal and refused in JUDGEMENT
        if is_flat or not kept:
            return self.follow(Signal(Action.HOLD, ""), bar, None, account, refused)
        return replace(orders, requests=kept)

    def closing(self, refused: str | None) -> Intent | None:
        """Return the intent that closes everything after a breach, or None.

        *refused* is the first failed gate; one of ``BLOCKING`` leaves everything unchanged.
        """
        reason = "" if refused in BLOCKING else self.risk.closing
        return Intent(Action.FLAT, 0, reason, ends_lists=True) if reason else None

    def follow(
        self,
        signal: Signal,
        bar: Bar,
        forecast: Forecast | None,
        account: PaperAccount,
        refused: str | None,
        *,
        is_full: bool = False,
    ) -> Intent:
        """Return the intent of *account* for *signal*; *refused* is the first failed gate, if any.

        A refusal by an integrity gate leaves everything unchanged, but those of ``EXITS_PASS`` let
        an exit pass. A refusal by judgement does what is configured, but an exit that does not come
        from the model passes. A position that has outlived its horizon is closed unless a gate of
        ``BLOCKING`` refuses.
        """
        line = account.lines[bar.instrument]
        action, reason = signal.action, signal.reason
        if refused is not None:
            is_judged = refused in JUDGEMENT or refused == RANDOM_GATE
            passes = refused in EXITS_PASS or (is_judged and self.strategy.exits_freely)
            if passes and action is Action.FLAT:
                return Intent(action, 0, reason)
            is_flat = self._flat_on_refusal and is_judged
            action, reason = Action.FLAT if is_flat else Action.HOLD, refusal(refused)
        if action is Action.HOLD:
            if refused not in BLOCKING and self._expired(bar, line):
                return Intent(Action.FLAT, 0, HORIZON)
            return Intent(action, line.target, reason)
        if action is Action.FLAT:
            return Intent(action, 0, reason)
        target = self._target(signal, bar, forecast, account, is_full=is_full)
        no_size = None
        is_sized = target != 0
        if self._sizer.by_stop:
            is_sized = self._exits is not None and bool(self._exits.stop or self._exits.trailing)
        if not is_sized:
            no_size = self._sizer.refusal(signal, target, line.target)
        expected = None if self._exits is None else self._expected(forecast)
        return Intent(action, target, reason, signal, self._wants_protection, no_size, expected)

    def stands_still(self, refused: str | None) -> bool:
        """Return whether the gate *refused* leaves every account as it is at the newest signal."""
        signal = self.signal
        may_exit = isinstance(signal, Orders) or (
            signal is not None and signal.action is Action.FLAT
        )
        return refused in (BLOCKING if may_exit else INTEGRITY)

    def hold(self, bar: Bar, account: PaperAccount, exposure: float) -> Intent:
        """Return the intent of a shadow account that holds *exposure* times its first cash.

        *exposure* is below zero for a short position. The target stays unless the new one differs
        by more than ``sizing.rebalance``.
        """
        standing = account.lines[bar.instrument].target
        target = self._sizer.held(bar.close, account.settings.cash, exposure, standing=standing)
        if target == standing == 0:
            return Intent(Action.HOLD, 0, "nothing was held so far")
        action = Action.LONG if target > 0 else Action.SHORT if target else Action.FLAT
        return Intent(action, target, "buy and hold")

    def value_of(self, price: int, quantity: int) -> int:
        """Return the unsigned value of *quantity* at *price*, in money."""
        return self._sizer.notional(price, abs(quantity))

    def unfilled(self, decision: Decision, refusal: str | None) -> Decision:
        """Return *decision* with *refusal*, why its target is neither reached nor ordered."""
        outcome = decision.outcome
        if refusal is None and decision.target_quantity == 0 and outcome.action in ENTRIES:
            refusal = below_step(self.market.instrument)
        if outcome.unfilled_reason == refusal:
            return decision
        self.newest = decision = replace(
            decision, outcome=replace(outcome, unfilled_reason=refusal)
        )
        return decision

    # ------------------------------------------------------------ stretches of repeated decisions

    @property
    def may_repeat(self) -> bool:
        """Whether its decisions depend on bars alone while no order rests and no gate refuses."""
        strategy = self.strategy
        looks_further = strategy.needs_forecast or strategy.sees_account or self.market.frame_bars
        return (
            not (looks_further or strategy.books or isinstance(strategy, PortfolioMember))
            and strategy.horizon is None
            and not self._sizer.sees_account
            and self.evaluator.is_plain
        )

    @property
    def may_decide_ahead(self) -> bool:
        """Whether its decisions depend on bars and forecasts alone."""
        strategy = self.strategy
        return not (strategy.sees_account or strategy.books or self._sizer.sees_account)

    @property
    def is_sized_by_signal(self) -> bool:
        """Whether a target depends on the signal and the standing target alone."""
        return self._sizer.follows_signal

    def decide_ahead(
        self, bar: Bar, prediction: Prediction, account: PaperAccount, *, is_finite: bool | None
    ) -> Decision:
        """Decide on *bar* before its step, which then takes the decision from ``decided``."""
        self.decided = None
        decision = self.decide(bar, prediction, account, is_running=True, is_finite=is_finite)
        self.decided = decision
        return decision

    def begin_stretch(self, line: Line) -> Repeat | None:
        """Return the decision that the directly following bars would repeat.

        None if it cannot repeat: some bars are not known, a gate refused it, its target is not
        reached, or its exit orders may change.
        """
        last, signal = self.newest, self.signal
        if (
            last is None
            or last.target_quantity is None
            or last.target_quantity != line.target
            or not line.is_reached(line.target)
            or not last.outcome.allowed
            or last.outcome.size_factor is not None
            # Any other reason for an unfilled target may be gone at the next bar.
            or last.outcome.unfilled_reason not in {None, below_step(self.market.instrument)}
            or not isinstance(signal, Signal)
            or ((line.others or line.is_guarded) and signal.action is Action.FLAT)
            or (signal.action in ENTRIES and not self._keeps_exits(line))
            or not self.market.is_full
        ):
            return None
        # Later bars of this kind have the same measures except for ``plausible``.
        inputs = self.inputs
        inputs.running, inputs.bars = True, self._warm_bars
        inputs.missing_bars = inputs.late_ms = 0
        inputs.plausible = 0.0
        measures, passed = self.evaluator.judge(inputs)
        if passed != last.outcome.passed:
            return None
        decision = Decision(last.outcome, last.target_quantity, measures)
        return Repeat(decision, self.evaluator.plausible_at, line.position, {})

    def _keeps_exits(self, line: Line) -> bool:
        """Whether a repeated entry may leave the exit orders of *line* as they are.

        It may not if they follow prices or [exits]; at a time limit the broker ends a stretch.
        """
        plan = line.protection.plan
        if plan is None:
            return not (self._wants_protection or line.others or line.is_guarded)
        # Without a trailing stop, whose level would follow prices:
        return self._exits is None and line.protection == ProtectionState(plan)

    def look_ahead(
        self, closes: tuple[int, int], repeat: Repeat, line: Line, planned: Planned
    ) -> Callable[[Bar, Prediction], bool]:
        """Return a function that asks about each of the directly following bars.

        It returns whether the step of a bar repeats the newest decision except for the note; it
        never does for a close outside *closes*, the lowest and the highest. It adds notes to
        *repeat*. It calls the sizer only for a close outside the prices at which the sizer is known
        to keep the position. An entry repeats if the broker has *planned* the exit orders that
        *line* has.
        """
        sizer, decide = self._sizer, self.strategy.decide
        signal, last = self.signal, self.newest
        assert isinstance(signal, Signal)
        assert last is not None
        self._answer, newest = signal, None
        outcome, standing = last.outcome, last.target_quantity or 0
        lowest, highest = closes
        least, most = (1, 0) if signal.action in ENTRIES and not sizer.follows_signal else closes
        grows = sizer.falls_with_price(signal)
        shared, regime = self._instrument_context, self.regimes.regime
        plan = line.protection.plan
        intent = self.intent if plan is not None and signal.action in ENTRIES else None
        assert not isinstance(intent, Orders)

        def repeats(bar: Bar, _prediction: Prediction) -> bool:
            nonlocal newest, least, most
            answer = decide(BarContext(bar, None, regime, outcome, None, shared))
            if answer is not newest:
                if not self._repeats_signal(answer, signal, repeat.notes, bar):
                    return False
                newest = answer if answer.note is None else None  # each bar stores its note
            if intent is not None and planned(line, intent, bar, bar.close_time_ms) != (plan, None):
                return False
            close = bar.close
            if least <= close <= most:
                return True
            if not lowest <= close <= highest or (
                signal.action in ENTRIES
                and sizer.target(signal, bar, None, standing=standing) != standing
            ):
                return False
            if grows:
                least, most = (
                    (close, close) if least > most else (min(least, close), max(most, close))
                )
            return True

        return repeats

    def slice_keeper(self, line: Line) -> Callable[[Sequence[Bar]], bool] | None:
        """Return a function that says whether an equal answer at all of some bars keeps *line*.

        None if bars cannot be taken together: the strategy is asked bar by bar, it observes or
        notes each, or an entry names levels that follow the price.
        """
        signal, sizer = self.signal, self._sizer
        assert isinstance(signal, Signal)
        is_entry = signal.action in ENTRIES
        if (
            not self.strategy.answers_by_column
            or self.observer is not None
            or signal.note is not None
            or (is_entry and line.protection.plan is not None)
        ):
            return None
        if not is_entry or sizer.follows_signal:
            return lambda _bars: True
        if not sizer.falls_with_price(signal):
            return None
        assert self.newest is not None
        standing = self.newest.target_quantity or 0

        def keeps(bars: Sequence[Bar]) -> bool:
            # The prices at which the target stays form an interval.
            ends = min(bars, key=_close_of), max(bars, key=_close_of)
            return all(
                sizer.target(signal, bar, None, standing=standing) == standing for bar in ends
            )

        return keeps

    def _repeats_signal(
        self,
        answer: Signal | Orders,
        signal: Signal,
        notes: dict[int, dict[str, float | str | None]],
        bar: Bar,
    ) -> bool:
        """Keep the *answer* at *bar*, and return whether it equals *signal* except for the note.

        The note goes into *notes*.
        """
        self._answer = allowed = self.as_allowed(answer)
        if allowed == signal:
            self._answer = signal
        elif not isinstance(allowed, Signal) or replace(allowed, note=signal.note) != signal:
            return False
        if allowed.note is not None:
            notes[bar.open_time_ms] = dict(allowed.note)
        return True

    # ------------------------------------------------------------ bars that change nothing

    @property
    def measured_by(self) -> tuple[object, ...]:
        """All settings on which the measures of the gates depend, besides bars and forecasts.

        The account is none of them: only limits depend on it.
        """
        market, tracker, inputs = self.market, self.regimes, self.inputs
        costs = inputs.round_trip_cost if edge.name in self.evaluator.gate_set.gates else None
        return (
            *(market.warmup, market.needed, market.frame_bars, tracker.followed_by, costs),
            *(inputs.horizon_index, inputs.slope, inputs.fitted, inputs.tails),
            *(inputs.regimes, inputs.learned_regimes),
        )

    @property
    def may_wait(self) -> bool:
        """Whether :meth:`wait` may take bars without steps; not those of sessions, with nights."""
        strategy = self.strategy
        return (
            not (strategy.books or strategy.sees_account)
            and not self._flat_on_refusal
            and self.market.instrument.category is not Category.STOCK
        )

    def wait(self, bars: Sequence[Bar], signal: Signal, passed: int, held: int) -> None:
        """Add *bars* at which *signal* kept the position *held*.

        *passed* has the gates that passed at the last of them.
        """
        self.market.wait(bars)
        if (observe := self.observer) is not None:
            for bar in bars:
                observe(bar)
        evaluator = self.evaluator
        refused = evaluator.first_failed(passed)
        reason = signal.reason if refused is None else refusal(refused)
        outcome = self._outcome(Action.HOLD, reason, refused, passed, None)
        self.newest = Decision(outcome, held, ())

    # ------------------------------------------------------------ parts of a decision

    @property
    def _warm_bars(self) -> int:
        """The number of known bars for the gate ``warm``.

        While a timeframe lacks candles, at least one bar counts as missing.
        """
        market = self.market
        if market.frame_bars and not market.is_warm:
            return min(market.bars, market.needed - 1)
        return market.bars

    def _outcome(
        self, action: Action, reason: str, refused: str | None, passed: int, factor: float | None
    ) -> DecisionOutcome:
        """Return the outcome; a repeated one is the same object, which is faster to store.

        Why a target is not filled is added later, by :meth:`unfilled`.
        """
        regime, cell = self.regimes.regime, self.regimes.cell
        last = None if self.newest is None else self.newest.outcome
        if (
            last is not None
            and last.passed == passed
            and last.refused_by == refused  # a failed limit refuses only what does not reduce
            and last.action is action
            and last.reason == reason
            and last.regime is regime
            and last.regime_cell == cell
            and last.size_factor == factor
        ):
            return last
        key = action, reason, refused, passed, regime, cell, factor
        outcome = self._outcomes.get(key)
        if outcome is None:
            if len(self._outcomes) >= OUTCOMES_KEPT:
                self._outcomes.clear()
            outcome = self._outcomes[key] = DecisionOutcome(
                action, reason, refused is None, refused, self.evaluator.gate_set, passed, regime,
                regime_cell=cell, size_factor=factor,
            )  # fmt: skip
        return outcome

    def _make_context(
        self, bar: Bar, prediction: Prediction, account: PaperAccount, *, is_finite: bool | None
    ) -> BarContext:
        """Return the strategy's context at the close of *bar*, and update the regime."""
        forecast = prediction if isinstance(prediction, Forecast) else None
        if self.strategy.needs_forecast:
            self.see_forecast(bar, prediction, is_finite=is_finite)
        history = self.market
        view: AccountView | None = None
        if self.strategy.sees_account:
            # The broker has matched *bar*. The decisions on other bars of its close are either
            # still to come or have changed nothing in this view.
            view = account.view(
                self.market.instrument, bars_since=partial(history.bars_held, bar=bar)
            )
        frames = {
            name: history.frames[name].last(count) for name, count in history.frame_bars.items()
        }
        regime, verdict = self.regimes.regime, self.verdict
        books = history.books if self.strategy.books else None
        return BarContext(
            bar, forecast, regime, verdict, view, self._instrument_context, frames, books
        )

    def see_forecast(self, bar: Bar, prediction: Prediction, *, is_finite: bool | None) -> None:
        """Set the inputs that follow from the model's *prediction*, and update the regime."""
        inputs, regimes = self.inputs, self.regimes
        inputs.finite = is_finite
        if self._share_fee:
            inputs.round_trip_cost = self._round_trip + 2 * self._share_fee / bar.close
        inputs.answered = not isinstance(prediction, PredictionTimeout)
        inputs.forecast = forecast = prediction if isinstance(prediction, Forecast) else None
        inputs.explanation = None if forecast is None else forecast.explanation
        regimes.follow(inputs.explanation)
        inputs.regime = regimes.regime

    def _answer_to(self, context: BarContext) -> Signal | Orders:
        """Return the strategy's answer; HOLD during its warm-up."""
        if self.ahead is not None:
            answer, self.ahead, self._answer = self._answer, None, None
            assert answer is not None
            return answer
        if not self.market.is_warm:
            return self.as_allowed(_COLD)
        return self.as_allowed(self.strategy.decide(context))

    def as_allowed(self, signal: Signal | Orders) -> Signal | Orders:
        """Return *signal* as the account can follow it.

        Spot and shares cannot be sold short: a SHORT becomes FLAT, and its reason names the
        category.
        """
        if self._never_short and isinstance(signal, Signal) and signal.action is Action.SHORT:
            reason = f"{self._never_short}: {signal.reason}"
            return Signal(Action.FLAT, reason, note=signal.note)
        return signal

    def _target(
        self,
        signal: Signal,
        bar: Bar,
        forecast: Forecast | None,
        account: PaperAccount,
        *,
        is_full: bool = False,
    ) -> int:
        """Return the target (signed) of *signal*; HOLD keeps the present target."""
        line = account.lines[bar.instrument]
        standing = line.target
        if signal.action is Action.HOLD:
            return standing
        sizing = NO_ACCOUNT
        if self._sizer.sees_account:
            equity = account.balance().equity
            sizing = SizingAccount(equity, account.gross_of_others(bar.instrument))
            if self._sizer.by_stop:
                expected, day_range = self._expected(forecast), self.market.day_range
                stop = line.planner.distance(signal, bar.close, day_range, expected)
                sizing = sizing._replace(stop=stop)
        target = self._sizer.target(
            signal, bar, forecast, standing=standing, account=sizing, is_full=is_full
        )
        if not self._sizer.of_equity:
            return target
        if target == standing:
            # A gap in price cut the order to what equity pays: that is no shortfall to order again.
            return (line.held or target) if line.shortfall else target
        return account.affordable(bar.instrument, target, bar.close)

    def _see_signal(
        self,
        signal: Signal | Orders,
        bar: Bar,
        forecast: Forecast | None,
        account: PaperAccount,
    ) -> None:
        """Set the inputs of the limits from *signal*."""
        line = account.lines[bar.instrument]
        if isinstance(signal, Signal):
            target = self._target(signal, bar, forecast, account)
            reduces = abs(target) <= abs(line.held) and target * line.held >= 0
        else:
            target, reduces = line.reach(signal.requests)
        self._see_target(bar, target, account, reduces=reduces)

    def _see_target(self, bar: Bar, target: int, account: PaperAccount, *, reduces: bool) -> None:
        """Set the inputs of the limits from the *target*."""
        inputs, market, risk, key = self.inputs, self.market, self.risk, bar.instrument
        notional = self.value_of(bar.close, target)
        inputs.reduces = reduces
        inputs.notional, inputs.is_short = notional, target < 0
        if risk.sees_gross:
            inputs.gross = notional + account.gross_of_others(key)
        if (book := risk.book) is not None:
            others = account.exposures_of_others(key)
            own, held = others.get(key, 0), account.exposure(key)
            after = own + (-notional if target < 0 else notional)
            inputs.book_shortfall = book.measure(
                {**others, key: after}, {**others, key: own + held}
            )
        if self._by_quotes and (quote := market.quote) is not None:
            inputs.spread_bp = 20_000 * (quote.ask - quote.bid) / (quote.ask + quote.bid)
        if (plausibility := market.plausibility) is not None:
            inputs.range_bp = plausibility.range_bp()
        risk.measure(
            inputs, account=account.balance(), market_ms=bar.market_ms, instrument=key,
            interval_ms=bar.interval_ms,
        )  # fmt: skip

    def _expected(self, forecast: Forecast | None) -> ExpectedReturn | None:
        """Return the forecast by which [exits] place levels; None if they need none."""
        if forecast is None or self._exits is None or not self._exits.measures:
            return None
        index, slope = self.inputs.horizon_index, self.inputs.slope
        columns = (forecast.mean_return, forecast.stdev_return, forecast.volatility)
        mean, stdev, volatility = (column[index] if column else nan for column in columns)
        return ExpectedReturn(mean * slope, stdev, volatility)

    def _expired(self, bar: Bar, line: Line) -> bool:
        """Return whether the target has outlived the horizon of its forecast."""
        horizon, confirmed_ms = self.strategy.horizon, line.confirmed_ms
        if horizon is None or line.target == 0:
            return False
        return bool(confirmed_ms) and self.market.bars_between(confirmed_ms, bar) >= horizon

    def _reduces(self, request: OrderRequest | Cancel) -> bool:
        """Return whether *request* cancels, or can only reduce the position."""
        if isinstance(request, Cancel) or request.reduce_only:
            return True
        return bool(self._never_short) and request.side is Side.SELL


_close_of: Final = attrgetter("close")


def checked_prediction(prediction: Prediction) -> tuple[Prediction, bool | None]:
    """Return the usable *prediction*, and whether its numbers are finite.

    A forecast that is not finite becomes None. The second value is None for a prediction without
    numbers.
    """
    if not isinstance(prediction, Forecast):
        return prediction, None
    if is_finite_forecast(prediction):
        return prediction, True
    return None, False


def _age_ms(quote: Quote | None, bar: Bar) -> int | None:
    """Return the age of *quote* at *bar*; None without a quote, or if it is newer than *bar*."""
    if quote is None or quote.market_ms > bar.seen_ms:
        return None
    return bar.seen_ms - quote.market_ms
