"""Metrics as functions of sums over rows: counts of classes, and errors of numbers.

Sums can be computed for each row, each group or any other unit, added up and resampled without the
rows. The definitions are those of ``proj.metrics``: 0/0 is 0, and a macro average leaves out a
class that occurs neither in the targets nor in the predictions (but no label). A weighted average
is that by the actual rows of each class; a micro average adds up the counts of all classes.
"""

import numpy as np

from proj.engine.evaluation.prediction_set import PredictionSet
from proj.metrics import DEFAULT_MONITOR, metric_info
from proj.schema import Array, Task

KINDS = ("precision", "recall", "f1")
ERRORS = ("mse", "rmse", "mae", "r2")


def headline_metric(task: Task) -> str:
    """Return the name of the metric that stands for a task's quality, such as ``f1``."""
    return DEFAULT_MONITOR[task].split("/")[1]


def headline_sign(task: Task) -> int:
    """Return 1 if a larger headline metric is better, and -1 if a smaller one is."""
    info = metric_info(headline_metric(task))
    return -1 if info is not None and info.mode == "min" else 1


def metric_names(predictions: PredictionSet) -> list[str]:
    """Return the names of the metrics that ``scores`` computes, in its order."""
    kinds = ERRORS if predictions.task == "regression" else KINDS
    first = [] if predictions.task == "regression" else ["accuracy"]
    per_class = []
    if predictions.task != "binary" and len(predictions.names) > 1:
        per_class = [f"{kind}/{name}" for kind in kinds for name in predictions.names]
    return [*first, *kinds, *per_class]


def sums_of(predictions: PredictionSet, unit: Array, units: int) -> Array:
    """Return sums over the rows of each unit: [units, sums].

    ``unit`` [rows] is the number of each row's unit. The first sum is the number of rows. A row
    with a weight counts as often as its weight says.

    For classes and labels, the next one is the number of correct rows. For each class (binary: the
    positive one) follow the numbers of true positives, predicted positives and actual positives.

    For regression follow for each target the squared error, the absolute error, and the target
    minus its mean and the square of that.
    """
    if predictions.task == "regression":
        return _error_sums(predictions, unit, units)
    target, predicted = predictions.target, predictions.predicted
    correct = target == predicted
    if predictions.task == "multilabel":
        correct = correct.all(axis=1)
    weight = predictions.weight
    times = np.ones(len(unit), np.int64) if weight is None else weight
    first = [np.bincount(unit, weight, units), np.bincount(unit, correct * times, units)]
    if predictions.task == "multiclass":
        classes = len(predictions.names)

        def count(rows: Array, values: Array) -> Array:
            cell = unit[rows] * classes + values[rows]
            each = None if weight is None else weight[rows]
            return np.bincount(cell, each, units * classes).reshape(units, classes)

        all_rows = np.ones(len(predictions), bool)
        counts = [count(correct, target), count(all_rows, predicted), count(all_rows, target)]
    else:
        actual, predicted = predictions.hits, predicted.reshape(len(predictions), -1)
        counts = [
            np.column_stack([np.bincount(unit, column * times, units) for column in indicator.T])
            for indicator in (actual * predicted, predicted, actual)
        ]
    per_class = np.stack(counts, axis=2).reshape(units, -1)
    return np.column_stack([*first, per_class]).astype(np.float64)


def _error_sums(predictions: PredictionSet, unit: Array, units: int) -> Array:
    error = predictions.output - predictions.target
    weight = predictions.weight
    centered = predictions.target - np.average(predictions.target, axis=0, weights=weight)
    terms = np.stack([error**2, np.abs(error), centered, centered**2], axis=2)
    columns = [np.ones(len(predictions)), *terms.reshape(len(predictions), -1).T]
    columns = columns if weight is None else [column * weight for column in columns]
    return np.column_stack([np.bincount(unit, column, units) for column in columns])


def scores(sums: Array, predictions: PredictionSet) -> Array:
    """Return the metrics of sums: [..., sums] to [..., metrics], in the order of ``metric_names``.

    ``predictions`` tell the task and the average of several classes or labels. A metric is NaN
    where it is not defined.
    """
    if predictions.task == "regression":
        return _error_scores(sums)
    rows, correct = sums[..., 0], sums[..., 1]
    per_class = sums[..., 2:].reshape(*sums.shape[:-1], -1, 3)
    true, predicted, actual = np.moveaxis(per_class, -1, 0)  # all [..., classes]
    fractions = [(true, predicted), (true, actual), (2 * true, predicted + actual)]
    by_class = [ratio(above, below) for above, below in fractions]
    accuracy = ratio(correct, rows)[..., None]
    if predictions.task == "binary":
        return np.concatenate([accuracy, *by_class], axis=-1)
    if predictions.average == "micro":
        means = [ratio(above.sum(-1), below.sum(-1))[..., None] for above, below in fractions]
    else:
        weights = mean_weights(predicted, actual, predictions)
        means = [ratio((s * weights).sum(-1), weights.sum(-1))[..., None] for s in by_class]
    return np.concatenate([accuracy, *means, *(by_class if true.shape[-1] > 1 else [])], axis=-1)


def mean_weights(predicted: Array, actual: Array, predictions: PredictionSet) -> Array:
    """Return the weight of each class in a macro or weighted average: [..., classes]."""
    if predictions.average == "weighted":
        return actual
    is_label = predictions.task == "multilabel"
    return np.asarray((predicted + actual > 0) | is_label, np.float64)


def _error_scores(sums: Array) -> Array:
    rows = sums[..., :1]
    per_target = sums[..., 1:].reshape(*sums.shape[:-1], -1, 4)
    squared, absolute, total, squares = np.moveaxis(per_target, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        variation = squares - total**2 / rows
        # Of one row, the variation is 0.
        varies = variation > 1e-12 * squares
        r2 = np.where(varies, 1 - squared / variation, np.nan)
        mse = squared / rows
        by_target = [mse, np.sqrt(mse), absolute / rows, r2]
    means = [values.mean(-1, keepdims=True) for values in by_target]
    return np.concatenate([*means, *(by_target if squared.shape[-1] > 1 else [])], axis=-1)


def ratio(above: Array, below: Array) -> Array:
    """Return ``above / below``, and 0 where both are 0, as torchmetrics and scikit-learn do."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=np.asarray(below) != 0)
