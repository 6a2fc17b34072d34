"""Runs Alembic's revisions on the connection that ``db upgrade`` opened."""

from alembic import context

from tracepaper.storage.database.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller's transaction holds the whole upgrade
)
context.run_migrations()
