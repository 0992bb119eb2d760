"""Targets and predictions of a split, read from its predictions file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from proj.engine.runs import calibration
from proj.engine.runs.calibration import Calibration
from proj.engine.runs.files import is_present, open_regular
from proj.engine.runs.predictions import apply_thresholds, outputs_in
from proj.engine.runs.run import Run
from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, Array, Average, Schema, Task

# By how much a probability of several members may lie outside of 0 and 1.
ROUNDING = 1e-4


@dataclass(frozen=True)
class PredictionSet:
    """Targets and predictions of some rows.

    Attributes:
        task: the task of the model.
        names: names of the classes, labels or targets.
        row: numbers of the rows in their source, [rows].
        target: class numbers [rows], 0 and 1 [rows, labels], or numbers [rows, targets].
        output: what ``Model.predict_proba`` returns: probabilities of the positive class [rows],
            of the classes [rows, classes] or of the labels [rows, labels], or numbers
            [rows, targets].
        group: the number of each row's group [rows], such as the customer that it belongs to. Rows
            of one group are not independent. None if each row is independent.
        thresholds: threshold of the positive class, one of all labels, or one of each label.
        average: how the model's metrics of several classes or labels become one.
        weight: the rows' weights [rows], all above 0; None weights all rows equally.
        columns: the columns of the predictions file other than probabilities: row numbers, targets
            and predictions in the user's own labels, and columns of the source. None if the
            predictions were not read from a file.
    """

    task: Task
    names: tuple[str, ...]
    row: Array
    target: Array
    output: Array
    group: Array | None = None
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLD
    average: Average = "macro"
    weight: Array | None = None
    columns: pl.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: Array) -> "PredictionSet":
        """Return a subset of the rows, with its groups numbered from 0."""
        group = None if self.group is None else np.unique(self.group[rows], return_inverse=True)[1]
        return replace(
            self,
            row=self.row[rows],
            target=self.target[rows],
            output=self.output[rows],
            group=group,
            weight=None if self.weight is None else self.weight[rows],
            columns=None if self.columns is None else self.columns[np.arange(len(self))[rows]],
        )

    @property
    def weights(self) -> Array:
        """The rows' weights, or ones: [rows]."""
        return np.ones(len(self)) if self.weight is None else self.weight

    def mean(self, values: Array) -> float:
        """Return the mean of a value of each row [rows]."""
        return float(values.mean() if self.weight is None else self.weight @ values / self._total)

    @property
    def _total(self) -> float:
        return float(self.weights.sum())

    @property
    def predicted(self) -> Array:
        """Predictions as in the predictions file.

        Class numbers [rows], labels [rows, labels], or numbers [rows, targets].
        """
        if self.task == "multiclass":
            return np.asarray(self.output.argmax(1))
        return (
            self.output
            if self.task == "regression"
            else apply_thresholds(self.output, self.thresholds)
        )

    @property
    def hits(self) -> Array:
        """Indicators of whether a row is of a class or has a label: 0 and 1, [rows, classes].

        For binary tasks, they are those of the positive class only: [rows, 1].
        """
        if self.task == "multiclass":
            return np.asarray(self.target[:, None] == np.arange(len(self.names)), np.int64)
        return self.target.reshape(len(self), -1).astype(np.int64)

    @property
    def scores(self) -> Array:
        """Probabilities in the shape of ``hits``."""
        return self.output.reshape(len(self), -1)

    @property
    def missing(self) -> int:
        """Number of rows whose prediction is not a finite number."""
        return int((~np.isfinite(self.output.reshape(len(self), -1))).any(axis=1).sum())


def read_prediction_set(
    schema: Schema, table: pl.DataFrame, group: str | None = None
) -> PredictionSet:
    """Return the predictions in a table that `test` or `validate` wrote.

    ``group`` names a column of the table. Rows with weight 0 are left out.
    """
    table = weighted_rows(schema, table)
    if table.is_empty():
        raise ValueError("expected rows, got none")
    if schema.task in ("regression", "multilabel"):
        names = schema.target_names
        suffixes = [f"_{name}" for name in names] if len(names) > 1 else [""]
        target = table[[f"target{suffix}" for suffix in suffixes]].to_numpy()
    else:
        names = schema.class_names
        labels, numbers = pl.Series(list(schema.classes)), pl.Series(range(len(names)))
        target = table["target"].replace_strict(labels, numbers, return_dtype=pl.Int64).to_numpy()
    output = outputs_in(schema, table)
    for name, values in (("row", table["row"]), ("target", target), ("prediction", output)):
        kind = np.asarray(values).dtype.kind
        if kind not in ("iu" if name == "row" else "iuf"):
            raise TypeError(f"expected numbers of {name}, got others")
    groups = None
    if group is not None:
        # Methods of series would read the name of the column as a pattern.
        groups = table[group].alias("").rank("dense").to_numpy().astype(np.int64) - 1
    return PredictionSet(
        schema.task,
        names,
        table["row"].to_numpy(),
        target,
        output,
        groups,
        weight=table["weight"].to_numpy() if _has_weights(schema, table) else None,
    )


def weighted_rows(schema: Schema, table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a predictions file whose weight is above 0, or all without weights."""
    if not _has_weights(schema, table):
        return table
    weight = table["weight"]
    if not weight.dtype.is_float() or not (weight.is_finite() & (weight >= 0)).all():
        raise TypeError("expected finite weights from 0, got others")
    return table.filter(weight > 0)


def _has_weights(schema: Schema, table: pl.DataFrame) -> bool:
    # Without weights, a column of this name comes from the source.
    return schema.weight_mean > 0 and "weight" in table.columns


def load_predictions(run: Run, verb: str, schema: Schema) -> PredictionSet:
    """Read what `validate` or `test` wrote for each row, with the thresholds that it applied.

    Raises:
        UserError: if a file is damaged.
    """
    path = run.path / verb / "predictions.parquet"
    table, applied = read_table(path), run.path / verb / calibration.FILE
    fitted = calibration.read(applied) if is_present(applied) else None
    try:
        return predictions_in(table, run, schema, fitted)
    except (pl.exceptions.PolarsError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is damaged or of another model: {reason}; run `{verb}` again to replace it."
        ) from error


def predictions_in(
    table: pl.DataFrame, run: Run, schema: Schema, fitted: Calibration | None
) -> PredictionSet:
    """Return the predictions in a table of `validate` or `test`.

    The rows are grouped by the group column of the run's data, if it has one.

    Args:
        table: the columns of the predictions file.
        run: the run that the predictions are of.
        schema: the schema of its data.
        fitted: the calibration that was applied.
    """
    table, group = weighted_rows(schema, table), _init_args(run, "data").get("group")
    # A column of the source has a prefix if its name is that of a column of predictions.
    column = next((name for name in (f"kept_{group}", group) if name in table.columns), None)
    shown = [name for name in table.columns if not name.startswith("probability")]
    predictions = replace(
        read_prediction_set(schema, table, column), columns=table[shown], average=average_of(run)
    )
    output = predictions.output
    if schema.task != "regression" and ((output < -ROUNDING) | (output > 1 + ROUNDING)).any():
        raise ValueError("expected probabilities from 0 to 1, got others")
    if fitted is not None:
        predictions = replace(predictions, thresholds=fitted.settings(schema)[1])
    return predictions


def average_of(run: Run) -> Average:
    """Return how a run's metrics of several classes or labels become one."""
    # The estimators of baselines have no such option, so their configs hold it elsewhere.
    stated = _init_args(run, "model").get("average") or run.config.get("average")
    average: Average = stated or "macro"
    return average


def _init_args(run: Run, part: str) -> dict[str, Any]:
    return (run.config.get(part) or {}).get("init_args") or {}


def read_table(path: Path) -> pl.DataFrame:
    """Read a table in the folder of a run; raise UserError if it is damaged."""
    remedy = f"run `{path.parent.name}` again to replace it"
    try:
        # By its path, polars would open the file several times, and another process may replace it.
        with open_regular(path, remedy) as file:
            return pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged: {reason}; {remedy}.") from error
