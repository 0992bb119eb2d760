"""Data module for arrays: from Python, ``.npz`` files, and the data sets of scikit-learn."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proj.data.base import DataModule
from proj.data.tabular.array_source import (
    ArraySource,
    checked_inputs,
    encode_rows,
    encode_splits,
    fit_schema,
    hash_arrays,
    load_inputs,
    read_source,
    take_rows,
)
from proj.data.tabular.positive import check_positive, choose_positive
from proj.data.tabular.row_splits import Fold, row_numbers, split
from proj.data.tabular.targets import Targets
from proj.data.tabular.weights import array_weights
from proj.schema import Array, Batch, Label, Schema, Task


class ArrayDataModule(DataModule):
    """Arrays of numbers or images, and their targets.

    Args:
        path: an ``.npz`` file with ``x_train`` and ``y_train`` (or ``x`` and ``y``) and optional
            ``x_val``, ``y_val``, ``x_test``, ``y_test``, and ``weight_train``, … for weights of
            rows, or a data set of scikit-learn:
            breast_cancer, diabetes, digits, iris, linnerud, wine.
            uint8 arrays of 3 or 4 dimensions are images: [rows, height, width] or [rows, height,
            width, channels] (channels may also come first). Other arrays: [rows, features] or
            [rows, channels, ...].
        predict_path: an ``.npz`` file with ``x`` for ``predict``; null means the test split.
        task: what the targets are; null means: several columns of 0 and 1 are labels, other
            columns and floats other than 0 and 1 are numbers to predict, one column of anything
            else is classes.
        positive: the positive class of two, whose precision, recall and F1 are computed; null
            means yes, true or 1 against no, false or 0, else the rarer class.
        batch_size: rows per batch and device; null means all rows of a split in one batch.
        val_fraction: share of the rows for validation, if the file has no ``x_val``.
        test_fraction: share of the rows for ``test``, if the file has no ``x_test``.
        split_seed: seed of the split only, so that runs with different seeds have the same test
            rows.
        fold: one fold as a split. [test, 0, 5] tests on the first of five folds and takes
            val_fraction off the rest; [val, 0, 5] validates on the first of five folds of the rows
            that are not test rows. `cv` sets it.
        shuffle: whether the training rows get a new order in each epoch.
    """

    def __init__(
        self,
        path: str,
        predict_path: str | None = None,
        task: Task | None = None,
        positive: Label | None = None,
        batch_size: int | None = 64,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        fold: Fold | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__(batch_size, shuffle, predict_path)
        self.path, self.task, self.positive, self.fold = path, task, positive, fold
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.split_seed = split_seed
        self._source: ArraySource | None = None

    @classmethod
    def from_arrays(
        cls,
        train: tuple[Any, ...],
        val: tuple[Any, ...] | None = None,
        test: tuple[Any, ...] | None = None,
        *,
        task: Task | None = None,
        positive: Label | None = None,
        batch_size: int | None = 64,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        shuffle: bool = True,
        input_names: Sequence[str] = (),
        target_names: Sequence[str] = (),
    ) -> "ArrayDataModule":
        """Return a data module for inputs and targets from Python.

        Args:
            train: ``(x, y)``, NumPy arrays or torch tensors of the shapes that ``path`` describes.
                Targets may be numbers, booleans or text. ``(x, y, weight)`` has weights [rows].
            val: the same of the validation split; None takes ``val_fraction`` off train, and 0
                means no validation.
            test: the same of the test split; None takes ``test_fraction`` off train.
            input_names: names of the features or channels.
            target_names: names of the target columns.

        The other arguments are those of the class. ``setup`` raises UserError for arrays that do
        not fit together.

        >>> x, y = np.random.rand(100, 4), np.repeat(["no", "yes"], 50)
        >>> data = ArrayDataModule.from_arrays(train=(x, y))
        """
        data = cls(
            "from_arrays",
            task=task,
            positive=positive,
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            shuffle=shuffle,
        )
        names = tuple(input_names), tuple(target_names)
        data._source = ArraySource.of({"train": train, "val": val, "test": test}, *names)
        return data

    @classmethod
    def encode(cls, rows: Any, schema: Schema) -> Tensor:
        """Return ``rows`` [rows, ...] of numbers as ``x``: uint8 for images, else float32."""
        return encode_rows(rows, schema)

    def raw_rows(self, rows: Array, split: str) -> Array:
        arrays = (self._source or read_source(self.path)).arrays
        # A fold replaces the split of its name that the source has.
        own = "" if self.fold and self.fold[0] == split else f"x_{split}"
        raw: Array = arrays.get(own, arrays["x_train"])[rows]
        return raw

    def setup(self, stage: str) -> None:
        if not self.splits and not self._only_new_rows():
            self._setup_splits(self._source or read_source(self.path))
        if stage == "predict" and "predict" not in self.splits:
            self.splits["predict"] = self._predict_rows()

    def _setup_splits(self, source: ArraySource) -> None:
        arrays = source.arrays_for(self.fold)
        self.fingerprint = hash_arrays(arrays)
        x = checked_inputs(arrays, self.path)
        y = {name: arrays[f"y_{name}"] for name in x}
        targets = Targets.from_array(y["train"], self.task, source.target_names, self.path)
        targets.check()
        if self.schema:
            check_positive(self.positive, self.schema)
        rows = split(
            row_numbers(len(x["train"])),
            0.0 if "val" in x else self.val_fraction,
            0.0 if "test" in x else self.test_fraction,
            self.split_seed,
            targets.strata,
            self.fold,
            targets.class_names,
        )
        weights, weight_mean, self.findings = array_weights(arrays, rows, self.path)
        if self.schema is None:
            train, names = take_rows(x["train"], rows["train"]), source.input_names
            target_fields = targets.take(rows["train"]).fit(choose_positive(targets, self.positive))
            self.schema = fit_schema(train, {**target_fields, "weight_mean": weight_mean}, names)
        self.splits = encode_splits(x, y, rows, targets, weights, self.schema)

    def _predict_rows(self) -> Batch:
        assert self.schema is not None
        if self.predict_path is None:
            return self.splits["test"]._replace(y=None, weights=())
        x = self.encode(load_inputs(self.predict_path), self.schema)
        return Batch(x, None, torch.arange(len(x)))


# Scripts written for version 0.1 import this name.
Arrays = ArrayDataModule
