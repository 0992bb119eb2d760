"""Single rows that make up most of an error, so that the error has no useful interval."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from proj.engine.console import number
from proj.engine.evaluation.limits import Interval
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Array

# A row dominates an error if it makes up this share of it. In simulations, the upper limit of an
# interval of RMSE is then five times the lower one, and fifty times at a share of a half.
MIN_SHARE = 1 / 3
# A row of few may have that share by chance: its error is also this many times the root mean
# square.
MIN_RATIO = 3.5
# More rows that dominate what is left are not single rows.
MAX_ROWS = 3


class Dominant(NamedTuple):
    """Rows that dominate an error.

    Attributes:
        indices: their positions among the rows, the largest first.
        share: their share of the error.
        is_all: whether no row dominates the error of the others.
    """

    indices: tuple[int, ...]
    share: float
    is_all: bool


def dominant_rows(contributions: Array) -> Dominant:
    """Return the rows that dominate a sum of nonnegative contributions, [rows].

    A row dominates if it makes up at least ``MIN_SHARE`` of the sum, and at least ``MIN_RATIO``
    squared times the mean. The largest row is looked at first, then the others without it.
    """
    count, total = len(contributions), float(contributions.sum())
    # Sorting all of many rows would take longer than the bootstrap.
    largest = np.argpartition(-contributions, min(MAX_ROWS, count - 1))[: MAX_ROWS + 1]
    order = largest[np.argsort(-contributions[largest], kind="stable")]
    rest = total
    chosen: list[int] = []
    for index in order.tolist():
        limit = max(MIN_SHARE, MIN_RATIO**2 / (count - len(chosen)))
        if not 0 < limit * rest <= contributions[index]:
            break
        chosen.append(index)
        rest -= float(contributions[index])
    is_all = len(chosen) <= MAX_ROWS
    chosen = chosen[:MAX_ROWS]
    share = float(contributions[chosen].sum()) / total if chosen else 0.0
    return Dominant(tuple(chosen), share, is_all)


def contributions(predictions: PredictionSet, name: str) -> tuple[Array, str]:
    """Return what each row contributes to an error, [rows], and what the sum is called.

    Args:
        predictions: rows of a regression.
        name: ``mse``, ``rmse``, ``mae`` or ``r2``, or one of a single target, as in ``mse/price``.
    """
    error = predictions.output - predictions.target
    kind, _, target = name.partition("/")
    values = np.abs(error) if kind == "mae" else error**2
    if kind == "r2":
        # A target counts by its share of unexplained variance.
        mean = np.average(predictions.target, axis=0, weights=predictions.weight)
        squares = (predictions.target - mean) ** 2
        variance = np.average(squares, axis=0, weights=predictions.weight)
        values = values / np.where(variance > 0, variance, 1.0)
    if target:
        values = values[:, [predictions.names.index(target)]]
    return values.sum(
        axis=1
    ) * predictions.weights, "absolute error" if kind == "mae" else "squared error"


def without_dominant_rows(
    interval: Interval,
    name: str,
    noun: str,
    values: Array,
    rows: Array,
    of_rows: Callable[[Array], dict[str, Interval]],
) -> Interval:
    """Return an interval, without limits where a few rows dominate the error.

    The reason then names the rows, and gives the error of the other rows with its interval.

    Args:
        interval: the interval of the error of all rows.
        name: the metric's name, and ``noun`` what ``values`` sum to.
        values: what each row contributes to the error, [rows].
        rows: the number of each row in its source, [rows].
        of_rows: function that returns the intervals, by name, of the rows at some positions.
    """
    found = dominant_rows(values)
    if interval.value is None or not found.indices:
        return interval
    chosen = list(found.indices)
    kept = np.delete(np.arange(len(values)), chosen)
    others = of_rows(kept)[name] if found.is_all else None
    why = _reason(rows[chosen].tolist(), found.share, noun, name, others)
    return interval._replace(low=None, high=None, method="", why=why)


def _reason(rows: list[int], share: float, noun: str, name: str, others: Interval | None) -> str:
    """Return a clause about the rows that dominate an error, and about the error of the others."""
    percent = f"{100 * share:.0f} %" if share < 0.995 else "more than 99 %"
    several = len(rows) > 1
    subject = f"rows {', '.join(map(str, rows))} make" if several else f"row {rows[0]} makes"
    reason = f"{subject} up {percent} of the {noun}"
    if others is None:
        return f"{reason}, and few other rows make up most of the rest"
    rest = "them" if several else "it"
    limits = ""
    if others.low is not None and others.high is not None:
        limits = f" ({number(others.low)} to {number(others.high)})"
    return f"{reason}; without {rest}, {name.partition('/')[0]} is {number(others.value)}{limits}"
