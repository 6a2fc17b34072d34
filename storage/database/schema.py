"""The SQLAlchemy Core tables, built from the columns.

Tables have no foreign keys to ``steps``, which SQLite would check at each insert: ``integrity``
finds rows without their step.
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
    UniqueConstraint,
)
from sqlalchemy import Column as SqlColumn
from sqlalchemy import text as text_clause

from tracepaper.storage.record.columns import TABLES
from tracepaper.storage.record.rows import INDEXED_KINDS

if TYPE_CHECKING:
    from tracepaper.storage.record.columns import Column

_TYPES: Final[dict[str, Any]] = {
    "INTEGER": Integer,
    "REAL": REAL,
    "TEXT": Text,
    "BLOB": LargeBinary,
}
_WITH_ROWID: Final = frozenset({"begins", "runs", "events", "states", "answers"})
"""Tables with blobs, or with one integer key or none; others are WITHOUT ROWID, ordered by key."""

metadata: Final = MetaData()


def _sql_column(column: Column) -> SqlColumn[Any]:
    """Return *column* as SQLAlchemy's, with its type and its foreign key."""
    kind = _TYPES[column.kind]
    keys = (ForeignKey(column.refers),) if column.refers else ()
    if column.is_key:
        return SqlColumn(column.name, kind, *keys, primary_key=True, autoincrement=False)
    return SqlColumn(column.name, kind, *keys, nullable=column.null)


BORN: Final = ("orders", "fills")
"""Tables with a generated column ``birth``: the step that created the order."""


for _name, _columns in TABLES.items():
    Table(
        _name,
        metadata,
        *map(_sql_column, _columns),
        *((UniqueConstraint("run_id"),) if _name == "runs" else ()),
        *(
            (SqlColumn("birth", Integer, Computed("CAST(order_id AS INTEGER)", persisted=False)),)
            if _name in BORN
            else ()
        ),
        sqlite_strict=True,
        sqlite_with_rowid=_name in _WITH_ROWID,
    )


_events = metadata.tables["events"].c
Index(
    "events_run_sequence",
    _events.run_key,
    _events.sequence,
    sqlite_where=text_clause(INDEXED_KINDS),
)
for _name in BORN:
    _table = metadata.tables[_name].c
    Index(f"{_name}_order", _table.order_id, _table.run_key)
