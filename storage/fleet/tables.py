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
    insert,
)
from sqlalchemy import Column as SqlColumn
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateSchema

from tracepaper.storage.database.schema import sql_column
from tracepaper.storage.fleet.server import (
    SCHEMA_NAME,
    check_version,
    connect,
    schema_version,
    transaction,
)
from tracepaper.storage.fleet.views import FUNCTIONS, statements
from tracepaper.storage.record.columns import TABLES, stored_columns
from tracepaper.storage.record.rows import SCHEMA

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.dialects.postgresql import Insert


DATABASE: Final = "database_id"
_TYPES: Final[dict[str, Any]] = {
    "INTEGER": BigInteger(),  # SQLite's has 64 bits
    "REAL": Double(),
    "TEXT": Text(collation="C"),  # sorts as SQLite does
    "BLOB": LargeBinary(),
}
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


def _make_views(server: Connection) -> None:
    """Create the functions and views again, with the present rights to read the views."""
    readers = server.exec_driver_sql(_MAY_READ).all()
    grants = [f"GRANT SELECT ON {view} TO {role}" for view, role in readers]
    for statement in (*FUNCTIONS, *statements(), *grants):
        server.exec_driver_sql(statement, execution_options={"no_parameters": True})


def upsert(table: Table) -> Insert:
    """Return the INSERT of a row of *table* that replaces the row with the same key."""
    new = postgresql.insert(table)
    changed = {
        column.name: new.excluded[column.name] for column in table.c if not column.primary_key
    }
    return new.on_conflict_do_update(constraint=table.primary_key, set_=changed)


def columns_of(table: str) -> tuple[str, ...]:
    """Return the columns of *table* in PostgreSQL, in their order."""
    names = stored_columns(table)
    return names if table == "databases" else (DATABASE, *names)


def make_schema(url: str, *, needed_by: str = "--to") -> bool:
    """Create the fleet's tables and views at *url*; return whether the tables are new.

    If the tables exist, only the views are created again. All is one transaction. Raises
    ``DataInvalid`` for another version's tables, ``ServerLost`` if the role may not create them.
    """
    advice = "name the schema's owner in the address, or a role that may create a schema"
    with (
        closing(connect(url, needed_by=needed_by)) as server,
        transaction(url, server, "make the tables", advice=advice),
    ):
        server.exec_driver_sql(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (SCHEMA_NAME,)
        )
        if (version := schema_version(server)) is not None:
            check_version(url, version)
        else:
            server.execute(CreateSchema(SCHEMA_NAME, if_not_exists=True))
            metadata.create_all(server, checkfirst=False)
            server.execute(insert(metadata.tables["schema_version"]).values(version=SCHEMA))
        _make_views(server)
    return version is None
