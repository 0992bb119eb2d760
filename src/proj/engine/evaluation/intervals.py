"""95 % confidence intervals for every metric, each by a method whose coverage is measured.

``scripts/coverage.py`` measures the coverage, ``docs/explanation/statistics.md`` lists it.
"""

from collections.abc import Iterator

import numpy as np

from proj.engine.console import plural
from proj.engine.evaluation.areas import area_intervals, area_names
from proj.engine.evaluation.counts import (
    KINDS,
    mean_weights,
    metric_names,
    ratio,
    scores,
    sums_of,
)
from proj.engine.evaluation.dominant_rows import contributions, without_dominant_rows
from proj.engine.evaluation.limits import (
    MIN_UNITS,
    Interval,
    effective_rows,
    support,
    too_few,
    unit_count,
    unit_name,
    wilson,
)
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.resampling import (
    RESAMPLES,
    Statistic,
    Units,
    bca,
    resampling_units,
    studentized,
    units_of,
)
from proj.schema import Array

# A limit of an error this many times larger or smaller than the error carries no information.
MAX_LIMIT_RATIO = 100


def intervals(predictions: PredictionSet, seed: int = 0, areas: bool = True) -> dict[str, Interval]:
    """Return all metrics that predictions determine, with intervals over rows or groups of rows.

    The same ``seed`` gives the same intervals. Without ``areas``, which sort the rows for each
    class, it is faster.
    """
    if predictions.missing:
        return _undefined(predictions)
    if predictions.task == "regression":
        return dict(_robust_error_intervals(predictions, seed))
    rng = np.random.default_rng(seed)
    counts = _count_intervals(predictions, rng)
    return dict([*counts, *(area_intervals(predictions) if areas else [])])


def mean_interval(
    values: Array, group: Array | None = None, seed: int = 0, weight: Array | None = None
) -> Interval:
    """Return the interval of the mean of a positive value of each row [rows], such as the loss."""
    rng = np.random.default_rng(seed)
    unit, count = resampling_units(len(values), group, rng)
    weighted = values if weight is None else values * weight
    sums = np.column_stack(
        [np.bincount(unit, weight, count), np.bincount(unit, weighted, count)],
    )
    mean = np.atleast_1d(np.average(values, weights=weight))
    kind = "rows" if group is None else "groups"
    return _bootstrap_t(
        mean, units_of(sums), lambda s: s[..., 1:] / s[..., :1], rng, len(values), kind
    )[0]


def _undefined(predictions: PredictionSet) -> dict[str, Interval]:
    why = (
        f"{predictions.missing} of {plural(len(predictions), 'prediction')} are not finite numbers"
    )
    names = metric_names(predictions)
    if predictions.task != "regression":
        names += area_names(predictions)
    return {name: Interval(None, None, None, support(predictions, name), "", why) for name in names}


def _describe_units(predictions: PredictionSet, units: Units) -> str:
    """Return a description of what is resampled: ``200 rows``, ``2000 blocks of 9000 groups``."""
    resampled, available = int(units.times.sum()), unit_count(predictions)
    kind = unit_name(predictions)
    return (
        f"{resampled} {kind}"
        if resampled == available
        else f"{resampled} blocks of {available} {kind}"
    )


# Metrics of counts


def _count_intervals(
    predictions: PredictionSet, rng: np.random.Generator
) -> Iterator[tuple[str, Interval]]:
    """Yield the name and interval of each metric of counts.

    The limits are Wilson's, or BCa limits for averages over classes and for rows that are grouped
    or have weights.
    """
    task, grouped, names = (
        predictions.task,
        predictions.group is not None or predictions.weight is not None,
        metric_names(predictions),
    )
    units = _count_units(predictions, rng)
    values = scores(units.total, predictions)
    # Grouped rows carry as much information as there are groups, and rows with weights as much as
    # their effective number.
    share = units.times.sum() / len(predictions) if grouped else 1.0
    if predictions.weight is not None:
        sums = units.sums[:, 0]
        share = effective_rows(np.ones(len(sums), bool), sums) / sums.sum()
    low, high = _wilson_limits(units.total, predictions, share)
    averaged = np.array([task != "binary" and name in KINDS for name in names])
    resampled = averaged | grouped
    if resampled.any() and units.times.sum() >= MIN_UNITS:
        limits, varies = bca(units, lambda sums: scores(sums, predictions), rng)
        resampled &= varies
        low, high = np.where(resampled, limits[0], low), np.where(resampled, limits[1], high)
    else:
        resampled = np.zeros(len(names), bool)
    bca_method = f"BCa, {RESAMPLES} resamples of {_describe_units(predictions, units)}"
    for i, name in enumerate(names):
        value, rows = float(values[i]), support(predictions, name)
        if np.isnan(low[i]):
            yield name, Interval(value, None, None, rows, "", _zero_by_convention(name))
        else:
            wilson_method = "Wilson, of each class" if averaged[i] else "Wilson"
            method = bca_method if resampled[i] else wilson_method
            yield name, Interval(value, float(low[i]), float(high[i]), rows, method)


def _zero_by_convention(name: str) -> str:
    kind = name.split("/")[0]
    reasons = {
        "precision": "the class is never predicted",
        "recall": "no row is of the class",
        "f1": "the class neither occurs nor is predicted",
    }
    return f"{kind} is undefined because {reasons[kind]}; reported as 0"


def _count_units(predictions: PredictionSet, rng: np.random.Generator) -> Units:
    """Return rows as units; rows with equal target and prediction are one unit, with its count."""
    is_plain = predictions.group is None and predictions.weight is None
    if predictions.task == "multilabel" or not is_plain:
        unit, count = resampling_units(len(predictions), predictions.group, rng)
        return units_of(sums_of(predictions, unit, count))
    cell = predictions.target * len(predictions.names) + predictions.predicted
    _, unit, times = np.unique(cell, return_inverse=True, return_counts=True)
    return Units(sums_of(predictions, unit, len(times)) / times[:, None], times)


def _wilson_limits(total: Array, predictions: PredictionSet, share: float) -> Array:
    """Return the limits of all metrics of counts, [2, metrics].

    Each number of cases is multiplied by ``share``. Accuracy, precision and recall are
    proportions. The number of cases of precision is random; its observed value is used. F1 is
    2J/(1+J) of the proportion J of true positives among all that are predicted or actual (Lam et
    al. 2023, arXiv:2309.14621, "Wilson indirect"). A mean over classes has the limits of Zou and
    Donner (2008, Statistics in Medicine 27:1693) for independent estimates, and a micro average
    those of the proportion over all classes. They are needed where resampling fails because each
    class is entirely correct or entirely wrong.
    """
    true, predicted, actual = total[2:].reshape(-1, 3).T
    either = predicted + actual - true
    cases = [(true, predicted), (true, actual), (true, either)]
    limits = _limits_of_counts(cases, share)
    accuracy = np.stack(wilson(total[1:2] / total[0], total[0] * share))
    if predictions.task == "binary":
        return np.concatenate([accuracy, *limits], axis=1)
    if predictions.average == "micro":
        pooled = [(hits.sum(keepdims=True), count.sum(keepdims=True)) for hits, count in cases]
        means = np.concatenate(_limits_of_counts(pooled, share), axis=1)
    else:
        weights = mean_weights(predicted, actual, predictions)
        means = _limits_of_means(scores(total, predictions), limits, weights)
    per_class = limits if len(true) > 1 else []
    return np.concatenate([accuracy, means, *per_class], axis=1)


def _limits_of_counts(cases: list[tuple[Array, Array]], share: float) -> list[Array]:
    """Return the limits of precision, recall and F1: [2, classes] each."""
    limits = [np.stack(wilson(ratio(hits, count), count * share)) for hits, count in cases]
    limits[2] = 2 * limits[2] / (1 + limits[2])
    return limits


def _limits_of_means(values: Array, limits: list[Array], weights: Array) -> Array:
    """Return the limits of the means of precision, recall and F1: [2, 3].

    ``values`` are all metrics, ``limits`` [2, classes] those of the classes.
    """
    weights = weights / max(1, weights.sum())
    by_class = values[4:].reshape(3, -1) if len(weights) > 1 else values[1:4, None]
    means = []
    for value, mean, (low, high) in zip(by_class, values[1:4], limits, strict=True):
        # A label without cases counts as 0 in the mean and does not vary.
        known = ~np.isnan(low)
        below, above = (
            np.sqrt((((limit - value) * weights)[known] ** 2).sum()) for limit in (low, high)
        )
        means.append([mean - below, mean + above] if known.any() else [np.nan, np.nan])
    return np.transpose(means)


# Errors


def _error_intervals(
    predictions: PredictionSet, rng: np.random.Generator
) -> Iterator[tuple[str, Interval]]:
    """Yield the name and bootstrap-t interval of each error.

    The limits of R² come from 1 - R², the share of unexplained variance.
    """
    unit, count = resampling_units(len(predictions), predictions.group, rng)
    units, names = units_of(sums_of(predictions, unit, count)), metric_names(predictions)
    is_r2 = np.array([name.startswith("r2") for name in names])

    def positive(sums: Array) -> Array:
        values = scores(sums, predictions)
        return np.where(is_r2, 1 - values, values)

    results = _bootstrap_t(
        positive(units.total),
        units,
        positive,
        rng,
        len(predictions),
        unit_name(predictions),
        quotient=is_r2,
    )
    method = f"bootstrap-t, {RESAMPLES} resamples of {_describe_units(predictions, units)}"
    for name, interval in zip(names, results, strict=True):
        interval = interval._replace(method=interval.method and method)
        yield name, _r2_of_unexplained(interval) if name.startswith("r2") else interval


def _robust_error_intervals(
    predictions: PredictionSet, seed: int
) -> Iterator[tuple[str, Interval]]:
    """Yield the name and interval of each error, without limits where a few rows dominate it."""
    known: dict[bytes, dict[str, Interval]] = {}

    def of(kept: Array) -> dict[str, Interval]:
        if (key := kept.tobytes()) not in known:
            rng = np.random.default_rng(seed)
            is_all = len(kept) == len(predictions)
            rows = predictions if is_all else predictions[kept]
            known[key] = dict(_error_intervals(rows, rng))
        return known[key]

    for name, interval in of(np.arange(len(predictions))).items():
        values, noun = contributions(predictions, name)
        yield (
            name,
            without_dominant_rows(interval, name, noun, values, predictions.row, of),
        )


def _r2_of_unexplained(interval: Interval) -> Interval:
    """Return the interval of R² given that of 1 - R²."""
    if interval.value is None:
        single = interval.support == 1
        why = "a single row has no variance" if single else "the target does not vary"
        return interval._replace(why=why)
    value, low, high = (
        None if limit is None else 1 - limit
        for limit in (interval.value, interval.high, interval.low)
    )
    return interval._replace(value=value, low=low, high=high)


def _bootstrap_t(
    values: Array,
    units: Units,
    statistic: Statistic,
    rng: np.random.Generator,
    rows: int,
    kind: str,
    quotient: Array | bool = False,
) -> list[Interval]:
    """Return an interval for each of the positive metrics ``values`` [metrics]."""
    is_small = len(units.times) < MIN_UNITS
    undefined = np.full((2, len(values)), np.nan)
    limits = undefined if is_small else studentized(units, statistic, rng, quotient)
    results = []
    for value, low, high in zip(values.tolist(), *limits.tolist(), strict=True):
        if np.isnan(value):
            interval = Interval(None, None, None, rows, "", "the metric is undefined")
        elif np.isnan(low) or np.isnan(high):
            constant = "it does not vary between rows"
            why = too_few(kind, len(units.times)) if is_small else constant
            interval = Interval(value, None, None, rows, "", why)
        elif high > MAX_LIMIT_RATIO * value or value > MAX_LIMIT_RATIO * low:
            why = "a few rows account for nearly all of it"
            interval = Interval(value, None, None, rows, "", why)
        else:
            method = f"bootstrap-t, {RESAMPLES} resamples"
            interval = Interval(value, low, high, rows, method)
        results.append(interval)
    return results
