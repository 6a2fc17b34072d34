"""Orders: the state table, netting, and the exchange's filters."""

import itertools
from typing import Any

import pytest
from builders import instrument

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.orders import NEXT, OrderContext, OrderEvent, after
from tracepaper.daemon.broker.rules import NOTIONAL_MOST
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import FillModel, Order, OrderStatus
from tracepaper.strategies.types.market import Category, Side

TERMS = ExecutionCosts(taker_fee=5_500_000)


def opened(costs: ExecutionCosts = TERMS, **filters: Any) -> Line:
    item = instrument(**filters)
    settings = BrokerSettings(FillModel.QUOTE, costs, 0, Latency(100))
    return PaperAccount([item], settings).line(item.id)


def sent(
    line: Line, target: int, held: int = 0, *, price: int = 10_000, cash: int = 10**18
) -> tuple[tuple[Order, ...], str | None]:
    line.holding.quantity = held
    refusal = line.submit(target, "why", OrderContext(1_000, 0, price, cash))
    return line.ledger.take().orders, refusal


def submit(line: Line, target: int, held: int = 0, *, price: int = 10_000) -> tuple[Order, ...]:
    return sent(line, target, held, price=price)[0]


@pytest.mark.parametrize("pair", list(itertools.product(OrderStatus, OrderEvent)))
def test_every_status_and_event_is_a_row_or_a_bug(pair: tuple[OrderStatus, OrderEvent]) -> None:
    status, event = pair
    order = Order("1-0", "X", Side.BUY, 1, 0, status, "why", 0, 0)
    if pair in NEXT:
        assert after(order, event).status is NEXT[pair]
    else:
        with pytest.raises(InvariantBroken):
            after(order, event)


def test_a_reversal_is_one_order() -> None:
    (order,) = submit(opened(), -1_000, held=1_000)
    assert (order.side, order.quantity, order.status) == (Side.SELL, 2_000, OrderStatus.ACCEPTED)
    assert order.eligible_ms == 1_100


def test_a_resting_order_that_differs_is_canceled_and_replaced_in_the_same_step() -> None:
    line = opened()
    submit(line, 1_000)
    assert submit(line, 1_000) == ()
    canceled, placed = submit(line, -500)
    assert (canceled.status, canceled.reason) == (OrderStatus.CANCELED, "another target")
    assert (placed.side, placed.quantity) == (Side.SELL, 500)
    (canceled,) = submit(line, 0)
    assert canceled.status is OrderStatus.CANCELED
    assert line.order is None


@pytest.mark.parametrize(
    ("filters", "target", "reason"),
    [
        ({"min_quantity": 10}, 5, "quantity below 0.01"),
        ({"max_quantity": 10}, 11, "quantity above 0.01"),
        ({"min_notional": 5 * 10**8}, 40, "notional below 5"),
        ({"quantity_step": 5}, 4, "the difference is less than the step 0.005"),
    ],
)
def test_what_the_filters_refuse_is_no_order_and_is_refused_again(
    filters: dict[str, Any], target: int, reason: str
) -> None:
    line = opened(**filters)
    assert sent(line, target) == ((), reason)
    assert sent(line, target) == ((), reason)
    line.change(instrument())
    (order,) = submit(line, target)
    assert (order.status, order.quantity) == (OrderStatus.ACCEPTED, target)


@pytest.mark.parametrize(
    ("filters", "target", "price"),
    [
        ({"min_quantity": 10}, 10, 10_000),
        ({"max_quantity": 10}, 10, 10_000),
        ({"min_notional": 5 * 10**8}, 50, 10_000),
        ({"price_decimals": 0}, 1_000, NOTIONAL_MOST // 10**8),
    ],
)
def test_an_order_at_a_limit_is_taken(filters: dict[str, Any], target: int, price: int) -> None:
    (order,) = submit(opened(**filters), target, price=price)
    assert order.status is OrderStatus.ACCEPTED


def test_only_whole_steps_are_sent_and_the_rest_is_said() -> None:
    line = opened(quantity_step=10)
    (order,) = submit(line, 0, held=25)
    assert (order.side, order.quantity) == (Side.SELL, 20)


def test_closing_is_exempt_from_the_minimum_notional() -> None:
    (order,) = submit(opened(min_notional=5 * 10**8), 0, held=40)
    assert order.status is OrderStatus.ACCEPTED


def test_a_fill_of_an_order_that_does_not_rest_is_a_bug() -> None:
    line = opened()
    (order,) = submit(line, 1_000)
    fill = line.executor.taken(order, 10_000, FillModel.NEXT_OPEN, 1)
    assert line.apply(fill).status is OrderStatus.FILLED
    with pytest.raises(InvariantBroken, match="does not rest"):
        line.apply(fill)


def test_a_spot_buy_is_grossed_up_so_that_the_fee_in_base_leaves_the_target() -> None:
    line = opened(ExecutionCosts(taker_fee=10_000_000), category=Category.SPOT)
    (order,) = submit(line, 1_000)
    fee = order.quantity * 10_000_000 // 10**10
    assert abs(order.quantity - fee - 1_000) <= line.item.quantity_step
    assert submit(line, 1_000, held=0) == ()


def test_on_spot_a_target_within_one_step_is_reached() -> None:
    line = opened(category=Category.SPOT, quantity_step=5)
    for held in (995, 1_005):
        assert sent(line, 1_000, held=held) == ((), None)
    (bought,) = submit(line, 1_000, held=994)
    (_, sold) = submit(line, 999, held=1_006)
    assert (bought.side, bought.quantity) == (Side.BUY, 10)
    assert (sold.side, sold.quantity) == (Side.SELL, 5)
    assert sent(opened(), 1_000, held=999)[0]  # linear positions are exact


def test_an_order_that_money_could_not_hold_is_refused_and_a_close_never_is() -> None:
    line = opened()
    huge = 10**11
    assert sent(line, huge, price=10**8) == ((), "notional above 23058430092")
    (close,) = submit(line, 0, held=huge, price=10**8)
    assert close.status is OrderStatus.ACCEPTED


def test_a_spot_buy_beyond_the_cash_is_cut_and_a_sale_is_not() -> None:
    line = opened(ExecutionCosts(taker_fee=0), category=Category.SPOT)

    def submitted(target: int, *, held: int, cash: int) -> tuple[tuple[Order, ...], str | None]:
        return sent(line, target, held, cash=cash * 10**8)

    assert submitted(1_000, held=0, cash=0) == ((), "cash does not cover it")
    (cut,), why = submitted(1_000, held=0, cash=99)
    assert (cut.quantity, line.target, why) == (990, 1_000, "cash does not cover it")
    submitted(0, held=0, cash=0)
    (bought,) = submitted(1_000, held=0, cash=100)[0]
    (canceled,) = submitted(0, held=0, cash=0)[0]
    (sold,) = submitted(0, held=900, cash=0)[0]
    assert [o.status for o in (bought, canceled, sold)] == [
        OrderStatus.ACCEPTED,
        OrderStatus.CANCELED,
        OrderStatus.ACCEPTED,
    ]
