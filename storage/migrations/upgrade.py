"""``db upgrade``: bring a database to this version's schema, in one transaction."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from tracepaper.storage import migrations
from tracepaper.storage.database import add_columns, advice, no_way_up, open_writer_of_any_schema
from tracepaper.storage.schema import SCHEMA_REVISION, UPGRADABLE
from tracepaper.storage.views import create_views
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid

if TYPE_CHECKING:
    from sqlalchemy import Connection


def upgrade(path: Path) -> tuple[str, str]:
    """Upgrade the database *path*; return its schema before and after.

    Raises ``DataInvalid`` where it is no database of ours or newer than this version,
    ``ConfigInvalid`` where a daemon has it open, ``AuditUnwritable`` where it cannot be written.
    """
    if not path.is_file():
        raise DataInvalid(f"There is no database {path}; name one with --db.")
    writer, revision = open_writer_of_any_schema(path)
    try:
        if revision not in {SCHEMA_REVISION, *UPGRADABLE}:
            raise DataInvalid(no_way_up(path, revision))
        migrate(writer.connection)
        add_columns(writer.connection, path)
    except (DBAPIError, sqlite3.Error) as error:
        raise AuditUnwritable(
            f"{path} could not be upgraded and is as it was ({error}); {advice(error)} and retry."
        ) from error
    finally:
        writer.close()
    return revision, SCHEMA_REVISION


def migrate(connection: Connection) -> None:
    """Run the revisions that *connection*'s database lacks, then make its views anew."""
    config = Config()
    folder = str(Path(migrations.__file__).parent)
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        command.upgrade(config, "head")
        create_views(connection)
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
