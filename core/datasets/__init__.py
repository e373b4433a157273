"""Datasets: store, readers, conversion."""
