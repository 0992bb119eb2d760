"""Predict with a bundle. These files are copied into it and import NumPy and onnxruntime only.

Images need Pillow as well, and a bundle of the format ``torch`` needs torch.

>>> from runtime import load                                              # doctest: +SKIP
>>> load("BUNDLE").predict([{"age": 36, "plan": "basic"}])                # doctest: +SKIP
"""

from .predictor import Predictor, load
from .rows import InputError, UnreadableWarning

__all__ = ["InputError", "Predictor", "UnreadableWarning", "load"]
