"""The headline metric of rows that have something in common by one column: where the model is worst."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl

from proj.engine.evaluation.artifacts import OTHER
from proj.engine.evaluation.counts import names_of, scores, sums_of
from proj.engine.evaluation.intervals import Interval, intervals
from proj.engine.evaluation.prediction_set import Array, PredictionSet
from proj.metrics import DEFAULT_MONITOR, metric_info

LEVELS = 20  # categories that are told apart, the most frequent ones
BINS = 4
FEWEST = 10  # rows
WORST = 15
MISSING = "(missing)"


class Slice(NamedTuple):
    """Rows that are alike in one column."""

    column: str
    value: str
    rows: int
    interval: Interval


class Slices(NamedTuple):
    """The worst ones, and what became of the others."""

    worst: list[Slice]
    told: int  # slices with a metric
    small: int  # of fewer than ``FEWEST`` rows
    undefined: int  # without any positive row or prediction, so that F1 is 0/0
    alike: int  # columns in which all rows are alike


def slices(
    outcomes: PredictionSet, columns: pl.DataFrame, seed: int = 0, most: int = WORST
) -> Slices:
    """Slices by each of the ``columns``, which are of the same rows; outcomes must be numbers.

    The worst are those with the worst value, not the surest: of equal ones the larger comes first.
    """
    name = DEFAULT_MONITOR[outcomes.task].split("/")[1]
    place, known = names_of(outcomes).index(name), metric_info(name)
    sign = -1 if known is not None and known.mode == "min" else 1
    found: list[tuple[float, int, str, str, Array]] = []
    small = undefined = alike = 0
    for column in columns:
        code, labels = binned(column)
        sums = sums_of(outcomes, code, len(labels))
        rows, values = sums[:, 0].astype(int), scores(sums, outcomes.task)[:, place]
        if (rows > 0).sum() < 2:
            alike += 1
            continue
        for i in np.flatnonzero(rows):
            if rows[i] < FEWEST:
                small += 1
            elif outcomes.task != "regression" and not sums[i, 2:].any():
                undefined += 1
            else:
                found.append(
                    (sign * values[i], -rows[i], column.name, labels[i], np.flatnonzero(code == i))
                )
    worst = [
        Slice(column, label, len(rows), intervals(outcomes[rows], seed, areas=False)[name])
        for *_, column, label, rows in sorted(found, key=lambda one: one[:4])[:most]
    ]
    return Slices(worst, len(found), small, undefined, alike)


def binned(values: pl.Series) -> tuple[Array, list[str]]:
    """The number of each row's slice [rows], and what to call each slice: categories, or quarters of numbers and moments."""
    if values.dtype == pl.String:
        counts = values.drop_nulls().value_counts().rows()
        kept = [
            name for name, _ in sorted(counts, key=lambda one: (-one[1], one[0])) if name != OTHER
        ][:LEVELS]
        numbered = values.replace_strict(
            [*kept, None],
            [*range(len(kept)), len(kept) + 1],
            default=len(kept),
            return_dtype=pl.Int64,
        )
        return numbered.to_numpy(), [*kept, OTHER, MISSING]
    numbers = values.to_physical().cast(pl.Float64).to_numpy()
    given = numbers[~np.isnan(numbers)]
    levels = np.unique(given)
    of = (
        (lambda ms: datetime(1970, 1, 1) + timedelta(milliseconds=ms))
        if values.dtype.is_temporal()
        else float
    )
    if len(levels) <= BINS:
        cuts, names = levels[:-1], [shown(of(level)) for level in levels]
    else:
        quarters = np.quantile(given, np.arange(1, BINS) / BINS, method="inverted_cdf")
        cuts = np.unique(np.minimum(quarters, levels[-2]))  # something is above the last one
        limits = [shown(of(cut)) for cut in cuts]
        between = [f"above {low} up to {high}" for low, high in pairwise(limits)]
        names = [f"up to {limits[0]}", *between, f"above {limits[-1]}"]
    code = np.where(np.isnan(numbers), len(names), np.searchsorted(cuts, numbers))
    return code, [*names, MISSING]


def shown(value: float | str | datetime | None) -> str:
    """A value of a column in a few characters; nothing where it is missing."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value).removesuffix(" 00:00:00")
