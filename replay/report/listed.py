"""Orders by list: what each asked for, and what became of it; the same in explain and report."""

from __future__ import annotations

from typing import Final

from tracepaper.replay.report.tables import Figure, Table, of_view, table
from tracepaper.storage.reader import Reader
from tracepaper.storage.run_views import Row, RunViews
from tracepaper.strategies.types import OrderRole, OrderStatus

NEWEST: Final = 1_000
"""Orders that a report lists: a strategy may send some at every bar."""
_VIEW: Final = "v_orders"


def became(row: Row) -> str:
    """Return what became of one order, in a few words."""
    filled = _filled(row)
    match OrderStatus(row["status"]):
        case OrderStatus.FILLED:
            return filled
        case OrderStatus.PARTIALLY_FILLED:
            return f"{filled}, the rest rests"
        case OrderStatus.CANCELED:
            why = str(row["reason"])
            said = why if why.startswith("canceled") else f"canceled: {why}"
            return f"{filled}, then {said}" if filled else said
        case OrderStatus.REJECTED:
            return f"rejected: {row['reason']}"
        case OrderStatus.NEW:
            return "on its way"
        case _:
            return "rests"


def _filled(row: Row) -> str:
    if row["price"] is None:
        return ""
    part = "" if row["filled"] == row["quantity"] else f"{row['filled_text']} "
    price = row["price_text"] or f"{row['price']:.8g} on average"
    return f"{part}filled at {price} as {str(row['liquidity']).lower()}"


_ASKED: Final = (
    of_view("side", "side", "text"),
    of_view("kind", "kind", "text"),
    of_view("price", "price", "exact", "limit_price_text"),
    of_view("trigger", "stop", "exact", "trigger_price_text"),
    of_view("quantity", "quantity", "exact", "quantity_text"),
    Figure[Row]("became", "what became of it", "text", became),
    Figure[Row]("order_id", "order", "text", lambda row: row["order_id"], wide=True),
    Figure[Row]("tag", "tag", "text", lambda row: row["tag"], wide=True),
    Figure[Row]("status", "status", "text", lambda row: row["status"], wide=True),
    Figure[Row]("filled", "filled", "exact", lambda row: row["filled_text"], wide=True),
    Figure[Row]("fee", "fee", "money", lambda row: row["fee"], wide=True),
)
_WHEN: Final = (
    of_view("decision", "decision", "count", "decision_sequence"),
    of_view("created_ms", "sent", "minute"),
)


def of_decision(reader: Reader, views: RunViews, sequence: int) -> tuple[Row, ...]:
    """Return the rows of ``v_orders`` that a list at *sequence* sent or canceled.

    A request with the tag of an order that rests cancels that one and sends another: both are here.
    """
    changed = reader.step(views.run_id, sequence).step.orders
    ids = [
        order.order_id
        for order in changed
        if order.role is OrderRole.LIST
        and (order.status is OrderStatus.CANCELED or order.order_id.startswith(f"{sequence}-"))
    ]
    found = {row["order_id"]: row for row in (views.rows(_VIEW, order_id=ids) if ids else ())}
    return tuple(found[of] for of in ids)


def newest(views: RunViews) -> tuple[Row, ...]:
    """Return the orders by list that changed last, at most ``NEWEST``, as they were sent."""
    rows = views.rows(_VIEW, newest=NEWEST, role=OrderRole.LIST.value)
    return tuple(sorted(rows, key=lambda row: tuple(map(int, row["order_id"].split("-")))))


def listed(rows: tuple[Row, ...], *, title: str, shown: int | None = None) -> Table:
    """Return the orders of *rows*; with *shown* those of many decisions, the last so many shown."""
    figures = _ASKED if shown is None else (*_WHEN, *_ASKED)
    return table("orders", title, figures, rows, shown=shown, newest=shown is not None)
