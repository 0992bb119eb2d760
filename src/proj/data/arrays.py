"""Arrays in memory: the sets that scikit-learn ships, and ``.npz`` files."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from proj.data.base import DataModule
from proj.data.sources import Array, fingerprint, load, read, stages, to_inputs
from proj.data.splits import Fold, split
from proj.data.targets import Targets
from proj.errors import UserError
from proj.schema import SPLITS, Batch, Schema, Task


class ArrayDataModule(DataModule):
    """Arrays of numbers and their targets.

    Args:
        path: one of scikit-learn's sets (breast_cancer, diabetes, digits, iris, linnerud, wine) or an ``.npz`` file with
            ``x_train`` and ``y_train`` (or ``x`` and ``y``) and optional ``x_val``, ``y_val``, ``x_test``, ``y_test``.
            uint8 arrays of 3 or 4 dimensions are images: [rows, height, width] or [rows, height, width, channels]
            (channels may also come first). Other arrays: [rows, features] or [rows, channels, ...].
        predict_path: an ``.npz`` file whose ``x`` is what ``predict`` works on; null means the test part.
        task: what the targets are; null means: several columns of 0 and 1 are labels, other columns and floats other than
            0 and 1 are numbers to predict, one column of anything else is classes.
        batch_size: rows a batch and device; null means all rows of a part at once.
        val_fraction: share of the rows to choose the best epoch on, where the file has no ``x_val``.
        test_fraction: share of the rows kept for ``test``, where the file has no ``x_test``.
        split_seed: seed of the split alone, so that runs with different seeds see the same test rows.
        fold: one fold as a part, [test, 0, 5] say: the first of five tests, and what val_fraction says is cut off the rest;
            [val, 0, 5]: the first of five of the rows that are not for testing validates. `cv` sets it.
        shuffle: draw a new order of the training rows each epoch.
    """

    def __init__(
        self,
        path: str,
        predict_path: str | None = None,
        task: Task | None = None,
        batch_size: int | None = 64,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        fold: Fold | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__(batch_size, shuffle, predict_path)
        self.path, self.task = path, task
        self.val_fraction, self.test_fraction, self.split_seed, self.fold = (
            val_fraction,
            test_fraction,
            split_seed,
            fold,
        )

    @classmethod
    def encode(cls, rows: Any, schema: Schema) -> Tensor:
        """``rows`` [rows, ...] of numbers as ``x``: uint8 for images, float32 otherwise."""
        x = to_inputs(np.asarray(rows), "rows")
        if str(x.dtype) != schema.input_type:
            raise UserError(
                f"expected rows of {schema.input_type}, as in training, got {np.asarray(rows).dtype} of shape "
                f"{np.shape(rows)}; pictures are uint8 [rows, height, width] or with channels."
            )
        if x.shape[1:] != schema.input_shape:
            raise UserError(
                f"expected rows of shape {schema.input_shape}, as in training, got {tuple(x.shape[1:])}; "
                "rows of another shape need a model trained on them."
            )
        return torch.from_numpy(x)

    def setup(self, stage: str) -> None:
        if not self.splits and not self._only_new_rows():
            self._read()
        if stage == "predict" and "predict" not in self.splits:
            self._read_predict()

    def _read(self) -> None:
        source = read(self.path)
        arrays = source.arrays
        if self.fold:  # takes the place of a part that the file has
            arrays = {
                name: values
                for name, values in arrays.items()
                if not name.endswith(f"_{self.fold[0]}")
            }
        self.fingerprint = fingerprint(arrays)
        x = {s: to_inputs(arrays[f"x_{s}"], f"{self.path}: x_{s}") for s in stages(arrays)}
        for s in x:
            if arrays[f"y_{s}"].shape[:1] != (len(x[s]),):
                raise UserError(
                    f"{self.path}: expected a target for each of the {len(x[s])} rows of x_{s}, "
                    f"got an array of shape {arrays[f'y_{s}'].shape} in y_{s}."
                )
            if (x[s].shape[1:], x[s].dtype) != (x["train"].shape[1:], x["train"].dtype):
                shapes = [
                    f"{x[part].shape[1:]} {x[part].dtype} in x_{part}" for part in ("train", s)
                ]
                raise UserError(
                    f"{self.path}: expected rows of one shape and type, got {' and '.join(shapes)}."
                )
        targets = Targets(arrays["y_train"], self.task, source.target_names, self.path)
        parts = split(
            np.arange(len(x["train"])),
            0.0 if "val" in x else self.val_fraction,
            0.0 if "test" in x else self.test_fraction,
            self.split_seed,
            targets.strata,
            self.fold,
        )
        if self.schema is None:
            self.schema = _fit(
                _rows(x["train"], parts["train"]), targets, parts["train"], source.input_names
            )
        for s in SPLITS:
            own = s if s in x and s != "train" else "train"  # the array the rows are numbered in
            rows = np.arange(len(x[own])) if own != "train" else parts[s]
            y = targets.encode(_rows(arrays[f"y_{own}"], rows), self.schema, s, rows)
            self.splits[s] = Batch(
                torch.from_numpy(_rows(x[own], rows)), torch.from_numpy(y), torch.from_numpy(rows)
            )

    def _read_predict(self) -> None:
        assert self.schema is not None
        if self.predict_path is None:
            self.splits["predict"] = self.splits["test"]._replace(y=None)
            return
        arrays = load(self.predict_path, "data.predict_path")
        if "x" not in arrays:
            raise UserError(
                f"{self.predict_path}: expected an array named x, got {', '.join(arrays) or 'none'}."
            )
        x = self.encode(arrays["x"], self.schema)
        self.splits["predict"] = Batch(x, None, torch.arange(len(x)))


def _rows(values: Array, rows: Array) -> Array:
    """The rows of an array; the array itself, not a copy, if these are all."""
    return values if len(rows) == len(values) else values[rows]


def _fit(x: Array, targets: Targets, rows: Array, names: tuple[str, ...]) -> Schema:
    axes = (0, *range(2, x.ndim))
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    some = [
        x[start : start + 2**14] for start in range(0, len(x), 2**14)
    ]  # all at once take several times the memory
    count = x.size / x.shape[1]
    mean = sum(part.sum(axis=axes, dtype=np.float64) for part in some) / count
    centered = (part - mean.reshape(-1, *[1] * (x.ndim - 2)) for part in some)
    std = np.sqrt(sum(np.square(part).sum(axis=axes) for part in centered) / count)
    std[std == 0] = scale  # a constant column or channel: leave it as it is
    return Schema(
        input_shape=tuple(x.shape[1:]),
        input_type=str(x.dtype),
        input_names=names if len(names) == x.shape[1] else tuple(str(i) for i in range(x.shape[1])),
        input_mean=tuple((mean / scale).tolist()),
        input_std=tuple((std / scale).tolist()),
        rows=len(x),
        columns=(),
        **targets.fit(rows),
    )
