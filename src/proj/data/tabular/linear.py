"""A linear model of a small table, which nets may start from; fitted on the training split.

A net learns slowly what a linear model finds at once, and on a small table it overfits before.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from proj.schema import Array, Schema

# Larger tables (training rows; training rows × inputs) train nets well without it.
MAX_ROWS, MAX_VALUES = 20_000, 5_000_000
# Inverse strengths of the regularization, tried in this order while the validation loss falls.
STRENGTHS = tuple(10.0**power for power in range(-3, 3))
# The strength without validation rows.
DEFAULT_STRENGTH = 1.0
MAX_ITERATIONS = 200


class Rows(NamedTuple):
    """Rows of a split: inputs [rows, inputs] in float64, targets as in a batch, and weights."""

    x: Array
    y: Array
    weight: Array | None


def fit_linear(folder: Path, schema: Schema) -> tuple[tuple[float, ...], ...]:
    """Return a linear model from the prepared arrays in ``folder``, as plain values.

    Logistic regression for the classes or each label, ridge regression for each number in standard
    deviations of the target. The validation split chooses the strength of the regularization.

    The inputs are the numbers, limited to their range in training and scaled, and an indicator of
    each code of the categories and of the flags of missing numbers. The values are the mean and the
    standard deviation of each number, the weights [inputs × outputs], flattened, and the biases
    [outputs]. The mean stands for missing numbers. Large tables get none, and so do tables in which
    a class or label has no training rows of its own.
    """
    rows, inputs = schema.rows, len(schema.numeric) + sum(_code_counts(schema))
    if not 0 < rows <= MAX_ROWS or rows * inputs > MAX_VALUES or not _has_all_classes(schema):
        return ()
    arrays = [_read(folder, split, schema) for split in ("train", "val")]
    limited = _limit(arrays[0][0], schema)
    mean, std = np.nanmean(limited, axis=0), np.nanstd(limited, axis=0)
    std[std == 0] = 1.0
    train, val = (
        Rows(
            _encode(_limit(numbers, schema), codes, mean, std, schema), _targets(y, schema), weight
        )
        for numbers, codes, y, weight in arrays
    )
    columns = [(train.y, val.y)] if train.y.ndim == 1 else zip(train.y.T, val.y.T, strict=True)
    fitted = [_fit(train._replace(y=a), val._replace(y=b), schema) for a, b in columns]
    weight = np.concatenate([weight for weight, _ in fitted], axis=1)
    bias = np.concatenate([bias for _, bias in fitted])
    return tuple(tuple(part.ravel().tolist()) for part in (mean, std, weight, bias))


def _read(folder: Path, split: str, schema: Schema) -> tuple[Array, Array, Array, Array | None]:
    names = ("numeric", "categorical", "y", *(["weight"] if schema.weight_mean else []))
    numbers, codes, y, *weight = (np.load(folder / f"{split}_{name}.npy") for name in names)
    return np.asarray(numbers, np.float64), codes, y, weight[0] if weight else None


def _has_all_classes(schema: Schema) -> bool:
    if schema.task == "multilabel":
        return all(0 < count < schema.rows for count in schema.class_counts)
    return all(schema.class_counts)


def _code_counts(schema: Schema) -> list[int]:
    """Return the number of codes of each category, and 2 for each number with missing values.

    It is the order of ``TableInputs`` in nets/layers.py.
    """
    flags = [2 for column in schema.numeric if column.missing]
    return [2 + len(column.categories) for column in schema.categorical] + flags


def _limit(numbers: Array, schema: Schema) -> Array:
    """Return numbers [rows, columns] limited to their range in training."""
    edges = [column.edges for column in schema.numeric]
    low, high = (np.array([edge[i] for edge in edges], np.float64) for i in (0, -1))
    return np.clip(numbers, low, high)


def _encode(numbers: Array, codes: Array, mean: Array, std: Array, schema: Schema) -> Array:
    """Return scaled numbers and indicators of all codes [rows, inputs]."""
    scaled = (np.where(np.isnan(numbers), mean, numbers) - mean) / std
    flagged = [column.missing for column in schema.numeric]
    all_codes = np.hstack([codes, np.isnan(numbers[:, flagged])]).astype(np.int64)
    counts = _code_counts(schema)
    indicators = [np.eye(count)[column] for count, column in zip(counts, all_codes.T, strict=True)]
    return np.hstack([scaled, *indicators])


def _targets(y: Array, schema: Schema) -> Array:
    if schema.task != "regression":
        return y
    scaled: Array = (y - np.array(schema.target_mean)) / np.array(schema.target_std)
    return scaled


def _fit(train: Rows, val: Rows, schema: Schema) -> tuple[Array, Array]:
    """Return the weights [inputs, outputs] and biases [outputs] for one target."""
    best_loss, best = np.inf, None
    for strength in STRENGTHS if len(val.y) else (DEFAULT_STRENGTH,):
        estimator, loss = _estimate(train, strength, schema)
        value = loss(val) if len(val.y) else 0.0
        # The loss has one minimum, and weaker regularization takes longest.
        if best is not None and value >= best_loss:
            break
        best_loss, best = value, estimator
    assert best is not None
    return np.atleast_2d(best.coef_).T, np.atleast_1d(best.intercept_)


def _estimate(train: Rows, strength: float, schema: Schema) -> tuple[Any, Callable[[Rows], float]]:
    """Return a fitted estimator of scikit-learn, and the function from rows to its mean loss."""
    # scikit-learn takes long to import, and prepared tables do not need it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import log_loss, mean_squared_error

    if schema.task == "regression":
        ridge = Ridge(alpha=1 / strength).fit(*train)
        return ridge, lambda rows: float(
            mean_squared_error(rows.y, ridge.predict(rows.x), sample_weight=rows.weight)
        )
    with warnings.catch_warnings():
        # Weights that still grow after so many iterations no longer change the loss.
        warnings.simplefilter("ignore", ConvergenceWarning)
        logistic = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(*train)
    labels = np.arange(len(logistic.classes_))
    return logistic, lambda rows: float(
        log_loss(rows.y, logistic.predict_proba(rows.x), labels=labels, sample_weight=rows.weight)
    )
