"""Shared by the benchmark of upscaling: test photographs, metrics, peers."""
