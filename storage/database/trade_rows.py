"""The open and closed trades of a run, computed again from its stored fills and holdings."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from tracepaper.storage.database.chunks import WITHIN, run_span, select
from tracepaper.storage.record.rows import At
from tracepaper.storage.record.trades import OpenTrade, TradeBooks, inherited

if TYPE_CHECKING:
    import sqlite3

    from tracepaper.storage.record.columns import Row
    from tracepaper.strategies.types.decisions import RunRow

_FILLS: Final = select("fills", WITHIN)
_HOLDINGS: Final = (
    "SELECT * FROM (SELECT *, lag(funding_paid) OVER (PARTITION BY account, instrument "
    f"ORDER BY sequence) AS paid FROM holdings WHERE {WITHIN} AND quantity IS NOT NULL) "
    "WHERE funding_paid IS NOT paid ORDER BY sequence, account"
)
"""Settlements alone, in the columns of ``holdings``: most rows change no funding."""
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
    takes = ((books.fill, early), (books.settle, held), (books.fill, late))
    changes: list[tuple[int, Any, Any]] = [
        (_SEQUENCE(row), take, row) for take, rows in takes for row in rows
    ]
    # The sort is stable: within a step the order of each account is that of the encoder.
    changes.sort(key=itemgetter(0))
    closed = [row for _, take, change in changes if (row := take(change)) is not None]
    return books, sorted(closed, key=_KEY)


_ENTRY: Final = (
    "SELECT e.filled_ms, e.reason, e.order_id, "
    "d.mean_return, d.stdev_return, d.volatility, d.horizon FROM fills e "
    "LEFT JOIN answers d ON d.run_key = e.run_key AND d.sequence = e.birth AND EXISTS "
    "(SELECT 1 FROM orders y WHERE y.order_id = e.order_id AND y.run_key = d.run_key "
    "AND y.sequence = d.sequence) "
    "WHERE e.run_key = ? AND e.sequence = ? AND e.ordinal = ? AND e.shadow IS ?"
)
_ENTRY_FIELDS: Final = (
    *("opened_ms", "entry_reason", "order_id"),
    *("mean_return", "stdev_return", "volatility", "horizon"),
)
_BARS: Final = (
    "SELECT count(*) FROM steps WHERE run_key = ? AND sequence >= ? AND instrument = ? "
    "AND ignored IS NULL AND outcome IS NOT NULL"
)


def open_trades(connection: sqlite3.Connection, run_key: int, run: RunRow) -> tuple[OpenTrade, ...]:
    """Return the trades that are open after the newest step of *run*, with their entries."""
    books, _ = trades_until(connection, run_key, run)
    before, trades = inherited(run), []
    for shadow, place, book in books.open():
        sequence, ordinal = book.opened
        bars = connection.execute(_BARS, (run_key, max(sequence, 0), place)).fetchone()[0]
        if sequence < 0 and before is not None:
            trade = before.open_trades[-1 - sequence]
            bars += trade.bars_held
            trades.append(replace(trade, **book.sums(), bars_held=bars))
            continue
        entry = connection.execute(_ENTRY, (run_key, sequence, ordinal, shadow)).fetchone()
        named = dict(zip(_ENTRY_FIELDS, entry, strict=True))
        # Each run that took the order over put "0-" before "STEP-ORDINAL".
        *joints, step, _ = str(named.pop("order_id")).split("-")
        decided = {0: run.run_id, 1: run.parent_run_id}.get(len(joints))
        trades.append(
            OpenTrade(
                **named,
                **book.sums(),
                shadow=shadow,
                instrument=run.instruments[place].id,
                run_id=decided,
                entry_sequence=None if decided is None else int(step),
                bars_held=bars,
            )
        )
    return tuple(trades)
