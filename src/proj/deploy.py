"""Predict with a bundle of `export`: ``load(BUNDLE).predict(rows)``, without importing torch."""

from proj.engine.deployment.runtime import InputError, Predictor, UnreadableWarning, load

__all__ = ["InputError", "Predictor", "UnreadableWarning", "load"]
