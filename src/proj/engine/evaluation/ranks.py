"""Areas under the ROC and the precision-recall curve, each with what single rows contribute to its variance."""

import numpy as np

from proj.engine.evaluation.prediction_set import Array


def auroc(score: Array, hit: Array) -> tuple[float, Array]:
    """Area under the ROC curve of ``score`` [rows] for ``hit`` [rows] of 0 and 1, and each row's influence [rows].

    The sum of the squared influences by the squared number of rows is the variance of DeLong, DeLong and Clarke-Pearson
    (1988, Biometrics 44:837), its components computed from midranks as by Sun and Xu (2014, IEEE Signal Processing Letters
    21:1389). NaN without both kinds of row.
    """
    positive = hit == 1
    m, k = int(positive.sum()), int((~positive).sum())
    influence = np.full(len(score), np.nan)
    if not m or not k:
        return np.nan, influence
    ranks = midranks(score)
    share = np.empty(len(score))  # of the other kind that the row is ranked rightly against
    share[positive] = (ranks[positive] - midranks(score[positive])) / k
    share[~positive] = 1 - (ranks[~positive] - midranks(score[~positive])) / m
    area = float(share[positive].mean())
    with np.errstate(divide="ignore", invalid="ignore"):  # of a single row the spread is not known
        each = np.where(positive, 1 / np.sqrt(m * (m - 1.0)), 1 / np.sqrt(k * (k - 1.0)))
        influence = (share - area) * each * len(score)
    return area, influence


def average_precision(score: Array, hit: Array) -> tuple[float, Array]:
    """Average precision, and each row's influence on it [rows]; NaN without a positive row or a negative one.

    The value is the sum over thresholds of precision times the recall gained, as in scikit-learn. The influence is the
    derivative of that by a row's weight (the infinitesimal jackknife of Efron 1982, chapter 6): a positive row counts by
    the precision at its threshold, and every row moves the precision at its own threshold and at all below.
    """
    rows, positives = len(score), int(hit.sum())
    if not 0 < positives < rows:
        return np.nan, np.full(rows, np.nan)
    levels, place = np.unique(-score, return_inverse=True)  # from the highest score down
    gained = np.bincount(place, hit, len(levels))
    true = gained.cumsum()
    named = np.bincount(place, minlength=len(levels)).cumsum()
    precision = true / named
    value = float((gained * precision).sum() / positives)
    below = {
        kind: np.cumsum((gained * of / named**2)[::-1])[::-1]
        for kind, of in (("hit", named - true), ("miss", true))
    }
    moved = np.where(
        hit == 1, below["hit"][place], -below["miss"][place]
    )  # the precision at its threshold and all below
    own = hit * (precision[place] - value) + moved
    return value, np.asarray(own * rows / positives)


def midranks(values: Array) -> Array:
    """Ranks from 1 up, equal values with the mean of theirs: [rows]."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[place])
