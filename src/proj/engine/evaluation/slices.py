"""Slices of a split: the headline metric of rows that share a value of one column."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl

from proj.engine.evaluation.artifacts import OTHER
from proj.engine.evaluation.counts import (
    headline_metric,
    headline_sign,
    metric_names,
    scores,
    sums_of,
)
from proj.engine.evaluation.intervals import intervals
from proj.engine.evaluation.limits import Interval
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Array

# The most frequent categories have a slice each.
MAX_CATEGORIES = 20
# Numbers and dates have a slice for each quarter.
BINS = 4
MIN_SLICE_ROWS = 10
SHOWN_SLICES = 15
MISSING = "(missing)"


class Slice(NamedTuple):
    """Rows that share a value, or a range of values, of one column."""

    column: str
    value: str
    rows: int
    interval: Interval


class Slices(NamedTuple):
    """The worst slices, and how many others there are.

    Attributes:
        worst: the slices with the worst metric.
        scored: number of slices with a metric.
        small: number of slices with fewer than ``MIN_SLICE_ROWS`` rows.
        undefined: number of slices without a positive row or prediction, whose F1 is 0/0.
        constant: number of columns in which all rows have the same value.
    """

    worst: list[Slice]
    scored: int
    small: int
    undefined: int
    constant: int


def slices(
    predictions: PredictionSet, columns: pl.DataFrame, seed: int = 0, limit: int = SHOWN_SLICES
) -> Slices:
    """Return the ``limit`` worst slices by the ``columns`` of the same rows.

    All predictions must be finite. Slices are ordered by the metric, whatever its interval. Of two
    with equal metrics, the larger one comes first.
    """
    name, sign = headline_metric(predictions.task), headline_sign(predictions.task)
    index = metric_names(predictions).index(name)
    candidates: list[tuple[float, int, str, str, Array]] = []
    small = undefined = constant = 0
    for column in columns:
        # Methods of series would read the name of the column as a pattern.
        code, labels = binned(column.alias(""))
        sums = sums_of(predictions, code, len(labels))
        rows, values = (
            np.bincount(code, minlength=len(labels)),
            scores(sums, predictions)[:, index],
        )
        if (rows > 0).sum() < 2:
            constant += 1
            continue
        for i in np.flatnonzero(rows):
            if rows[i] < MIN_SLICE_ROWS:
                small += 1
            elif predictions.task != "regression" and not sums[i, 2:].any():
                undefined += 1
            else:
                members = np.flatnonzero(code == i)
                candidates.append((sign * values[i], -rows[i], column.name, labels[i], members))
    worst = [
        Slice(column, label, len(rows), intervals(predictions[rows], seed, areas=False)[name])
        for *_, column, label, rows in sorted(candidates, key=lambda entry: entry[:4])[:limit]
    ]
    return Slices(worst, len(candidates), small, undefined, constant)


def binned(values: pl.Series) -> tuple[Array, list[str]]:
    """Return the number of each row's slice [rows], and the label of each slice.

    Slices are categories, or quarters of numbers and dates.
    """
    return _categories(values) if values.dtype == pl.String else _quarters(values)


def _categories(values: pl.Series) -> tuple[Array, list[str]]:
    counts = values.drop_nulls().value_counts().rows()
    by_frequency = sorted(counts, key=lambda count: (-count[1], count[0]))
    names = [name for name, _ in by_frequency if name != OTHER][:MAX_CATEGORIES]
    numbered = values.replace_strict(
        [*names, None],
        [*range(len(names)), len(names) + 1],
        default=len(names),
        return_dtype=pl.Int64,
    )
    return numbered.to_numpy(), [*names, OTHER, MISSING]


def _quarters(values: pl.Series) -> tuple[Array, list[str]]:
    is_date = values.dtype.is_temporal()

    def label(number: float) -> str:
        return format_value(
            datetime(1970, 1, 1) + timedelta(milliseconds=number) if is_date else number
        )

    numbers = values.to_physical().cast(pl.Float64).to_numpy()
    known = numbers[~np.isnan(numbers)]
    levels = np.unique(known)
    if len(levels) <= BINS:
        cuts, names = levels[:-1], [label(float(level)) for level in levels]
    else:
        quarters = np.quantile(known, np.arange(1, BINS) / BINS, method="inverted_cdf")
        # The last cut is below the largest value, so that the last slice has rows.
        cuts = np.unique(np.minimum(quarters, levels[-2]))
        limits = [label(float(cut)) for cut in cuts]
        between = [f"above {low} up to {high}" for low, high in pairwise(limits)]
        names = [f"up to {limits[0]}", *between, f"above {limits[-1]}"]
    code = np.where(np.isnan(numbers), len(names), np.searchsorted(cuts, numbers))
    return code, [*names, MISSING]


def format_value(value: float | str | datetime | None) -> str:
    """Return a short text for a value of a column, empty if it is missing."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value).removesuffix(" 00:00:00")
