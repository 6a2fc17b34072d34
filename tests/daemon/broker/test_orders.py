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
from tracepaper.strategies.types.market import Side

TERMS = ExecutionCosts(taker_fee=5_500_000)


def opened(costs: ExecutionCosts = TERMS, **filters: Any) -> Line:
    item = instrument(**filters)
    settings = BrokerSettings(FillModel.QUOTE, costs, 0, Latency(100))
    return PaperAccount([item], settings).lines[item.id]


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


def test_an_order_that_money_could_not_hold_is_refused_and_a_close_never_is() -> None:
    line = opened()
    huge = 10**11
    assert sent(line, huge, price=10**8) == ((), "notional above 23058430092")
    (close,) = submit(line, 0, held=huge, price=10**8)
    assert close.status is OrderStatus.ACCEPTED
