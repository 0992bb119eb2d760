"""Targets as the user has them, and as numbers: which task they are, their classes, and back."""

from typing import Any, TypeAlias

import numpy as np

from proj.errors import UserError
from proj.schema import Schema, Task

Array: TypeAlias = np.ndarray[Any, Any]


class Targets:
    """The targets of the rows a split is made from: ``y`` [rows] or [rows, targets], any type of number or text.

    ``task`` null means: what the values suggest. Raises UserError where they cannot be what they are said to be.
    """

    def __init__(self, y: Array, task: Task | None, names: tuple[str, ...], where: str) -> None:
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if y.ndim not in (1, 2) or y.dtype.kind not in "biufU":
            raise UserError(
                f"{where}: expected targets of shape [rows] or [rows, targets] that are numbers or text, "
                f"got {y.dtype} of shape {y.shape}."
            )
        self.y, self.where = y, where
        self.task: Task = task or infer(y)
        columns = 1 if y.ndim == 1 else y.shape[1]
        self.names = (
            names if len(names) == columns else tuple(f"target_{i}" for i in range(columns))
        )
        if len(self.names) == 1 and not names:
            self.names = ("target",)
        self._check()

    def _check(self) -> None:
        columns = 1 if self.y.ndim == 1 else self.y.shape[1]
        if self.task in ("binary", "multiclass"):
            classes = np.unique(self.y)
            if columns > 1 or len(classes) < 2 or (self.task == "binary" and len(classes) != 2):
                wanted = "two classes" if self.task == "binary" else "two classes or more"
                raise UserError(
                    f"{self.where}: expected {wanted} in one column for the task {self.task}, got "
                    f"{len(classes)} values in {columns} columns; set data.task."
                )
        elif self.task == "multilabel" and (self.y.ndim == 1 or not np.isin(self.y, (0, 1)).all()):
            raise UserError(
                f"{self.where}: expected two columns or more of 0 and 1 for the task multilabel, "
                f"got {columns} columns of {self.y.dtype}; set data.task."
            )
        elif self.task == "regression":
            if self.y.dtype.kind == "U":
                raise UserError(
                    f"{self.where}: expected numbers for the task regression, got text; set data.task."
                )
            if not np.isfinite(self.y).all():
                raise UserError(
                    f"{self.where}: expected finite targets, got {self.y[~np.isfinite(self.y)][0]}."
                )

    @property
    def strata(self) -> Array | None:
        """A class a row, to split by, for the tasks that have one."""
        return self.y if self.task in ("binary", "multiclass") else None

    def fit(self, rows: Array) -> dict[str, Any]:
        """The schema's fields on targets, from these rows alone."""
        y = self.y[rows]
        fields: dict[str, Any] = {"task": self.task, "target_names": self.names}
        fields |= dict.fromkeys(("classes", "class_counts", "target_mean", "target_std"), ())
        if self.task == "regression":
            y = y.reshape(len(y), -1).astype(np.float64)
            std = y.std(axis=0)
            std[std == 0] = 1.0
            return fields | {
                "target_mean": tuple(y.mean(axis=0).tolist()),
                "target_std": tuple(std.tolist()),
            }
        if self.task == "multilabel":
            return fields | {"class_counts": tuple(y.astype(np.int64).sum(axis=0).tolist())}
        classes, counts = np.unique(y, return_counts=True)
        return fields | {"classes": tuple(classes.tolist()), "class_counts": tuple(counts.tolist())}

    def encode(self, y: Array, schema: Schema, stage: str, rows: Array) -> Array:
        """``y`` as class numbers [rows] int64, labels [rows, labels] float32, or targets [rows, targets] float32."""
        if schema.task != self.task:
            raise UserError(
                f"{self.where}: expected targets for the task {schema.task}, as in training, "
                f"got {self.task}."
            )
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if self.task in ("regression", "multilabel"):
            y = y.reshape(len(y), -1).astype(np.float32)
            if y.shape[1] != len(schema.target_names) or not np.isfinite(y).all():
                raise UserError(
                    f"{self.where}: expected {len(schema.target_names)} finite targets a row, "
                    f"got {y.shape[1]} columns in the {stage} part, or a missing value."
                )
            return y
        classes = np.asarray(schema.classes)
        if not (known := np.isin(y, classes)).all():
            i = int(np.argmin(known))
            raise UserError(
                f"{self.where}: label {y[i].item()!r} of row {rows[i]} ({stage} part) is out of range: "
                f"the training part has {_listed(schema)}; correct it, or drop the row."
            )
        return np.searchsorted(classes, y).astype(np.int64, copy=False)


def infer(y: Array) -> Task:
    """Columns of 0 and 1 are labels, other columns and floats numbers, one column of anything else classes."""
    zero_one = y.dtype.kind != "U" and bool(np.isin(y, (0, 1)).all())
    if y.ndim == 2 or (y.dtype.kind == "f" and not zero_one):
        return "multilabel" if zero_one else "regression"
    return "binary" if len(np.unique(y)) == 2 else "multiclass"


def _listed(schema: Schema) -> str:
    names = [repr(label) for label in schema.classes]
    return (
        ", ".join(names)
        if len(names) <= 12
        else f"{len(names)} classes from {names[0]} to {names[-1]}"
    )
