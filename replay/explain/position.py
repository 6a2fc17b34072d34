"""What a run held after a step, in words, with the orders that protected it."""

from __future__ import annotations

from contextlib import suppress

from tracepaper.daemon.engine.state import decode_state, resting_orders
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.position_text import position_text
from tracepaper.strategies.types.decisions import Order


def orders_after(reader: Reader, run_id: str, sequence: int) -> list[Order]:
    """Return the orders of the run's account that rested after step *sequence*, in any status.

    They are those of the newest stored state, as later steps changed them; without a readable state
    every order until then, so that a damaged record is shown too.
    """
    resting, after = dict[str, Order](), -1
    if (stored := reader.state_at(run_id, until=sequence)) is not None:
        with suppress(InvariantBroken):
            state = decode_state(stored[0])
            resting = {order.order_id: order for order in resting_orders(state)}
            after = stored[1]
    resting |= reader.changed_orders(run_id, after=after, until=sequence)
    return list(resting.values())


def row_text(columns: RunColumns, row: Row, orders: list[Order]) -> str:
    """Return a *row* of ``v_positions`` in words, with those of *orders* that protect it."""
    item = columns.instruments[row["instrument"]]
    own = [order for order in orders if order.instrument == item.id]
    entry, unrealized = row["average_price"] or 0.0, row["unrealized_pnl"]
    notional = entry * abs(row["quantity"])
    profit = unrealized / notional if notional and unrealized is not None else None
    return position_text(item, row["quantity_text"], entry, profit, own)
