"""Fit conformal intervals and sets on the validation split, and measure them on the test split.

This is what ``validate --coverage 0.9`` does, and what ``test`` adds to its metrics then.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from proj.engine.evaluation.intervals import intervals, mean_interval
from proj.engine.evaluation.limits import Interval
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.runs.conformal import in_sets, option_probabilities
from proj.errors import UserError
from proj.schema import Array

# A limit of probabilities lies below that of a validation row by half of the distance to the next
# one, but at most this much, so that rounding moves no row across it.
MAX_STEP = 1e-5
# The metrics that `test` adds, for numbers and for classes or labels.
INTERVAL_METRICS = ("interval_coverage", "interval_width")
SET_METRICS = ("set_coverage", "set_size")


def parse_coverage(text: str) -> float:
    """Return the value of ``--coverage``; raise UserError unless it is between 0 and 1."""
    try:
        coverage = float(text)
    except ValueError:
        coverage = math.nan
    if not 0 < coverage < 1:
        raise UserError(f"--coverage: expected a share between 0 and 1, such as 0.9, got {text}.")
    return coverage


def check_metric_names(names: Any) -> None:
    """Raise UserError if a metric of the user's own has the name of one that `test` adds."""
    if taken := [name for name in (*INTERVAL_METRICS, *SET_METRICS) if name in names]:
        raise UserError(
            f"--coverage: expected no metric of your own called {taken[0]}, which `test` adds, "
            "got one in model.metrics; rename it."
        )


def quantile_rank(rows: int, coverage: float) -> int:
    """Return which of the sorted scores of ``rows`` rows is the limit, counted from 1.

    ``ceil((rows + 1) coverage)``: the score of a further row is at most that large with a
    probability of at least ``coverage``, if all rows are exchangeable (Vovk, Gammerman and Shafer
    2005; Lei et al. 2018, JASA 113:1094). The product is exact: in floats, a coverage such as 0.9
    is a bit too small or too large.

    Raises:
        UserError: if the rows are too few for this coverage.
    """
    share = Fraction(str(coverage))
    rank = math.ceil((rows + 1) * share)
    if rank > rows:
        needed = math.ceil(share / (1 - share))
        raise UserError(
            f"--coverage: expected {needed} validation rows or more for a coverage of "
            f"{coverage:g}, got {rows}; ask for less."
        )
    return rank


def fit_limits(predictions: PredictionSet, coverage: float) -> tuple[float, ...]:
    """Return the limit of each target or label, or one of all classes.

    Numbers have the half width of their intervals, a quantile of the absolute errors (Lei et al.
    2018). Classes have the smallest probability of a class in a set, such a quantile of the
    probabilities of the true class (LAC: Sadinle, Lei and Wasserman 2019, JASA 114:223). Each
    label has that of its absence and presence.

    Raises:
        UserError: if the rows are too few.
    """
    rank = quantile_rank(len(predictions), coverage)
    if predictions.task == "regression":
        errors = np.sort(np.abs(predictions.output - predictions.target), axis=0)
        return tuple(errors[rank - 1].tolist())
    # The largest scores are the smallest probabilities.
    return tuple(_lower(np.sort(p)[::-1], rank) for p in _true_probabilities(predictions).T)


def _lower(descending: Array, rank: int) -> float:
    """Return a limit just below the probability of a rank."""
    at = descending[rank - 1]
    below = descending[descending < at]
    return float(at - min((at - (below[0] if len(below) else 0.0)) / 2, MAX_STEP))


def _true_probabilities(predictions: PredictionSet) -> Array:
    """Return the probability of each row's class, or of what it has of each label: [rows, …]."""
    probability = option_probabilities(predictions.task, predictions.output)
    return np.take_along_axis(probability, _options(predictions), axis=2)[..., 0]


def _options(predictions: PredictionSet) -> Array:
    """Return the number of the true option of each target: [rows, targets, 1]."""
    return predictions.target.reshape(len(predictions), -1, 1)


def conformal_metrics(
    predictions: PredictionSet, limits: tuple[float, ...], names: tuple[str, ...], seed: int
) -> dict[str, dict[str, Any]]:
    """Return coverage and mean width, or mean size, as entries of ``metrics.json``.

    ``names`` are those of the targets. The names of several are part of the metrics' names.
    """
    if predictions.missing or not limits:
        return {}
    suffixes = [f"/{name}" for name in names] if len(names) > 1 else [""]
    columns = enumerate(zip(suffixes, limits, strict=True))
    is_regression = predictions.task == "regression"
    metrics: dict[str, Interval] = {}
    for i, (suffix, limit) in columns:
        if is_regression:
            error = np.abs(predictions.output[:, i] - predictions.target[:, i])
            metrics[f"interval_coverage{suffix}"] = _coverage(predictions, error <= limit, seed)
            width = Interval(2 * limit, 2 * limit, 2 * limit, len(predictions), "equal in all rows")
            metrics[f"interval_width{suffix}"] = width
            continue
        inside = in_sets(predictions.task, predictions.output, limits)[:, i]
        hits = np.take_along_axis(inside, _options(predictions)[:, i], axis=1)[:, 0]
        metrics[f"set_coverage{suffix}"] = _coverage(predictions, hits, seed)
        sizes = inside.sum(axis=1).astype(float)
        metrics[f"set_size{suffix}"] = mean_interval(sizes, predictions.group, seed)
    return {name: interval.entry() for name, interval in metrics.items()}


def _coverage(predictions: PredictionSet, covered: Array, seed: int) -> Interval:
    """Return the share of covered rows: the accuracy of the prediction that all are covered."""
    rows, target = len(covered), covered.astype(np.int64)
    of_rows = PredictionSet(
        "binary", ("no", "yes"), predictions.row, target, np.ones(rows), predictions.group
    )
    return intervals(of_rows, seed, areas=False)["accuracy"]


def fit_remarks(
    predictions: PredictionSet, limits: tuple[float, ...], coverage: float
) -> Iterator[str]:
    """Yield what the validation rows cannot show, and how many of their sets are empty."""
    # Importing scipy.stats takes as long as fitting.
    from scipy.stats import beta

    rows = len(predictions)
    rank = quantile_rank(rows, coverage)
    low, high = beta.ppf([0.025, 0.975], rank, rows + 1 - rank)
    yield (
        f"with as many validation rows, the coverage of new rows is {low:.3f} to {high:.3f} in "
        "95 % of cases; `test` measures it."
    )
    if predictions.task != "regression":
        empty = (~in_sets(predictions.task, predictions.output, limits).any(axis=2)).sum()
        if empty:
            yield (
                f"{empty} sets of {rows} validation rows are empty, because the model is more "
                f"often right than a coverage of {coverage:g} asks for; ask for a larger one."
            )
