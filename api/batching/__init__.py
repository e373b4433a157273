"""Dynamic batching of synchronous requests."""
