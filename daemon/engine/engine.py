"""``Engine.step(event, answer) -> Step``: the straight line from an event to all it caused.

The order inside a step is fixed: fill, mark, observe, forecast, judge, decide, submit. An order
is filled at the earliest by the event after its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar, assert_never

import msgspec

from tracepaper.daemon.engine.account import PaperAccount
from tracepaper.daemon.engine.instrument_state import INTEGRITY, InstrumentState, checked
from tracepaper.daemon.engine.orders import FLATTEN, UNCHANGED, Sent
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.state import EngineSettings, EngineState
from tracepaper.strategies.gate_evaluator import GateEvaluator
from tracepaper.strategies.sizing import Sizer
from tracepaper.strategies.strategy import Strategy
from tracepaper.strategies.types import (
    Action,
    Bar,
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
    RunEnd,
    Signal,
    Step,
    Timer,
    Trade,
    TwinStep,
)

STATE_EVERY_STEPS: Final = 1_024
"""A confirmed position alone has the state stored this often: a prune cuts where it was."""

_Filled = tuple[tuple[Fill, ...], tuple[Order, ...], Mapping[str, Fill]]
_NO_TWINS: Final[Mapping[str, Fill]] = {}
_NOTHING: Final[_Filled] = ((), (), _NO_TWINS)
E = TypeVar("E", Bar, Quote)


class Engine:
    """The pure heart: the same events and predictions always cause the same steps."""

    def __init__(
        self,
        instruments: Sequence[Instrument],
        strategies: Mapping[str, Strategy],
        sizers: Mapping[str, Sizer],
        benches: Mapping[str, GateEvaluator],
        settings: EngineSettings,
    ) -> None:
        self._settings = settings
        self._instruments = {item.id: item for item in instruments}
        self._desks = {
            key: InstrumentState(item, strategies[key], sizers[key], benches[key], settings)
            for key, item in self._instruments.items()
        }
        self._ledger = self._open_ledger()
        names = {name for strategy in strategies.values() for name in strategy.twins}
        self._twins = {name: self._open_ledger() for name in sorted(names)}
        self._risk = RiskWatch(settings.risk)
        self._by_quotes = settings.execution is FillModel.QUOTE
        self._halted = False
        self._dirty = True  # the state has to be stored
        self._unsaved = False  # a position was confirmed since it was
        self._confirmed: list[str] = []  # twins whose position this step confirmed
        self.sequence = 0

    def _open_ledger(self) -> PaperAccount:
        given = self._settings
        return PaperAccount(
            self._instruments,
            given.terms,
            cash=given.cash,
            latency_ms=given.latency_ms,
            fill_within_ms=given.fill_within_ms,
        )

    # ------------------------------------------------------------ seams

    @property
    def gate_sets(self) -> tuple[GateSet, ...]:
        """The gate sets of all instruments, without repeats, in the instruments' order."""
        return tuple(dict.fromkeys(desk.bench.gate_set for desk in self._desks.values()))

    @property
    def halted(self) -> bool:
        """Whether the operator halted trading."""
        return self._halted

    def signal_of(self, instrument: str) -> Signal | None:
        """Return what the strategy of *instrument* wished last, before gates and account."""
        return self._desks[instrument].signal

    def warmup_of(self, instrument: str) -> int:
        """Return how many of the last bars decide on *instrument*."""
        return self._desks[instrument].remembered

    def quote_from_ms(self, instrument: str) -> int | None:
        """Return the market time from which a quote can fill an order, or None if none rests."""
        if not self._by_quotes:
            return None
        ledgers = (self._ledger, *self._twins.values())
        orders = [ledger.brokers[instrument].order for ledger in ledgers]
        return min((order.eligible_ms for order in orders if order is not None), default=None)

    def state(self) -> EngineState:
        """Return what must survive a restart."""
        return EngineState(
            self._halted,
            {key: desk.regime for key, desk in self._desks.items()},
            self._risk.state,
            self._ledger.state(),
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
            self._desks[key].regime = regime
        self._risk.state = state.risk
        self._ledger.restore(state.ledger)
        for name, twin in state.twins.items():
            self._twins[name].restore(twin)
        for one in confirmed:
            self._unsaved = True
            ledger = self._ledger if one.twin is None else self._twins[one.twin]
            if self._desks[one.instrument].strategy.horizon is not None:
                ledger.brokers[one.instrument].confirmed_ms = one.open_time_ms
        self.sequence = next_sequence
        self._dirty = taken_over

    def go_on_at(self, sequence: int) -> None:
        """Let *sequence* be the next step's, in a run that has stored no state yet."""
        self.sequence = sequence

    def recall(self, bar: Bar) -> None:
        """Take in a bar that the run already holds: it causes nothing, and is not a step."""
        desk = self._desks[bar.instrument]
        desk.observe(bar)
        self._mark(bar.instrument, bar.close)

    # ------------------------------------------------------------ one step

    def step(self, event: Event, prediction: Prediction) -> Step:  # noqa: C901, PLR0911 - one case an event
        """Return all that *event* caused, given what the model answered to it."""
        match event:
            case Bar():
                return self._bar(event, prediction)
            case Quote():
                return self._quote(event)
            case Mark():
                self._desks[event.instrument].marked = True
                self._mark(event.instrument, event.price)
                return self._plain(event, event.instrument)
            case Funding():
                for ledger in (self._ledger, *self._twins.values()):
                    if ledger.portfolio.pay_funding(event.instrument, event.rate):
                        self._dirty = True
                return self._plain(event, event.instrument)
            case Command():
                return self._command(event)
            case ModelChange():
                self._forget_passing()
                return self._plain(event, None)
            case InstrumentChange():
                self._change(event.instrument)
                return self._plain(event, None)
            case Gap() | Trade():
                return self._plain(event, event.instrument)
            case Timer() | RunEnd() | Prune() | Reading():
                return self._plain(event, None)
            case _:
                assert_never(event)

    def _bar(self, bar: Bar, prediction: Prediction) -> Step:
        desk = self._desks[bar.instrument]
        last = desk.last
        if last is not None and bar.open_time_ms <= last.open_time_ms:
            return self._plain(bar, bar.instrument, accepted=False)
        fills, orders, twin_fills = (
            _NOTHING if self._by_quotes else self._fill(PaperAccount.at_open, bar)
        )
        if self._by_quotes:
            orders = self._expire(bar.instrument, bar.market_ms)
        if not desk.marked:
            self._mark(bar.instrument, bar.close)
        desk.marked = False
        desk.observe(bar)
        if bar.open_time_ms < self._settings.period_start_ms:
            return self._finish(bar, bar.instrument, orders=orders, fills=fills)
        prediction, finite = checked(prediction)
        if desk.see(bar, last, prediction, running=not self._halted, finite=finite):
            self._dirty = True
        forecast = prediction if isinstance(prediction, Forecast) else None
        signal = desk.wish(bar, forecast)
        decision = self._decide(desk, bar, signal, forecast)
        if decision.allowed or decision.action is not Action.HOLD:
            sent = self._submit(
                self._ledger, bar, decision.target_quantity, decision.action, decision.reason
            )
            orders += sent.orders
            decision = desk.unfilled(decision, sent.refusal)
        if self._twins:
            self._decide_twins(desk, bar, signal, forecast, decision)
        return self._finish(
            bar,
            bar.instrument,
            decision=decision,
            prediction=prediction,
            orders=orders,
            fills=fills,
            twin_fills=twin_fills,
            window_sha256=desk.window.digest(),
            decision_sha256=desk.hash.digest(desk.canonical, prediction, decision),
        )

    def _fill(
        self, against: Callable[[PaperAccount, E], tuple[Fill, Order] | None], event: E
    ) -> _Filled:
        """Let the resting orders of every account meet *event*."""
        fills: tuple[Fill, ...] = ()
        orders: tuple[Order, ...] = ()
        if (filled := against(self._ledger, event)) is not None:
            fills, orders = (filled[0],), (filled[1],)
            self._dirty = True
            if self._risk.active and filled[0].quantity == filled[1].filled:
                self._risk.count_trade(filled[0].filled_ms)
        if not self._twins:
            return fills, orders, _NO_TWINS
        twin_fills = {}
        for name, twin in self._twins.items():
            if (filled := against(twin, event)) is not None:
                twin_fills[name] = filled[0]
                self._dirty = True
        return fills, orders, twin_fills

    def _expire(self, instrument: str, market_ms: int) -> tuple[Order, ...]:
        """Cancel what no quote filled in time, in every account; return the run's own order."""
        own = self._ledger.brokers[instrument].expire(market_ms)
        if own is not None:
            self._dirty = True
        for twin in self._twins.values():
            if twin.brokers[instrument].expire(market_ms) is not None:
                self._dirty = True
        return () if own is None else (own,)

    def _decide(
        self, desk: InstrumentState, bar: Bar, signal: Signal, forecast: Forecast | None
    ) -> Decision:
        broker = self._ledger.brokers[bar.instrument]
        wanted = broker.wanted
        target = wanted
        if signal.action is not Action.HOLD:
            target = desk.sizer.target(signal, bar, forecast, standing=wanted)
        if self._risk.active:
            self._see_risk(desk, bar, target)
        decision = desk.judge(signal, target, wanted, expired=desk.expired(bar, broker))
        if decision.allowed and decision.action in (Action.LONG, Action.SHORT):
            self._confirm(self._ledger, desk, bar)
        return decision

    def _see_risk(self, desk: InstrumentState, bar: Bar, target: int) -> None:
        portfolio, seen = self._ledger.portfolio, desk.evidence
        held = portfolio.holdings[bar.instrument].quantity
        seen.reduces = abs(target) <= abs(held) and target * held >= 0
        seen.notional = desk.sizer.notional(bar.close, abs(target))
        if self._risk.measure(seen, account=portfolio.account(), market_ms=bar.market_ms):
            self._dirty = True

    def _confirm(self, ledger: PaperAccount, desk: InstrumentState, bar: Bar) -> bool:
        """Let the position of *ledger* stand for another horizon; return whether it has one.

        The step says it in a bit: the state is stored for it only now and then.
        """
        self._unsaved = True
        if desk.strategy.horizon is None:
            return False
        ledger.brokers[bar.instrument].confirmed_ms = bar.open_time_ms
        return True

    def _decide_twins(
        self,
        desk: InstrumentState,
        bar: Bar,
        signal: Signal,
        forecast: Forecast | None,
        decision: Decision,
    ) -> None:
        """Let the ungated twin act on the same signal wherever the inputs could be believed."""
        if decision.refused_by in INTEGRITY:
            return
        for name in desk.strategy.twins:
            twin = self._twins[name]
            broker = twin.brokers[bar.instrument]
            if signal.action is Action.HOLD:
                target = 0 if desk.expired(bar, broker) else broker.wanted
                reason = "horizon" if target != broker.wanted else signal.reason
            else:
                if signal.action is not Action.FLAT and self._confirm(twin, desk, bar):
                    self._confirmed.append(name)
                target = desk.sizer.target(signal, bar, forecast, standing=broker.wanted)
                reason = signal.reason
            self._submit(twin, bar, target, signal.action, reason)

    def _submit(
        self, ledger: PaperAccount, bar: Bar, target: int, action: Action, reason: str
    ) -> Sent:
        """Ask for *target*; what HOLD leaves wanted is wanted for its own reason."""
        broker = ledger.brokers[bar.instrument]
        before = broker.wanted
        held = ledger.portfolio.holdings[bar.instrument].quantity
        if target == before == held and broker.order is None:
            return UNCHANGED  # as at most bars
        sent = ledger.submit(
            bar.instrument,
            target,
            order_id=f"{self.sequence}-0",
            price=bar.close,
            reason=broker.reason if target == before and action is Action.HOLD else reason,
            at_ms=bar.market_ms,
        )
        if sent.orders or before != target:
            self._dirty = True
        return sent

    def _quote(self, quote: Quote) -> Step:
        self._desks[quote.instrument].quote = quote
        if not self._by_quotes:
            return self._plain(quote, quote.instrument)
        expired = self._expire(quote.instrument, quote.market_ms)
        fills, orders, twin_fills = self._fill(PaperAccount.at_quote, quote)
        return self._finish(
            quote, quote.instrument, orders=expired + orders, fills=fills, twin_fills=twin_fills
        )

    def _command(self, command: Command) -> Step:
        """HALT holds everything, RESUME lifts it, FLATTEN halts and closes what is held."""
        halted = command.kind is not CommandKind.RESUME
        self._dirty |= halted is not self._halted
        self._halted = halted
        orders: tuple[Order, ...] = ()
        if command.kind is CommandKind.FLATTEN:
            for ordinal, (key, desk) in enumerate(self._desks.items()):
                if desk.last is None:
                    continue
                self._dirty = True
                orders += self._ledger.submit(
                    key,
                    0,
                    order_id=f"{self.sequence}-{ordinal}",
                    price=desk.last.close,
                    reason=FLATTEN,
                    at_ms=command.market_ms,
                    by_command=True,
                ).orders
        return self._finish(command, None, orders=orders)

    def _change(self, instrument: Instrument) -> None:
        """Take the exchange's new filters: for targets, orders and prices from now on."""
        self._desks[instrument.id].change(instrument)
        for ledger in (self._ledger, *self._twins.values()):
            ledger.change(instrument)
        # A restart begins with filters, and knows no marks: the record must value it alike.
        self._mark_at_closes()

    def _forget_passing(self) -> None:
        """Drop what a restart drops, so that a replay of the record does the same here."""
        for desk in self._desks.values():
            desk.quote, desk.marked = None, False
        self._mark_at_closes()

    def _mark_at_closes(self) -> None:
        for key, desk in self._desks.items():
            if desk.last is not None:
                self._mark(key, desk.last.close)

    def _mark(self, instrument: str, price: int) -> None:
        self._ledger.portfolio.mark(instrument, price)
        if self._twins:
            for twin in self._twins.values():
                twin.portfolio.mark(instrument, price)

    # ------------------------------------------------------------ the record

    def _plain(self, event: Event, instrument: str | None, *, accepted: bool = True) -> Step:
        return self._finish(event, instrument, accepted=accepted)

    def _finish(  # noqa: PLR0913 - the fields of a step
        self,
        event: Event,
        instrument: str | None,
        *,
        accepted: bool = True,
        decision: Decision | None = None,
        prediction: Prediction = None,
        orders: tuple[Order, ...] = (),
        fills: tuple[Fill, ...] = (),
        twin_fills: Mapping[str, Fill] = _NO_TWINS,
        window_sha256: bytes | None = None,
        decision_sha256: bytes | None = None,
    ) -> Step:
        position: Position | None = None
        twins: tuple[TwinStep, ...] = ()
        if instrument is not None:
            position = self._ledger.portfolio.position(instrument)
            if self._twins and (decision is not None or twin_fills):
                twins = self._twin_steps(instrument, twin_fills)
        account = self._ledger.portfolio.account()
        state: bytes | None = None
        sequence = self.sequence
        if self._dirty or (self._unsaved and sequence % STATE_EVERY_STEPS == 0):
            state = msgspec.msgpack.encode(self.state())
            self._dirty = self._unsaved = False
        self.sequence = sequence + 1
        return Step(
            sequence,
            event,
            accepted,
            decision,
            prediction,
            orders,
            fills,
            position,
            account,
            twins,
            window_sha256,
            decision_sha256,
            state,
        )

    def _twin_steps(self, instrument: str, fills: Mapping[str, Fill]) -> tuple[TwinStep, ...]:
        confirmed, self._confirmed = self._confirmed, []
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
