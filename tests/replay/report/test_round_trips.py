from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.report.trades import round_trips

fills = st.lists(
    st.tuples(st.integers(-5, 5).filter(bool), st.integers(1, 10**6), st.integers(0, 10**3)),
    max_size=40,
)


def test_a_trade_runs_from_flat_to_flat() -> None:
    (trip,) = round_trips([2, 1, -3], [200, 110, 360], [1, 1, 2])
    assert (trip.entries, trip.exits, trip.quantity) == (((0, 2), (1, 1)), ((2, 3),), 3)
    assert (trip.profit, trip.fees) == (360 - 310 - 4, 4)


def test_a_short_trade_earns_when_it_is_bought_back_cheaper() -> None:
    (trip,) = round_trips([-2, 2], [200, 150], [1, 1])
    assert (trip.quantity, trip.profit) == (-2, 48)


def test_a_fill_that_turns_the_position_is_shared_by_quantity() -> None:
    first, second = round_trips([1, -3, 2], [100, 330, 210], [1, 3, 2])
    assert (first.entries, first.exits, first.quantity) == (((0, 1),), ((1, 1),), 1)
    assert first.profit == 110 - 100 - 2
    assert (second.entries, second.exits, second.quantity) == (((1, 2),), ((2, 2),), -2)
    assert second.profit == 220 - 210 - 4


def test_a_trade_that_is_still_open_is_not_counted() -> None:
    assert round_trips([1, 1], [100, 100], [0, 0]) == []
    assert round_trips([], [], []) == []


@given(fills)
def test_profits_of_closed_trades_are_the_cash_that_moved(
    rows: list[tuple[int, int, int]],
) -> None:
    """Close what is left open; then all profits are all cash, and nothing is rounded away."""
    left = sum(quantity for quantity, _, _ in rows)
    if left:
        rows = [*rows, (-left, 777, 7)]
    trips = round_trips(*(list(column) for column in zip(*rows, strict=True))) if rows else []
    cash = sum((-1 if quantity > 0 else 1) * notional - fee for quantity, notional, fee in rows)
    assert sum(trip.profit for trip in trips) == cash
    assert sum(trip.fees for trip in trips) == sum(fee for _, _, fee in rows)
