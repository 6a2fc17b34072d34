"""Orders by list: which there were, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tracepaper.replay.document.values import Figure, Table, of_view, table
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.types.decisions import OrderRole, OrderStatus

LISTED_MAX: Final = 1_000
"""Orders that a report lists: a strategy may send some at every bar."""
_VIEW: Final = "v_orders"


def outcome(row: Row) -> str:
    """Describe the outcome of an order in a few words."""
    filled = _filled_part(row)
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


def _filled_part(row: Row) -> str:
    if row["price"] is None:
        return ""
    part = "" if row["filled"] == row["quantity"] else f"{row['filled_text']} "
    price = row["price_text"] or f"{row['price']:.8g} on average"
    return f"{part}filled at {price} as {str(row['liquidity']).lower()}"


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

    A request with the tag of a resting order cancels that one and sends another: both are returned.
    """
    changed = reader.step(views.run_id, sequence).step.orders
    ids = [
        order.order_id
        for order in changed
        if order.role is OrderRole.LIST
        and (order.status is OrderStatus.CANCELED or order.order_id.startswith(f"{sequence}-"))
    ]
    rows = {row["order_id"]: row for row in (views.rows(_VIEW, order_id=ids) if ids else ())}
    return tuple(rows[order_id] for order_id in ids)


def newest(views: RunViews) -> tuple[Row, ...]:
    """Return the orders by list that changed last, at most ``LISTED_MAX``, as they were sent."""
    rows = views.rows(_VIEW, newest=LISTED_MAX, role=OrderRole.LIST.value)
    return tuple(sorted(rows, key=lambda row: tuple(map(int, row["order_id"].split("-")))))


QueueAhead = tuple[str | None, str | None]
"""How much stood ahead of a limit when it joined its queue, and when it ended; None: not known."""


def listed(
    rows: tuple[Row, ...],
    *,
    title: str,
    shown: int | None = None,
    queues: Mapping[str, QueueAhead] | None = None,
) -> Table:
    """Return a table of the orders of *rows*; with *shown* only the last so many, with times.

    *queues* are the queue positions at an order book, by the id of the order.
    """
    figures: tuple[Figure[Row], ...] = (
        _ORDER_FIGURES if shown is None else (*_TIME_FIGURES, *_ORDER_FIGURES)
    )
    if queues is not None:
        of = queues.get
        figures += (
            Figure("queue", "ahead in its queue", "exact", lambda row: _way(of(row["order_id"])),
                   wide=not queues),
            Figure("queue_joined", "at first", "exact", lambda row: of(row["order_id"], _NO)[0],
                   wide=True),
            Figure("queue_ahead", "at last", "exact", lambda row: of(row["order_id"], _NO)[1],
                   wide=True),
        )  # fmt: skip
    return table("orders", title, figures, rows, shown=shown, newest=shown is not None)


_NO: Final = (None, None)


def _way(queue: QueueAhead | None) -> str | None:
    return None if queue is None else " → ".join(ahead or "?" for ahead in queue)
