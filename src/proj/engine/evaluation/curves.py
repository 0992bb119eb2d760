"""The numbers behind the figures: functions from arrays to arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from proj.engine.evaluation.counts import ratio
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Array

# More points of a curve would not be visible.
MAX_POINTS = 400
SHOWN_MISTAKES = 20
# A learning curve is cut off above this many times the height of its lower nine tenths.
MAX_SPIKE = 4


class Thresholds(NamedTuple):
    """Rows with a score of at least ``at``, by threshold, from the highest down.

    Rows are counted, or the sums of their weights.
    """

    at: Array  # [thresholds]
    true: Array  # positive rows [thresholds]
    false: Array  # negative rows [thresholds]
    positives: float
    negatives: float

    @property
    def recall(self) -> Array:
        return ratio(self.true, np.full(len(self.at), self.positives))

    @property
    def false_rate(self) -> Array:
        return ratio(self.false, np.full(len(self.at), self.negatives))

    @property
    def precision(self) -> Array:
        return ratio(self.true, self.true + self.false)

    @property
    def f1(self) -> Array:
        return ratio(2 * self.true, self.true + self.false + self.positives)


class Reliability(NamedTuple):
    """Predicted probabilities and observed frequencies by bin."""

    predicted: Array  # mean probability [bins]; NaN in an empty bin
    observed: Array  # share of rows [bins]; NaN in an empty bin
    rows: Array  # [bins]
    error: float  # expected calibration error


def confusion(predictions: PredictionSet) -> Array:
    """Return the number of rows by target and predicted class: [targets, predictions].

    With weights, return the sums of the rows' weights.
    """
    classes = len(predictions.names)
    cell = predictions.target * classes + predictions.predicted
    counts = np.bincount(cell, predictions.weight, classes**2)
    return np.asarray(counts.reshape(classes, classes))


def thresholds(score: Array, hit: Array, weight: Array | None = None) -> Thresholds:
    """Return all thresholds that change a decision. The first one accepts no row."""
    levels, level_of_row = np.unique(-score, return_inverse=True)
    times = np.ones(len(hit), np.int64) if weight is None else weight
    true, false = (
        np.bincount(level_of_row, kind * times, len(levels)).cumsum() for kind in (hit, 1 - hit)
    )
    return Thresholds(
        at=np.append(np.inf, -levels),
        true=np.append(0, true),
        false=np.append(0, false),
        positives=(hit * times).sum(),
        negatives=((1 - hit) * times).sum(),
    )


def thinned(*curves: Array) -> list[Array]:
    """Return at most ``MAX_POINTS`` points of curves, evenly along them, with both ends."""
    last = len(curves[0]) - 1
    chosen = np.unique(np.linspace(0, last, MAX_POINTS).round().astype(int))
    return [curve[chosen] for curve in curves]


def reliability(
    score: Array, hit: Array, weight: Array | None = None, bins: int = 10
) -> Reliability:
    """Return the reliability of probabilities ``score`` in bins of equal width.

    Guo et al. (2017, arXiv:1706.04599, equations 1 to 3).
    """
    bin_of = np.minimum((score * bins).astype(int), bins - 1)
    rows, times = np.bincount(bin_of, weight, bins), 1 if weight is None else weight
    with np.errstate(invalid="ignore"):
        predicted, observed = (
            np.bincount(bin_of, values * times, bins) / rows for values in (score, hit)
        )
    gaps = np.abs(predicted - observed)[rows > 0]
    error = float((gaps * rows[rows > 0]).sum() / rows.sum())
    return Reliability(predicted, observed, rows, error)


def log_losses(predictions: PredictionSet) -> Array:
    """Return the negative log probability of each row's target [rows]; of labels, their mean."""
    with np.errstate(divide="ignore"):
        if predictions.task == "multiclass":
            rows = np.arange(len(predictions))
            return np.asarray(-np.log(predictions.output[rows, predictions.target]))
        scores = predictions.scores
        probability = np.where(predictions.hits == 1, scores, 1 - scores)
        return np.asarray(-np.log(probability).mean(axis=1))


def confidence(predictions: PredictionSet) -> tuple[Array, Array, Array | None]:
    """Return the arguments of `reliability`: probabilities, whether each event occurred, weights.

    For several classes, these are the probability of the prediction, and whether it is correct
    [rows]. For other tasks, they are the probability of the positive class or of each label, and
    whether the row has it [rows or rows × labels].
    """
    if predictions.task == "multiclass":
        correct = (predictions.predicted == predictions.target).astype(np.int64)
        return predictions.output.max(axis=1), correct, predictions.weight
    weight = predictions.weight
    repeated = None if weight is None else weight.repeat(predictions.hits.shape[1])
    return predictions.scores.ravel(), predictions.hits.ravel(), repeated


class Deciles(NamedTuple):
    """Errors by tenths of the rows, in the order of their targets."""

    low: Array  # smallest target [tenths]
    high: Array  # largest target [tenths]
    absolute: Array  # mean absolute error [tenths]
    mean: Array  # mean error [tenths], above 0 where predictions are too high


def deciles(
    target: Array, predicted: Array, weight: Array | None = None, count: int = 10
) -> Deciles:
    """Return the errors by tenths of the targets, or by single rows if there are fewer."""
    order = np.argsort(target, kind="stable")
    groups = [rows for rows in np.array_split(order, count) if len(rows)]
    errors = [predicted[rows] - target[rows] for rows in groups]
    weights = [None if weight is None else weight[rows] for rows in groups]
    pairs = list(zip(errors, weights, strict=True))
    return Deciles(
        low=np.array([target[rows[0]] for rows in groups]),
        high=np.array([target[rows[-1]] for rows in groups]),
        absolute=np.array([np.average(np.abs(error), weights=each) for error, each in pairs]),
        mean=np.array([np.average(error, weights=each) for error, each in pairs]),
    )


def mistakes(predictions: PredictionSet, limit: int = SHOWN_MISTAKES) -> Array:
    """Return the indices of at most ``limit`` wrong rows, the most confident first.

    For regression, return those of the rows with the largest errors, the largest first.
    """
    if predictions.task == "regression":
        scale = np.maximum(predictions.target.std(axis=0), 1e-12)
        size = np.abs(predictions.output - predictions.target) / scale
        return np.argsort(-size.max(axis=1), kind="stable")[:limit]
    if predictions.task == "multiclass":
        wrong, confidences = predictions.predicted != predictions.target, predictions.output.max(1)
    else:
        is_wrong = predictions.predicted.reshape(len(predictions), -1) != predictions.hits
        gap = np.abs(predictions.scores - predictions.hits) * is_wrong
        wrong, confidences = gap.any(axis=1), gap.max(axis=1)
    rows = np.flatnonzero(wrong)
    return np.asarray(rows[np.argsort(-confidences[rows], kind="stable")][:limit])


def spike_limit(curves: Sequence[Array]) -> float | None:
    """Return the value above which points of learning curves are spikes; None without spikes.

    A few spikes would flatten the rest of the curves. They are points above the smallest value
    plus ``MAX_SPIKE`` times the distance from it to the quantile of 90 %.
    """
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = values.min(), float(np.quantile(values, 0.9, method="lower"))
    limit = float(low + MAX_SPIKE * (high - low))
    return limit if high > low and values.max() > limit else None
