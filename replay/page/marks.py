"""Marks on the candles of a range: fills, orders that rested at a price, gaps."""

from __future__ import annotations

from operator import itemgetter
from typing import Final

from tracepaper.replay.page import answers
from tracepaper.replay.page.databases import OpenRun, from_row
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.types.market import GapCause
from tracepaper.strategies.units import without_zeros

MARKS_MAX: Final = 5_000
AT_ONCE: Final = 500
_RESTING: Final = ("NEW", "ACCEPTED", "PARTIALLY_FILLED")


def marks(
    shown: OpenRun, from_ms: int | None, until_ms: int | None, instrument: str | None = None
) -> answers.Marks:
    """Return fills, resting orders and gaps of a range, of one *instrument* or of all.

    If there are too many, only the newest are returned.
    """
    columns, views, rows_of = shown.columns, shown.views, shown.columns.rows
    low, high = columns.span
    first, last = low, high
    names = [name for name in columns.instruments if instrument in (None, name)]
    places = [place for place, name in enumerate(columns.instruments) if name in names]
    if from_ms is not None:
        first = min(rows_of.opened_at(place, (low, high), from_ms) for place in places)
    if until_ms is not None:
        last = max(rows_of.opened_at(place, (low, high), until_ms) for place in places)
    fills = views.rows("v_fills", newest=MARKS_MAX + 1, span=(first, last), instrument=names)
    # An order sent in the range may end long after it.
    before_ms = 2**62 if until_ms is None else until_ms
    sequences = rows_of.rested_orders((first, high), places, before_ms, MARKS_MAX + 1)
    rested = list(dict.fromkeys(sequences))
    orders = [
        row
        for at in range(0, len(rested), AT_ONCE)
        for row in views.rows("v_orders", sequence=rested[at : at + AT_ONCE], instrument=names)
        if (row["trigger_price"] is not None or row["limit_price"] is not None)
        and row["created_ms"] < before_ms
    ]
    orders.sort(key=itemgetter("sequence"))
    is_cut = len(fills) > MARKS_MAX or len(orders) > MARKS_MAX
    fills, orders = fills[-MARKS_MAX:], orders[-MARKS_MAX:]
    roles = rows_of.order_roles((fills[0]["sequence"] if fills else last, last))
    ended = [row["sequence"] for row in orders if row["status"] not in _RESTING]
    times = rows_of.market_times(columns.interval_ms, ended)
    return answers.Marks(
        fills=[fill_mark(row, roles.get(row["order_id"], "SIGNAL")) for row in fills],
        orders=[
            from_row(
                answers.OrderLine,
                row,
                role=row["role"] or "SIGNAL",
                kind=row["kind"] or "MARKET",
                price=row["limit_price"] if row["trigger_price"] is None else row["trigger_price"],
                quantity_text=without_zeros(row["quantity_text"]),
                from_ms=row["created_ms"],
                until_ms=times.get(row["sequence"]) if row["status"] not in _RESTING else None,
            )
            for row in orders
        ],
        gaps=[
            from_row(answers.GapMark, row)
            for row in views.rows("v_gaps", instrument=names)
            if row["cause"] != GapCause.FUNDING
            and (from_ms is None or row["until_ms"] > from_ms)
            and (until_ms is None or row["from_ms"] < until_ms)
        ][-MARKS_MAX:],
        is_cut=is_cut,
    )


def fill_mark(row: Row, role: str) -> answers.FillMark:
    """Return a row of ``v_fills`` as a mark."""
    quantity = without_zeros(row["quantity_text"])
    return from_row(answers.FillMark, row, quantity_text=quantity, role=role)
