"""Arrays of numbers, and images that already have their size."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .rows import InputError

Array = np.ndarray[Any, Any]

CHANNELS = (1, 3, 4)


class Arrays:
    """Encoder of arrays.

    Args:
        spec: ``inputs`` of ``bundle.json``: shape and type of a row.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.shape, self.dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])

    def encode(self, rows: Any, first: int = 0) -> dict[str, Array]:
        """Return ``x`` [rows, ...] as the net takes it.

        Raises:
            InputError: for rows of another shape or type, and numbers that are not finite.
        """
        x = np.asarray(rows)
        if not len(x):
            return {"x": np.empty((0, *self.shape), self.dtype)}
        if self.dtype == np.uint8 and x.dtype == np.uint8 and len(self.shape) == 3:
            x = _to_images(x)
        if x.shape[1:] != self.shape:
            expected, got = list(self.shape), list(x.shape[1:])
            raise InputError(f"expected rows of shape {expected}, as in training, got {got}")
        is_image = x.dtype == np.uint8 and x.ndim in (3, 4)
        can_cast = np.can_cast(x.dtype, self.dtype, "same_kind")
        if is_image != (self.dtype == np.uint8) or not can_cast:
            raise InputError(f"expected {self.dtype}, as in training, got {x.dtype}")
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(x, self.dtype)
        if self.dtype.kind == "f":
            finite = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
            if not finite.all():
                row = first + int(finite.argmin())
                raise InputError("expected finite numbers, got a missing or infinite one", row=row)
        return {"x": x}


def _to_images(x: Array) -> Array:
    """Return images [rows, height, width], or with channels first or last, channels first."""
    if x.ndim == 3:
        return x[:, None]
    is_last = x.ndim == 4 and x.shape[3] in CHANNELS
    return x.transpose(0, 3, 1, 2) if is_last else x
