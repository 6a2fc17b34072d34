"""The stable views that other tools may read, documented column by column as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracepaper.storage.view_parts import View
from tracepaper.storage.views_accounts import ACCOUNT_VIEWS
from tracepaper.storage.views_decisions import DECISION_VIEWS
from tracepaper.storage.views_runs import RUN_VIEWS

if TYPE_CHECKING:
    from sqlalchemy import Connection

VIEWS: Final[tuple[View, ...]] = (*RUN_VIEWS, *DECISION_VIEWS, *ACCOUNT_VIEWS)
"""Every view; ``view.row`` says what a row is, ``view.columns`` what each column means."""


def create_views(connection: Connection) -> None:
    """Make every view anew; views are code, so they follow the version and need no migration."""
    for view in VIEWS:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {view.name}")
        connection.exec_driver_sql(view.sql)


_TYPES: Final = """\
Every column declares the type of its values, so SQLAlchemy reflects it, and pandas and connectorx
(`polars.read_database_uri`) read it right. A Python cursor knows no declared types: with one,
`polars.read_database(query, connection, infer_schema_length=None)` looks at every row.
"""


def documentation() -> str:
    """Return the views as a Markdown document, a table each."""
    parts = [_TYPES]
    for view in VIEWS:
        parts.append(
            f"### `{view.name}`\n\nOne row is {view.row}.\n\n"
            "| column | type | meaning |\n|---|---|---|"
        )
        parts.extend(
            f"| `{column.name}` | {column.kind} | {column.doc} |" for column in view.columns
        )
        parts.append("")
    return "\n".join(parts)
