"""Shared by all papers: random streams, options and their schemas, cards, data sets, the training loop."""
