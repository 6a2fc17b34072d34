"""Queue positions: how much stood ahead of a limit at an order book, by the states of a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from tracepaper.daemon.broker.book_fills import (
    UNKNOWN,
    QueuePlace,
    QueueRules,
    after_change,
    after_trade,
    moves_in,
)
from tracepaper.daemon.engine.state import decode_state
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row
from tracepaper.storage.record.columns import SEQUENCE_LIMIT
from tracepaper.storage.record.rows import step_key
from tracepaper.strategies.types.decisions import OrderStatus
from tracepaper.strategies.types.market import BookUpdate, Instrument, Side
from tracepaper.strategies.units import unscaled

_ENDED: Final = (OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REJECTED)

_OLDEST: Final = (
    "SELECT state FROM states WHERE step BETWEEN ? AND ? AND state IS NOT NULL ORDER BY step"
)
_NEWEST: Final = f"{_OLDEST} DESC"


class QueuePosition(NamedTuple):
    """How much stood ahead of a limit; None where its level had not come into view."""

    joined: str | None  # when it came to rest
    ahead: str | None  # when it ended, or now


def queue_positions(
    reader: Reader, run_id: str, orders: Sequence[Row], execution: Mapping[str, Any]
) -> dict[str, QueuePosition]:
    """Return the queue positions of *orders* (of ``v_orders``), by the ids of those that queued.

    *execution* is that section of the run's configuration.

    A state of the engine holds the places after each event of a book; the event at which an order
    ended holds what happened at its price before.
    """
    stored = reader.stored_run(run_id)
    instruments = {item.id: item for item in stored.run.instruments}
    pruned = reader.pruned(stored.run_key)
    rules = msgspec.convert(
        {
            name: execution[key]
            for name, key in (("model", "queue_model"), ("exponent", "queue_exponent"))
            if key in execution  # runs of before had no queues
        },
        QueueRules,
    )
    found = {}
    for row in orders:
        if row["limit_price"] is None:
            continue
        item, last = instruments[row["instrument"]], row["sequence"]
        has_ended = row["status"] in _ENDED
        until = last - 1 if has_ended else SEQUENCE_LIMIT - 1
        first = next(_places(reader, stored.run_key, row, until), None)
        if first is None:
            continue
        newest = next(_places(reader, stored.run_key, row, until, newest=True), first)
        if has_ended and isinstance(event := reader.step(run_id, last).step.event, BookUpdate):
            newest = _moved(newest, event, row, item, rules)
        ahead = [
            None if place.ahead == UNKNOWN else unscaled(place.ahead, item.quantity_decimals)
            for place in (first, newest)
        ]
        is_seen = pruned is None or _birth(row) > pruned.until_sequence
        found[row["order_id"]] = QueuePosition(ahead[0] if is_seen else None, ahead[1])
    return found


def _birth(row: Row) -> int:
    return int(str(row["order_id"]).partition("-")[0])


def _places(
    reader: Reader, run_key: int, row: Row, until: int, *, newest: bool = False
) -> Iterator[QueuePlace]:
    """Yield the places of an order by the states up to a step, the oldest or the *newest* first."""
    span = step_key(run_key, _birth(row)), step_key(run_key, until)
    for (state,) in reader.connection.execute(_NEWEST if newest else _OLDEST, span):
        queues = decode_state(state).account.books[row["instrument"]].queues
        if queues is None:  # no order book fills orders
            return
        yield from (one for one in queues.places if one.order_id == row["order_id"])


def _moved(
    place: QueuePlace, event: BookUpdate, row: Row, item: Instrument, rules: QueueRules
) -> QueuePlace:
    """Let *event*, at which an order ended, move its *place* as far as the order rested."""
    side, price = (
        Side(row["side"]),
        int(Decimal(row["limit_price_text"]).scaleb(item.price_decimals)),
    )
    until_ms = row["until_ms"] or event.market_ms
    for move in moves_in(event).moves:
        if move.price != price or move.at_ms > until_ms:
            continue
        if not move.is_trade and move.side is side:
            place = after_change(place, move.size, rules)
        elif move.is_trade and move.side is not side:
            place, _ = after_trade(place, move.size)
    return place
