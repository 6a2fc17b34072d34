"""The open and closed trades of a run, computed again from its stored fills and holdings."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from tracepaper.storage.database.chunks import WITHIN, run_span, select
from tracepaper.storage.record.rows import At
from tracepaper.storage.record.trades import TradeBooks

if TYPE_CHECKING:
    import sqlite3

    from tracepaper.storage.record.columns import Row
    from tracepaper.strategies.types.decisions import RunRow

_FILLS: Final = select("fills", WITHIN)
_HOLDINGS: Final = select("holdings", WITHIN)
_SEQUENCE: Final = itemgetter(At("fills").sequence)  # the same index as in ``holdings``
_KEY: Final = itemgetter(slice(4))
_ACCOUNT: Final = itemgetter(At("fills").sequence, At("fills").account)


def trades_until(
    connection: sqlite3.Connection, run_key: int, run: RunRow, until: int | None = None
) -> tuple[TradeBooks, list[Row]]:
    """Return the books of *run* after step *until*, and the rows of the trades closed by then."""
    books, span = TradeBooks(run), run_span(run_key, until)
    fills = connection.execute(_FILLS, span).fetchall()
    held = connection.execute(_HOLDINGS, span).fetchall()
    early, late = list[Any](), list[Any]()
    for _, group in groupby(fills, key=_ACCOUNT):
        rows = list(group)
        count = books.before_settling(rows)
        early += rows[:count]
        late += rows[count:]
    kept = held if books.is_taken_over else ()
    takes = ((books.fill, early), (books.settle, held), (books.fill, late), (books.hold, kept))
    changes: list[tuple[int, Any, Any]] = [
        (_SEQUENCE(row), take, row) for take, rows in takes for row in rows
    ]
    # The sort is stable: within a step the order of each account is that of the encoder.
    changes.sort(key=itemgetter(0))
    closed = [row for _, take, change in changes if (row := take(change)) is not None]
    return books, sorted(closed, key=_KEY)
