"""The engine alone, over drawn configurations, markets and sizes: no bar without its reason.

    python tests/campaigns/campaign_engine.py --examples 1000000 --laws 300

An example is one seed: an instrument, an account, a strategy that signals by dice, and up to 64
bars with whatever comes between them. A book of its own is kept beside the engine, from the
orders and fills alone, and says after each step what must hold: cash and position follow from the
fills; an allowed bar ends in a position, an order or a reason; and the reason is a true one.

The state machine of ``engine_laws`` follows, in each of its worlds, with as many examples as
``--laws`` says: what breaks a law is shrunk to the fewest rules and printed.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, field
from typing import Final

from builders import MINUTE, START_MS
from engine_laws import MET, WORLDS, examine

from tracepaper.daemon.broker.account import BrokerSettings
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.orders import Latency
from tracepaper.daemon.broker.rules import NOTIONAL_MOST
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.state import EngineSettings, decode_state
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.sizing import Sizer, Sizing, SizingMode
from tracepaper.strategies.api.strategy import CORE_GATES, Strategy, declared_gates
from tracepaper.strategies.gates.evaluator import GateEvaluator, thresholds_of
from tracepaper.strategies.gates.gate import GateKind, gate_order
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    Fill,
    FillModel,
    Order,
    OrderStatus,
    Step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Command,
    CommandKind,
    Event,
    Funding,
    Instrument,
    InstrumentChange,
    Quote,
    Side,
    Source,
)
from tracepaper.strategies.units import MONEY_SCALE, RATE_SCALE, Notional

BARS_MOST: Final = 64
DEFAULTS: Final = Config().model_dump()
WORTH_MOST: Final = 10**6 * MONEY_SCALE
CASH_MOST: Final = 10**8 * MONEY_SCALE
INTEGRITY: Final = frozenset(gate_order(GateKind.INTEGRITY))
ENTRIES: Final = (Action.LONG, Action.SHORT)
RESTING: Final = (OrderStatus.ACCEPTED, OrderStatus.PARTIALLY_FILLED)
TOO_LATE: Final = "no quote filled it within"


class Dice(Strategy):
    """Signals by dice, mostly what it signalled before; some signals hold, some are small."""

    def __init__(self, rng: random.Random) -> None:
        self.gates = CORE_GATES
        self.warmup = rng.choice((1, 1, 2, 5))
        self.horizon = rng.choice((None, None, 3, 10))
        self.twins = ("ungated",) if rng.random() < 0.5 else ()
        self._rng = rng
        self._restless = rng.choice((0.05, 0.3, 0.8))
        self._signal = Signal(Action.HOLD, "nothing yet")

    def decide(self, context: BarContext) -> Signal:
        """Return the last signal, or a new one."""
        rng = self._rng
        if rng.random() < self._restless:
            action = rng.choice((Action.LONG, Action.LONG, Action.SHORT, Action.FLAT, Action.HOLD))
            self._signal = Signal(action, action.value, rng.choice((1.0, 1.0, 0.4, 0.001, 0.0)))
        return self._signal


@dataclass
class Drawn:
    """One example: what an engine is built of, and the events that it is given."""

    instrument: Instrument
    settings: EngineSettings
    engine: Engine
    events: list[Event]


def drawn_instrument(rng: random.Random) -> Instrument:
    """Return an instrument whose filters bind now and then."""
    step = rng.choice((1, 1, 5, 10, 100))
    return Instrument(
        rng.choice((Category.LINEAR, Category.SPOT)), "BTCUSDT", "BTC", "USDT",
        rng.choice((0, 2, 4)), rng.choice((0, 3, 8)), 8, 8,
        tick_size=rng.choice((1, 5, 10)), quantity_step=step,
        min_quantity=rng.choice((0, 0, step, 7 * step, 500 * step)),
        max_quantity=rng.choice((0, 0, 900 * step, 3_000 * step)),
        min_notional=rng.choice((0, 0, 5 * MONEY_SCALE, 5_000 * MONEY_SCALE)),
    )  # fmt: skip


def drawn(seed: int) -> Drawn:
    """Return the example of *seed*."""
    rng = random.Random(seed)
    item = drawn_instrument(rng)
    by_quotes = rng.random() < 0.5
    price = rng.randint(200, 20_000) * item.tick_size
    quantity = rng.choice((1, 7, 100, 1_000, 2_500)) * item.quantity_step
    notional = Notional.of(item)
    while notional(price, quantity) > WORTH_MOST and quantity > item.quantity_step:
        quantity = max(quantity // 10 // item.quantity_step, 1) * item.quantity_step
    worth = notional(price, quantity)
    risk = {
        gate: limit
        for gate, limit in (
            ("risk.notional", worth / MONEY_SCALE * rng.choice((0.5, 1.02, 5))),
            ("risk.drawdown", rng.choice((0.001, 0.05))),
            ("risk.daily_loss", worth / MONEY_SCALE * 0.01),
            ("risk.daily_trades", rng.choice((1.0, 2.0, 5.0))),
        )
        if rng.random() < 0.15
    }
    mode = rng.choice((SizingMode.FIXED, SizingMode.NOTIONAL))
    costs = ExecutionCosts(rng.choice((0, 5_500_000, 10_000_000)), rng.choice((0, 0, 3_000_000)))
    cash = min(max(int(worth * rng.choice((0.5, 0.98, 1.0, 1.02, 3, 100))), 1), CASH_MOST)
    start_ms = START_MS + rng.choice((0, 0, 3)) * MINUTE
    settings = EngineSettings(
        BrokerSettings(
            FillModel.QUOTE if by_quotes else FillModel.NEXT_OPEN,
            costs,
            cash,
            Latency(rng.choice((0, 100, 5_000))),
            fill_within_ms=rng.choice((500, 10_000, 200_000)),
        ),
        interval_ms=MINUTE,
        period_start_ms=start_ms,
        flat_on_refusal=rng.random() < 0.3,
        risk=risk,
    )
    sizing = Sizing(
        mode, quantity=quantity, notional=max(worth, 1), rebalance=rng.choice((0.0, 0.25))
    )
    strategy = Dice(rng)
    gates = declared_gates(strategy, by_quotes=by_quotes, risk=risk)
    usual = thresholds_of(
        gates - risk.keys(), DEFAULTS, warmup=strategy.warmup, interval_ms=MINUTE, calibration=None
    )
    evaluator = GateEvaluator(frozenset(gates), usual | risk)
    key = item.id
    engine = Engine([item], {key: strategy}, {key: Sizer(sizing, item)}, {key: evaluator}, settings)
    return Drawn(item, settings, engine, drawn_events(rng, item, price, by_quotes=by_quotes))


def drawn_events(
    rng: random.Random, item: Instrument, price: int, *, by_quotes: bool
) -> list[Event]:
    """Return a market: bars that jump, are late or missing, and what comes between them."""
    events: list[Event] = []
    swing = max(price // rng.choice((20, 200, 2_000)), item.tick_size)
    silent = rng.choice((0.0, 0.3, 0.9))  # how often no quote comes after a close
    for index in range(rng.randint(3, BARS_MOST) if rng.random() < 0.4 else rng.randint(3, 20)):
        start = START_MS + index * MINUTE
        end = start + MINUTE
        if rng.random() < 0.03:
            continue
        close = max(price + rng.randint(-swing, swing), item.tick_size)
        if by_quotes and rng.random() < 0.9:
            events.append(drawn_quote(rng, item, price, end - 700))
        late_ms = rng.choice((0, 0, 0, 90_000)) * (rng.random() < 0.1)
        spread = (price, max(price, close), min(price, close), close)
        events.append(
            Bar(item.id, start, MINUTE, *spread, 1, None, end, end + late_ms, Source.STREAM)
        )
        price = close
        if by_quotes and rng.random() >= silent:
            events.append(drawn_quote(rng, item, price, end + rng.choice((150, 3_000, 30_000))))
        if (roll := rng.random()) < 0.06:
            events.append(drawn_rarity(roll, rng, item, end + 40_000))
    return events


def drawn_quote(rng: random.Random, item: Instrument, price: int, at_ms: int) -> Quote:
    """Return a quote around *price*, often thin, sometimes empty."""
    size = rng.choice((0, 3, 400, 10**6)) * item.quantity_step
    ask = price + rng.choice((0, 1, 40)) * item.tick_size
    return Quote(item.id, price, size, ask, size, at_ms, at_ms)


def drawn_rarity(roll: float, rng: random.Random, item: Instrument, at_ms: int) -> Event:
    """Return a command, a settlement or new filters."""
    if roll < 0.03:
        kind = rng.choice((CommandKind.HALT, CommandKind.RESUME, CommandKind.FLATTEN))
        return Command(kind, "", at_ms, at_ms)
    if roll < 0.045:
        return Funding(item.id, rng.randint(-10, 10) * 1_000_000, at_ms, at_ms)
    return InstrumentChange(
        Instrument(
            item.category, item.symbol, item.base_coin, item.quote_coin,
            item.price_decimals, item.quantity_decimals, 8, 8,
            tick_size=item.tick_size, quantity_step=rng.choice((1, 10, 50)),
            min_quantity=rng.choice((0, 50, 5_000)), max_quantity=rng.choice((0, 40_000)),
            min_notional=rng.choice((0, 50 * MONEY_SCALE)),
        ),
        at_ms, at_ms,
    )  # fmt: skip


@dataclass
class Book:
    """An account kept from the fills alone, and what rests by the orders alone."""

    spot: bool
    cash: int
    quantity: int = 0
    resting: Order | None = None
    filled: dict[str, int] = field(default_factory=dict)
    halted: bool = False

    def fill(self, fill: Fill) -> None:
        """Book *fill*; a linear book lets the whole notional pass through cash."""
        sign = 1 if fill.side is Side.BUY else -1
        self.quantity += sign * fill.quantity - fill.fee_base
        self.cash -= sign * fill.notional + fill.fee
        self.filled[fill.order_id] = self.filled.get(fill.order_id, 0) + fill.quantity
        assert fill.quantity > 0
        assert not self.spot or self.quantity >= 0, "spot went short"

    def order(self, order: Order, event: Event) -> None:
        """Follow *order* through its life."""
        known = self.resting
        assert order.filled == self.filled.get(order.order_id, 0), "an order and its fills differ"
        match order.status:
            case OrderStatus.ACCEPTED:
                assert known is None, "two orders rest"
                ordered = isinstance(event, Command)
                assert ordered or not self.halted, "an order was sent while halted"
                self.resting = order
            case OrderStatus.REJECTED:
                assert isinstance(event, Command), "a decision's refusal became an order"
            case _:
                assert known is not None, f"{order.status} of nothing that rests"
                assert known.order_id == order.order_id
                self.resting = order if order.status in RESTING else None


class Refuted(AssertionError):
    """What an example showed that must not be."""


def quantity_of(item: Instrument, terms: ExecutionCosts, needed: int) -> int:
    """Return what an order for *needed* is for: a spot buy pays its fee in what it buys."""
    quantity = abs(needed)
    if item.category is Category.SPOT and needed > 0:
        quantity = -(-quantity * RATE_SCALE // (RATE_SCALE - terms.taker_fee))
        quantity = -(-quantity // item.quantity_step) * item.quantity_step
    return quantity // item.quantity_step * item.quantity_step


def refusal(
    item: Instrument, terms: ExecutionCosts, needed: int, *, target: int, price: int, cash: int
) -> bool:
    """Return whether an exchange with the filters of *item* would refuse what is *needed*."""
    quantity, spot = quantity_of(item, terms, needed), item.category is Category.SPOT
    decimals = 8 - item.price_decimals - item.quantity_decimals
    product = price * quantity
    notional = product * 10**decimals if decimals >= 0 else round_half_even(product, 10**-decimals)
    return (
        quantity == 0
        or quantity < item.min_quantity
        or bool(item.max_quantity and quantity > item.max_quantity)
        or (target != 0 and not item.min_notional <= notional <= NOTIONAL_MOST)
        or (spot and needed > 0 and notional > cash)
    )


def round_half_even(numerator: int, denominator: int) -> int:
    """Return the quotient as accounts round it."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


class Examiner:
    """Follows one engine, step by step, and asserts what must hold."""

    def __init__(self, example: Drawn) -> None:
        self._example = example
        self._item = example.instrument
        spot = self._item.category is Category.SPOT
        self._own = Book(spot, example.settings.broker.cash)
        self._twin = Book(spot, example.settings.broker.cash)
        self._mark = 0
        self._funding = 0
        self._ledger = 0
        self._reason: str | None = None  # why the last allowed bar was not filled
        self.reasons: dict[str, int] = {}

    def examine(self) -> None:
        """Run the whole example."""
        for event in self._example.events:
            step = self._example.engine.step(event, None)
            if step.state is not None:
                carried = self._example.engine.state()
                assert decode_state(step.state) == carried, "stored is not what the engine carries"
            if isinstance(event, Command):
                self._own.halted = event.kind is not CommandKind.RESUME
            if isinstance(event, InstrumentChange):
                self._item = event.instrument
            if isinstance(event, (Bar, Quote)) and self._own.resting is not None:
                self._in_time(event, step)
            self._book(step)
            if isinstance(event, Bar):
                self._mark = event.close
                assert (step.decision is not None) is (
                    event.open_time_ms >= self._example.settings.period_start_ms
                )
                if step.decision is not None:
                    self._reasoned(event, step, step.decision)
            self._accounted(step)

    def _in_time(self, event: Bar | Quote, step: Step) -> None:
        """Nothing that waited too long for a quote is filled, and it is canceled saying so."""
        order = self._own.resting
        assert order is not None
        if (
            self._example.settings.broker.execution is not FillModel.QUOTE
            or order.reason == "FLATTEN"
        ):
            return
        waited = event.market_ms - order.eligible_ms
        if waited > self._example.settings.broker.fill_within_ms:
            assert step.orders, "an order waits for ever"
            assert step.orders[0].order_id == order.order_id
            assert step.orders[0].status is OrderStatus.CANCELED
            assert step.orders[0].reason.startswith(TOO_LATE)

    def _book(self, step: Step) -> None:
        for fill in step.fills:
            self._own.fill(fill)
        for order in step.orders:
            self._own.order(order, step.event)
        for twin in step.twins:
            for fill in twin.fills:
                self._twin.fill(fill)
            assert twin.position.quantity == self._twin.quantity, "the twin's position"

    def _accounted(self, step: Step) -> None:
        """Cash and position are what the fills say, to the last unit, and what the ledger says."""
        for moved in step.ledger:
            assert moved.amount, "an entry that moves nothing"
            self._ledger += moved.amount
            assert moved.balance == self._ledger, "the balance beside an entry"
        assert step.account.cash == self._ledger, "the ledger does not add up to the cash"
        if step.position is None:
            return
        position, account, own = step.position, step.account, self._own
        assert position.quantity == own.quantity, "the position is not the sum of its fills"
        entry = 0 if own.spot else position.entry_notional
        assert account.cash == own.cash + entry - position.funding_paid, "cash"
        held = position.entry_notional if own.spot else 0
        assert account.equity == account.cash + held + position.unrealized_pnl, "equity"

    def _reasoned(self, bar: Bar, step: Step, decision: Decision) -> None:
        """Hold an allowed bar to its end: a position, an order or a reason, and a true one."""
        own, item = self._own, self._item
        target = decision.target_quantity
        assert target is not None
        near = item.quantity_step if own.spot else 0
        needed = target - own.quantity
        said = decision.unfilled_reason
        if decision.refused_by is not None and decision.action is Action.HOLD:
            assert said is None, "a refused bar gives one reason, not two"
            assert not any(order.status is OrderStatus.ACCEPTED for order in step.orders)
            return
        nothing = target == 0 and decision.action in ENTRIES
        if own.resting is not None:
            ending = "an order"
            costs = self._example.settings.broker.costs
            open_quantity = own.resting.quantity - own.resting.filled
            cut = open_quantity < quantity_of(item, costs, needed)
            assert said is None or nothing or cut, f"'{said}' of an order for all of it"
        elif abs(needed) <= near:
            ending = "a position"
            assert nothing or said is None
        else:
            ending = "a reason"
            assert said, "a bar without its reason"
            # Nothing asks again for what an order lacked: HOLD and a held side repeat its reason.
            is_kept = decision.action is Action.HOLD or target * own.quantity > 0
            assert (is_kept and said == self._reason) or refusal(
                item, self._example.settings.broker.costs, needed,
                target=target, price=bar.close, cash=step.account.cash,
            ), f"'{said}', and the order would have been taken"  # fmt: skip
        self._reason = said
        self.reasons[ending] = self.reasons.get(ending, 0) + 1
        if decision.refused_by not in INTEGRITY:
            self._twin_reasoned(bar)

    def _twin_reasoned(self, bar: Bar) -> None:
        """Hold the twin to the same; its refusals are not stored, so they are derived here."""
        state = self._example.engine.state().twins.get("ungated")
        if state is None:
            return
        broker = state.books[self._item.id].orders
        needed = broker.target - self._twin.quantity
        near = self._item.quantity_step if self._twin.spot else 0
        if broker.order is None and abs(needed) > near:
            # Nothing asks again for what an order lacked.
            assert broker.shortfall or refusal(
                self._item, self._example.settings.broker.costs, needed,
                target=broker.target, price=bar.close, cash=state.cash,
            ), "the twin's order would have been taken"  # fmt: skip


def examined(seed: int) -> dict[str, int]:
    """Run the example of *seed*; raise ``Refuted`` where something does not hold."""
    examiner = Examiner(drawn(seed))
    try:
        examiner.examine()
    except AssertionError as error:
        raise Refuted(f"seed {seed}: {error}") from error
    return examiner.reasons


def main() -> None:
    """Run as many examples as asked, and say how their bars ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--from-seed", type=int, default=0)
    parser.add_argument("--laws", type=int, default=300, help="of the state machine, by world")
    given = parser.parse_args()
    began, ends = time.perf_counter(), dict[str, int]()
    for seed in range(given.from_seed, given.from_seed + given.examples):
        for ending, count in examined(seed).items():
            ends[ending] = ends.get(ending, 0) + count
    told = ", ".join(f"{count:,} in {ending}" for ending, count in sorted(ends.items()))
    print(f"{given.examples:,} examples in {time.perf_counter() - began:.0f} s: {told}.")
    for world in WORLDS if given.laws else ():
        began = time.perf_counter()
        examine(world, examples=given.laws, steps=50, shrinks=True)
        print(f"{world.name}: {given.laws:,} in {time.perf_counter() - began:.0f} s.")
    print(", ".join(f"{count:,} {name}" for name, count in sorted(MET.items())))


if __name__ == "__main__":
    main()
