"""The tables of a fleet in PostgreSQL, built from the same columns as those of a file.

``database_id`` is the first column of every key. Four tables exist only in a fleet: ``marks``,
``holes``, ``shippers`` and ``schema_version``.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    DateTime,
    Double,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy import Column as SqlColumn
from sqlalchemy.dialects import postgresql

from tracepaper.storage.database.schema import sql_column, table_statements
from tracepaper.storage.fleet.server import (
    SCHEMA_NAME,
    check_version,
    connect,
    schema_version,
    speaking,
)
from tracepaper.storage.fleet.views import FUNCTIONS, statements
from tracepaper.storage.record.columns import TABLES, stored_columns
from tracepaper.storage.record.rows import SCHEMA

if TYPE_CHECKING:
    from psycopg import Connection


DATABASE: Final = "database_id"
_TYPES: Final[dict[str, Any]] = {
    "INTEGER": BigInteger(),  # SQLite's has 64 bits
    "REAL": Double(),
    "TEXT": Text(collation="C"),  # sorts as SQLite does
    "BLOB": LargeBinary(),
}
_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]
metadata: Final = MetaData()


def _leading() -> SqlColumn[Any]:
    return SqlColumn(DATABASE, _TYPES["TEXT"], primary_key=True)


for _name, _columns in TABLES.items():
    _first = () if _name == "databases" else (_leading(),)
    Table(_name, metadata, *_first, *(sql_column(column, _TYPES) for column in _columns))

_NOW: Final = DateTime(timezone=True)
Table(
    "marks",  # how far a run has been shipped; written in the transaction of its rows
    metadata,
    _leading(),
    SqlColumn("run_key", BigInteger, primary_key=True, autoincrement=False),
    SqlColumn("sequence", BigInteger, nullable=False),  # the last step
    SqlColumn("digest", LargeBinary, nullable=False),
    SqlColumn("shipped_at", _NOW, nullable=False),
)
Table(
    "holes",  # steps that a prune dropped before they were shipped
    metadata,
    _leading(),
    SqlColumn("run_key", BigInteger, primary_key=True, autoincrement=False),
    SqlColumn("from_sequence", BigInteger, primary_key=True, autoincrement=False),
    SqlColumn("until_sequence", BigInteger, nullable=False),
    SqlColumn("noted_at", _NOW, nullable=False),
)
Table(
    "shippers",  # the host that ships a file, its lag, and its daemon's status
    metadata,
    _leading(),
    SqlColumn("host", _TYPES["TEXT"], nullable=False),
    SqlColumn("file", _TYPES["TEXT"], nullable=False),
    SqlColumn("seen_at", _NOW, nullable=False),
    SqlColumn("lag_steps", BigInteger, nullable=False),
    SqlColumn("lag_s", Double, nullable=False),
    SqlColumn("daemon", _TYPES["TEXT"], nullable=False),  # JSON of its status; empty without one
)

Table(  # one row: the number of the record
    "schema_version",
    metadata,
    SqlColumn("version", BigInteger, primary_key=True, autoincrement=False),
)

# As in a file: the rows of an order.
for _name in ("orders", "fills"):
    _c = metadata.tables[_name].c
    Index(f"{_name}_order", _c[DATABASE], _c.order_id, _c.run_key, _c.sequence)


_MAY_READ: Final = (
    "SELECT c.relname, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END "
    "FROM pg_class c, aclexplode(c.relacl) a WHERE c.relkind = 'v' "
    "AND c.relnamespace = current_schema()::regnamespace AND a.privilege_type = 'SELECT'"
)


def _make_views(server: Connection[Any]) -> None:
    """Create the functions and views again, with the present rights to read the views."""
    readers = server.execute(_MAY_READ).fetchall()
    for statement in (*FUNCTIONS, *statements()):
        server.execute(statement.encode())
    for view, role in readers:
        server.execute(f"GRANT SELECT ON {view} TO {role}".encode())


def columns_of(table: str) -> tuple[str, ...]:
    """Return the columns of *table* in PostgreSQL, in their order."""
    names = stored_columns(table)
    return names if table == "databases" else (DATABASE, *names)


def make_schema(url: str, *, needed_by: str = "--to") -> bool:
    """Create the fleet's tables and views at *url*; return whether the tables are new.

    If the tables exist, only the views are created again. All is one transaction. Raises
    ``DataInvalid`` for another version's tables, ``ServerLost`` if the role may not create them.
    """
    making = speaking(
        url,
        "make the tables",
        advice="name the schema's owner in the address, or a role that may create a schema",
    )
    with closing(connect(url, needed_by=needed_by)) as server, making, server.transaction():
        server.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (SCHEMA_NAME,))
        if (version := schema_version(server)) is not None:
            check_version(url, version)
        else:
            server.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA_NAME}".encode())
            for statement in table_statements(metadata, _DIALECT):
                server.execute(statement.encode())
            server.execute("INSERT INTO schema_version VALUES (%s)", (SCHEMA,))
        _make_views(server)
    return version is None
