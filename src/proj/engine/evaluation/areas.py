"""Areas under the ROC and the precision-recall curve, with their 95 % intervals.

Each area comes with every row's influence on it. The sum of squared influences, divided by the
squared number of rows, is the variance of the area.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from proj.engine.evaluation.limits import (
    MIN_UNITS,
    Interval,
    effective_rows,
    hanley,
    newcombe,
    student_quantile,
    support,
    too_few,
    unit_count,
    wilson,
)
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Array

# DeLong's variance is averaged with a prior variance that has the weight of this number of rows.
PRIOR_ROWS = 2


def auroc(score: Array, hit: Array, weight: Array | None = None) -> tuple[float, Array]:
    """Return the area under the ROC curve and each row's influence [rows].

    ``score`` is [rows], ``hit`` is 0 and 1, [rows]. Both results are NaN unless there are rows of
    both kinds. The variance by the influences is that of DeLong, DeLong and Clarke-Pearson (1988,
    Biometrics 44:837), with components from midranks as in Sun and Xu (2014, IEEE Signal
    Processing Letters 21:1389). With weights [rows], each row's component counts by its weight.
    """
    positive = hit == 1
    m, k = int(positive.sum()), int((~positive).sum())
    influence = np.full(len(score), np.nan)
    if not m or not k:
        return np.nan, influence
    ranks, share = midranks(score, weight), np.empty(len(score))
    (w1, w0), sums = (None, None), (m, k)
    if weight is not None:
        w1, w0 = weight[positive], weight[~positive]
        sums = w1.sum(), w0.sum()
    # For each row, the share of rows of the other kind that it is ranked correctly against.
    share[positive] = (ranks[positive] - midranks(score[positive], w1)) / sums[1]
    share[~positive] = 1 - (ranks[~positive] - midranks(score[~positive], w0)) / sums[0]
    area = float(np.average(share[positive], weights=w1))
    # The variance is not known from a single row of one kind: its influence is infinite or NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(positive, 1 / np.sqrt(m * (m - 1.0)), 1 / np.sqrt(k * (k - 1.0)))
        influence = (share - area) * part * len(score)
    if weight is not None:
        influence = influence * weight * np.where(positive, m / sums[0], k / sums[1])
    return area, influence


def average_precision(score: Array, hit: Array, weight: Array | None = None) -> tuple[float, Array]:
    """Return the average precision and each row's influence [rows].

    Both are NaN unless there are rows of both kinds. The value is the sum over thresholds of
    precision times the increase of recall, as in scikit-learn. The influence is its derivative by
    the row's weight (the infinitesimal jackknife of Efron 1982, chapter 6): a positive row counts
    by the precision at its threshold, and every row changes the precision at its own threshold
    and at all lower ones.
    """
    rows = len(score)
    if not 0 < hit.sum() < rows:
        return np.nan, np.full(rows, np.nan)
    counted = hit if weight is None else hit * weight
    positives = counted.sum()
    # The levels descend from the highest score.
    levels, level_of_row = np.unique(-score, return_inverse=True)
    gained = np.bincount(level_of_row, counted, len(levels))
    true = gained.cumsum()
    accepted = np.bincount(level_of_row, weight, len(levels)).cumsum()
    precision = true / accepted
    value = float((gained * precision).sum() / positives)
    # The change of the precision at a row's own and lower thresholds, by a positive and by a
    # negative row.
    raised, lowered = (
        np.cumsum((gained * change / accepted**2)[::-1])[::-1] for change in (accepted - true, true)
    )
    moved = np.where(hit == 1, raised[level_of_row], -lowered[level_of_row])
    influence = hit * (precision[level_of_row] - value) + moved
    times = 1 if weight is None else weight
    return value, np.asarray(influence * times * rows / positives)


class Area(NamedTuple):
    """An area, or an average of areas.

    Attributes:
        value: the area.
        influence: that of each row, [rows].
        counts: numbers of positive and negative rows of each area; of rows with weights, the
            numbers of rows of equal weight that carry as much information (Kish 1965).
    """

    value: float
    influence: Array
    counts: tuple[tuple[float, float], ...]


def midranks(values: Array, weight: Array | None = None) -> Array:
    """Return the ranks of values from 1 up: [rows]. Equal values share the mean of their ranks.

    A row with a weight takes as many ranks as its weight says.
    """
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    counts = counts if weight is None else np.bincount(level, weight)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[level])


AREAS = {"auroc": auroc, "average_precision": average_precision}


def area_names(predictions: PredictionSet) -> list[str]:
    """Return the names of the areas, in the order of ``area_intervals``."""
    per_class = predictions.task != "binary" and len(predictions.names) > 1
    names = []
    for kind in AREAS:
        names.append(kind)
        if per_class:
            names += [f"{kind}/{class_name}" for class_name in predictions.names]
    return names


def area_intervals(predictions: PredictionSet) -> Iterator[tuple[str, Interval]]:
    """Yield the name and interval of each mean area, and of the area of each class."""
    for kind in AREAS:
        by_class = class_areas(predictions, kind)
        mean = mean_area(predictions, kind, by_class)
        if mean is None:
            yield kind, _undefined_area(predictions, kind)
        else:
            yield kind, _area_interval(predictions, kind, mean)
        if predictions.task == "binary" or len(by_class) < 2:
            continue
        for class_name, area in zip(predictions.names, by_class, strict=True):
            name = f"{kind}/{class_name}"
            if np.isnan(area.value):
                yield name, _undefined_area(predictions, name)
            else:
                yield name, _area_interval(predictions, name, area)


def class_areas(predictions: PredictionSet, kind: str) -> list[Area]:
    """Return the area of each class or label, NaN where it is undefined."""
    weight = predictions.weight
    return [
        Area(
            *AREAS[kind](score, hit, weight),
            ((effective_rows(hit == 1, weight), effective_rows(hit == 0, weight)),),
        )
        for score, hit in zip(predictions.scores.T, predictions.hits.T, strict=True)
    ]


def mean_area(
    predictions: PredictionSet, kind: str, by_class: list[Area] | None = None
) -> Area | None:
    """Return the average of the areas of the classes that have one, None if none has."""
    by_class = class_areas(predictions, kind) if by_class is None else by_class
    hits, weight = predictions.hits, predictions.weight
    if predictions.average == "micro" and len(by_class) > 1:
        repeated = None if weight is None else weight.repeat(hits.shape[1])
        value, influence = AREAS[kind](predictions.scores.ravel(), hits.ravel(), repeated)
        counts = tuple(area.counts[0] for area in by_class)
        # The pairs of one row are drawn together.
        of_rows = influence.reshape(hits.shape).mean(axis=1)
        return None if np.isnan(value) else Area(value, of_rows, counts)
    known = [i for i, area in enumerate(by_class) if not np.isnan(area.value)]
    if not known:
        return None
    counts = tuple(by_class[i].counts[0] for i in known)
    values = np.array([by_class[i].value for i in known])
    influences = np.stack([by_class[i].influence for i in known], axis=1)
    if predictions.average == "macro":
        return Area(float(values.mean()), influences.mean(axis=1), counts)
    counted = hits[:, known] if weight is None else hits[:, known] * weight[:, None]
    weights = counted.sum(axis=0) / counted.sum()
    value = float(values @ weights)
    # A row changes the areas, and by its class also their weights.
    by_weight = counted @ (values - value) * len(hits) / counted.sum()
    return Area(value, influences @ weights + by_weight, counts)


def _undefined_area(predictions: PredictionSet, name: str) -> Interval:
    why = "the area is undefined because it needs rows of the class and rows of others"
    return Interval(None, None, None, support(predictions, name), "", why)


def _area_interval(predictions: PredictionSet, name: str, area: Area) -> Interval:
    """Return the limits of an area, or of a mean of areas, computed on the logit scale.

    The standard error is
    that of the influences (DeLong's for the area under the ROC curve), summed by group if rows are
    grouped. With few rows of one kind it is too small, because which rows they are is chance.
    Therefore the quantile is Student's, and DeLong's variance is averaged with that of Hanley and
    McNeil, which has the weight of ``PRIOR_ROWS`` rows. If the ranking is perfect or reversed the
    variance is 0, and the limits are those of a single area of as many rows.
    """
    (value, influence, counts), kind = area, name.split("/")[0]
    rows = support(predictions, name)
    units = unit_count(predictions)
    m, k = (sum(numbers) for numbers in zip(*counts, strict=True))
    if kind == "auroc" and value in (0.0, 1.0):
        low, high = newcombe(value, m * units / len(predictions), k * units / len(predictions))
        return Interval(value, low, high, rows, "Newcombe")
    if value == 1.0:
        low = float(wilson(value, m * units / len(predictions))[0])
        return Interval(value, low, 1.0, rows, "Wilson")
    if np.isnan(influence).any() or units < MIN_UNITS:
        fewest = int(min(units, *(count for pair in counts for count in pair)))
        unit = "rows of a class" if predictions.group is None else "groups, or rows of a class"
        return Interval(value, None, None, rows, "", too_few(unit, fewest))
    if predictions.group is not None:
        influence = np.bincount(predictions.group, influence) * np.sqrt(units / (units - 1))
    variance = (influence**2).sum() / len(predictions) ** 2
    # If all scores are equal the variance is 0 and stays 0.
    single_area = kind == "auroc" and len(counts) == 1 and predictions.group is None
    if single_area and variance > 0:
        variance += (hanley(value, m, k) - variance) * PRIOR_ROWS / (PRIOR_ROWS + min(m, k))
    half_width = student_quantile(min(m, k, units) - 1) * np.sqrt(variance) / (value * (1 - value))
    middle = np.log(value / (1 - value))
    low, high = (float(1 / (1 + np.exp(-(middle + side * half_width)))) for side in (-1, 1))
    method = "DeLong" if kind == "auroc" else "infinitesimal jackknife"
    return Interval(value, low, high, rows, f"{method}, of logits")
