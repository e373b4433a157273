"""What the benchmarks of generated digits share: labels, a classifier, scores, anomalies."""
