"""Random lists, signals and protection over quotes, bars and kills: what must always hold."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from builders import START_MS, bar, instrument, quote
from engine_laws import ENDED, reached
from msgspec import msgpack
from msgspec.structs import replace

from tracepaper.daemon.broker import matching
from tracepaper.daemon.broker.account import BrokerSettings, PaperAccount
from tracepaper.daemon.broker.book import AccountState
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.exit_orders import Protector
from tracepaper.daemon.broker.orders import PROTECTIVE, Latency, Moment, OrdersState, RestingOrders
from tracepaper.strategies.api.context import Cancel, OrderRequest, Orders
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import (
    Fill,
    FillModel,
    Liquidity,
    Order,
    OrderKind,
    OrderRole,
    OrderStatus,
)
from tracepaper.strategies.types.market import Bar, Category, Instrument, Quote, Side

CASH = 20_000 * 10**8
COSTS = ExecutionCosts(
    taker_fee=5_500_000, slippage=2_000_000, half_spread=1_000_000, maker_fee=-1_000_000
)


class Machine:
    """One account of one instrument, and a book of our own that is kept from the fills."""

    def __init__(self, category: Category, model: FillModel, seed: int) -> None:
        self.category, self.by_quotes = category, model is FillModel.QUOTE
        self.rng = random.Random(seed)
        self.met: Counter[str] = Counter()
        self.item: Instrument = instrument(
            category=self.category, min_quantity=2, max_quantity=5_000, quantity_step=2
        )
        self.account = self._opened()
        self.at_ms = START_MS
        self.index = 0
        self.close = 10_000
        self.cash, self.held = CASH, 0
        self.known: dict[str, Order] = {}
        self.filled: dict[str, int] = defaultdict(int)

    def play(self, steps: int) -> None:
        """Do *steps* things by chance, and look at everything after each."""
        market = self.quote if self.by_quotes else self.bar
        for _ in range(steps):
            self.rng.choice((
                self.send, self.send, self.signal, self.arm, self.arm, self.disarm, self.kill,
                *[market] * 7,
            ))()  # fmt: skip
            self.the_account_is_the_sum_of_its_fills()
            self.what_rests_is_what_was_shown()
            self.what_may_only_reduce_fits_the_position()

    def _opened(self) -> PaperAccount:
        latency = Latency(100, mean_jitter_ms=50, seed=3)
        return PaperAccount([self.item], BrokerSettings(FillModel.NEXT_OPEN, COSTS, CASH, latency))

    @property
    def broker(self) -> RestingOrders:
        return self.account.line(self.item.id).orders

    # ------------------------------------------------------------ what is asked for

    def _request(self) -> OrderRequest | Cancel:
        rng, kind = self.rng, self.rng.choice(list(OrderKind))
        tag = rng.choice(("", "a", "b", "c"))
        if rng.random() < 0.1:
            return Cancel(tag)
        price, trigger = (round(self.close / 100 + rng.randint(-8, 8) / 10, 1) for _ in range(2))
        return OrderRequest(
            side=rng.choice(list(Side)),
            quantity=rng.choice((0, 0.001, 0.003, 0.1, 0.5, 1, 2.5, 6, math.nan)),
            kind=kind,
            price=price if kind.has_price else None,
            trigger=trigger if kind.has_trigger else None,
            post_only=kind is OrderKind.LIMIT and rng.random() < 0.3,
            reduce_only=rng.random() < 0.3,
            until=self.at_ms + rng.randint(0, 300_000) if rng.random() < 0.2 else None,
            tag=tag,
        )

    def send(self) -> None:
        self.account.journal.sequence += 1
        requests = [self._request() for _ in range(self.rng.randint(1, 4))]
        seen = bar(self.close, index=self.index, instrument_id=self.item.id)
        given = Orders(tuple(requests), "listed")
        self.account.line(self.item.id).send(given, seen, self.at_ms)
        self._learn(self.account.journal.take().orders, ())

    def signal(self) -> None:
        self.account.journal.sequence += 1
        wanted = self.rng.randint(-1_000, 1_000)
        if self.category is Category.SPOT:
            wanted = max(wanted, 0)
        now = Moment(self.at_ms, 0, self.close, self.account.held(self.item.id))
        self.account.line(self.item.id).submit(wanted - wanted % 2, "signal", now)
        self._learn(self.account.journal.take().orders, ())

    def arm(self) -> None:
        self.account.journal.sequence += 1
        if abs(self.held) < 2:
            return
        role, away = self.rng.choice(sorted(PROTECTIVE)), self.rng.randint(1, 10)
        worse = self.close - self.close % 10 + (-10 if self.held > 0 else 10) * away
        better = self.close - self.close % 10 + (10 if self.held > 0 else -10) * away
        given: dict[str, Any] = {"trigger": worse}
        if role is OrderRole.TARGET:
            given = {"price": better}
        elif role is OrderRole.UNTIL:
            given = {}
        self._exits.place_protection(role, self.at_ms, "armed", **given)
        self._learn(self.account.journal.take().orders, ())

    def disarm(self) -> None:
        self._exits.cancel_protection("over")
        self._learn(self.account.journal.take().orders, ())

    @property
    def _exits(self) -> Protector:
        return self.account.line(self.item.id).protector

    def kill(self) -> None:
        self.met["a kill with orders"] += self.broker.rests
        stored = msgpack.encode(self.account.encoded_state())
        carried = msgpack.decode(stored, type=AccountState)
        assert carried == self.account.state()
        sequence = self.account.journal.sequence
        self.account = self._opened()
        self.account.journal.sequence = sequence
        self.account.restore(carried, {})

    # ------------------------------------------------------------ what the market does

    def quote(self) -> None:
        self.account.journal.sequence += 1
        self.at_ms += self.rng.choice((0, 50, 300, 5_000, 11_000))
        at_bid = max(self.close - self.close % 10 + 10 * self.rng.randint(-8, 8), 100)
        at_ask = at_bid + 10 * self.rng.choice((0, 1, 1, 1, 3))
        sizes = self.rng.choice((0, 50, 500, 5_000)), self.rng.choice((0, 50, 500, 5_000))
        seen = quote(at_bid, at_ask, at_ms=self.at_ms, instrument_id=self.item.id)
        seen = Quote(
            seen.instrument, at_bid, 2 * sizes[0], at_ask, 2 * sizes[1], self.at_ms, self.at_ms
        )
        self.close = at_bid
        self.account.journal.take()
        self.account.positions[self.item.id].match_quote(seen)
        met = self.account.journal.take()
        left = {Side.BUY: seen.ask_size, Side.SELL: seen.bid_size}
        for fill in met.fills:
            far = seen.ask if fill.side is Side.BUY else seen.bid
            self._at_quote(fill, far)
            left[fill.side] -= fill.quantity
        assert min(left.values()) >= 0, "more than the quote showed"
        self._learn(met.orders, met.fills)

    def _at_quote(self, fill: Fill, far: int) -> None:
        order = self.known[fill.order_id]
        worse = 1 if fill.side is Side.BUY else -1
        assert fill.filled_ms == self.at_ms >= order.eligible_ms, "filled before its cause"
        if fill.liquidity is Liquidity.MAKER:
            assert fill.price == order.price
            assert worse * (fill.price - far) > 0, "not through its price"
        else:
            assert worse * (fill.price - far) >= 0, "better than the quote"

    def bar(self) -> None:
        self.account.journal.sequence += 1
        self.index += 1
        prices = [max(self.close // 10 + self.rng.randint(-9, 9), 10) for _ in range(4)]
        first, *_, last = (10 * price for price in prices)
        seen = bar(
            last,
            open_=first,
            high=10 * max(prices),
            low=10 * min(prices),
            index=self.index,
            instrument_id=self.item.id,
        )
        self.account.journal.take()
        self.account.positions[self.item.id].match_bar(seen)
        met = self.account.journal.take()
        for fill in met.fills:
            self._in_bar(fill, seen)
        self.close, self.at_ms = seen.close, seen.close_time_ms
        self._learn(met.orders, met.fills)

    def _in_bar(self, fill: Fill, seen: Bar) -> None:
        order = self.known[fill.order_id]
        assert order.created_ms <= fill.filled_ms <= seen.close_time_ms, "filled before its cause"
        worse = 1 if fill.side is Side.BUY else -1
        gapped = fill.liquidity is Liquidity.MAKER and fill.filled_ms == seen.open_time_ms
        if gapped:
            assert worse * (fill.price - seen.open) > 0, "the open is not beyond its price"
        assert gapped or seen.low <= fill.reference_price <= seen.high, "outside the bar"
        if fill.liquidity is Liquidity.MAKER:
            assert order.price is not None
            assert fill.price == fill.reference_price == order.price
            beyond = seen.low < order.price if worse > 0 else seen.high > order.price
            assert beyond, "not through its price"

    # ------------------------------------------------------------ what must hold

    def _learn(self, changed: tuple[Order, ...], fills: Any) -> None:
        ids = [order.order_id for order in changed]
        assert len(set(ids)) == len(ids), "an order is shown once a step"
        for fill in fills:
            self._book(fill)
        for order in changed:
            before = self.known.get(order.order_id)
            start = OrderStatus.NEW if before is None else before.status
            assert before is None or before.status not in ENDED, "an ended order changed"
            assert reached(start, order.status), f"{start} to {order.status}"
            assert order.filled == self.filled[order.order_id]
            assert order.reason
            at_least_ms = 0 if order.role in PROTECTIVE else 100
            assert order.eligible_ms >= order.created_ms + at_least_ms, "before its cause"
            if order.status is not OrderStatus.REJECTED:
                self._filters_hold(order, is_new=before is None)
            self.known[order.order_id] = order
            self.met[f"{order.kind.value} {order.status.value}"] += 1

    def _book(self, fill: Fill) -> None:
        sign = 1 if fill.side is Side.BUY else -1
        order = self.known[fill.order_id]
        before = self.held
        self.held += sign * fill.quantity - fill.fee_base
        self.cash -= sign * fill.notional + fill.fee
        self.filled[fill.order_id] += fill.quantity
        self.met[f"{order.role.value} filled"] += 1
        self.met[f"{order.kind.value} {fill.liquidity.value}"] += 1
        assert fill.quantity > 0
        if order.price is not None:
            assert sign * (order.price - fill.price) >= 0, "worse than its limit"
        if order.reduce_only:
            assert abs(self.held) < abs(before), "it opened"
            assert self.held * before >= 0, "it turned the position"

    def _filters_hold(self, order: Order, *, is_new: bool) -> None:
        item = self.item
        assert order.quantity % item.quantity_step == 0
        of_position = order.role in PROTECTIVE  # as large as that is
        assert 0 < order.quantity <= item.max_quantity or not is_new or of_position
        for price in (order.price, order.trigger):
            assert price is None or (price > 0 and price % item.tick_size == 0)

    def the_account_is_the_sum_of_its_fills(self) -> None:
        line = self.account.line(self.item.id)
        assert line.held == self.held
        assert self.category is not Category.SPOT or self.held >= 0, "spot went short"
        entry = line.holding.entry_notional
        own = self.cash if self.category is Category.SPOT else self.cash + entry
        assert self.account.cash == own, "cash"

    def what_rests_is_what_was_shown(self) -> None:
        resting = {order.order_id: order for order in self.broker.orders}
        shown = {key: one for key, one in self.known.items() if one.status not in ENDED}
        assert resting == shown

    def what_may_only_reduce_fits_the_position(self) -> None:
        for order in self.broker.orders:
            if order.reduce_only:
                sign = -1 if order.side is Side.BUY else 1
                assert sign * self.held >= order.quantity - order.filled > 0


WORLDS = [
    (category, model)
    for category in (Category.LINEAR, Category.SPOT)
    for model in (FillModel.QUOTE, FillModel.NEXT_OPEN)
]
SEEDS, STEPS = 400, 40


def played(category: Category, model: FillModel) -> Counter[str]:
    """Play every seed in one world; return what was met, by name."""
    met: Counter[str] = Counter()
    for seed in range(SEEDS):
        machine = Machine(category, model, seed)
        machine.play(STEPS)
        met += machine.met
    return met


@pytest.mark.parametrize(("category", "model"), WORLDS)
def test_whatever_is_ordered_the_account_and_the_table_hold(
    category: Category, model: FillModel
) -> None:
    met = played(category, model)
    wanted = {
        *(f"{kind.value} {end}" for kind in OrderKind for end in ("FILLED", "CANCELED")),
        *(f"{role.value} filled" for role in PROTECTIVE), "LIST filled", "SIGNAL filled",
        "LIMIT MAKER", "LIMIT TAKER", "STOP_LIMIT MAKER", "STOP_LIMIT TAKER",
        "LIMIT REJECTED", "a kill with orders",
    }  # fmt: skip
    assert wanted - met.keys() == set(), "the examples do not reach everything"


# ---------------------------------------------------------------- bars that pass


PASSES = matching.passes


class Recorded(Machine):
    """Keeps what each step changed."""

    def __init__(self, seed: int) -> None:
        super().__init__(Category.LINEAR, FillModel.NEXT_OPEN, seed)
        self.steps: list[tuple[int, tuple[Order, ...]]] = []

    def _learn(self, changed: tuple[Order, ...], fills: Any) -> None:
        self.steps.append((self.account.journal.sequence, changed))
        super()._learn(changed, fills)


def compared(passes: Callable[[RestingOrders, Bar], bool]) -> int:
    """Play seeds with *passes* and in full; return how many bars passed orders that rest."""
    passed = 0

    def counted(broker: RestingOrders, seen: Bar) -> bool:
        nonlocal passed
        is_passed = passes(broker, seen)
        passed += is_passed
        return is_passed

    for seed in range(150):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(matching, "passes", counted)
            short = Recorded(seed)
            short.play(STEPS)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(matching, "passes", lambda *_: False)
            full = Recorded(seed)
            full.play(STEPS)
        assert short.steps == full.steps
        assert short.account.state() == full.account.state()
    return passed


def test_a_bar_that_passes_all_that_rests_would_have_changed_nothing() -> None:
    assert compared(PASSES) > 50


UNSEEN: list[Callable[[Order], Order | None]] = [
    lambda order: None if order.kind is OrderKind.MARKET else order,
    lambda order: replace(order, until_ms=None),
    lambda order: replace(order, trigger=None),
    lambda order: replace(order, price=None),
]


@pytest.mark.parametrize("seen_as", UNSEEN)
def test_a_bar_that_is_let_pass_wrongly_is_found(
    seen_as: Callable[[Order], Order | None],
) -> None:
    def careless(broker: RestingOrders, seen: Bar) -> bool:
        told = RestingOrders.__new__(RestingOrders)
        told.order, told.trail = broker.order, broker.trail
        told.others = tuple(one for order in broker.others if (one := seen_as(order)) is not None)
        return PASSES(told, seen)

    with pytest.raises((AssertionError, InvariantBroken)):
        compared(careless)


# ---------------------------------------------------------------- the machine says no


def _looks_at_nothing(_self: RestingOrders, _held: int) -> None:
    pass


def _maker_at_its_price(order: Order, far: int) -> bool:
    if order.price is None:
        return False
    return far <= order.price if order.side is Side.BUY else far >= order.price


def _at_once(_self: Latency, *_named: object) -> int:
    return -1_000


def _forgets(self: RestingOrders, state: OrdersState) -> None:
    self.target, self.order = state.target, state.order


def _keeps_what_ended(self: RestingOrders, order: Order) -> Order:
    self.others = tuple(order if one.order_id == order.order_id else one for one in self.others)
    return order


PLANTED = [
    (RestingOrders, "resize", _looks_at_nothing),
    (matching, "_is_through", _maker_at_its_price),
    (Latency, "of", _at_once),
    (RestingOrders, "restore", _forgets),
    (RestingOrders, "note", _keeps_what_ended),
]


@pytest.mark.parametrize(("where", "name", "plant"), PLANTED, ids=[one[1] for one in PLANTED])
def test_the_machine_refutes_an_engine_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, plant: Any
) -> None:
    monkeypatch.setattr(where, name, plant)
    with pytest.raises((AssertionError, InvariantBroken)):
        played(Category.LINEAR, FillModel.QUOTE)
