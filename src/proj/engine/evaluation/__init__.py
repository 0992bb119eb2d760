"""Metrics with confidence intervals, figures, reports and comparisons."""
