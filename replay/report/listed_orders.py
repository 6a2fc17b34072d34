"""Orders by list: their outcomes, and their positions in the queues of an order book."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from tracepaper.daemon.broker.book_fills import (
    UNKNOWN,
    QueuePlace,
    QueueRules,
    after_change,
    after_trade,
    unpack_moves,
)
from tracepaper.daemon.engine.state import decode_state, sides_of
from tracepaper.replay.document.values import Figure, Table, of_view, table
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import WHOLE, RunRows
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.types.decisions import FillModel, OrderRole, OrderStatus
from tracepaper.strategies.types.market import BookUpdate, Instrument, Side
from tracepaper.strategies.units import unscaled

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

    A request with the tag of a resting order cancels it and sends another; both are returned. If an
    order book fills orders, cancellations take time and a bar changes orders in no other way, so
    all changed orders are returned.
    """
    by_book = json.loads(views.run()["config"])["execution"]["model"] == FillModel.BOOK
    changed = reader.step(views.run_id, sequence).orders
    ids = [
        order.order_id
        for order in changed
        if order.role is OrderRole.LIST
        and (
            by_book
            or order.status is OrderStatus.CANCELED
            or order.order_id.startswith(f"{sequence}-")
        )
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


# ---------------------------------------------------------------- queues at an order book

_ENDED: Final = (OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REJECTED)


class QueuePosition(NamedTuple):
    """The quantity ahead of a limit order; None if the book did not show its level."""

    joined: str | None  # at the start of resting
    ahead: str | None  # at its end, or now


def queue_positions(
    reader: Reader, run_id: str, orders: Sequence[Row], execution: Mapping[str, Any]
) -> dict[str, QueuePosition]:
    """Return the queue positions of *orders* (of ``v_orders``), by the ids of those that queued.

    *execution* is that section of the run's configuration. The engine's states store the places
    after each book event; the changes within the event that ended an order are applied here.
    """
    stored = reader.stored_run(run_id)
    rows = RunRows(reader.connection, stored.run_key)
    instruments = {item.id: item for item in stored.run.instruments}
    pruned = reader.pruned(stored.run_key)
    rules = QueueRules.named(execution["queue_model"], execution["queue_exponent"])
    positions = {}
    for row in orders:
        if row["limit_price"] is None:
            continue
        item, last = instruments[row["instrument"]], row["sequence"]
        has_ended = row["status"] in _ENDED
        until = last - 1 if has_ended else WHOLE[1]
        first = next(_places(rows, row, until), None)
        if first is None:
            continue
        newest = next(_places(rows, row, until, newest=True), first)
        if has_ended and isinstance(event := reader.step(run_id, last).event, BookUpdate):
            newest = _moved(newest, event, row, item, rules)
        ahead = [
            None if place.ahead == UNKNOWN else unscaled(place.ahead, item.quantity_decimals)
            for place in (first, newest)
        ]
        is_seen = pruned is None or _birth(row) > pruned.until_sequence
        positions[row["order_id"]] = QueuePosition(ahead[0] if is_seen else None, ahead[1])
    return positions


def _birth(row: Row) -> int:
    return int(str(row["order_id"]).partition("-")[0])


def _places(rows: RunRows, row: Row, until: int, *, newest: bool = False) -> Iterator[QueuePlace]:
    """Yield the order's places in the states until a step, oldest or *newest* first."""
    for state in rows.states((_birth(row), until), newest=newest):
        decoded = decode_state(state)
        account = next(
            iter(sides_of(decoded).values()), decoded.account
        )  # both sides have one queue
        queues = account.books[row["instrument"]].queues
        if queues is None:  # no order book fills orders
            return
        yield from (place for place in queues.places if place.order_id == row["order_id"])


def _moved(
    place: QueuePlace, event: BookUpdate, row: Row, item: Instrument, rules: QueueRules
) -> QueuePlace:
    """Return *place* after the moves of *event*, which ended the order, until the order's end."""
    side, price = (
        Side(row["side"]),
        int(Decimal(row["limit_price_text"]).scaleb(item.price_decimals)),
    )
    until_ms = row["until_ms"] or event.market_ms
    for move in unpack_moves(event).moves:
        if move.price != price or move.at_ms > until_ms:
            continue
        if not move.is_trade and move.side is side:
            place = after_change(place, move.size, rules)
        elif move.is_trade and move.side is not side:
            place, _ = after_trade(place, move.size)
    return place
