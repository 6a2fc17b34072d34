"""``Engine.step(event, prediction) -> Step``: from an event to all that it caused.

The order inside a step is fixed: fill, mark, observe, judge, decide, submit. An order is filled at
the earliest by the event after its cause.

The rules are docs/time.md, T2, and docs/decisions.md, G13 to G18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar, assert_never

import msgspec

from tracepaper.daemon.engine.account import PaperAccount
from tracepaper.daemon.engine.instrument_state import (
    INTEGRITY,
    InstrumentState,
    Intent,
    checked,
    is_entry,
)
from tracepaper.daemon.engine.orders import FLATTEN, UNCHANGED, Sent
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.state import EngineSettings, EngineState
from tracepaper.strategies.gate_evaluator import GateEvaluator
from tracepaper.strategies.sizing import Sizer
from tracepaper.strategies.strategy import Strategy
from tracepaper.strategies.types import (
    Action,
    Bar,
    Closed,
    Command,
    CommandKind,
    Confirmation,
    Decision,
    Event,
    Fill,
    FillModel,
    Forecast,
    Funding,
    Gap,
    GateSet,
    Instrument,
    InstrumentChange,
    Mark,
    ModelChange,
    Order,
    Position,
    Prediction,
    Prune,
    Quote,
    Reading,
    Regime,
    RunEnd,
    Signal,
    Step,
    Timer,
    Trade,
    TwinStep,
)

STATE_EVERY_STEPS: Final = 1_024
"""A confirmed position alone has the state stored this often: a prune cuts where it was."""

E = TypeVar("E", Bar, Quote)


class Filled(NamedTuple):
    """What an event did to the orders that rested: fills, changed orders, and the twins' fills."""

    fills: tuple[Fill, ...] = ()
    orders: tuple[Order, ...] = ()
    twins: Mapping[str, Fill] = {}


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
        self._risk = RiskWatch(settings.risk)
        self._states = {
            item.id: InstrumentState(
                item, strategies[item.id], sizers[item.id], gates[item.id], settings, self._risk
            )
            for item in instruments
        }
        self._account = _account(instruments, settings)
        names = {name for strategy in strategies.values() for name in strategy.twins}
        self._twins = {name: _account(instruments, settings) for name in sorted(names)}
        self._accounts = (self._account, *self._twins.values())
        self._by_quotes = settings.execution is FillModel.QUOTE
        self._halted = False
        self._dirty = True  # the state has to be stored
        self._is_within = False  # a close, of which the last step stores it
        self._unsaved = False  # a position was confirmed since it was
        self.sequence = 0

    # ------------------------------------------------------------ seams

    @property
    def gate_sets(self) -> tuple[GateSet, ...]:
        """The gate sets of all instruments, without repeats, in the instruments' order."""
        return tuple(dict.fromkeys(state.gates.gate_set for state in self._states.values()))

    @property
    def halted(self) -> bool:
        """Whether the operator halted trading."""
        return self._halted

    def signal_of(self, instrument: str) -> Signal | None:
        """Return the newest signal of *instrument*'s strategy, before gates and account."""
        return self._states[instrument].signal

    def warmup_of(self, instrument: str) -> int:
        """Return how many of the last bars decide on *instrument*."""
        return self._states[instrument].remembered

    def quote_from_ms(self, instrument: str) -> int | None:
        """Return the market time from which a quote can fill an order, or None if none rests."""
        if not self._by_quotes:
            return None
        orders = [account.brokers[instrument].order for account in self._accounts]
        return min((order.eligible_ms for order in orders if order is not None), default=None)

    def state(self) -> EngineState:
        """Return what must survive a restart."""
        return EngineState(
            self._halted,
            self._regimes(),
            self._risk.state,
            self._account.state(),
            {name: twin.state() for name, twin in self._twins.items()},
        )

    def restore(
        self,
        state: EngineState,
        *,
        next_sequence: int,
        confirmed: Iterable[Confirmation] = (),
        taken_over: bool = False,
    ) -> None:
        """Take over the state of a run's last step; the bars come by :meth:`recall`.

        *confirmed* are the positions that were confirmed after that state was stored, oldest
        first. *taken_over* says that it is another run's: the first step then stores it anew.
        """
        self._halted = state.halted
        for key, regime in state.regimes.items():
            self._states[key].regime = regime
        self._risk.state = state.risk
        self._account.restore(state.account)
        for name, twin in state.twins.items():
            self._twins[name].restore(twin)
        for one in confirmed:
            self._unsaved = True
            account = self._account if one.twin is None else self._twins[one.twin]
            if self._states[one.instrument].strategy.horizon is not None:
                account.confirm(one.instrument, one.open_time_ms)
        self.sequence = next_sequence
        self._dirty = taken_over

    def recall(self, bar: Bar) -> None:
        """Observe a bar that the run already holds: it causes nothing, and is not a step."""
        self._states[bar.instrument].observe(bar)
        self._mark(bar.instrument, bar.close)

    # ------------------------------------------------------------ one step

    def step(self, event: Event, prediction: Prediction) -> Step:  # noqa: C901, PLR0911 - one case an event
        """Return all that *event* caused, given what the model predicted at it."""
        match event:
            case Bar():
                return self._decide(event, self._observe(event), prediction, event.market_ms)
            case Quote():
                return self._quote(event)
            case Mark():
                self._states[event.instrument].marked = True
                self._mark(event.instrument, event.price)
                return self._finish(event, event.instrument)
            case Funding():
                for account in self._accounts:
                    if account.pay_funding(event.instrument, event.rate):
                        self._dirty = True
                return self._finish(event, event.instrument)
            case Command():
                return self._command(event)
            case ModelChange():
                self._forget_passing()
                return self._finish(event, None)
            case InstrumentChange():
                self._change(event.instrument)
                return self._finish(event, None)
            case Gap() | Trade():
                return self._finish(event, event.instrument)
            case Timer() | Closed() | RunEnd() | Prune() | Reading():
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
        self._is_within = bool(bars)
        steps = [self._finish(closed, None)]
        observed = [self._observe(bar) for bar in bars]
        for bar, filled, prediction in zip(bars, observed, predictions, strict=True):
            at_ms = max(bar.market_ms, closed.market_ms)
            self._is_within = len(steps) < len(bars)
            steps.append(self._decide(bar, filled, prediction, at_ms))
        return steps

    def _observe(self, bar: Bar) -> Filled | None:
        """Let *bar* fill what rests, mark and be observed; None where it is not the newest."""
        key = bar.instrument
        state = self._states[key]
        if state.last_bar is not None and bar.open_time_ms <= state.last_bar.open_time_ms:
            return None
        # What rests was decided by an earlier bar; what this one decides waits for the next.
        filled = self._fill_at_open(bar)
        if state.marked:
            state.marked = False
        else:
            self._mark(key, bar.close)
        state.observe(bar)
        return filled

    def _decide(self, bar: Bar, filled: Filled | None, prediction: Prediction, at_ms: int) -> Step:
        """Return the step of *bar*, which was observed; orders are sent at market time *at_ms*."""
        key = bar.instrument
        if filled is None:
            return self._finish(bar, key, accepted=False)  # a revision is evidence, nothing more
        if bar.open_time_ms < self._settings.period_start_ms:
            return self._finish(bar, key, filled)  # it only warms up
        state = self._states[key]
        is_finite = None
        if prediction is not None:
            prediction, is_finite = checked(prediction)
        regime, risk = state.regime, self._risk.state
        decision = state.decide(
            bar, prediction, self._account, is_running=not self._halted, is_finite=is_finite
        )
        if state.regime is not regime or self._risk.state is not risk:
            self._dirty = True
        sent, outcome = UNCHANGED, decision.outcome
        # A target that was refused by the filters or for want of cash is tried again at each bar
        # that no gate holds, HOLD included: HOLD leaves the last target standing.
        if outcome.allowed or outcome.action is not Action.HOLD:
            intent = (outcome.action, decision.target_quantity, outcome.reason)
            sent = self._submit(self._account, bar, intent, at_ms)
            decision = state.unfilled(decision, sent.refusal)
        confirmed: Sequence[str] = ()
        if self._twins:
            confirmed = self._follow(state, bar, prediction, decision, at_ms)
        window, decided = state.hashes(prediction, decision)
        return self._finish(
            bar, key, filled, sent.orders, decision, prediction, confirmed, window, decided
        )

    def _follow(
        self,
        state: InstrumentState,
        bar: Bar,
        prediction: Prediction,
        decision: Decision,
        at_ms: int,
    ) -> list[str]:
        """Let the twins act on the signal of *decision*; return which confirmed their position.

        They skip the judgement gates and the limits; inputs that could not be believed bind them.
        """
        confirmed: list[str] = []
        if decision.refused_by in INTEGRITY:
            return confirmed
        forecast = prediction if isinstance(prediction, Forecast) else None
        for name in state.strategy.twins:
            twin = self._twins[name]
            intent = state.follow(bar, forecast, twin)
            self._submit(twin, bar, intent, at_ms)
            if is_entry(intent[0]) and state.strategy.horizon is not None:
                confirmed.append(name)
        return confirmed

    def _submit(self, account: PaperAccount, bar: Bar, intent: Intent, at_ms: int) -> Sent:
        """Ask *account* for what is intended; a target that HOLD leaves standing keeps its reason.

        An entry confirms the position for another horizon. The step says that in a bit: the state
        is stored for it only now and then.
        """
        action, target, reason = intent
        key = bar.instrument
        orders = account.brokers[key]
        if is_entry(action):
            self._unsaved = True
            if self._states[key].strategy.horizon is not None:
                account.confirm(key, bar.open_time_ms)
        before = orders.target
        if orders.order is None and target == before == account.portfolio.held(key):
            return UNCHANGED  # as at most bars
        sent = account.submit(
            key,
            target,
            order_id=f"{self.sequence}-0",
            price=bar.close,
            reason=orders.reason if target == before and action is Action.HOLD else reason,
            at_ms=at_ms,
        )
        if sent.orders or before != target:
            self._dirty = True
        return sent

    def _fill_at_open(self, bar: Bar) -> Filled:
        """Let what rests meet the open of *bar*; quotes fill it where there are quotes."""
        if self._by_quotes:
            return Filled(orders=self._expire(bar.instrument, bar.market_ms))
        for account in self._accounts:
            if account.brokers[bar.instrument].order is not None:
                return self._fill(PaperAccount.at_open, bar)
        return NOTHING_FILLED

    def _fill(
        self, against: Callable[[PaperAccount, E], tuple[Fill, Order] | None], event: E
    ) -> Filled:
        """Let the resting orders of every account meet *event*."""
        fills: tuple[Fill, ...] = ()
        orders: tuple[Order, ...] = ()
        twin_fills = {}
        if (filled := against(self._account, event)) is not None:
            fills, orders = (filled[0],), (filled[1],)
            self._dirty = True
            if self._risk.active and filled[0].quantity == filled[1].filled:
                self._risk.count_trade(filled[0].filled_ms)
        for name, twin in self._twins.items():
            if (filled := against(twin, event)) is not None:
                twin_fills[name] = filled[0]
                self._dirty = True
        return Filled(fills, orders, twin_fills)

    def _expire(self, instrument: str, market_ms: int) -> tuple[Order, ...]:
        """Cancel what no quote filled in time, in every account; return the run's own order."""
        expired = [account.expire(instrument, market_ms) for account in self._accounts]
        if any(expired):
            self._dirty = True
        return () if expired[0] is None else (expired[0],)

    def _quote(self, quote: Quote) -> Step:
        self._states[quote.instrument].quote = quote
        if not self._by_quotes:
            return self._finish(quote, quote.instrument)
        expired = self._expire(quote.instrument, quote.market_ms)
        filled = self._fill(PaperAccount.at_quote, quote)
        return self._finish(
            quote, quote.instrument, filled._replace(orders=expired + filled.orders)
        )

    def _command(self, command: Command) -> Step:
        """HALT holds everything, RESUME lifts it, FLATTEN halts and closes what is held."""
        halted = command.kind is not CommandKind.RESUME
        self._dirty |= halted is not self._halted
        self._halted = halted
        orders: tuple[Order, ...] = ()
        if command.kind is CommandKind.FLATTEN:
            for ordinal, (key, state) in enumerate(self._states.items()):
                if state.last_bar is None:
                    continue
                self._dirty = True
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
        for account in self._accounts:
            account.change(instrument)
        # A restart begins with filters, and knows no marks: the record must value it alike.
        self._mark_at_closes()

    def _forget_passing(self) -> None:
        """Drop what a restart drops, so that a replay of the record does the same here."""
        for state in self._states.values():
            state.quote, state.marked = None, False
        self._mark_at_closes()

    def _mark_at_closes(self) -> None:
        for key, state in self._states.items():
            if state.last_bar is not None:
                self._mark(key, state.last_bar.close)

    def _mark(self, instrument: str, price: int) -> None:
        for account in self._accounts:
            account.portfolio.mark(instrument, price)

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
    ) -> Step:
        """Return the step of *event*; *confirmed* names the twins whose position it confirmed."""
        portfolio = self._account.portfolio
        position: Position | None = None
        twins: tuple[TwinStep, ...] = ()
        if instrument is not None:
            position = portfolio.position(instrument)
            if self._twins and (decision is not None or filled.twins):
                twins = self._twin_steps(instrument, filled.twins, confirmed)
        sequence = self.sequence
        state: bytes | None = None
        if self._unsaved and sequence % STATE_EVERY_STEPS == 0:
            self._dirty = True
        if self._dirty and not self._is_within:
            state = self._encoded_state()
            self._dirty = self._unsaved = False
        self.sequence = sequence + 1
        return Step(
            sequence,
            event,
            accepted,
            decision,
            prediction,
            filled.orders + sent,
            filled.fills,
            position,
            portfolio.account(),
            twins,
            window_sha256,
            decision_sha256,
            state,
        )

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
        )
        return msgspec.msgpack.encode(parts)

    def _twin_steps(
        self, instrument: str, fills: Mapping[str, Fill], confirmed: Sequence[str]
    ) -> tuple[TwinStep, ...]:
        return tuple(
            TwinStep(
                name,
                twin.portfolio.position(instrument),
                twin.portfolio.account(),
                (fills[name],) if name in fills else (),
                name in confirmed,
            )
            for name, twin in self._twins.items()
        )


def _account(instruments: Sequence[Instrument], settings: EngineSettings) -> PaperAccount:
    """Return a new account as *settings* open it."""
    return PaperAccount(
        {item.id: item for item in instruments},
        settings.costs,
        cash=settings.cash,
        latency_ms=settings.latency_ms,
        fill_within_ms=settings.fill_within_ms,
    )
