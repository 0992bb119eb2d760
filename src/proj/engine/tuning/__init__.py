"""Hyperparameter search and cross-validation."""
