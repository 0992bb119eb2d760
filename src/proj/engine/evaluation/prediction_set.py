"""What came out for the rows of a part: targets and predictions as arrays, read from a predictions file."""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from proj.engine.runs.predictions import decided
from proj.schema import DEFAULT_THRESHOLD, Schema, Task

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PredictionSet:
    """Targets and predictions of some rows.

    ``target`` is [rows] class numbers, [rows, labels] of 0 and 1, or [rows, targets]. ``output`` is what
    ``Model.predict_proba`` gives: [rows] (binary, of the positive class), [rows, classes], [rows, labels] or [rows, targets].
    ``names`` are those of the classes, labels or targets. Rows of equal ``group`` [rows] belong together, such as those of
    one customer; None: each row is for itself. ``thresholds`` are those of the positive class or of the labels, one for all
    or one for each.
    """

    task: Task
    names: tuple[str, ...]
    row: Array
    target: Array
    output: Array
    group: Array | None = None
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLD

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: Array) -> "PredictionSet":
        """Some of the rows; the groups are numbered anew, those among them alone."""
        group = None if self.group is None else np.unique(self.group[rows], return_inverse=True)[1]
        return replace(
            self,
            row=self.row[rows],
            target=self.target[rows],
            output=self.output[rows],
            group=group,
        )

    @property
    def predicted(self) -> Array:
        """Class numbers [rows], labels [rows, labels], or numbers [rows, targets], as in the predictions file."""
        if self.task == "multiclass":
            return np.asarray(self.output.argmax(1))
        return self.output if self.task == "regression" else decided(self.output, self.thresholds)

    @property
    def hits(self) -> Array:
        """Whether a row is of a class or has a label: [rows, classes] of 0 and 1; [rows, 1] of the positive class."""
        if self.task == "multiclass":
            return np.asarray(self.target[:, None] == np.arange(len(self.names)), np.int64)
        return self.target.reshape(len(self), -1).astype(np.int64)

    @property
    def scores(self) -> Array:
        """The probabilities beside ``hits``: [rows, classes]."""
        return self.output.reshape(len(self), -1)

    @property
    def missing(self) -> int:
        """Rows whose prediction is no finite number."""
        return int((~np.isfinite(self.output.reshape(len(self), -1))).any(axis=1).sum())


def read_prediction_set(
    schema: Schema, table: pl.DataFrame, group: str | None = None
) -> PredictionSet:
    """The outcomes in a table that `test` or `validate` wrote; ``group`` is a column of it."""
    ends = [f"_{name}" for name in schema.target_names] if len(schema.target_names) > 1 else [""]
    starts = {"regression": "prediction", "multilabel": "probability"}
    if schema.task in starts:
        names = schema.target_names
        target = table.select(f"target{end}" for end in ends).to_numpy()
        output = table.select(f"{starts[schema.task]}{end}" for end in ends).to_numpy()
    else:
        names = schema.class_names
        numbers = pl.Series(range(len(names)))
        target = (
            table["target"]
            .replace_strict(pl.Series(list(schema.classes)), numbers, return_dtype=pl.Int64)
            .to_numpy()
        )
        output = table.select(f"probability_{name}" for name in names).to_numpy()
        output = output[:, 1] if schema.task == "binary" else output
    groups = None if group is None else table[group].rank("dense").to_numpy().astype(np.int64) - 1
    return PredictionSet(schema.task, names, table["row"].to_numpy(), target, output, groups)
