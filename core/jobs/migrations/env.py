"""Alembic's environment: runs the migrations on the connection of `core.jobs.migrate`."""

from alembic import context

from core.jobs.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
