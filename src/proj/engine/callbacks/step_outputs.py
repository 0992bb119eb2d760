"""Former place of ``as_arrays`` and ``gather_chunks``, for modules that still import them here."""

from proj.engine.callbacks.prediction_writer import as_arrays, gather_chunks

__all__ = ["as_arrays", "gather_chunks"]
