"""Orders by list and their outcomes."""

from __future__ import annotations

from typing import Final

from tracepaper.replay.document.values import Figure, Table, of_view, table
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.types.decisions import OrderRole, OrderStatus

LISTED_MAX: Final = 1_000
"""Most orders in a report; a strategy may send some at every bar."""
_VIEW: Final = "v_orders"


def outcome(row: Row) -> str:
    """Return the outcome of an order in words."""
    filled = ""
    if row["price"] is not None:
        part = "" if row["filled"] == row["quantity"] else f"{row['filled_text']} "
        price = row["price_text"] or f"{row['price']:.8g} on average"
        filled = f"{part}filled at {price} as {str(row['liquidity']).lower()}"
    match OrderStatus(row["status"]):
        case OrderStatus.FILLED:
            return filled
        case OrderStatus.PARTIALLY_FILLED:
            return f"{filled}, the rest rests"
        case OrderStatus.CANCELED:
            why = str(row["reason"])
            canceled = why if why.startswith("canceled") else f"canceled: {why}"
            return f"{filled}, then {canceled}" if filled else canceled
        case OrderStatus.REJECTED:
            return f"rejected: {row['reason']}"
        case OrderStatus.NEW:
            return "on its way"
        case _:
            return "rests"


_ORDER_FIGURES: Final = (
    of_view("side", "side", "text"),
    of_view("kind", "kind", "text"),
    of_view("price", "price", "exact", "limit_price_text"),
    of_view("trigger", "stop", "exact", "trigger_price_text"),
    of_view("quantity", "quantity", "exact", "quantity_text"),
    Figure[Row]("became", "what became of it", "text", outcome),
    Figure[Row]("order_id", "order", "text", lambda row: row["order_id"], wide=True),
    Figure[Row]("tag", "tag", "text", lambda row: row["tag"], wide=True),
    Figure[Row]("status", "status", "text", lambda row: row["status"], wide=True),
    Figure[Row]("filled", "filled", "exact", lambda row: row["filled_text"], wide=True),
    Figure[Row]("fee", "fee", "money", lambda row: row["fee"], wide=True),
)
_TIME_FIGURES: Final = (
    of_view("decision", "decision", "count", "decision_sequence"),
    of_view("created_ms", "sent", "minute"),
)


def of_decision(reader: Reader, views: RunViews, sequence: int) -> tuple[Row, ...]:
    """Return the rows of ``v_orders`` that a list at *sequence* sent or canceled.

    A request with the tag of a resting order cancels it and sends another; both are returned.
    """
    changed = reader.step(views.run_id, sequence).orders
    ids = [
        order.order_id
        for order in changed
        if order.role is OrderRole.LIST
        and (order.status is OrderStatus.CANCELED or order.order_id.startswith(f"{sequence}-"))
    ]
    rows = {row["order_id"]: row for row in (views.rows(_VIEW, order_id=ids) if ids else ())}
    return tuple(rows[order_id] for order_id in ids)


def newest(views: RunViews) -> tuple[Row, ...]:
    """Return the last changed orders by list, at most ``LISTED_MAX``, in the order of sending."""
    rows = views.rows(_VIEW, newest=LISTED_MAX, role=OrderRole.LIST.value)
    return tuple(sorted(rows, key=lambda row: tuple(map(int, row["order_id"].split("-")))))


def listed(rows: tuple[Row, ...], *, title: str, shown: int | None = None) -> Table:
    """Return a table of orders; with *shown* it has times and shows the last *shown* rows."""
    figures: tuple[Figure[Row], ...] = (
        _ORDER_FIGURES if shown is None else (*_TIME_FIGURES, *_ORDER_FIGURES)
    )
    return table("orders", title, figures, rows, shown=shown, newest=shown is not None)
