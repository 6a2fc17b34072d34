"""Orders by list: what is refused and why, tags, what reduces, and what other fills do to them."""

import math
import random
from decimal import Decimal
from typing import Any

import pytest
from builders import START_MS, bar, instrument, quote
from msgspec.structs import replace

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.exit_orders import place_protection
from tracepaper.daemon.broker.line import RESTING_MOST, Line
from tracepaper.daemon.broker.orders import OrderContext, matters_from
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.strategies.api.context import Cancel, OrderRequest, buy, sell
from tracepaper.strategies.types.decisions import (
    FillModel,
    Liquidity,
    Order,
    OrderKind,
    OrderRole,
    OrderStatus,
)
from tracepaper.strategies.types.market import Bar, Category, Instrument, RiskTier, Side
from tracepaper.strategies.units import MONEY_LIMIT

COSTS = ExecutionCosts(taker_fee=5_500_000, maker_fee=2_000_000)
CLOSE = 10_000  # 100.00
WRITE_ONE = "write one such as 0.98 * context.close"


class Desk:
    """One account of one instrument, whose orders are decided at a close of 100."""

    def __init__(
        self,
        costs: ExecutionCosts = COSTS,
        *,
        cash: int = 10**6,
        fills: FillModel = FillModel.NEXT_OPEN,
        leverage: int | None = None,
        tiers: tuple[RiskTier, ...] = (),
        **of_instrument: Any,
    ) -> None:
        self.item: Instrument = replace(instrument(**of_instrument), risk_tiers=tiers)
        settings = BrokerSettings(fills, costs, cash * 10**8, Latency(100), leverage=leverage)
        self.account = PaperAccount([self.item], settings)

    @property
    def line(self) -> Line:
        return self.account.lines[self.item.id]

    @property
    def held(self) -> int:
        return self.account.lines[self.item.id].held

    def aim(self, target: int, at_ms: int) -> tuple[Order, ...]:
        """Submit *target* as a signal does."""
        now = OrderContext(at_ms, 0, CLOSE, MONEY_LIMIT)
        self.line.submit(target, "why", now)
        return self.account.ledger.take().orders

    @property
    def resting(self) -> tuple[Order, ...]:
        return self.line.orders

    def send(self, *requests: OrderRequest | Cancel, close: int = CLOSE) -> tuple[Order, ...]:
        self.account.ledger.take()
        self.account.ledger.step.number += 1
        candle = bar(close, instrument_id=self.item.id)
        cash = self.account.policy.spendable(self.line, is_reversal=False)
        now = OrderContext(candle.close_time_ms, candle.open_time_ms, close, cash)
        self.line.send(requests, "listed", now)
        return self.account.ledger.take().orders

    def arm(self, role: OrderRole, **given: Any) -> Any:
        place_protection(self.line, role, START_MS, "why", **given)
        return self.account.ledger.take().orders

    def quote(self, bid: int, ask: int, *, size: int = 10_000, after_ms: int = 100) -> Any:
        at_ms = START_MS + 60_000 + after_ms
        level = quote(bid, ask, size=size, at_ms=at_ms, instrument_id=self.item.id)
        self.account.ledger.take()
        self.account.markets[self.item.id].match_quote(level)
        return self.account.ledger.take()

    def bar(self, open_: int, high: int, low: int, close: int) -> Any:
        self.account.ledger.take()
        self.account.markets[self.item.id].match_bar(self.next_bar(open_, high, low, close))
        return self.account.ledger.take()

    def next_bar(self, open_: int, high: int, low: int, close: int) -> Bar:
        self.account.ledger.step.number += 1
        return bar(
            close, open_=open_, high=high, low=low,
            index=self.account.ledger.step.number, instrument_id=self.item.id,
        )  # fmt: skip


def reasons(orders: tuple[Order, ...]) -> list[tuple[OrderStatus, str]]:
    return [(order.status, order.reason) for order in orders]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (buy(math.nan), "quantity NaN is not a positive number"),
        (buy(0), "quantity 0 is not a positive number"),
        (buy(1e30), "quantity 1E+30 is beyond what an account can hold"),
        (buy(0.0015), "quantity is no multiple of the step 0.001; to_step rounds it"),
        (buy(1, limit=99.93), "price is no multiple of the tick 0.1; to_tick rounds it"),
        (sell(1, stop=0), "trigger 0 is not a positive number"),
        (buy(1, limit=9.9), f"limit is a price of less than a tenth of the close; {WRITE_ONE}"),
        (sell(1, limit=1_000.1), f"limit is a price of more than ten times the close; {WRITE_ONE}"),
        (sell(1, stop=9.9), f"trigger is a price of less than a tenth of the close; {WRITE_ONE}"),
        (buy(1, stop=100), "a buy stop must be above the market"),
        (sell(1, stop=101), "a sell stop must be below the market"),
        (sell(1, reduce_only=True), "it is reduce-only, and there is no position for it to close"),
        (buy(1, limit=99, until=START_MS + 60_000), "its time is over already"),
        (buy(1, post_only=True), "only a LIMIT order can be post-only"),
    ],
)
def test_a_refused_request_is_a_rejected_order_with_its_reason(
    request_: OrderRequest, reason: str
) -> None:
    desk = Desk()
    (order,) = desk.send(request_)
    assert (order.status, order.reason) == (OrderStatus.REJECTED, reason)
    assert desk.resting == ()


@pytest.mark.parametrize(
    ("filters", "request_", "reason"),
    [
        ({"min_quantity": 10}, buy(0.005), "quantity below 0.01"),
        ({"max_quantity": 10}, buy(0.011), "quantity above 0.01"),
        ({"min_notional": 5 * 10**8}, buy(0.04), "notional below 5"),
        ({"min_notional": 5 * 10**8}, buy(0.05, limit=99.9), "notional below 5"),
        ({"category": Category.SPOT}, buy(10_000.001), "cash does not cover it"),
        (
            {"category": Category.SPOT},
            sell(1),
            "it is reduce-only, and there is no position for it to close",
        ),
    ],
)
def test_the_filters_hold_for_orders_by_list(
    filters: dict[str, Any], request_: OrderRequest, reason: str
) -> None:
    (order,) = Desk(**filters).send(request_)
    assert (order.status, order.reason) == (OrderStatus.REJECTED, reason)


def test_no_order_by_list_leads_beyond_the_last_risk_tier() -> None:
    desk = Desk(leverage=1_000, tiers=(RiskTier(50 * 10**8, 50_000_000, 10_000, 0),))
    (order,) = desk.send(buy(0.501))
    assert order.status is OrderStatus.REJECTED
    assert order.reason == "position above 50, the last risk tier"
    (order,) = desk.send(buy(0.5))
    assert order.status is OrderStatus.NEW


def test_floats_that_are_nearly_a_tick_are_taken_for_it() -> None:
    (order,) = Desk().send(buy(0.1 + 0.2, limit=99.1 + 0.2))
    assert (order.status, order.quantity, order.price) == (OrderStatus.NEW, 300, 9_930)


@pytest.mark.parametrize(("off", "status"), [("1e-9", "NEW"), ("1.1e-9", "REJECTED")])
def test_a_quantity_may_miss_a_step_by_a_millionth_of_it(off: str, status: str) -> None:
    (order,) = Desk().send(buy(Decimal("0.3") + Decimal(off)))
    assert order.status is OrderStatus[status]


def test_resting_buys_on_spot_share_the_cash() -> None:
    desk = Desk(category=Category.SPOT, cash=1_000)
    first, second = desk.send(buy(6, limit=100), buy(6, limit=99))
    assert first.status is OrderStatus.NEW
    assert (second.status, second.reason) == (OrderStatus.REJECTED, "cash does not cover it")


def test_no_more_orders_rest_than_the_state_is_made_for() -> None:
    desk = Desk()
    sent = desk.send(*[buy(1, limit=50) for _ in range(RESTING_MOST + 1)])
    assert [order.status for order in sent].count(OrderStatus.NEW) == RESTING_MOST
    assert sent[-1].reason == f"{RESTING_MOST} orders by list rest already"
    assert len({order.order_id for order in sent}) == RESTING_MOST + 1


# ---------------------------------------------------------------- tags


def test_a_refused_replacement_leaves_what_rests() -> None:
    desk = Desk()
    desk.send(buy(1, limit=99, tag="a"))
    (refused,) = desk.send(buy(1, limit=99.99, tag="a"))
    assert refused.status is OrderStatus.REJECTED
    assert [order.price for order in desk.resting] == [9_900]


def test_cancel_takes_back_one_tag_or_all() -> None:
    desk = Desk()
    desk.send(buy(1, limit=99, tag="a"), buy(1, limit=98, tag="b"), buy(1, limit=97))
    assert reasons(desk.send(Cancel("b"))) == [(OrderStatus.CANCELED, "canceled by the strategy")]
    assert len(desk.send(Cancel())) == 2
    assert desk.resting == ()
    assert desk.send(Cancel("b")) == ()


# ---------------------------------------------------------------- quotes


def test_post_only_is_rejected_where_it_would_take() -> None:
    desk = Desk()
    desk.send(buy(1, limit=99, post_only=True), sell(1, limit=101, post_only=True))
    changed = desk.quote(9_890, 9_900).orders
    assert reasons(changed) == [
        (OrderStatus.REJECTED, "post-only, and it would have taken"),
        (OrderStatus.ACCEPTED, "listed"),
    ]


def test_a_stop_is_touched_by_the_side_that_fills_it_and_takes_at_once() -> None:
    desk = Desk()
    desk.send(buy(1, stop=101))
    assert desk.quote(10_090, 10_090).fills == ()
    (fill,) = desk.quote(10_090, 10_110, size=400).fills
    assert (fill.price, fill.quantity, fill.liquidity) == (10_110, 400, Liquidity.TAKER)
    (rest,) = desk.quote(9_990, 10_000).fills  # triggered once, it is a market order
    assert (rest.price, rest.quantity) == (10_000, 600)


def test_a_stop_limit_becomes_a_limit_where_it_is_touched() -> None:
    desk = Desk()
    desk.send(sell(1, stop=99, limit=98.5))
    (touched,) = desk.quote(9_840, 9_860).orders
    assert touched.triggered
    assert touched.status is OrderStatus.ACCEPTED  # the bid is under its limit: it rests
    assert desk.quote(9_850, 9_860).fills == ()
    (fill,) = desk.quote(9_860, 9_870).fills
    assert (fill.price, fill.liquidity) == (9_850, Liquidity.MAKER)


def test_a_stop_limit_beyond_which_the_market_is_as_it_is_touched_takes() -> None:
    desk = Desk()
    desk.send(buy(1, stop=101, limit=102))
    (fill,) = desk.quote(10_100, 10_110).fills
    assert (fill.price, fill.liquidity) == (10_110, Liquidity.TAKER)


def test_a_stop_limit_that_a_quote_triggered_takes_no_price_of_a_missed_bar_before_that() -> None:
    for is_missed, prices in ((True, [10_500]), (False, [10_550])):
        desk = Desk()
        desk.send(buy(1, stop=105, limit=105.5))
        desk.quote(9_990, 10_000)
        desk.quote(10_560, 10_570, after_ms=40_000)  # it is a limit now, and not reached
        (resting,) = desk.resting
        assert resting.triggered
        # The bar of those quotes comes late: it opened at 100, before they did.
        late = desk.next_bar(10_000, 10_570, 10_000, 10_560)
        late = replace(late, open_time_ms=START_MS + 60_000)
        desk.account.ledger.take()
        desk.account.markets[desk.item.id].match_bar(late, is_missed=is_missed)
        met = desk.account.ledger.take()
        assert [fill.price for fill in met.fills] == prices


def test_what_a_quote_does_not_show_waits_or_pays_an_impact() -> None:
    desk = Desk(ExecutionCosts(0, impact=10**6))  # 1 bp a multiple
    desk.send(buy(3))
    (fill,) = desk.quote(9_999, 100_000, size=1_000).fills
    assert (fill.quantity, fill.price) == (3_000, 100_020)  # two multiples beyond the first


def test_an_order_is_over_at_its_time_and_a_market_order_when_no_quote_came() -> None:
    desk = Desk()
    end_ms = START_MS + 60_000 + 5_000
    desk.send(buy(1, limit=99, until=end_ms), buy(1))
    desk.quote(9_990, 10_000, size=0)
    assert reasons(desk.quote(9_800, 9_810, size=0, after_ms=5_000).orders) == [
        (OrderStatus.CANCELED, "its time is over")
    ]
    assert reasons(desk.quote(9_990, 10_000, after_ms=10_101).orders) == [
        (OrderStatus.CANCELED, "no quote filled it within 10,000 ms")
    ]


def test_cash_that_is_exactly_the_cost_covers_it() -> None:
    desk = Desk(category=Category.SPOT, cash=100)
    desk.send(buy(1))
    met = desk.quote(9_990, 10_000)
    assert [fill.quantity for fill in met.fills] == [1_000]
    assert reasons(met.orders) == [(OrderStatus.FILLED, "listed")]


def test_a_quote_at_the_time_of_an_order_ends_it() -> None:
    desk = Desk()
    end_ms = START_MS + 70_000
    desk.send(buy(1, limit=99, until=end_ms))
    desk.quote(9_990, 10_000)
    (order,) = desk.resting
    for at_ms, from_ms in ((end_ms - 1, None), (end_ms, end_ms)):
        level = quote(9_990, 10_000, size=1_000, at_ms=at_ms, instrument_id=desk.item.id)
        assert matters_from(order, level) == from_ms


# ---------------------------------------------------------------- bars


@pytest.mark.parametrize("is_amended", [False, True])
def test_a_limit_that_arrives_at_an_open_beyond_it_takes_also_where_it_was_amended(
    *, is_amended: bool
) -> None:
    desk = Desk()
    desk.send(sell(1, limit=103, tag="it"))
    if is_amended:
        desk.bar(10_000, 10_010, 9_990, 10_000)
        desk.send(sell(1, limit=101, tag="it"))
    else:
        desk.send(sell(1, limit=101, tag="it"))
    (fill,) = desk.bar(10_200, 10_250, 10_150, 10_200).fills
    assert (fill.price, fill.liquidity) == (10_200, Liquidity.TAKER)


def test_a_stop_pays_spread_and_slippage_beyond_its_trigger() -> None:
    desk = Desk(ExecutionCosts(0, slippage=10**7, half_spread=10**7))
    desk.send(buy(1, stop=101))
    (fill,) = desk.bar(10_000, 10_100, 9_990, 10_000).fills
    assert (fill.price, fill.reference_price) == (10_130, 10_100)  # 20 bp, to a whole tick


def test_post_only_and_marketable_limits_meet_the_open_first() -> None:
    desk = Desk()
    desk.send(buy(1, limit=100.5), buy(1, limit=100.5, post_only=True))
    met = desk.bar(10_000, 10_100, 9_900, 10_000)
    (fill,) = met.fills
    assert (fill.price, fill.liquidity) == (10_000, Liquidity.TAKER)
    assert (OrderStatus.REJECTED, "post-only, and it would have taken") in reasons(met.orders)


def test_an_order_whose_time_ends_inside_a_bar_meets_none_of_it() -> None:
    desk = Desk()
    desk.send(buy(1, limit=99, until=START_MS + 3 * 60_000))
    assert desk.bar(10_000, 10_000, 10_000, 10_000).fills == ()  # the bar from +2 to +3 minutes
    met = desk.bar(9_800, 9_800, 9_800, 9_800)
    assert reasons(met.orders) == [(OrderStatus.CANCELED, "its time is over")]
    desk.send(buy(1, limit=99, until=START_MS + 5 * 60_000 + 30_000))
    met = desk.bar(9_800, 9_800, 9_800, 9_800)  # the bar from +5 to +6 minutes
    assert (met.fills, reasons(met.orders)) == ((), [(OrderStatus.CANCELED, "its time is over")])


@pytest.mark.parametrize(("after_ms", "fills"), [(-1, 0), (0, 1)])
def test_an_order_may_be_filled_until_the_last_millisecond_of_a_bar(
    after_ms: int, fills: int
) -> None:
    desk = Desk()
    desk.send(buy(1, limit=99, until=START_MS + 3 * 60_000 + after_ms))
    assert len(desk.bar(9_800, 9_800, 9_800, 9_800).fills) == fills  # the bar ends at +3 minutes


def test_the_time_of_an_order_ends_inside_a_bar_that_comes_nowhere_near_it() -> None:
    desk = Desk()
    desk.send(buy(1, limit=90, until=START_MS + 3 * 60_000 + 30_000))
    desk.bar(10_000, 10_010, 9_990, 10_000)  # it has arrived, and rests
    met = desk.bar(10_000, 10_010, 9_990, 10_000)  # the bar from +3 to +4 minutes
    assert reasons(met.orders) == [(OrderStatus.CANCELED, "its time is over")]


# ---------------------------------------------------------------- what fills do to other orders


def test_an_order_that_may_only_reduce_is_refused_on_the_side_that_would_add() -> None:
    desk = Desk()
    desk.send(sell(1))
    desk.quote(10_000, 10_010)
    assert desk.held == -1_000
    (more,) = desk.send(sell(1, limit=101, reduce_only=True))
    assert reasons((more,)) == [
        (OrderStatus.REJECTED, "it is reduce-only, and there is no position for it to close")
    ]
    (less,) = desk.send(buy(1, limit=99, reduce_only=True))
    assert less.status is OrderStatus.NEW


def test_an_order_that_may_only_reduce_does_not_grow_with_the_position() -> None:
    desk = Desk()
    desk.send(buy(1))
    desk.quote(9_990, 10_000)
    desk.send(sell(1, limit=101, reduce_only=True))
    desk.quote(9_990, 10_000)
    desk.quote(10_120, 10_130, size=400)
    desk.send(buy(0.2))
    desk.quote(9_990, 10_000)
    (exit_,) = desk.resting
    assert (desk.held, exit_.quantity, exit_.filled) == (800, 1_000, 400)


def test_an_exit_ends_what_a_signal_ordered_except_the_rest_of_a_reversal() -> None:
    """A stop of a list, or of the position, fills in part or whole beside an order by signal."""
    counted = dict.fromkeys(("reversal", "closing"), 0)
    for seed in range(200):
        rng, desk = random.Random(seed), Desk(quantity_step=1, min_quantity=1, min_notional=0)
        held, sign = rng.randint(2, 900), rng.choice((1, -1))
        desk.aim(sign * held, START_MS + 60_000)
        desk.quote(CLOSE, CLOSE)
        is_protective, trigger = rng.random() < 0.6, CLOSE - sign * 100
        if is_protective:
            desk.arm(OrderRole.STOP, trigger=trigger)
        else:
            close = sell if sign > 0 else buy
            desk.send(close(held / 1_000, stop=trigger / 100, reduce_only=True))
        target = -sign * rng.choice((0, 1, rng.randint(2, 900), -(held // 2)))
        (ordered,) = desk.aim(target, START_MS + 60_001)  # the next quote is before it arrives
        closed = rng.choice((held, rng.randint(1, held - 1)))
        desk.quote(trigger, trigger, size=closed)
        left, line = sign * (held - closed), desk.line
        reverses = is_protective and target * sign < 0
        rest = 0 if line.order is None else line.order.quantity - line.order.filled
        assert desk.held == left
        assert line.target == (target if reverses else left)
        assert rest == (min(ordered.quantity, abs(target - left)) if reverses else 0)
        counted["reversal" if reverses else "closing"] += 1
    assert min(counted.values()) > 50


def test_a_protective_order_is_armed_once_amended_in_place_and_cancels_what_it_makes_wrong() -> (
    None
):
    desk = Desk()
    broker = desk.line
    desk.aim(2_000, START_MS + 60_000)
    desk.quote(9_990, 10_000, size=1_000)
    (armed,) = desk.arm(OrderRole.STOP, trigger=9_900)
    assert (armed.kind, armed.side, armed.quantity) == (OrderKind.STOP, Side.SELL, 1_000)
    assert desk.arm(OrderRole.STOP, trigger=9_900) == ()
    (amended,) = desk.arm(OrderRole.STOP, trigger=9_950)
    assert (amended.order_id, amended.trigger) == (armed.order_id, 9_950)
    (target,) = desk.arm(OrderRole.TARGET, price=10_500)
    assert target.order_id == "0-2"
    met = desk.quote(9_940, 9_960)
    # The stop meets the quote before the rest of the entry does, which is then for nothing.
    assert [(order.role, order.status) for order in met.orders] == [
        (OrderRole.STOP, OrderStatus.FILLED),
        (OrderRole.SIGNAL, OrderStatus.CANCELED),
        (OrderRole.TARGET, OrderStatus.CANCELED),
    ]
    assert (desk.held, broker.target, desk.resting) == (0, 0, ())


@pytest.mark.parametrize(("market", "status"), [(9_990, "ACCEPTED"), (10_000, "NEW")])
def test_a_target_rests_at_once_where_the_market_has_not_reached_it(
    market: int, status: str
) -> None:
    desk = Desk()
    desk.send(buy(1))
    desk.quote(9_990, 10_000)
    (target,) = desk.arm(OrderRole.TARGET, price=10_000, market=market)
    assert target.status is OrderStatus[status]


def test_a_trailing_stop_follows_at_whole_ticks_and_no_nearer_than_asked() -> None:
    for signed, bid, ask, trigger in ((1, 10_105, 10_106, 10_000), (-1, 9_894, 9_895, 10_000)):
        desk = Desk()
        desk.send(buy(1) if signed > 0 else sell(1))
        desk.quote(9_990, 10_000)
        first = 9_900 if signed > 0 else 10_100
        desk.arm(OrderRole.TRAILING, trigger=first)
        desk.line.protect_by(replace(desk.line.protection, trail=100))
        desk.quote(bid, ask)  # of a tick that the exchange no longer has
        assert [order.trigger for order in desk.resting] == [trigger]


def test_latency_is_drawn_from_seed_instrument_bar_and_ordinal_alone() -> None:
    latency = Latency(100, mean_jitter_ms=50, seed=7)
    drawn = [latency.of("linear:BTCUSDT", START_MS, ordinal) for ordinal in range(2_000)]
    assert drawn == [latency.of("linear:BTCUSDT", START_MS, ordinal) for ordinal in range(2_000)]
    assert min(drawn) >= 100
    assert sum(drawn) / len(drawn) == pytest.approx(150, abs=5)
    assert latency.of("linear:ETHUSDT", START_MS, 0) != drawn[0]
    assert Latency(100, 50, 8).of("linear:BTCUSDT", START_MS, 0) != drawn[0]
    assert Latency(100).of("linear:BTCUSDT", START_MS, 0) == 100
