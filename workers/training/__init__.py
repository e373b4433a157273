"""Run trainings in child processes, and the auxiliary jobs that go with them."""
