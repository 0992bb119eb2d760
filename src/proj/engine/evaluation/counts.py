"""Metrics that are functions of sums over rows: those made of counts, and those made of errors.

Sums can be added up by row, by group or by anything else, and resampled, without looking at the rows again. The
definitions are those of ``metrics.py``: 0/0 is 0, and a macro average leaves out a class that is neither in the targets nor
in the predictions (but no label).
"""

import numpy as np

from proj.engine.evaluation.prediction_set import Array, PredictionSet

KINDS = ("precision", "recall", "f1")
ERRORS = ("mse", "rmse", "mae", "r2")


def names_of(outcomes: PredictionSet) -> list[str]:
    """The metrics that ``scores`` gives, in its order."""
    kinds = ERRORS if outcomes.task == "regression" else KINDS
    first = [] if outcomes.task == "regression" else ["accuracy"]
    single = outcomes.task != "binary" and len(outcomes.names) > 1
    each = [f"{kind}/{name}" for kind in kinds for name in outcomes.names] if single else []
    return [*first, *kinds, *each]


def sums_of(outcomes: PredictionSet, unit: Array, units: int) -> Array:
    """Sums over the rows of each unit: [units, sums]; ``unit`` [rows] is the number of a row's unit.

    First comes the number of rows. Of classes there follow the right ones, then for each class (binary: the positive) how
    often it was predicted rightly, predicted, and there. Of numbers there follow for each target the squared error, the
    absolute error, and the target and its square, around its mean.
    """
    if outcomes.task == "regression":
        error, centered = (
            outcomes.output - outcomes.target,
            outcomes.target - outcomes.target.mean(axis=0),
        )
        parts = np.stack([error**2, np.abs(error), centered, centered**2], axis=2).reshape(
            len(outcomes), -1
        )
        columns = [np.ones(len(outcomes)), *parts.T]
        return np.column_stack([np.bincount(unit, column, units) for column in columns])
    target, predicted = outcomes.target, outcomes.predicted
    right = target == predicted
    if outcomes.task == "multilabel":
        right = right.all(axis=1)
    first = np.column_stack([np.bincount(unit, minlength=units), np.bincount(unit, right, units)])
    if outcomes.task == "multiclass":
        classes = len(outcomes.names)

        def spread(rows: Array, values: Array) -> Array:
            return np.bincount(
                unit[rows] * classes + values[rows], minlength=units * classes
            ).reshape(units, classes)

        every = np.ones(len(outcomes), bool)
        counts = [spread(right, target), spread(every, predicted), spread(every, target)]
    else:
        hit, named = outcomes.hits, predicted.reshape(len(outcomes), -1)
        counts = [
            np.column_stack([np.bincount(unit, column, units) for column in of.T])
            for of in (hit * named, named, hit)
        ]
    return np.column_stack([first, np.stack(counts, axis=2).reshape(units, -1)]).astype(np.float64)


def scores(sums: Array, task: str) -> Array:
    """Metrics of sums: [..., sums] to [..., metrics], in the order of ``names_of``; NaN where not defined."""
    if task == "regression":
        return _of_errors(sums)
    rows, right = sums[..., 0], sums[..., 1]
    true, named, there = np.moveaxis(
        sums[..., 2:].reshape(*sums.shape[:-1], -1, 3), -1, 0
    )  # each [..., classes]
    each = [ratio(true, named), ratio(true, there), ratio(2 * true, named + there)]
    accuracy = ratio(right, rows)[..., None]
    if task == "binary":
        return np.concatenate([accuracy, *each], axis=-1)
    counted = (named + there > 0) | (task == "multilabel")
    macro = [ratio(score.sum(-1), counted.sum(-1))[..., None] for score in each]
    return np.concatenate([accuracy, *macro, *(each if true.shape[-1] > 1 else [])], axis=-1)


def _of_errors(sums: Array) -> Array:
    rows = sums[..., :1]
    squared, absolute, total, squares = np.moveaxis(
        sums[..., 1:].reshape(*sums.shape[:-1], -1, 4), -1, 0
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        variation = squares - total**2 / rows
        varies = (variation > 1e-12 * squares) & (rows > 1)
        r2 = np.where(varies, 1 - squared / variation, np.nan)
        mse = squared / rows
        each = [mse, np.sqrt(mse), absolute / rows, r2]
    means = [values.mean(-1, keepdims=True) for values in each]
    return np.concatenate([*means, *(each if squared.shape[-1] > 1 else [])], axis=-1)


def ratio(above: Array, below: Array) -> Array:
    """``above / below``, and 0 where both are 0, as torchmetrics and scikit-learn have it."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=np.asarray(below) != 0)
