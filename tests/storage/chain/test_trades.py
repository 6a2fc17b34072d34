"""What the rows of one step say of an order agrees with each other."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tracepaper.storage.chain.trades import check_terms
from tracepaper.strategies.types.decisions import OrderKind


def contradiction(kind: str | None, price: int | None, trigger: int | None) -> str | None:
    """Return the problem found in a run of one order; its tables hold what the check reads."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(
            "CREATE TABLE runs (run_key, run_id, config);"
            "CREATE TABLE instruments (run_key, instrument, symbol, category, price_decimals, "
            "quantity_decimals);"
            "CREATE TABLE orders (run_key, sequence, status, filled, quantity, kind, price, "
            "trigger, order_id, side, instrument, position_side);"
            "CREATE TABLE fills (run_key, sequence, book, order_id, instrument, side, quantity, "
            "price, notional, fee, fee_base, liquidity, position_side);"
            "INSERT INTO runs VALUES (0, 'run', '{}')"
        )
        connection.execute(
            "INSERT INTO orders VALUES (0, 7, 'NEW', 0, 5, ?, ?, ?, 'a', 'BUY', 0, NULL)",
            (kind, price, trigger),
        )
        problem = check_terms(connection, "run")
        return None if problem is None else str(problem)


@pytest.mark.parametrize("kind", OrderKind)
@pytest.mark.parametrize("price", [None, 3])
@pytest.mark.parametrize("trigger", [None, 4])
def test_an_order_has_the_prices_of_its_kind(
    kind: OrderKind, price: int | None, trigger: int | None
) -> None:
    is_right = kind.has_price is (price is not None) and kind.has_trigger is (trigger is not None)
    problem = contradiction(kind.value, price, trigger)
    assert (problem is None) is is_right
    assert is_right or "the kind of an order is not that of its prices" in str(problem)


def test_an_order_without_a_kind_is_a_market_order_and_no_other_kind_is_known() -> None:
    assert contradiction(None, None, None) is None
    assert contradiction(None, 3, None) is not None
    assert contradiction("ICEBERG", None, None) is not None
