"""Combines the rows of synchronous requests into batches for the workers (dynamic batching)."""
