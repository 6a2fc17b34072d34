"""Reads one run through the stable views: rows as dictionaries, or columns in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tracepaper.storage.database.chunks import snapshot
from tracepaper.storage.database.views import SHADOW_TRADES, VIEWS
from tracepaper.strategies.errors import DataInvalid, InvariantBroken

if TYPE_CHECKING:
    import sqlite3
    from contextlib import AbstractContextManager

Row = dict[str, Any]
Condition = str | int | Sequence[str] | Sequence[int]
"""The value that a column must equal, or several of which it must equal one."""
BATCH_ROWS: Final = 512
"""Too few to start Python's garbage collection, which slows reading thousands at once by half."""
_COLUMNS: Final = {view.name: tuple(column.name for column in view.columns) for view in VIEWS}
_ORDER: Final = ("sequence", "ordinal")
"""A view is ordered by those of these columns that it has."""


class RunViews:
    """Reads the views of one run over a read-only connection."""

    def __init__(self, connection: sqlite3.Connection, run_id: str) -> None:
        self._connection = connection
        self.run_id = run_id

    def snapshot(self) -> AbstractContextManager[None]:
        """Read from one snapshot, while a daemon may be writing."""
        return snapshot(self._connection)

    def run(self) -> Row:
        """Return the run's row of ``v_runs``; raise ``DataInvalid`` if the run is missing."""
        if not (rows := self.rows("v_runs")):
            raise DataInvalid(
                f"The database holds no run {self.run_id}; `tracepaper audit` lists them."
            )
        return rows[0]

    def card(self, model_sha256: str) -> Row:
        """Return the stored card of a model; empty if the database has none."""
        query = "SELECT card FROM models WHERE model_sha256 = ?"
        row = self._connection.execute(query, (model_sha256,)).fetchone()
        return {} if row is None else msgspec.json.decode(row[0], type=dict[str, Any])

    def rows(
        self,
        view: str,
        *,
        newest: int | None = None,
        span: tuple[int, int] | None = None,
        **equal: Condition,
    ) -> list[Row]:
        """Return the rows of *view* whose columns have the values *equal*, in the run's order.

        With *newest* only that many of the last rows, still oldest first; with a *span* only those
        from its first sequence to its last.
        """
        where, values = self._where(view, equal)
        if span is not None:
            where, values = f"{where} AND sequence BETWEEN ? AND ?", (*values, *span)
        names = _COLUMNS[view]
        if newest is None:
            query = f"SELECT * FROM {view} {where} {_order(view)}"
            rows = self._connection.execute(query, values).fetchall()
        else:
            query = f"SELECT * FROM {view} {where} {_order(view, descending=True)} LIMIT ?"
            rows = self._connection.execute(query, (*values, newest)).fetchall()[::-1]
        return [dict(zip(names, row, strict=True)) for row in rows]

    def shadow_trades(self, shadow: str) -> list[Row]:
        """Return the closed trades of a shadow account, as rows of ``v_trades``."""
        query = f"SELECT * FROM ({SHADOW_TRADES}) WHERE run_id = ? {_order('v_trades')}"
        rows = self._connection.execute(query, (shadow, self.run_id))
        return [dict(zip(_COLUMNS["v_trades"], row, strict=True)) for row in rows]

    def batches(
        self,
        view: str,
        names: Sequence[str] = (),
        *,
        first: int | None = None,
        last: int | None = None,
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Yield columns *names* of *view* (default: all), ``BATCH_ROWS`` rows at a time, in order.

        *first* and *last* are the first and last sequence, both included. A batch has one tuple
        per column: all rows of a long run would take ten times the memory of arrays.
        """
        self._check(view, names)
        where, values = self._where(view, {})
        for bound, sign in ((first, ">="), (last, "<=")):
            if bound is not None:
                where, values = f"{where} AND sequence {sign} ?", (*values, bound)
        listed = ", ".join(names or _COLUMNS[view])
        cursor = self._connection.execute(
            f"SELECT {listed} FROM {view} {where} {_order(view)}", values
        )
        while rows := cursor.fetchmany(BATCH_ROWS):
            yield list(zip(*rows, strict=True))

    def count(self, view: str, **equal: Condition) -> int:
        """Return the number of rows of *view* with the values *equal*."""
        where, values = self._where(view, equal)
        row = self._connection.execute(f"SELECT count(*) FROM {view} {where}", values).fetchone()
        return int(row[0])

    def counts(self, view: str, by: str, **equal: Condition) -> list[tuple[str, int]]:
        """Return how often each value of column *by* occurs in *view*, the most frequent first.

        Nulls are left out, as are rows without the values *equal*.
        """
        self._check(view, (by,))
        where, values = self._where(view, equal)
        query = (
            f"SELECT {by}, count(*) FROM {view} {where} AND {by} IS NOT NULL "
            f"GROUP BY {by} ORDER BY 2 DESC, 1"
        )
        rows = self._connection.execute(query, values).fetchall()
        return [(str(value), int(count)) for value, count in rows]

    def bounds(self, view: str, name: str) -> tuple[Any, Any]:
        """Return the least and the greatest value of column *name*; None twice without rows."""
        self._check(view, (name,))
        where, values = self._where(view, {})
        query = f"SELECT min({name}), max({name}) FROM {view} {where}"
        least, most = self._connection.execute(query, values).fetchone()
        return least, most

    def last(self, view: str, *, not_null: Sequence[str] = (), **equal: Condition) -> int | None:
        """Return the last sequence of *view* with non-null columns *not_null*."""
        self._check(view, not_null)
        where, values = self._where(view, equal)
        where += "".join(f" AND {name} IS NOT NULL" for name in not_null)
        query = f"SELECT max(sequence) FROM {view} {where}"
        (sequence,) = self._connection.execute(query, values).fetchone()
        return None if sequence is None else int(sequence)

    def nearest(self, view: str, sequence: int) -> int | None:
        """Return the sequence of *view* nearest to *sequence*."""
        where, values = self._where(view, {})
        query = f"SELECT sequence FROM {view} {where} ORDER BY abs(sequence - ?), sequence LIMIT 1"
        row = self._connection.execute(query, (*values, sequence)).fetchone()
        return None if row is None else int(row[0])

    def _where(
        self, view: str, equal: Mapping[str, Condition]
    ) -> tuple[str, tuple[str | int, ...]]:
        """Return the condition and its bound values; the names are checked columns of the view."""
        self._check(view, tuple(equal))
        parts = ["WHERE run_id = ?"]
        bound: list[str | int] = [self.run_id]
        for name, wanted in equal.items():
            several: tuple[str | int, ...] = (
                (wanted,) if isinstance(wanted, str | int) else tuple(wanted)
            )
            marks = ", ".join("?" * len(several))
            parts.append(f"{name} = ?" if marks == "?" else f"{name} IN ({marks})")
            bound += several
        return " AND ".join(parts), tuple(bound)

    @staticmethod
    def _check(view: str, names: Sequence[str]) -> None:
        if view not in _COLUMNS or not set(names) <= set(_COLUMNS[view]):
            raise InvariantBroken(f"No view {view} has the columns {', '.join(names)}.")


def _order(view: str, *, descending: bool = False) -> str:
    names = [name for name in _ORDER if name in _COLUMNS[view]]
    direction = " DESC" if descending else ""
    return f"ORDER BY {', '.join(f'{name}{direction}' for name in names)}" if names else ""
