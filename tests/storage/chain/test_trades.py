"""What the rows of one step say of an order agrees with each other."""

from __future__ import annotations

from contextlib import closing

import pytest
import storage_cases as cases

from tracepaper.storage.chain.trades import check_terms
from tracepaper.storage.database.writer import in_memory, insert_rows
from tracepaper.storage.record.encode import StepEncoder
from tracepaper.strategies.types.decisions import OrderKind


def contradiction(kind: str | None, price: int | None, trigger: int | None) -> str | None:
    """Return the problem of a run of one order."""
    with closing(in_memory()) as writer:
        opening = StepEncoder(cases.run("run"), 1).opening(cases.run("run"), 0)
        insert_rows(writer.driver, opening)
        writer.connection.commit()
        writer.driver.execute(
            "INSERT INTO orders (run_key, sequence, ordinal, order_id, instrument, side, quantity, "
            "filled, status, reason, created_ms, eligible_ms, kind, price, trigger) "
            "VALUES (1, 7, 0, '7:0', 0, 'BUY', 5, 0, 'NEW', '', 0, 0, ?, ?, ?)",
            (kind, price, trigger),
        )
        problem = check_terms(writer.driver, "run")
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
    assert is_right or "the kind of an order does not match its prices" in str(problem)


def test_an_order_without_a_kind_is_a_market_order_and_no_other_kind_is_known() -> None:
    assert contradiction(None, None, None) is None
    assert contradiction(None, 3, None) is not None
    assert contradiction("ICEBERG", None, None) is not None
