"""``audit export --to``: a run's views as tables of another database, by SQLAlchemy Core.

An export writes all its tables in one transaction. It continues a view whose rows never change
after the last step that the table holds, and replaces the rows of any other view.
docs/storage.md, S23 to S25, has the rules.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine.reflection import ObjectKind
from sqlalchemy.exc import DataError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from tracepaper.storage.database.chunks import commit_at, snapshot
from tracepaper.storage.database.views import V_RUNS, VIEWS
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid
from tracepaper.strategies.extras import EXTRAS, missing_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import URL, Connection

    from tracepaper.storage.database.reader import Reader
    from tracepaper.storage.database.view_columns import View, ViewColumn

BATCH_ROWS: Final = 2_000
"""Rows in memory at a time."""
CONNECT_WITHIN_S: Final = 10
KEY_LETTERS: Final = 255
"""The most letters of a text in a key, for which some databases need a limit."""
EXACT: Final = Numeric(38, 18).with_variant(Numeric(), "postgresql").with_variant(Text(), "sqlite")
"""The type of an exact number, which has 64 bits and at most 18 decimals. SQLite stores a NUMERIC
as a float, so it keeps the text."""
_TYPES: Final[dict[str, Any]] = {"INTEGER": BigInteger(), "REAL": Double(), "TEXT": Text()}
_BY_BYTES: Final[dict[str, Any]] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
"""Options of a table in MySQL, where ``a`` and ``A`` would otherwise be one key."""


def check_driver(url: URL) -> None:
    """Raise ``ConfigInvalid`` if no installed package connects to *url*."""
    try:
        dialect = url.get_dialect()
    except NoSuchModuleError:
        raise ConfigInvalid(
            f"--to knows no database {url.drivername}: write postgresql, sqlite or another dialect "
            "of SQLAlchemy, and install the package of that dialect."
        ) from None
    try:
        dialect.import_dbapi()
    except ImportError:
        if dialect.driver in EXTRAS:
            raise ConfigInvalid(missing_sentence(dialect.driver, "--to")) from None
        raise ConfigInvalid(
            f"--to {url.drivername} needs {dialect.driver}: install it with pip, or name another "
            "driver that is installed, as in mysql+pymysql."
        ) from None


def copy_run(
    reader: Reader,
    run_id: str,
    url: URL,
    views: Sequence[View] = VIEWS,
    progress: Callable[[str, int], None] = lambda _view, _rows: None,
) -> dict[str, int]:
    """Copy *views* of the run, and its row of ``v_runs``, into the database at *url*.

    Returns the rows written by view; *progress* is called with a view and its rows so far. Raises
    ``ConfigInvalid`` if the database has other tables of these names or another course of the run,
    ``AuditUnwritable`` if it does not take the rows; it then holds what it held before.
    """
    tables = {view: _table(view) for view in dict.fromkeys((V_RUNS, *views))}
    written = dict.fromkeys((view.name for view in tables), 0)
    with snapshot(reader.connection), _transaction(url) as target:
        missing = _missing(target, [*tables.values()])
        if tables[V_RUNS] not in missing:
            _check_course(target, tables[V_RUNS], reader, run_id)
        for view, table in tables.items():
            if table in missing:
                table.create(target, checkfirst=False)
            of_run = table.c.run_id == run_id
            last = None
            if view.grows:
                last = target.execute(select(func.max(table.c.sequence)).where(of_run)).scalar()
            else:
                target.execute(delete(table).where(of_run))
            for rows in _batches(reader, view, run_id, last, target.dialect.name):
                target.execute(insert(table), rows)
                written[view.name] += len(rows)
                progress(view.name, written[view.name])
    return written


def _table(view: View) -> Table:
    def column_of(column: ViewColumn) -> Column[Any]:
        kind = EXACT if _is_exact(column) else _TYPES[column.kind]
        if column.name not in ("run_id", *view.key):
            return Column(column.name, kind)
        kind = String(KEY_LETTERS) if column.kind == "TEXT" else kind
        return Column(column.name, kind, primary_key=True, autoincrement=False)

    return Table(view.name, MetaData(), *map(column_of, view.columns), **_BY_BYTES)


def _is_exact(column: ViewColumn) -> bool:
    return column.name.endswith("_text")


def _batches(
    reader: Reader, view: View, run_id: str, last: int | None, dialect: str
) -> Iterator[list[dict[str, Any]]]:
    """Yield the run's rows of *view* after the step *last*, as *dialect* takes them."""
    names = [column.name for column in view.columns]
    exact = [column.name for column in view.columns if _is_exact(column) and dialect != "sqlite"]
    query = f"SELECT {', '.join(names)} FROM {view.name} WHERE run_id = ?"
    if last is None:
        cursor = reader.connection.execute(query, (run_id,))
    else:
        cursor = reader.connection.execute(f"{query} AND sequence > ?", (run_id, last))
    while batch := cursor.fetchmany(BATCH_ROWS):
        rows = [dict(zip(names, row, strict=True)) for row in batch]
        for name in exact:
            for row in rows:
                row[name] = None if row[name] is None else Decimal(row[name])
        yield rows


def _missing(target: Connection, tables: Sequence[Table]) -> list[Table]:
    """Return those of *tables* that *target* lacks.

    Raises ``ConfigInvalid`` if something else has the name of one of them.
    """
    inspector, names = inspect(target), [table.name for table in tables]
    columns = inspector.get_multi_columns(filter_names=names, kind=ObjectKind.ANY)
    keys = inspector.get_multi_pk_constraint(filter_names=names)  # of tables alone
    missing = []
    for table in tables:
        place = (None, table.name)
        if place not in columns:
            missing.append(table)
            continue
        key = keys[place]["constrained_columns"] if place in keys else []
        has = [column["name"] for column in columns[place]], key
        if has != (list(table.c.keys()), list(table.primary_key.columns.keys())):
            raise ConfigInvalid(
                f"{_shown(target.engine.url)} has another {table.name} than this version exports: "
                "name another database, or remove what has that name."
            )
    return missing


def _check_course(target: Connection, runs: Table, reader: Reader, run_id: str) -> None:
    """Raise ``ConfigInvalid`` unless the run goes on from the steps that *target* holds of it."""
    question = select(runs.c.step_count, runs.c.head_digest).where(runs.c.run_id == run_id)
    held = target.execute(question).first()
    if held is None or held.step_count == 0:
        return
    last = held.step_count - 1
    commit = commit_at(reader.connection, reader.stored_run(run_id).run_key, last)
    if commit is None or (commit[1], commit[2].hex()) != (last, held.head_digest):
        raise ConfigInvalid(
            f"{_shown(target.engine.url)} holds steps of run {run_id} that this record does not "
            "have: export the record that has them, or name another database."
        )


@contextmanager
def _transaction(url: URL) -> Iterator[Connection]:
    """Yield a connection to the database at *url*, in a transaction that any error undoes.

    Raises ``AuditUnwritable`` in one sentence for an error of that database.
    """
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it would warn beside the sentence
    options: dict[str, Any] = {}
    if url.get_driver_name() in ("psycopg", "pymysql") and "connect_timeout" not in url.query:
        options["connect_timeout"] = CONNECT_WITHIN_S
    if url.get_backend_name() == "sqlite":  # its driver would make tables in no transaction
        options["isolation_level"] = None
    is_connected = is_written = False
    try:
        # Without a reset, which would log the error of a lost connection.
        engine = create_engine(
            url, connect_args=options, poolclass=NullPool, pool_reset_on_return=None
        )
        if url.get_backend_name() == "sqlite":
            event.listen(engine, "begin", lambda of: of.exec_driver_sql("BEGIN IMMEDIATE"))
        with engine.connect() as connection:
            is_connected = True
            with connection.begin():
                yield connection
                is_written = True
    except (SQLAlchemyError, TypeError, ValueError) as error:
        if is_connected and not isinstance(error, SQLAlchemyError):
            raise  # not of an option in the address
        advice = "mend what it names, and repeat the export"
        if isinstance(error, DataError):
            advice = "leave out the view with that value by --views"
        elif isinstance(error, IntegrityError):
            advice = "wait for the end of another export of this run, and repeat this one"
        elif not is_connected:
            advice = "correct the address, the user or the password, or start the server"
        # Nobody knows whether a server that is lost at the commit has done it.
        is_lost = is_written and getattr(error, "connection_invalidated", False)
        holds = "all of it or nothing" if is_lost else "what it held before"
        raise AuditUnwritable(
            f"{_shown(url)} did not take the export ({_reason(error, url)}) and holds {holds}: "
            f"{advice}."
        ) from None


def _shown(url: URL) -> str:
    shown = url.create(url.drivername, url.username, None, url.host, url.port, url.database)
    return shown.render_as_string()


def _reason(error: Exception, url: URL) -> str:
    """Return the database's own message on one line, without the password."""
    cause = getattr(error, "orig", None) or error
    message = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause)
    line = " ".join(message.split()).rstrip(".")
    return line if url.password is None else line.replace(str(url.password), "…")
