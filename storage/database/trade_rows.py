"""The closed trades of a run, computed again from the rows that a prune keeps."""

from __future__ import annotations

from itertools import chain, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from tracepaper.storage.database.chunks import WITHIN, run_span, select
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record.rows import At
from tracepaper.storage.record.trades import TradeBooks

if TYPE_CHECKING:
    import sqlite3

    from tracepaper.storage.record.columns import Row
    from tracepaper.strategies.types.decisions import Run

_FILLS: Final = select("fills", WITHIN)
_HOLDINGS: Final = select("holdings", WITHIN)
_SEQUENCE: Final = itemgetter(At("fills").sequence)  # the same index as in ``holdings``


def trades_until(
    connection: sqlite3.Connection, run_key: int, run: Run, until: int | None = None
) -> tuple[TradeBooks, list[Row]]:
    """Return the books of *run* after step *until*, and the rows of the trades closed by then."""
    books, span = TradeBooks(run), run_span(run_key, until)
    changes: list[tuple[int, Any, Any]] = []
    for query, take in ((_HOLDINGS, books.settle), (_FILLS, books.fill), (_HOLDINGS, books.hold)):
        if take != books.hold or books.is_taken_over:
            rows = connection.execute(query, span).fetchall()
            changes += zip(map(_SEQUENCE, rows), repeat(take), rows)
    actions = Reader(connection).actions(run.run_id, until=until)
    acted = ((at, books.act, action) for at, action in actions)
    # The sort is stable: within a step the order is that of the encoder.
    changes = sorted(chain(acted, changes), key=itemgetter(0))
    return books, [row for _, take, change in changes if (row := take(change)) is not None]
