"""The oldest schema that can be upgraded.

A column that is added later is no revision: ``database.connection.add_columns`` adds it. Whatever
else changes is one, and then the tables as they were are written down here.
"""

from alembic import op

from tracepaper.storage.database.writer import make_tables
from tracepaper.strategies.errors import DataInvalid

revision = "0003"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables, of a file or of a fleet's server."""
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        from tracepaper.storage.fleet.tables import make_tables as make_on_server

        make_on_server(bind)
    else:
        make_tables(bind)


def downgrade() -> None:
    """Refuse: an audit log is never taken apart."""
    raise DataInvalid("An audit log is not downgraded; restore a backup.")
