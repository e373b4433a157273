"""Alembic migrations of the job database. `core.jobs.migrate` runs them."""
