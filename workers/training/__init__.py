"""Run trainings in child processes, and auxiliary jobs such as dry runs and publications."""
