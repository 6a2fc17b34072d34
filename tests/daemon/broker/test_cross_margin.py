"""Cross margin: one balance for all positions, what it refuses, how it is liquidated."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from builders import START_MS, bar, instrument, present, quote
from engines import Says, engine_of
from msgspec.structs import replace
from reference_cross import ReferenceCross, ReferenceFill, RestingSize, Tier

from tracepaper.daemon.broker.account import Intent
from tracepaper.daemon.broker.broker import Broker
from tracepaper.daemon.broker.ledger import FilledEvent
from tracepaper.daemon.broker.margin import CALLED, CrossLine, is_liquidated, loss_of
from tracepaper.daemon.broker.rules import NO_MARGIN, MarginRules
from tracepaper.daemon.engine.engine import Engine
from tracepaper.strategies.api.context import Orders, buy, sell
from tracepaper.strategies.types.decisions import (
    Action,
    Fill,
    FillModel,
    Order,
    OrderRole,
    OrderStatus,
)
from tracepaper.strategies.types.market import (
    Bar,
    Funding,
    Gap,
    GapCause,
    Instrument,
    Mark,
    RiskTier,
    Side,
)
from tracepaper.strategies.units import MONEY_SCALE, RATE_SCALE

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
KEYS = tuple(f"linear:{symbol}" for symbol in SYMBOLS)
BTC, ETH, SOL = KEYS
TIERS = (
    RiskTier(2_000 * MONEY_SCALE, 50_000_000, 10_000, 0),
    RiskTier(20_000 * MONEY_SCALE, 100_000_000, 2_500, 10 * MONEY_SCALE),
    RiskTier(0, 200_000_000, 1_000, 210 * MONEY_SCALE),
)
"""0.5 % to 2,000 at 100 times, 1 % to 20,000 at 25 times, then 2 % at 10 times."""
OWN_TIERS = (
    Tier(Fraction(2_000), Fraction(5, 1_000), Fraction(0)),
    Tier(Fraction(20_000), Fraction(1, 100), Fraction(10)),
    Tier(None, Fraction(2, 100), Fraction(210)),
)
ENDED = {OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REJECTED}


def items(symbols: tuple[str, ...] = SYMBOLS) -> list[Instrument]:
    return [replace(instrument(symbol, tick_size=1), risk_tiers=TIERS) for symbol in symbols]


def engine(
    *,
    symbols: tuple[str, ...] = SYMBOLS,
    cash: str = "1000",
    leverage: str = "10",
    margin: str = "cross",
    model: FillModel = FillModel.NEXT_OPEN,
    **costs: Any,
) -> Engine:
    return engine_of(
        {
            "market": {"symbols": list(symbols)},
            "strategy": {"name": "sma_cross"},
            "execution": costs,
            "account": {"cash": cash, "margin": margin, "leverage": leverage},
        },
        items(symbols),
        execution=model,
        strategies={symbol: Says() for symbol in symbols},
    )


class Desk:
    """A broker, driven one event or intent at a time."""

    def __init__(self, **terms: Any) -> None:
        self.terms = terms
        self.broker: Broker = engine(**terms).broker
        self.sequence = 0
        self.index = 0
        self.last: dict[str, Bar] = {}

    def bar(self, key: str, close: int, **shape: Any) -> FilledEvent:
        self.index += 1
        self.last[key] = bar(close, index=self.index, instrument_id=key, **shape)
        return self.on_bar(self.last[key])

    def on_bar(self, candle: Bar, **terms: Any) -> FilledEvent:
        self.sequence += 1
        self.broker.step.number = self.sequence
        return self.broker.on_bar(candle, **terms)

    def mark(self, key: str, price: int) -> FilledEvent:
        self.sequence += 1
        self.broker.step.number = self.sequence
        at = START_MS + self.index * 60_000
        self.broker.on_mark(Mark(key, price, at, at))
        return self.broker.take()

    def pay(self, key: str, rate: int) -> FilledEvent:
        self.sequence += 1
        self.broker.step.number = self.sequence
        at = START_MS + self.index * 60_000
        self.broker.on_funding(Funding(key, rate, at, at), closed_ms=at)
        return self.broker.take()

    def target(self, key: str, target: int) -> tuple[tuple[Order, ...], str | None]:
        self.sequence += 1
        self.broker.step.number = self.sequence
        action = Action.LONG if target > 0 else Action.SHORT if target else Action.FLAT
        last = self.last[key]
        refusal = self.broker.route(Intent(action, target, "asked"), last, last.market_ms)
        return self.broker.take().orders, refusal

    def send(self, key: str, *requests: Any) -> tuple[Order, ...]:
        self.sequence += 1
        self.broker.step.number = self.sequence
        last = self.last[key]
        self.broker.route(Orders(requests, "listed"), last, last.market_ms)
        return self.broker.take().orders

    def enter(self, key: str, target: int, price: int = 100_000) -> None:
        """Enter *target* of *key* at *price*."""
        self.bar(key, price)
        sent, refusal = self.target(key, target)
        assert refusal is None, refusal
        assert sent
        (fill,) = self.bar(key, price).fills
        assert fill.price == price

    def held(self, key: str) -> int:
        return self.broker.account.lines[key].held

    @property
    def equity(self) -> int:
        return self.broker.account.balance().equity


def liquidations_in(filled: FilledEvent) -> list[tuple[str, Side, int, int]]:
    """Return the liquidation fills."""
    return [
        (fill.instrument, fill.side, fill.quantity, fill.price)
        for fill in filled.fills
        if fill.model is FillModel.LIQUIDATION
    ]


# ---------------------------------------------------------------- one account, in numbers


def test_a_bar_calls_along_its_path_and_a_nearer_stop_comes_first() -> None:
    shape = {"open_": 100_000, "high": 100_100, "low": 80_000}
    called = Desk(cash="250")
    called.enter(BTC, 2_000)
    (reduction,) = liquidations_in(called.bar(BTC, 99_000, **shape))
    stopped = Desk(cash="250")
    stopped.enter(BTC, 2_000)
    stopped.send(BTC, sell(2, stop=950, reduce_only=True))
    (fill,) = stopped.bar(BTC, 99_000, **shape).fills
    assert (fill.model, fill.price) == (FillModel.BAR_PATH, 95_000)
    late = Desk(cash="250")
    late.enter(BTC, 2_000)
    late.send(BTC, sell(2, stop=850, reduce_only=True))
    assert liquidations_in(late.bar(BTC, 99_000, **shape)) == [reduction]
    assert not late.broker.account.lines[BTC].rests, "the stop ends with its position"


def test_bars_of_one_close_value_everything_before_the_account_is_asked() -> None:
    """With quotes no path of a bar counts; one fall alone would liquidate."""
    desk = Desk(cash="250", model=FillModel.QUOTE)
    for key, target in ((BTC, 1_000), (ETH, -1_000)):
        desk.bar(key, 100_000)
        desk.target(key, target)
        at = desk.last[key].close_time_ms + 500
        desk.broker.on_quote(quote(100_000, 100_000, at_ms=at, instrument_id=key))
        assert desk.held(key) == target
    both = [bar(60_000, index=90, instrument_id=key) for key in (BTC, ETH)]
    assert not liquidations_in(desk.on_bar(both[0], is_last=False))
    assert not liquidations_in(desk.on_bar(both[1]))
    assert len(liquidations_in(desk.on_bar(bar(30_000, index=91, instrument_id=BTC)))) == 2


def test_the_ratio_counts_at_exactly_100_percent() -> None:
    rules = MarginRules(items()[0], 1_000, 0, is_cross=True)
    value = 1_000 * MONEY_SCALE
    btc = Desk(cash="300", leverage="10").broker.account.lines[BTC]
    lines = {btc: CrossLine(rules, 1_000, value, value, value)}
    needed = 5 * MONEY_SCALE  # half a percent, and no fee
    assert is_liquidated(needed, lines)
    assert not is_liquidated(needed + 1, lines)
    assert not is_liquidated(0, {})
    assert loss_of(btc, 7, lines) == 7


def test_a_deduction_leaves_no_negative_margin() -> None:
    item = replace(items()[0], risk_tiers=(RiskTier(0, 50_000_000, 10_000, MONEY_SCALE),))
    rules = MarginRules(item, 1_000, 0, is_cross=True)
    values = [value * MONEY_SCALE for value in (1, 199, 200, 400)]
    assert [rules.maintenance(value) for value in values] == [0, 0, 0, MONEY_SCALE]


def test_an_order_beyond_the_available_balance_is_cut_or_refused_and_nothing_is_lost() -> None:
    desk = Desk(cash="300", leverage="10")
    desk.enter(BTC, 2_000)  # binds 200 and a fee
    desk.bar(ETH, 100_000)
    (order,), why = desk.target(ETH, 1_000)
    assert (900 < order.quantity < 1_000, why) == (True, NO_MARGIN)
    assert desk.target(ETH, 900)[1] is None
    (refused,) = desk.send(SOL_AT(desk), buy(1))
    assert (refused.status, refused.reason) == (OrderStatus.REJECTED, NO_MARGIN)
    assert desk.held(BTC) == 2_000


def SOL_AT(desk: Desk) -> str:  # noqa: N802 - it is SOL, with a price
    desk.bar(SOL, 100_000)
    return SOL


def test_funding_comes_from_the_cash_and_may_call_the_account() -> None:
    desk = Desk(cash="250")
    desk.enter(BTC, 2_000)
    assert not desk.pay(BTC, 100_000_000).fills  # 1 % of 2,000 is 20
    assert desk.broker.account.balance().funding_paid == 20 * MONEY_SCALE
    filled = desk.pay(BTC, 1_100_000_000)  # 220
    assert [reduction[:3] for reduction in liquidations_in(filled)] == [(BTC, Side.SELL, 2_000)]
    assert 0 <= desk.equity < MONEY_SCALE // 10


def test_a_settlement_waits_for_the_bars_of_a_gap_unless_they_never_arrive() -> None:
    desk = Desk(cash="1000")
    desk.enter(BTC, 2_000)
    closed_ms, cash = desk.last[BTC].close_time_ms, desk.broker.account.ledger.cash
    due_ms, until_ms = closed_ms + 30_000, closed_ms + 120_000
    desk.broker.on_funding(Funding(BTC, 10**8, due_ms, due_ms), closed_ms)
    for repaired_by, paid in (("rest", 0), ("", 20 * MONEY_SCALE)):
        desk.broker.on_hole(
            Gap(BTC, closed_ms, until_ms, GapCause.DOWN, repaired_by, until_ms, until_ms)
        )
        assert cash - desk.broker.account.ledger.cash == paid


# ---------------------------------------------------------------- laws over random sequences


class Twice:
    """A desk and an independent reference account, fed the same events."""

    def __init__(self, rng: random.Random) -> None:
        cash, leverage, bp = (
            rng.choice(("300", "9000", "40000")),
            rng.choice(("4", "10")),
            rng.choice("05"),
        )
        self.desk = Desk(cash=cash, leverage=leverage, slippage_bp=bp)
        self.reference = ReferenceCross(
            Fraction(cash), Fraction(leverage), OWN_TIERS, KEYS, Fraction(1, 100),
            Fraction(1, 1_000), Fraction(int(bp), 10_000),
        )  # fmt: skip
        self.marked: set[str] = set()
        self.items = {item.id: item for item in items()}
        self.at_limit = 0  # changes of tiers that put a position at exactly the limit of one
        self.liquidations = self.reductions = 0

    def note(self, orders: tuple[Order, ...]) -> None:
        for order in orders:
            self.reference.orders.pop(order.order_id, None)
            if order.status not in ENDED:
                left = Fraction(order.quantity - order.filled, 1_000)
                self.reference.orders[order.order_id] = RestingSize(
                    order.instrument,
                    left if order.side is Side.BUY else -left,
                    order.reduce_only,
                    order.role is OrderRole.SIGNAL,
                )

    def book(self, fill: Fill) -> None:
        """Book an order's fill in the reference, and check that no opening exceeds its margin."""
        signed = Fraction(fill.quantity if fill.side is Side.BUY else -fill.quantity, 1_000)
        held = self.reference.of(fill.instrument).quantity
        price, fee = Fraction(fill.price, 100), Fraction(fill.fee, 10**8)
        self.reference.fill(fill.instrument, signed, price, fee)
        after = self.reference.of(fill.instrument).quantity
        order = self.reference.orders.get(fill.order_id)
        if order is not None:  # what is left of it
            self.reference.orders[fill.order_id] = order._replace(signed=order.signed - signed)
        if abs(after) > abs(held) or after * held < 0:
            before = self.reference.marks.get(fill.instrument)
            self.reference.marks[fill.instrument] = Fraction(fill.reference_price, 100)
            assert self.reference.bound(but=fill.instrument) <= self.reference.balance(), (
                "beyond its margin"
            )
            assert before is not None
            self.reference.marks[fill.instrument] = before

    def expect(self, filled: FilledEvent, done: list[Fill]) -> list[Fill]:
        """Compare the fills after those *done* with the reference's liquidation, if one is due."""
        if not self.reference.is_called():
            return done
        self.liquidations += 1
        return self.held_to(self.reference.liquidate(), filled, done)

    def ruined(self, key: str, price: int, filled: FilledEvent, done: list[Fill]) -> list[Fill]:
        """Compare them with the takeover instead of a close at *price* that costs too much."""
        held = self.reference.of(key).quantity
        closing = [order for order in self.reference.orders.values() if order.symbol == key]
        assert any(fill.signed * held < 0 for fill in closing)
        mark, self.reference.marks[key] = self.reference.marks[key], Fraction(price, 100)
        assert self.reference.balance() < abs(self.reference.value(key, held)) / 500, "and it could"
        done = self.held_to(self.reference.liquidate(is_ruin=True), filled, done)
        self.reference.marks[key] = mark
        return done

    def held_to(
        self, due: tuple[set[str], list[ReferenceFill]], filled: FilledEvent, done: list[Fill]
    ) -> list[Fill]:
        canceled, due_fills = due
        ended = {
            order.order_id
            for order in filled.orders
            if order.status is OrderStatus.CANCELED and order.reason == CALLED
        }
        assert canceled <= ended
        place = len(done)
        got = filled.fills[place : place + len(due_fills)]
        assert [
            ReferenceFill(
                order.instrument,
                Fraction(order.quantity if order.side is Side.BUY else -order.quantity, 1_000),
                Fraction(order.price, 100),
            )
            for order in got
        ] == due_fills
        assert all(fill.model is FillModel.LIQUIDATION for fill in got)
        self.reductions += any(row.quantity for row in self.reference.held.values()) and bool(
            due_fills
        )
        assert not self.reference.is_called()
        assert self.reference.balance() >= 0, "more is lost than there was"
        return [*done, *got]

    def bar(self, key: str, price: int) -> None:
        follows = key not in self.marked
        filled = self.desk.bar(key, price)
        done: list[Fill] = []
        if follows:
            self.reference.marks[key] = Fraction(price, 100)
            done = self.expect(filled, done)
        while len(done) < len(filled.fills) and (
            (fill := filled.fills[len(done)]).model is not FillModel.LIQUIDATION
        ):
            self.book(fill)
            done.append(fill)
        if len(done) < len(filled.fills) and not self.reference.is_called():
            done = self.ruined(key, price, filled, done)
        self.note(tuple(order for order in filled.orders if order.reason != CALLED))
        self.note(tuple(order for order in filled.orders if order.reason == CALLED and not done))
        self.marked.discard(key)
        done = self.expect(filled, done)
        assert len(done) == len(filled.fills), "a fill that was not due"
        self.note(filled.orders)
        self.agree()

    def mark(self, key: str, price: int) -> None:
        at = START_MS + self.desk.index * 60_000
        is_called = self.desk.broker.liquidates(Mark(key, price, at, at))
        filled = self.desk.mark(key, price)
        self.reference.marks[key] = Fraction(price, 100)
        self.marked.add(key)
        assert is_called is self.reference.is_called()
        assert len(self.expect(filled, [])) == len(filled.fills)
        self.note(filled.orders)
        self.agree()

    def creep(self, key: str, price: int) -> int:
        """Move the marks against the positions until the account is liquidated, or nearly."""
        way = -1 if self.reference.of(key).quantity > 0 else 1
        for _ in range(60):
            price += way * price // 200
            self.mark(key, price)
            if self.reference.of(key).quantity * way >= 0:
                break
        return price

    def pay(self, key: str, rate: int) -> None:
        filled = self.desk.pay(key, rate)
        self.reference.funding(key, Fraction(rate, 10**10))
        assert len(self.expect(filled, [])) == len(filled.fills)
        self.note(filled.orders)
        self.agree()

    def retier(self, key: str, rng: random.Random) -> None:
        """Change the tiers so that a limit is at a position's value, or a unit beside it."""
        size = abs(self.reference.value(key, self.reference.of(key).quantity)) * 10**8
        limit = max(int(size) + rng.choice((-1, 0, 0, 1)), 1)
        second, rate = limit * rng.choice((2, 5)), rng.choice((40_000_000, 100_000_000))
        deduction = rng.choice((0, limit * rate // RATE_SCALE))
        tiers = (
            RiskTier(limit, 50_000_000, 10_000, 0),
            RiskTier(second, 50_000_000 + rate, 2_500, deduction),
            RiskTier(0, 300_000_000, 1_000, deduction * 2),
        )
        self.items[key] = replace(self.items[key], risk_tiers=tiers)
        self.desk.broker.change(self.items[key])
        self.reference.changed[key] = tuple(
            Tier(
                Fraction(tier.limit, 10**8) if tier.limit else None,
                Fraction(tier.maintenance, 10**10),
                Fraction(tier.deduction, 10**8),
            )
            for tier in tiers
        )
        self.at_limit += bool(size) and limit == size
        self.agree()

    def agree(self) -> None:
        reference, account = self.reference, self.desk.broker.account
        assert account.balance().cash == reference.cash * 10**8
        assert account.balance().equity == reference.balance() * 10**8
        for key in KEYS:
            held, holding = reference.of(key), account.lines[key].holding
            assert holding.quantity == held.quantity * 1_000
            assert holding.entry_notional == held.entry * 10**8
            assert holding.margin == 0, "no position has a margin of its own"
            line, value = account.lines[key], reference.value(key, held.quantity)
            rules, position = present(line.margin_rules), line.position
            assert rules.used_by(position) == reference.initial(value) * 10**8
            needed = reference.maintenance(key, value) if value else 0
            assert rules.needed_by(position) == needed * 10**8
            resting = {order.order_id for order in line.orders}
            assert resting == {
                name for name, order in reference.orders.items() if order.symbol == key
            }

    def restart(self) -> None:
        """Kill the broker and restore it from its state; marks since the newest bars are lost."""
        (state, _), last_bars = self.desk.broker.state(), self.desk.last
        sequence, index = self.desk.sequence, self.desk.index
        self.desk = Desk(**self.desk.terms)
        self.desk.sequence, self.desk.index, self.desk.last = sequence, index, last_bars
        for item in self.items.values():
            self.desk.broker.change(item)
        self.desk.broker.restore(state, {})
        for key, last in last_bars.items():
            self.desk.broker.follow((last,))
            self.reference.marks[key] = Fraction(last.close, 100)
        self.marked.clear()
        self.agree()


def walked(seed: int, *, steps: int = 90, retiers: float = 0) -> Twice:
    """Draw a sequence of events over three symbols that respects the rules of each event."""
    rng = random.Random(seed)
    both = Twice(rng)
    prices = dict.fromkeys(KEYS, 100_000)
    for key in KEYS:
        both.bar(key, prices[key])
    for _ in range(steps):
        key, roll = rng.choice(KEYS), rng.random()
        wild = rng.choice((500, 5_000, 30_000))
        prices[key] = max(prices[key] + rng.randint(-wild, wild), 5_000)
        most = (
            both.reference.balance() * both.reference.leverage * 100 / prices[key]
        )  # units that it could buy
        size = max(int(most * rng.choice((100, 300, 500, 900))), 1)
        if retiers and rng.random() < retiers:
            both.retier(key, rng)
        elif roll < 0.3:
            both.bar(key, prices[key])
        elif roll < 0.45:
            both.mark(key, prices[key])
        elif roll < 0.55:
            prices[key] = both.creep(key, prices[key])
        elif roll < 0.62:
            both.pay(key, rng.randint(-(10**8), 3 * 10**8))
        elif roll < 0.8:
            sent, _ = both.desk.target(key, rng.choice((-1, 1, 1, 1, 0)) * size)
            both.note(sent)
        elif roll < 0.95:
            limit = prices[key] * rng.choice((90, 98, 102, 110)) // 100 / 100
            request = rng.choice((buy, sell))(size / 1_000, limit=limit, reduce_only=roll > 0.92)
            both.note(both.desk.send(key, request))
        else:
            both.restart()
    return both


@pytest.mark.parametrize("retiers", [0, 0.2], ids=["tiers stand", "tiers change"])
def test_an_account_kept_by_itself_agrees_to_the_last_unit(retiers: float) -> None:
    """Changed tiers bind from the next price on, also of positions at exactly a limit."""
    both = [walked(seed, retiers=retiers) for seed in range(45)]
    assert sum(desk.liquidations for desk in both) > 20
    assert sum(desk.reductions for desk in both) > 0
    assert not retiers or sum(desk.at_limit for desk in both) > 40


def test_the_first_price_of_a_path_that_liquidates_is_that_of_counting() -> None:
    """Near the price at which a drawn account is liquidated, in ticks of one unit and of more."""
    spans = 0
    for seed in range(12):
        both, rng = walked(seed, steps=25), random.Random(seed)
        account, reference = both.desk.broker.account, both.reference

        def is_called(price: int, key: str, reference: ReferenceCross = reference) -> bool:
            before, reference.marks[key] = reference.marks[key], Fraction(price, 100)
            called, reference.marks[key] = reference.is_called(), before
            return called

        for key in set(KEYS) - both.marked:
            mark, held = account.lines[key].mark, account.lines[key].held
            way = -1 if held > 0 else 1
            reached = next((at for at in range(100) if is_called(mark + way * at * 400, key)), 0)
            if not held or not reached:
                continue
            tick = rng.choice((1, 5))
            both.desk.broker.change(replace(both.items[key], tick_size=tick))
            least = mark + way * (reached - 1) * 400
            fewest = next(at for at in range(401) if is_called(least + way * at, key))
            for _ in range(30):
                start = least + way * (fewest - rng.randint(-3, 40))
                end = least + way * (fewest + rng.randint(-9, 40))
                towards = tick if end > start else -tick
                prices = [*range(start, end, towards), end]
                due = next((price for price in prices if is_called(price, key)), None)
                due = due if is_called(end, key) else None
                cross = account.markets[key].cross
                assert present(cross).first_liquidation(account.lines[key], start, end) == due
                spans += due is not None
    assert spans > 50
