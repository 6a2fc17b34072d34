"""``InstrumentState``: the engine's state of one instrument, and its decision at a close."""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.broker.account import Intent, PaperAccount, is_entry
from tracepaper.daemon.broker.execution import RANGE_BARS, DayRange
from tracepaper.daemon.engine.price_checks import PriceBelief
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.state import (
    INTEGRITY,
    JUDGEMENT,
    RANDOM_GATE,
    EngineSettings,
    ModelTerms,
)
from tracepaper.storage.record.digest import DecisionHash, WindowHash
from tracepaper.strategies.api.context import (
    AccountView,
    BarContext,
    BarRecord,
    Cancel,
    InstrumentContext,
    Note,
    OrderRequest,
    Orders,
    Signal,
    is_protected,
)
from tracepaper.strategies.api.sizing import NO_ACCOUNT, Sizer, SizingAccount
from tracepaper.strategies.api.strategy import DeclaredState, PortfolioMember, Strategy, remembered
from tracepaper.strategies.api.timeframes import (
    FrameRange,
    Row,
    TimeframeAggregator,
    frame_bars,
    open_frames_ms,
)
from tracepaper.strategies.gates.declared import plausible
from tracepaper.strategies.gates.evaluator import (
    YARDSTICK_BARS,
    YARDSTICK_LEAST,
    GateEvaluator,
    Plausibility,
    is_finite_forecast,
    next_regime,
)
from tracepaper.strategies.gates.gate import GateInputs, refusal
from tracepaper.strategies.order_book import BookRecord
from tracepaper.strategies.sessions import WATCHED_SESSIONS, SplitWatch
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    DecisionOutcome,
    FillModel,
    Forecast,
    Prediction,
    PredictionTimeout,
    Regime,
)
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Depths,
    FrameBar,
    Instrument,
    Quote,
    Side,
)
from tracepaper.strategies.units import DAY_MS, interval_start, unscaled

_NO_ORDERS: Final = Orders((), "")
TRADING: Final = "Trading"
"""The exchange's status of a symbol whose orders it takes."""
_COLD: Final = Signal(Action.HOLD, "fewer bars than the warm-up")

OUTCOMES_KEPT: Final = 64
_NO_CELL: int | None = None
"""Outcomes remembered at a time; reasons without end must not fill the memory."""

OutcomeKey = tuple[Action, str, int, Regime, int | None, float | None]
"""Action, reason, gates passed, regime, cell and factor: what outcomes are told apart by."""


class InstrumentState:
    """What the engine knows of one instrument.

    At each close the engine lets it :meth:`observe` the bar and :meth:`decide` for the run's own
    account; a twin's account follows the same signal by :meth:`follow`.
    """

    # By slots: of more than thirty attributes a dictionary is slower at every access.
    __slots__ = (
        "_bars",
        "_bounds",
        "_by_quotes",
        "_calendar",
        "_canonical",
        "_cash",
        "_cells",
        "_context",
        "_decision",
        "_decision_hash",
        "_flat_on_refusal",
        "_frames",
        "_inputs",
        "_instrument_context",
        "_interval_ms",
        "_keeps_bars",
        "_knows_bars",
        "_looks_at_bar_alone",
        "_never_short",
        "_outcomes",
        "_plausibility",
        "_reads_history",
        "_record",
        "_repeats",
        "_restored",
        "_risk",
        "_round_trip",
        "_sees_account",
        "_share_fee",
        "_sizer",
        "_splits",
        "_standing",
        "_wants_protection",
        "_warmup",
        "_window",
        "allowed_orders",
        "belief",
        "books",
        "cell",
        "day_range",
        "declared",
        "gates",
        "instrument",
        "intent",
        "last_bar",
        "quote",
        "reach",
        "regime",
        "remembered",
        "signal",
        "strategy",
    )

    def __init__(
        self,
        instrument: Instrument,
        strategy: Strategy,
        sizer: Sizer,
        gates: GateEvaluator,
        settings: EngineSettings,
        risk: RiskWatch,
        declared: DeclaredState | None,
    ) -> None:
        self.instrument, self.strategy, self.gates = instrument, strategy, gates
        self.declared = declared  # of this instrument alone, or of the portfolio
        self._splits = SplitWatch() if instrument.category is Category.STOCK else None
        self.remembered = max(
            remembered(strategy),
            sizer.bars,
            0 if self._splits is None else watched_bars(settings),
        )
        if settings.costs.ranges:
            self.remembered = max(self.remembered, RANGE_BARS + 1)
        wanted = frame_bars(strategy)
        base_ms = settings.interval_ms
        sessions = None if settings.calendar is None else settings.calendar.sessions
        self._frames = {
            name: TimeframeAggregator(instrument, name, base_ms, count, sessions)
            for name, count in wanted.items()
        }
        reach = (frame.reach for frame in self._frames.values())
        self.reach = max(self.remembered, *reach) if wanted else self.remembered
        self.last_bar: Bar | None = None
        self.quote: Quote | None = None
        self.belief = PriceBelief(
            instrument, self, ranges=settings.usual_ranges, agree_ms=settings.agree_within_ms
        )
        self.regime, self.cell = Regime.UNKNOWN, _NO_CELL
        self.signal: Signal | Orders | None = None  # the newest, whatever became of it
        self._wants_protection = False  # it asks for a stop, a target or a time limit
        self.allowed_orders = _NO_ORDERS  # what gates let through of the newest list
        self._context: BarContext | None = None  # what a portfolio was asked about this close with
        self._record, self.books = BarRecord(instrument, strategy.warmup), books_seen_by(strategy)
        self._instrument_context = InstrumentContext.of(instrument, self._record)
        self._reads_history, self._sees_account = strategy.reads_history, strategy.sees_account
        self._sizer = sizer
        self.day_range = DayRange(settings.interval_ms)  # for distances in volatility
        self.intent: Intent | Orders | None = None  # of the newest decision; None: gates hold it
        self._risk = risk
        self._bars, self._knows_bars = 0, False  # as many as the strategy looks back on
        self._warmup = max(strategy.warmup, sizer.bars)
        self._keeps_bars = sizer.bars > 0 or strategy.reads_history or bool(self._frames)
        # Where ``_look`` would look at nothing but the bar and the last verdict.
        self._looks_at_bar_alone = not (
            strategy.needs_forecast
            or strategy.sees_account
            or self._frames
            or self.books is not None
            or isinstance(strategy, PortfolioMember)
        )
        self._decision: Decision | None = None  # the newest decision that was not a repetition
        # Outcomes of decisions so far: what comes again is the same object, and is stored quickly.
        self._outcomes: dict[OutcomeKey, DecisionOutcome] = {}
        self._restored: DecisionOutcome | None = None  # of the last decision before a start
        self._standing: int | None = None  # the target before it
        # Where a decision follows from the signal, the verdict and the standing target alone.
        self._repeats = (
            strategy.horizon is None
            and not strategy.needs_forecast
            and sizer.follows_signal
            and not risk.active
        )
        self._inputs = GateInputs(
            horizon_index=settings.horizon_index,
            slope=settings.slope,
            round_trip_cost=settings.costs_for(instrument.id).round_trip,
            regimes=settings.regimes,
            fitted=settings.fitted,
        )
        self._plausibility = Plausibility() if plausible.name in gates.gate_set.gates else None
        self._by_quotes = settings.execution is FillModel.QUOTE
        # What a refused SHORT says: nothing is sold short that is paid for in full.
        self._never_short = instrument.category.value if instrument.category.is_cash else ""
        self._calendar = settings.calendar
        costs = settings.costs_for(instrument.id)
        self._round_trip, self._share_fee = costs.round_trip, costs.per_share_of(instrument)
        self._cash, self._flat_on_refusal = settings.cash, settings.flat_on_refusal
        self._bounds, self._cells = settings.bounds, (settings.cells, settings.hysteresis)
        self._window = WindowHash(instrument, settings.interval_ms, self.remembered)
        self._decision_hash = DecisionHash(instrument)
        self._canonical = b""  # the newest bar, as it is hashed
        self._interval_ms = settings.interval_ms

    def change_model(self, terms: ModelTerms) -> None:
        """Judge and size by another model's card from now on.

        Its regimes have other bounds, so what the old model's attention said is forgotten.
        """
        self._restored, self._decision = self.verdict, None
        self._outcomes = {}
        self.gates = terms.gates[self.instrument.id]
        self._inputs.horizon_index, self._inputs.slope = terms.horizon_index, terms.slope
        self._inputs.fitted = terms.fitted
        self._bounds, self._cells = terms.bounds, (terms.cells, self._cells[1])
        self.regime, self.cell = Regime.UNKNOWN, _NO_CELL
        self._sizer.change_model(terms.sizing_slope, terms.fitted)

    def usual_range(self) -> int | None:
        """Return twice the median of high - low over the last 60 bars; None under ten of them.

        Without the gate ``plausible`` at most as many are known again after a start as a day has.
        """
        if self._plausibility is not None:
            return self._plausibility.doubled_median
        spreads = sorted(bar.high - bar.low for bar in self.day_range.last(YARDSTICK_BARS))
        middle = len(spreads) // 2
        if len(spreads) < YARDSTICK_LEAST:
            return None
        return spreads[middle] + spreads[-middle - 1]

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters; decimals stay for as long as a run lasts."""
        self.instrument = instrument
        self._instrument_context = replace(self._instrument_context, instrument=instrument)
        self._sizer.change(instrument)
        self.belief.change(instrument)
        self._standing = None  # a repeated signal may have another size now

    @property
    def verdict(self) -> DecisionOutcome | None:
        """What became of the newest decision, those before a start of the same run included."""
        return self._restored if self._decision is None else self._decision.outcome

    @property
    def is_warm(self) -> bool:
        """Whether the last bars are known that the strategy looks back on."""
        return self._knows_bars and (
            not self._frames or all(frame.is_warm for frame in self._frames.values())
        )

    def warm_at(self, now_ms: int) -> int | None:
        """Return when all will be known that is looked back on; None where it is, at *now_ms*."""
        if self.is_warm and self._bars >= self._warmup:
            return None
        bars_ms = now_ms + (self._warmup - self._bars) * self._interval_ms
        frames = (frame.warm_at(now_ms) for frame in self._frames.values() if not frame.is_warm)
        return max([bars_ms, *frames])

    def bars_before(self, start_ms: int) -> int:
        """Return how many bars a new run wants before *start_ms*; its frames' older ones come."""
        from_ms = open_frames_ms(self._frames, start_ms)
        return max(self.remembered, (start_ms - from_ms) // self._interval_ms)

    def take(self, given: FrameBar | Depths) -> bool:
        """Take in a candle of a higher frame, or order books where the strategy looks at any.

        Return whether they are what they say: a candle may be none of its frame.
        """
        if isinstance(given, Depths):
            if self.books is not None:
                self.books.add(given)
            return True
        for frame in self._frames.values():
            if frame.length_ms == given.interval_ms:
                return frame.take(given)
        return False

    def forget_passing(self) -> None:
        """Drop what a restarted process does not know: prices and order books."""
        self.quote = None
        self.belief.forget()
        if self.books is not None:
            self.books.forget()

    def lacking_frames(self, now_ms: int) -> Iterator[FrameRange]:
        """Yield which candles of each frame are still wanted at *now_ms*."""
        for frame in self._frames.values():
            if (wanted := frame.lacking(now_ms)) is not None:
                yield wanted

    @property
    def newest_frames(self) -> tuple[tuple[int, int, Row | None], ...]:
        """Of each frame its length, how many bars are wanted, and the newest handed on."""
        return tuple(
            (frame.length_ms, frame.wanted, frame.bars.newest) for frame in self._frames.values()
        )

    def restore(self, verdict: DecisionOutcome | None) -> None:
        """Take over what became of the last decision before a start."""
        self._restored = verdict

    # ------------------------------------------------------------ a bar, from top to bottom

    def observe(self, bar: Bar) -> None:
        """Show *bar* to the strategy; add it to the window, the yardstick and the count."""
        inputs, last = self._inputs, self.last_bar
        inputs.missing_bars = 0
        if last is not None:
            # As ``_bars_between`` says it, without the call.
            gap_ms = bar.open_time_ms - last.open_time_ms
            if self._calendar is None:
                inputs.missing_bars = gap_ms // bar.interval_ms - 1
            else:
                inputs.missing_bars = self._bars_between(last.open_time_ms, bar) - 1
        if self._plausibility is not None:
            inputs.plausible = self._plausibility.add(bar, self.instrument.tick_size)
            if self._splits is not None and self._is_split(self._splits, bar):
                inputs.plausible = math.nan  # in usual ranges of other shares it means nothing
        if self._keeps_bars:
            self._keep(bar)
        self.strategy.observe(bar)
        self._canonical = self._window.push(bar)
        self.last_bar = bar
        if self._bars < self._warmup:
            self._bars += 1
            self._knows_bars = self._bars >= self.strategy.warmup
        if self.books is not None:
            self.belief.hide_false(self.books, bar, last)
        self.day_range.push(bar)

    def doubt_of(self, depths: Depths) -> str | None:
        """Say which of the order books of *depths* are not believed yet; None where none are."""
        if self.books is None:
            return None
        return self.belief.doubt_of(self.books.books_of(depths))

    def _keep(self, bar: Bar) -> None:
        """Show *bar* to what sizes by bars, to ``context.history`` and to higher frames."""
        if self._sizer.bars:
            self._sizer.observe(bar)
        if self._reads_history:
            self._record.append(bar)
        for frame in self._frames.values():
            frame.add(bar)

    def ask_with(
        self, bar: Bar, prediction: Prediction, account: PaperAccount, *, is_finite: bool | None
    ) -> BarContext:
        """Return what a portfolio is asked about the close of *bar* with, before :meth:`decide`."""
        self._context = self._look(bar, prediction, account, is_finite=is_finite)
        return self._context

    def _is_split(self, splits: SplitWatch, bar: Bar) -> bool:
        """Return whether *bar* shows a split that was not adjusted."""
        open_ms, calendar = bar.open_time_ms, self._calendar
        day = open_ms // DAY_MS if calendar is None else calendar.day_of(open_ms)
        return splits.add(day, open_ms, (bar.open, bar.close), bar.volume) is not None

    def _bars_between(self, open_ms: int, bar: Bar) -> int:
        """Return how many bars *bar* is after the one that opened at *open_ms*."""
        if self._calendar is not None:
            return self._calendar.between(open_ms, bar.open_time_ms)
        return (bar.open_time_ms - open_ms) // bar.interval_ms

    def recall(self, bar: Bar) -> None:
        """Observe a bar that only warms up: what is declared stays as it is."""
        self.observe(bar)
        if self.declared is not None:
            self.declared.hand_back(self.declared.encoded)

    def decide(
        self,
        bar: Bar,
        prediction: Prediction,
        account: PaperAccount,
        *,
        is_running: bool,
        is_finite: bool | None,
    ) -> Decision:
        """Return what is decided for *account* at the close of *bar*, which was observed.

        *is_finite* says whether the model's numbers were, None where there are none.
        """
        inputs = self._inputs
        inputs.running = is_running
        inputs.bars = self._bars
        if self._frames and not self.is_warm:
            inputs.bars = min(self._bars, self._warmup - 1)  # what a frame lacks is lacking too
        inputs.late_ms = max(bar.seen_ms - bar.open_time_ms - bar.interval_ms, 0)
        if self._by_quotes:
            inputs.quote_age_ms = self._quote_age_ms(bar)
            inputs.is_tradable = self.instrument.status == TRADING
        if self._looks_at_bar_alone:
            last = self._decision
            verdict = self._restored if last is None else last.outcome
            forecast = prediction if isinstance(prediction, Forecast) else None
            context = BarContext(
                bar, forecast, self.regime, verdict, None, self._instrument_context
            )
        else:
            asked, self._context = self._context, None
            context = asked or self._look(bar, prediction, account, is_finite=is_finite)
            forecast = context.forecast
        signal, before = self._signal(context), self.signal
        target = account.target(bar.instrument)
        standing, self._standing, self.signal = self._standing, target, signal
        if not isinstance(signal, Signal):  # the usual class is quickly told
            return self._decide_list(signal, bar, account)
        if signal is not before:
            self._wants_protection = is_protected(signal)
        if self._risk.active:
            self._measure_risk(bar, self._target(signal, bar, forecast, account), account)
        measures, passed = self.gates.judge(inputs)
        last = self._decision
        if (
            self._repeats
            and signal is before
            and signal.note is None
            and target == standing
            and last is not None
            and passed == last.outcome.passed
        ):
            return Decision(last.outcome, last.target_quantity, measures)
        refused = self.gates.first_failed(passed)
        intent = self._intent(signal, bar, forecast, account, refused)
        if self._risk.closes_all and refused not in INTEGRITY:
            intent = Intent(Action.FLAT, 0, f"halted by {self._risk.state.breach}")
        action = intent.action
        factor = self._sizer.factor(forecast) if is_entry(action) else None
        outcome = self._outcome_of(action, intent.reason, refused, passed, factor)
        # A target that was refused by the filters or for want of cash is asked for again at each
        # bar that no gate holds, HOLD included: HOLD leaves the last target standing.
        self.intent = intent if refused is None or action is not Action.HOLD else None
        last = self._decision = Decision(outcome, intent.target, measures, _kept(signal.note))
        return last

    def follow(
        self, bar: Bar, forecast: Forecast | None, account: PaperAccount, refused: str | None
    ) -> Intent:
        """Return what *account* is asked for by the newest signal, as if every gate had passed.

        *refused* names a gate of the twin's own that did not.
        """
        signal = self.signal
        assert isinstance(signal, Signal)
        return self._intent(signal, bar, forecast, account, refused)

    def hold(self, bar: Bar, account: PaperAccount, exposure: float) -> Intent:
        """Return what a twin is asked for that holds *exposure* of its first cash, long.

        A standing quantity stays unless the new one differs by more than ``sizing.rebalance``.
        """
        standing = account.target(bar.instrument)
        target = self._sizer.held(bar.close, self._cash, exposure, standing=standing)
        if target == 0:
            return Intent(Action.HOLD, standing, "nothing was held so far")
        return Intent(Action.LONG, target, "buy and hold")

    def value_of(self, price: int, quantity: int) -> int:
        """Return the money of *quantity*, without its sign, at *price*."""
        return self._sizer.notional(price, abs(quantity))

    def hashes(self, prediction: Prediction, decision: Decision) -> tuple[bytes, bytes]:
        """Return the hash of the bars that *decision* depends on, and its own for parity."""
        requests = self.allowed_orders.requests if decision.target_quantity is None else ()
        decided = self._decision_hash.digest(self._canonical, prediction, decision, requests)
        window = self._window.digest()
        if self._frames:
            parts = (frame.bars.sha256 for frame in self._frames.values())
            window = sha256(window + b"".join(parts)).digest()
        if self.books is not None and self.last_bar is not None:
            window = sha256(window + self.books.digest(self.last_bar.close_time_ms)).digest()
        return window, decided

    def _decide_list(self, orders: Orders, bar: Bar, account: PaperAccount) -> Decision:
        """Return what is decided where the strategy asks for a list of orders.

        What a gate refuses that is not of integrity still lets through what can only reduce.
        """
        inputs = self._inputs
        if self._risk.active:
            reach, reduces = account.reach(bar.instrument, orders)
            self._measure_risk(bar, reach, account, reduces=reduces)
        measures, passed = self.gates.judge(inputs)
        refused = self.gates.first_failed(passed)
        if refused is not None:
            kept = () if refused in INTEGRITY else filter(self._reduces, orders.requests)
            orders = replace(orders, requests=tuple(kept))
        self.allowed_orders = self.intent = orders
        action, reason = Action.ORDERS, orders.reason
        target: int | None = None
        if refused is not None:
            reason = refusal(refused)
            is_flat = self._flat_on_refusal and refused in JUDGEMENT
            if is_flat or self._risk.closes_all or not orders.requests:
                asked = Signal(Action.HOLD, reason)
                intent = self._intent(asked, bar, None, account, refused)
                action, target, reason = intent.action, intent.target, intent.reason
                self.intent = None if action is Action.HOLD else intent
        outcome = self._outcome_of(action, reason, refused, passed)
        last = self._decision = Decision(outcome, target, measures, _kept(orders.note))
        return last

    def _reduces(self, request: OrderRequest | Cancel) -> bool:
        """Return whether *request* can only bring the position down, or takes an order back."""
        if isinstance(request, Cancel) or request.reduce_only:
            return True
        return bool(self._never_short) and request.side is Side.SELL

    # ------------------------------------------------------------ the steps of that line

    def _quote_age_ms(self, bar: Bar) -> int | None:
        """Return the newest quote's age; None where there is none, or it is dated after *bar*."""
        quote = self.quote
        if quote is None or quote.market_ms > bar.seen_ms:
            return None
        return bar.seen_ms - quote.market_ms

    def _consider(self, prediction: Prediction, forecast: Forecast | None) -> None:
        """Lay out what the model said for the gates, and follow the regime."""
        inputs = self._inputs
        inputs.answered = not isinstance(prediction, PredictionTimeout)
        inputs.forecast = forecast
        explanation = inputs.explanation = None if forecast is None else forecast.explanation
        mass = None if explanation is None else explanation.recent_mass
        if mass is not None and self._bounds is not None:
            self.regime = next_regime(self.regime, mass, self._bounds)
        cells, hysteresis = self._cells
        if explanation is not None and cells is not None:
            seen = [getattr(explanation, name) for name in cells.names]
            self.cell = cells.next_cell(self.cell, seen, hysteresis)
        inputs.regime = self.regime

    def _look(
        self, bar: Bar, prediction: Prediction, account: PaperAccount, *, is_finite: bool | None
    ) -> BarContext:
        """Return what the strategy may know at the close of *bar*; the regime follows it."""
        forecast = prediction if isinstance(prediction, Forecast) else None
        if self.strategy.needs_forecast:
            self._inputs.finite = is_finite
            if self._share_fee:
                costs = self._round_trip + 2 * self._share_fee / bar.close
                self._inputs.round_trip_cost = costs
            self._consider(prediction, forecast)
        last = self._decision
        verdict = self._restored if last is None else last.outcome
        seen = self._seen_of(account, bar) if self._sees_account else None
        frames = {name: frame.bars for name, frame in self._frames.items()}
        books = self.books
        return BarContext(
            bar, forecast, self.regime, verdict, seen, self._instrument_context, frames, books
        )

    def _seen_of(self, account: PaperAccount, bar: Bar) -> AccountView:
        """Return what the strategy sees of *account*; its fills are no news after that.

        *bar* has filled, marked and been observed. No other bar of its close is decided yet, or
        what was decided changed nothing that is shown here.
        """
        opened_ms = account.opened_ms(bar.instrument)
        if self._calendar is None:
            opened_ms = interval_start(opened_ms, bar.interval_ms)
        return account.view(self.instrument, bars_held=self._bars_between(opened_ms, bar) + 1)

    def _signal(self, context: BarContext) -> Signal | Orders:
        """Return the strategy's answer, HOLD while it is cold.

        What is paid in full is not sold short: that is FLAT, and its reason follows the category.
        """
        is_warm = self.is_warm if self._frames else self._knows_bars
        signal = self.strategy.decide(context) if is_warm else _COLD
        if self._never_short and isinstance(signal, Signal) and signal.action is Action.SHORT:
            reason = f"{self._never_short}: {signal.reason}"
            return Signal(Action.FLAT, reason, note=signal.note)
        return signal

    def _target(
        self, signal: Signal, bar: Bar, forecast: Forecast | None, account: PaperAccount
    ) -> int:
        """Return the quantity that *signal* asks for; HOLD asks for the standing target."""
        standing = account.target(bar.instrument)
        if signal.action is Action.HOLD:
            return standing
        known = NO_ACCOUNT
        if self._sizer.sees_account:
            equity = account.balance().equity
            known = SizingAccount(equity, account.gross_of_others(bar.instrument))
            if self._sizer.by_stop:
                stop = account.stop_distance(signal, bar, self.day_range)
                known = known._replace(stop=stop)
        return self._sizer.target(signal, bar, forecast, standing=standing, account=known)

    def _measure_risk(
        self, bar: Bar, target: int, account: PaperAccount, *, reduces: bool | None = None
    ) -> None:
        """Measure what the risk gates judge, now that the target is known."""
        inputs, held = self._inputs, account.held(bar.instrument)
        if reduces is None:
            reduces = abs(target) <= abs(held) and target * held >= 0
        inputs.reduces = reduces
        inputs.notional = self._sizer.notional(bar.close, abs(target))
        if self._risk.sees_gross:
            inputs.gross = inputs.notional + account.gross_of_others(bar.instrument)
        if self._by_quotes and (quote := self.quote) is not None:
            inputs.spread_bp = 20_000 * (quote.ask - quote.bid) / (quote.ask + quote.bid)
        if self._plausibility is not None:
            inputs.range_bp = self._plausibility.range_bp()
        self._risk.measure(
            inputs,
            account=account.balance(),
            market_ms=bar.market_ms,
            instrument=bar.instrument,
            interval_ms=bar.interval_ms,
        )

    def _intent(
        self,
        signal: Signal,
        bar: Bar,
        forecast: Forecast | None,
        account: PaperAccount,
        refused: str | None,
    ) -> Intent:
        """Return what becomes of *signal* in an account where gate *refused* failed first.

        Refused by an integrity gate, everything stays as it is; refused by judgement, as
        configured, but an exit that is not the model's goes on. What outlived its horizon is
        closed wherever the inputs could be believed.
        """
        action, reason = signal.action, signal.reason
        if refused is not None:
            is_judged = refused in JUDGEMENT or refused == RANDOM_GATE
            if is_judged and action is Action.FLAT and self.strategy.exits_freely:
                return Intent(action, 0, reason)
            is_flat = self._flat_on_refusal and is_judged
            action, reason = Action.FLAT if is_flat else Action.HOLD, refusal(refused)
        if action is Action.HOLD:
            if refused not in INTEGRITY and self._expired(bar, account):
                return Intent(Action.FLAT, 0, "horizon")
            return Intent(action, account.target(bar.instrument), reason)
        if action is Action.FLAT:
            return Intent(action, 0, reason)
        target = self._target(signal, bar, forecast, account)
        no_size = self._sizer.refusal(signal) if self._sizer.by_stop else None
        return Intent(action, target, reason, signal, self._wants_protection, no_size)

    def _expired(self, bar: Bar, account: PaperAccount) -> bool:
        """Return whether the standing target has outlived the horizon of its forecast."""
        horizon, key = self.strategy.horizon, bar.instrument
        if horizon is None or account.target(key) == 0:
            return False
        confirmed_ms = account.confirmed_ms(key)
        return bool(confirmed_ms) and self._bars_between(confirmed_ms, bar) >= horizon

    def _outcome_of(
        self,
        action: Action,
        reason: str,
        refused: str | None,
        passed: int,
        factor: float | None = None,
    ) -> DecisionOutcome:
        """Return the outcome, of those so far where it comes again: it is stored once.

        Why a target was not filled is no part of the question: :meth:`unfilled` follows.
        """
        last = None if self._decision is None else self._decision.outcome
        if (
            last is not None
            and last.passed == passed
            and last.action is action
            and last.reason == reason
            and last.regime is self.regime
            and last.regime_cell == self.cell
            and last.size_factor == factor
        ):
            return last
        key = action, reason, passed, self.regime, self.cell, factor
        outcome = self._outcomes.get(key)
        if outcome is None:
            if len(self._outcomes) >= OUTCOMES_KEPT:
                self._outcomes.clear()
            outcome = self._outcomes[key] = DecisionOutcome(
                action, reason, refused is None, refused, self.gates.gate_set, passed, self.regime,
                regime_cell=self.cell, size_factor=factor,
            )  # fmt: skip
        return outcome

    def unfilled(self, decision: Decision, refusal: str | None) -> Decision:
        """Return *decision* with the reason why its target is neither reached nor ordered."""
        outcome = decision.outcome
        if refusal is None and not decision.target_quantity and is_entry(outcome.action):
            step = unscaled(self.instrument.quantity_step, self.instrument.quantity_decimals)
            refusal = f"size below the step {step}"
        if outcome.unfilled_reason == refusal:
            return decision
        outcome = replace(outcome, unfilled_reason=refusal)
        self._decision = decision = replace(decision, outcome=outcome)
        return decision


def _kept(note: Note | None) -> dict[str, float | str | None] | None:
    """Return *note* as a decision keeps it."""
    return None if note is None else dict(note)


def checked(prediction: Prediction) -> tuple[Prediction, bool | None]:
    """Return *prediction* as it may be used and stored, and whether it was finite.

    None stands for a prediction without numbers.
    """
    if not isinstance(prediction, Forecast):
        return prediction, None
    if is_finite_forecast(prediction):
        return prediction, True
    return None, False


def books_seen_by(strategy: Strategy) -> BookRecord | None:
    """Return what keeps the order books that *strategy* looks at; None where it looks at none."""
    return BookRecord(strategy.books) if strategy.books else None


def watched_bars(settings: EngineSettings) -> int:
    """Return how many bars hold the sessions that a ``SplitWatch`` depends on."""
    if settings.calendar is not None:
        return WATCHED_SESSIONS * settings.calendar.bars_a_day
    return WATCHED_SESSIONS * max(DAY_MS // settings.interval_ms, 1)
