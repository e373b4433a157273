"""Run the migrations on the connection that the job store has opened, as Alembic's environment."""

from alembic import context

from core.jobs.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
