"""Shared by `benchmarks/papers.py`: templates of docs/papers, and what is filled into them."""
