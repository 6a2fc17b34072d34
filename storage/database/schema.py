"""The SQLAlchemy Core tables, built from the columns.

Virtual columns. The run and the sequence that a key names are generated columns: nothing is
stored, the chain does not cover them, and a view passes their index on. They follow the stored
columns of their table.

Steps have no foreign keys that SQLite checks at each insert: ``integrity`` looks for rows without
their step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    REAL,
    Computed,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy import (
    Column as SqlColumn,
)
from sqlalchemy import (
    text as text_clause,
)

from tracepaper.storage.record.columns import SEQUENCE_BITS, SEQUENCE_LIMIT, TABLES
from tracepaper.storage.record.rows import INDEXED_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import TextClause

    from tracepaper.storage.record.columns import Column

_TYPES: Final[dict[str, Any]] = {
    "INTEGER": Integer,
    "REAL": REAL,
    "TEXT": Text,
    "BLOB": LargeBinary,
}
_WITH_ROWID: Final = frozenset(
    {"runs", "steps", "events", "states", "answers", "outcomes", "archive_series"}
)
"""Tables with one integer key; the others are stored in the order of their key, without a rowid."""
UNIQUE: Final = frozenset({"runs.run_id"})

metadata: Final = MetaData()


def _column(table: str, column: Column) -> SqlColumn[Any]:
    keys = (ForeignKey(column.refers),) if column.refers else ()
    if column.is_key:
        return SqlColumn(
            column.name, _TYPES[column.kind], *keys, primary_key=True, autoincrement=False
        )
    return SqlColumn(
        column.name,
        _TYPES[column.kind],
        *keys,
        nullable=column.null,
        unique=f"{table}.{column.name}" in UNIQUE or None,
    )


_PLACE: Final = {
    "run_key": f"step >> {SEQUENCE_BITS}",
    "sequence": f"step & {SEQUENCE_LIMIT - 1}",
    "birth": "CAST(order_id AS INTEGER)",  # the sequence of the step that bore the order
}
VIRTUAL: Final = {
    "steps": ("run_key", "sequence"),
    "events": ("run_key", "sequence"),
    "orders": ("run_key", "sequence", "birth"),
    "fills": ("run_key", "sequence", "birth"),
    "twin_fills": ("run_key", "sequence", "birth"),
    "ledger": ("run_key", "sequence"),
    "halts": ("run_key", "sequence"),
}
"""The generated columns of each table that has some."""


def _table(name: str, columns: Iterable[Column], tables: MetaData) -> Table:
    return Table(
        name,
        tables,
        *(_column(name, column) for column in columns),
        *(
            SqlColumn(virtual, Integer, Computed(_PLACE[virtual], persisted=False))
            for virtual in VIRTUAL.get(name, ())
        ),
        sqlite_strict=True,
        sqlite_with_rowid=name in _WITH_ROWID,
    )


for _name, _columns in TABLES.items():
    _table(_name, _columns, metadata)


def _newest_first(name: str, where: TextClause | None = None) -> None:
    """Index the steps of a table by their sequence in their run.

    People ask for the newest rows and join the views by run and sequence: without this, two views
    of 12,000 bars take half a minute to join.
    """
    columns = metadata.tables[name].c
    Index(f"{name}_run_sequence", columns.run_key, columns.sequence, sqlite_where=where)


_newest_first("steps")
_newest_first("events", text_clause(INDEXED_KINDS))
_newest_first("orders")
_newest_first("fills")
_newest_first("twin_fills")
_newest_first("ledger")
_newest_first("halts")

_steps, _events = metadata.tables["steps"].c, metadata.tables["events"].c
# Finds the decision at a time without reading those before it, for 17 bytes a bar.
Index(
    "steps_time",
    _steps.open_time_ms,
    _steps.run_key,
    sqlite_where=_steps.open_time_ms.is_not(None),
)
for _born in ("orders", "fills"):
    _of = metadata.tables[_born].c
    Index(f"{_born}_order", _of.order_id, _of.run_key)
