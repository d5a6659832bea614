"""Alembic's entry: runs the revisions on the connection that `whimbrel.catalog.migrate` hands over."""

from alembic import context

from whimbrel.catalog.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
