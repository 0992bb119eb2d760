"""Differences between two runs on the same rows, with intervals and p-values."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from proj.engine.evaluation.areas import AREAS, mean_area
from proj.engine.evaluation.counts import metric_names, scores, sums_of
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.resampling import (
    Statistic,
    Units,
    bootstrap,
    resampling_units,
    units_of,
)

SIGNIFICANCE_LEVEL = 0.05


class Difference(NamedTuple):
    """A metric of one run minus that of the first one, on the same rows.

    ``p`` is the probability of a difference at least as large for runs that are equally good.
    """

    value: float
    low: float
    high: float
    p: float
    test: str


def differences(first: PredictionSet, other: PredictionSet, seed: int = 0) -> dict[str, Difference]:
    """Return every metric of ``other`` minus that of ``first``.

    A difference that is undefined, or whose variance is unknown, is left out. Metrics of counts
    and of errors are compared by a paired bootstrap, which draws the same rows or groups for both;
    accuracy of rows without groups and weights by McNemar's test; areas by the paired test of
    DeLong et al. (1988) and its equivalent for average precision.
    """
    rng, names = np.random.default_rng(seed), metric_names(first)
    unit, count = resampling_units(len(first), first.group, rng)
    sums = np.column_stack([sums_of(first, unit, count), sums_of(other, unit, count)])
    width = sums.shape[1] // 2
    compared = paired(
        units_of(sums),
        lambda s: scores(s[..., width:], first) - scores(s[..., :width], first),
        rng,
    )
    by_name = {
        name: difference
        for name, difference in zip(names, compared, strict=True)
        if not math.isnan(difference.low)
    }
    if first.task == "regression":
        return by_name
    if first.group is None and first.weight is None:
        p = _mcnemar_of(first, other)
        by_name["accuracy"] = by_name["accuracy"]._replace(p=p, test="McNemar, mid-p")
    areas = {kind: area_difference(first, other, kind) for kind in AREAS}
    return by_name | {kind: area for kind, area in areas.items() if area is not None}


def metric_values(predictions: PredictionSet) -> dict[str, float]:
    """Return the metrics that ``differences`` compares; NaN where one is undefined."""
    sums = sums_of(predictions, np.zeros(len(predictions), np.int64), 1)[0]
    names = metric_names(predictions)
    values = dict(zip(names, scores(sums, predictions).tolist(), strict=True))
    if predictions.task != "regression":
        for kind in AREAS:
            area = mean_area(predictions, kind)
            values[kind] = float(np.nan) if area is None else area.value
    return values


def paired(units: Units, statistic: Statistic, rng: np.random.Generator) -> list[Difference]:
    """Return differences by a symmetric studentized bootstrap.

    Hall (1988), Annals of Statistics 16:927, as in ``resampling.py``. The interval and the p-value
    agree: the interval contains 0 exactly if the p-value is above 0.05.
    """
    value, error, values, errors = bootstrap(units, statistic, rng)
    # A resample without any row in which the two runs differ has no standard error, so it carries
    # no information on the distribution of t.
    informative = np.asarray(errors > 1e-6 * error)
    t = np.full(values.shape, np.nan)
    np.divide(np.abs(values - value), errors, out=t, where=informative)
    # Without an informative resample, the runs differ in no row, or equally in each.
    t[0, ~informative.any(axis=0)] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        exceeding = (t >= np.abs(value) / error).sum(axis=0)
        p = (1 + exceeding) / (1 + informative.sum(axis=0))
    half_width = np.nanquantile(t, 1 - SIGNIFICANCE_LEVEL, axis=0) * error
    return [
        _constant(v) if e <= 1e-12 else Difference(v, v - h, v + h, chance, "paired bootstrap")
        for v, h, chance, e in zip(
            *(column.tolist() for column in (value, half_width, p, error)), strict=True
        )
    ]


def _constant(value: float) -> Difference:
    """Return the difference between runs that differ equally on each row, or in no row."""
    p = 1.0 if abs(value) < 1e-12 else 0.0
    return Difference(value, value, value, p, "the same on each row")


def _mcnemar_of(first: PredictionSet, other: PredictionSet) -> float:
    first_correct, other_correct = (
        np.equal(run.predicted, run.target).reshape(len(run), -1).all(axis=1)
        for run in (first, other)
    )
    only_first = int((first_correct & ~other_correct).sum())
    only_other = int((other_correct & ~first_correct).sum())
    return mcnemar(only_first, only_other)


def mcnemar(only_first: int, only_other: int) -> float:
    """Return the two-sided mid-p value of McNemar's test.

    The arguments are the numbers of rows that only the first, and only the other, run predicts
    correctly. Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91,
    recommend the mid-p value over the exact one.
    """
    count, fewer = only_first + only_other, min(only_first, only_other)
    if not count:
        return 1.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(fewer + 1)
    ]
    probabilities = np.exp(np.array(logs) - count * math.log(2))
    return float(min(1.0, 2 * probabilities.sum() - probabilities[-1]))


def area_difference(first: PredictionSet, other: PredictionSet, kind: str) -> Difference | None:
    """Return the difference of areas, or of their means over the classes that have one.

    The quantile is Student's, as in ``areas.py``. None if the variance is unknown.
    """
    areas = [mean_area(run, kind) for run in (first, other)]
    if areas[0] is None or areas[1] is None:
        return None
    moved = areas[1].influence - areas[0].influence
    if np.isnan(moved).any():
        return None
    hits = first.hits[:, [0 < share < 1 for share in first.hits.mean(axis=0)]]
    freedom = min(hits.sum(), (1 - hits).sum()) - 1
    if first.group is not None:
        moved = np.bincount(first.group, moved)
        moved = moved * np.sqrt(len(moved) / max(1, len(moved) - 1))
        freedom = min(freedom, len(moved) - 1)
    value, error = areas[1].value - areas[0].value, float(np.sqrt((moved**2).sum()) / len(first))
    if error < 1e-12:
        return _constant(value)
    # The variance is not known from a single row of one kind.
    if freedom < 1:
        return None
    # Quantile and distribution function of Student's t, as in `scipy.stats`, which imports slowly.
    half_width, p = (
        float(stdtrit(freedom, 1 - SIGNIFICANCE_LEVEL / 2)) * error,
        2 * float(stdtr(freedom, -abs(value) / error)),
    )
    test = "DeLong" if kind == "auroc" else "jackknife"
    return Difference(value, value - half_width, value + half_width, p, test)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values adjusted for several comparisons: Holm (1979).

    With them the probability that any of several equally good runs differs significantly is at
    most 5 %.
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted
