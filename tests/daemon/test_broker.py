"""Orders: the state table, netting, and the exchange's filters."""

import itertools
from typing import Any

import pytest
from builders import bar, instrument

from tracepaper.daemon.broker import NEXT, Broker, OrderEvent, advance
from tracepaper.daemon.fills import Executor, Terms
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types import Category, Order, OrderStatus, Side

TERMS = Terms(taker_fee=5_500_000)


def broker(**filters: Any) -> Broker:
    return Broker(instrument(**filters), TERMS, latency_ms=100)


def submit(desk: Broker, target: int, held: int = 0, *, price: int = 10_000) -> tuple[Order, ...]:
    return desk.submit(target, held, order_id="7-0", price=price, reason="why", at_ms=1_000)


@pytest.mark.parametrize("pair", list(itertools.product(OrderStatus, OrderEvent)))
def test_every_status_and_event_is_a_row_or_a_bug(pair: tuple[OrderStatus, OrderEvent]) -> None:
    if pair in NEXT:
        assert advance(*pair) is NEXT[pair]
    else:
        with pytest.raises(InvariantBroken):
            advance(*pair)


def test_an_ended_order_stays_ended() -> None:
    ended = {OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REJECTED}
    assert not ended & {status for status, _ in NEXT}


def test_a_reversal_is_one_order() -> None:
    (order,) = submit(broker(), -1_000, held=1_000)
    assert (order.side, order.quantity, order.status) == (Side.SELL, 2_000, OrderStatus.ACCEPTED)
    assert order.eligible_ms == 1_100


def test_a_resting_order_that_already_leads_to_the_target_is_left_alone() -> None:
    desk = broker()
    submit(desk, 1_000)
    assert submit(desk, 1_000) == ()


def test_a_resting_order_that_differs_is_canceled_and_replaced_in_the_same_step() -> None:
    desk = broker()
    submit(desk, 1_000)
    canceled, placed = submit(desk, -500)
    assert canceled.status is OrderStatus.CANCELED
    assert (placed.side, placed.quantity) == (Side.SELL, 500)


def test_a_wish_for_what_is_held_cancels_and_places_nothing() -> None:
    desk = broker()
    submit(desk, 1_000)
    (canceled,) = submit(desk, 0)
    assert canceled.status is OrderStatus.CANCELED
    assert desk.order is None


@pytest.mark.parametrize(
    ("filters", "target", "reason"),
    [
        ({"min_quantity": 10}, 5, "quantity below 0.01"),
        ({"max_quantity": 10}, 11, "quantity above 0.01"),
        ({"min_notional": 5 * 10**10}, 40, "notional below 5"),
        ({"quantity_step": 5}, 7, "quantity is no multiple of the step"),
    ],
)
def test_the_exchanges_filters_reject_with_the_reason(
    filters: dict[str, int], target: int, reason: str
) -> None:
    desk = broker(**filters)
    (order,) = submit(desk, target)
    assert (order.status, order.reason) == (OrderStatus.REJECTED, reason)
    assert submit(desk, target) == ()  # the same wish is not sent again and again
    assert desk.order is None


def test_closing_is_exempt_from_the_minimum_notional() -> None:
    (order,) = submit(broker(min_notional=5 * 10**10), 0, held=40)
    assert order.status is OrderStatus.ACCEPTED


def test_a_fill_of_an_order_that_does_not_rest_is_a_bug() -> None:
    desk = broker()
    (order,) = submit(desk, 1_000)
    fill = Executor(instrument(), TERMS).at_open(order, bar())
    assert desk.fill(fill).status is OrderStatus.FILLED
    with pytest.raises(InvariantBroken, match="does not rest"):
        desk.fill(fill)


def test_a_spot_buy_is_grossed_up_so_that_the_fee_in_base_leaves_the_target() -> None:
    item = instrument(category=Category.SPOT)
    desk = Broker(item, Terms(taker_fee=10_000_000), latency_ms=0)
    (order,) = submit(desk, 1_000)
    fee = order.quantity * 10_000_000 // 10**10
    assert abs(order.quantity - fee - 1_000) <= item.quantity_step
    assert submit(desk, 1_000, held=0) == ()


def test_state_survives_a_restart() -> None:
    desk = broker()
    submit(desk, 1_000)
    again = broker()
    again.restore(desk.state())
    assert again.state() == desk.state()
    assert submit(again, 1_000) == ()


def test_an_order_that_money_could_not_hold_is_rejected_and_a_close_never_is() -> None:
    desk = broker()
    huge = 10**9
    (order,) = submit(desk, huge, price=10**8)
    assert (order.status, order.reason) == (OrderStatus.REJECTED, "notional above 230584300")
    (close,) = submit(desk, 0, held=huge, price=10**8)
    assert close.status is OrderStatus.ACCEPTED


def test_a_spot_buy_beyond_the_cash_is_rejected_and_a_sale_is_not() -> None:
    item = instrument(category=Category.SPOT)
    desk = Broker(item, Terms(taker_fee=0), latency_ms=0)
    order: dict[str, Any] = {"order_id": "1-0", "price": 10_000, "reason": "why", "at_ms": 0}
    (refused,) = desk.submit(1_000, 0, cash=99 * 10**10, **order)
    assert (refused.status, refused.reason) == (OrderStatus.REJECTED, "cash does not cover it")
    (bought,) = desk.submit(900, 0, cash=99 * 10**10, **order)
    (canceled,) = desk.submit(0, 0, cash=0, **order)
    (sold,) = desk.submit(0, 900, cash=0, **order)
    assert [o.status for o in (bought, canceled, sold)] == [
        OrderStatus.ACCEPTED,
        OrderStatus.CANCELED,
        OrderStatus.ACCEPTED,
    ]
