"""The numbers behind the figures: arrays to arrays."""

from typing import NamedTuple

import numpy as np

from proj.engine.evaluation.counts import ratio
from proj.engine.evaluation.prediction_set import Array, PredictionSet

POINTS = 400  # of a curve that is drawn: more are not seen
MISTAKES = 20  # that are shown


class Thresholds(NamedTuple):
    """What becomes of rows when those with a score from ``at`` up are taken for positive, from the highest down."""

    at: Array  # [thresholds]
    true: Array  # rows taken rightly
    false: Array  # and wrongly
    positives: int
    negatives: int

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
    """How often what was predicted with about some probability came true."""

    predicted: Array  # [bins], mean probability; NaN in an empty bin
    happened: Array  # [bins], share of rows
    rows: Array  # [bins]
    error: float  # expected calibration error


def confusion(outcomes: PredictionSet) -> Array:
    """Rows of each class [targets, predictions]."""
    classes = len(outcomes.names)
    cells = np.bincount(outcomes.target * classes + outcomes.predicted, minlength=classes**2)
    return np.asarray(cells.reshape(classes, classes))


def thresholds(score: Array, hit: Array) -> Thresholds:
    """All thresholds that make a difference; the first one takes nothing."""
    levels, place = np.unique(-score, return_inverse=True)
    named = np.bincount(place, minlength=len(levels)).cumsum()
    true = np.bincount(place, hit, len(levels)).cumsum()
    at = np.append(np.inf, -levels)
    positives = int(hit.sum())
    return Thresholds(
        at, np.append(0, true), np.append(0, named - true), positives, len(hit) - positives
    )


def thinned(*curves: Array) -> list[Array]:
    """At most ``POINTS`` points of curves, evenly along them, the ends included."""
    chosen = np.unique(np.linspace(0, len(curves[0]) - 1, POINTS).round().astype(int))
    return [curve[chosen] for curve in curves]


def reliability(score: Array, hit: Array, bins: int = 10) -> Reliability:
    """Probabilities in bins of equal width, as Guo et al. (2017, arXiv:1706.04599, equations 1 to 3)."""
    where = np.minimum((score * bins).astype(int), bins - 1)
    rows = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted, happened = (np.bincount(where, values, bins) / rows for values in (score, hit))
    gaps = np.abs(predicted - happened)[rows > 0]
    return Reliability(predicted, happened, rows, float((gaps * rows[rows > 0]).sum() / len(score)))


def log_losses(outcomes: PredictionSet) -> Array:
    """Minus the logarithm of the probability that each row's target was given [rows]; of labels, their mean."""
    with np.errstate(divide="ignore"):
        if outcomes.task == "multiclass":
            return np.asarray(-np.log(outcomes.output[np.arange(len(outcomes)), outcomes.target]))
        return np.asarray(
            -np.log(np.where(outcomes.hits == 1, outcomes.scores, 1 - outcomes.scores)).mean(axis=1)
        )


def confidence(outcomes: PredictionSet) -> tuple[Array, Array]:
    """What `reliability` is asked for: the probability of each row's prediction, and whether it was right.

    Of two classes and of labels it is the probability of the positive one, or of the label, itself.
    """
    if outcomes.task == "multiclass":
        return outcomes.output.max(axis=1), (outcomes.predicted == outcomes.target).astype(np.int64)
    return outcomes.scores.ravel(), outcomes.hits.ravel()


class Deciles(NamedTuple):
    """Errors by tenths of the rows, in the order of their targets."""

    low: Array  # [tenths], smallest target
    high: Array  # and largest
    absolute: Array  # mean absolute error
    mean: Array  # mean error, above 0 where too much is predicted


def deciles(target: Array, predicted: Array, parts: int = 10) -> Deciles:
    order = np.argsort(target, kind="stable")
    groups = [rows for rows in np.array_split(order, parts) if len(rows)]
    errors = [predicted[rows] - target[rows] for rows in groups]
    return Deciles(
        np.array([target[rows[0]] for rows in groups]),
        np.array([target[rows[-1]] for rows in groups]),
        np.array([np.abs(error).mean() for error in errors]),
        np.array([error.mean() for error in errors]),
    )


def mistakes(outcomes: PredictionSet, most: int = MISTAKES) -> Array:
    """The places of wrong rows, the most confident first; of numbers, the largest errors first."""
    if outcomes.task == "regression":
        size = np.abs(outcomes.output - outcomes.target) / np.maximum(
            outcomes.target.std(axis=0), 1e-12
        )
        return np.argsort(-size.max(axis=1), kind="stable")[:most]
    if outcomes.task == "multiclass":
        wrong, sure = outcomes.predicted != outcomes.target, outcomes.output.max(axis=1)
    else:
        off = np.abs(outcomes.scores - outcomes.hits) * (
            outcomes.predicted.reshape(len(outcomes), -1) != outcomes.hits
        )
        wrong, sure = off.any(axis=1), off.max(axis=1)
    places = np.flatnonzero(wrong)
    return np.asarray(places[np.argsort(-sure[places], kind="stable")][:most])
