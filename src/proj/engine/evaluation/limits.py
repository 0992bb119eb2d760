"""A metric with its 95 % interval, and closed-form limits of proportions and areas."""

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Array

NORMAL = NormalDist()
Z = NORMAL.inv_cdf(0.975)
# Fewer rows or groups are too few to resample.
MIN_UNITS = 5


class Interval(NamedTuple):
    """A metric with its 95 % interval.

    ``value``, ``low`` and ``high`` are None where they are undefined, and ``why`` is the reason.
    ``support`` is the number of rows that the metric is computed from.
    """

    value: float | None
    low: float | None
    high: float | None
    support: int
    method: str = ""
    why: str = ""

    def entry(self) -> dict[str, Any]:
        """Return the entry of ``metrics.json``."""
        return {name: value for name, value in self._asdict().items() if value != ""}


def support(predictions: PredictionSet, name: str) -> int:
    """Return the number of rows of a metric's class or label, or of all rows.

    For binary tasks, precision, recall and F1 are metrics of the positive class.
    """
    kind, _, class_name = name.partition("/")
    of_all_rows = kind in ("accuracy", "loss") or (not class_name and predictions.task != "binary")
    if predictions.task == "regression" or of_all_rows:
        return len(predictions)
    column = predictions.names.index(class_name) if class_name else 0
    return int(predictions.hits[:, column].sum())


def too_few(kind: str, count: int) -> str:
    """Return the reason why a metric of few rows or groups has no interval."""
    return f"too few {kind} ({count}) to estimate its variance"


def unit_name(predictions: PredictionSet) -> str:
    """Return what varies independently: ``rows`` or ``groups``."""
    return "rows" if predictions.group is None else "groups"


def unit_count(predictions: PredictionSet) -> int:
    """Return the number of rows or groups."""
    group = predictions.group
    return len(predictions) if group is None else int(group.max()) + 1


def effective_rows(chosen: Array, weight: Array | None) -> float:
    """Return the number of the ``chosen`` rows [rows]; with weights, their effective number.

    That is the squared sum of their weights over the sum of squares: so many rows of equal weight
    determine a mean as well (Kish 1965, Survey Sampling, section 11.7).
    """
    if weight is None:
        return int(chosen.sum())
    return float(weight[chosen].sum() ** 2 / max((weight[chosen] ** 2).sum(), np.finfo(float).tiny))


def student_quantile(freedom: float) -> float:
    """Return the 0.975 quantile of Student's t distribution.

    Abramowitz and Stegun (1964), 26.7.5; ``freedom`` below 1 counts as 1.
    """
    v = max(1.0, freedom)
    return (
        Z
        + (Z**3 + Z) / (4 * v)
        + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * v**2)
        + (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * v**3)
    )


def wilson(share: Array | float, count: Array | float) -> tuple[Array, Array]:
    """Return the limits of proportions of ``count`` cases; NaN where there is no case.

    Wilson (1927), JASA 22:209.
    """
    share, count = np.asarray(share, float), np.asarray(count, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
        half_width = (
            Z / (1 + Z**2 / count) * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
        )
    low = np.where((share == 0) & (count > 0), 0.0, middle - half_width)
    high = np.where((share == 1) & (count > 0), 1.0, middle + half_width)
    return low, high


def newcombe(area: float, m: float, k: float) -> tuple[float, float]:
    """Return the limits of an area of 0 or 1 under the ROC curve.

    ``m`` and ``k`` are the numbers of positive and negative rows. Method 5 of Newcombe (2006,
    Statistics in Medicine 25:559): the variance is that of an area equal to the limit.
    """
    low, high = 0.0, 1.0
    # Sixty bisections reach machine precision.
    for _ in range(60):
        theta = (low + high) / 2
        low, high = (theta, high) if (1 - theta) ** 2 > Z**2 * hanley(theta, m, k) else (low, theta)
    return (low, 1.0) if area == 1 else (0.0, 1 - low)


def hanley(area: float, m: float, k: float) -> float:
    """Return the variance of an area under the ROC curve for exponentially distributed scores.

    Hanley and McNeil (1982), Radiology 143:29, as modified by Newcombe (2006): the mean of the
    numbers of positive and negative rows, ``m`` and ``k``, replaces both.
    """
    other_rows = (m + k) / 2 - 1
    return (
        area
        * (1 - area)
        * (1 + other_rows * ((1 - area) / (2 - area) + area / (1 + area)))
        / (m * k)
    )
