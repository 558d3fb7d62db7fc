"""Evaluation: benchmarks, editors, scores, statistics, reports."""
