"""Intervals of metrics of the user's own, which are only known as objects of torchmetrics."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import cast

import numpy as np
import torch
from torchmetrics import Metric

from proj.engine.evaluation.limits import (
    MIN_UNITS,
    NORMAL,
    Interval,
    Z,
    too_few,
    unit_count,
    unit_name,
)
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.engine.evaluation.resampling import resampling_units
from proj.metrics.stage import StageMetrics
from proj.models.module import SchemaModule
from proj.schema import SPLITS, Array

# Resamples, and fewer for many rows: the metric passes so many rows in all.
MAX_RESAMPLES, MIN_RESAMPLES, MAX_ROWS = 1_000, 200, 20_000_000


def own_metrics(model: SchemaModule) -> dict[str, Metric]:
    """Return the metrics of the user's own by name."""
    stage = model.split_metrics[SPLITS.index("test")]
    assert isinstance(stage, StageMetrics)
    return {name: cast(Metric, metric) for name, metric in stage.extra.items()}


def own_intervals(
    metrics: Mapping[str, Metric], predictions: PredictionSet, seed: int
) -> Iterator[tuple[str, Interval]]:
    """Yield name and interval of each metric; a metric with a value per class has one for each.

    Bias-corrected percentiles (Efron 1987, JASA 82:171, with acceleration 0) of the metric over
    rows, or groups of rows, that are drawn with replacement.
    """
    rows, kind = len(predictions), unit_name(predictions)
    few = unit_count(predictions) < MIN_UNITS
    for name, metric in metrics.items():
        metric = deepcopy(metric).cpu()
        value = _compute(metric, predictions, np.arange(rows))
        resamples = int(np.clip(MAX_ROWS // max(rows, 1), MIN_RESAMPLES, MAX_RESAMPLES))
        drawn = [] if few else list(_draw(predictions, resamples, seed))
        values = np.array([_compute(metric, predictions, index) for index in drawn])
        for i, one in enumerate(value):
            key = f"{name}/{predictions.names[i]}" if len(value) > 1 else name
            if few:
                why = too_few(kind, unit_count(predictions))
                yield key, Interval(float(one), None, None, rows, "", why)
                continue
            low, high = _bias_corrected(float(one), values[:, i])
            method = f"bootstrap (bias-corrected), {resamples} resamples of {kind}"
            why = "" if low is not None else "it is undefined in resamples, or does not vary"
            yield key, Interval(float(one), low, high, rows, method if not why else "", why)


def _compute(metric: Metric, predictions: PredictionSet, index: Array) -> Array:
    """Return the metric over some rows: [1] or [classes]."""
    metric.reset()
    metric.update(
        torch.from_numpy(predictions.output[index]), torch.from_numpy(predictions.target[index])
    )
    return np.atleast_1d(metric.compute().double().numpy())


def _draw(predictions: PredictionSet, resamples: int, seed: int) -> Iterator[Array]:
    """Yield the rows of as many units as there are, drawn with replacement."""
    rng = np.random.default_rng(seed)
    unit, count = resampling_units(len(predictions), predictions.group, rng)
    by_unit = np.split(np.argsort(unit, kind="stable"), np.bincount(unit).cumsum()[:-1])
    for _ in range(resamples):
        yield np.concatenate([by_unit[u] for u in rng.integers(count, size=count)])


def _bias_corrected(value: float, values: Array) -> tuple[float | None, float | None]:
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return None, None
    below = np.mean(values < value) + np.mean(values == value) / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 0.5 / len(values), 1 - 0.5 / len(values))))
    shares = [NORMAL.cdf(2 * bias - Z), NORMAL.cdf(2 * bias + Z)]
    low, high = np.quantile(values, shares)
    return float(low), float(high)
