"""Training workers: they run trainings in child processes."""
