"""Bundles: export a run with its preprocessing, prove that it answers the same, use it anywhere."""
