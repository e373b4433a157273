"""Alembic's environment: run the migrations on the connection that the job store has opened."""

from alembic import context

from core.jobs.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
