"""Shared by the benchmarks of generated digits: labels, a classifier, scores, anomalies."""
