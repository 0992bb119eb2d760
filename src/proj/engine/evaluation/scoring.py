"""Score a split: confidence intervals for its metrics, and small-sample warnings."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from proj.engine.console import number, plural
from proj.engine.evaluation.counts import headline_metric
from proj.engine.evaluation.curves import log_losses
from proj.engine.evaluation.dominant_rows import without_dominant_rows
from proj.engine.evaluation.intervals import intervals, mean_interval
from proj.engine.evaluation.limits import Interval
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Array, Schema, Task

# The content of ``metrics.json``: the value, interval and support of each metric.
Metrics: TypeAlias = dict[str, dict[str, Any]]

SMALL_SPLIT_ROWS = 100
SMALL_CLASS_ROWS = 10
# The value of a metric and that of its interval agree up to this relative difference, because one
# is computed from float32 outputs.
TOLERANCE = 1e-5


def add_intervals(
    metrics: Metrics,
    predictions: PredictionSet,
    schema: Schema,
    seed: int,
    own: Iterable[tuple[str, Interval]] = (),
) -> Metrics:
    """Return the metrics with their 95 % intervals.

    A metric that the predictions do not determine, such as one that is logged, stays as it is.

    Args:
        metrics: values by name.
        predictions: those of the split.
        schema: that of the model.
        seed: of the resamples.
        own: intervals of the user's own metrics by name, computed if the predictions are finite.
    """
    known, scored = intervals(predictions, seed), dict(metrics)
    if not predictions.missing:
        known |= dict(own)
    for name, entry in metrics.items():
        if name == "loss":
            scored[name] = _checked(
                _loss_interval(predictions, schema, entry["value"], seed), entry["value"]
            ).entry()
        elif name in known:
            scored[name] = _checked(known[name], entry["value"]).entry()
    return scored


def _checked(interval: Interval, reported: float | None) -> Interval:
    """Return the interval with the reported value; without limits if it is of another value."""
    value = interval.value
    if value is None or reported is None:
        why = interval.why or "the metric is undefined"
        return interval._replace(value=None, low=None, high=None, why=why)
    if abs(value - reported) > TOLERANCE * max(1.0, abs(reported)):
        why = f"the predictions file gives {number(value)}"
        return interval._replace(value=reported, low=None, high=None, method="", why=why)
    return interval._replace(value=reported)


def _loss_interval(
    predictions: PredictionSet, schema: Schema, reported: float | None, seed: int
) -> Interval:
    """Return the interval of a loss that is a plain mean over the rows of the predictions file."""
    rows = len(predictions)
    if reported is None:
        return Interval(None, None, None, rows, "", "the loss is not a finite number")
    for values in _row_losses(predictions, schema):
        if np.isinf(values).any():
            why = "the predictions file gives probability 0 to the target of a row"
            return Interval(reported, None, None, rows, "", why)
        if abs(predictions.mean(values) - reported) <= TOLERANCE * abs(reported):
            return _mean_interval(values, predictions, seed)
    why = (
        "the loss has options, such as weights, so it is not a plain mean over the rows of the "
        "predictions file"
    )
    return Interval(reported, None, None, rows, "", why)


def _mean_interval(values: Array, predictions: PredictionSet, seed: int) -> Interval:
    """Return the interval of a mean loss [rows], without limits where a few rows dominate it."""

    def of(kept: Array) -> dict[str, Interval]:
        rows = predictions if len(kept) == len(predictions) else predictions[kept]
        return {"loss": mean_interval(values[kept], rows.group, seed, rows.weight)}

    interval = of(np.arange(len(values)))["loss"]
    counted = values * predictions.weights
    return without_dominant_rows(interval, "loss", "loss", counted, predictions.row, of)


def _row_losses(predictions: PredictionSet, schema: Schema) -> Iterator[Array]:
    """Yield each row's loss [rows], for each loss that a model of the task has without options."""
    if predictions.task != "regression":
        yield log_losses(predictions)
        return
    for std in (np.array(schema.target_std), np.ones(len(schema.target_std))):
        error = (predictions.output - predictions.target) / std
        yield (error**2).mean(axis=1)
        yield np.abs(error).mean(axis=1)


def small_sample_warnings(metrics: Metrics, task: Task, split: str) -> Iterator[str]:
    """Yield warnings about small splits and small classes: what they cannot show."""
    name = headline_metric(task)
    rows = max((entry.get("support", 0) for entry in metrics.values()), default=0)
    low, high = (metrics.get(name, {}).get(side) for side in ("low", "high"))
    if 0 < rows < SMALL_SPLIT_ROWS and low is not None and high is not None:
        yield (
            f"with {plural(rows, f'{split} row')} the 95 % interval of {name} is {number(low)} to "
            f"{number(high)}; differences below {number((high - low) / 2)} are not significant."
        )
    elif 0 < rows < SMALL_SPLIT_ROWS:
        few = f"{plural(rows, f'{split} row')} {'is' if rows == 1 else 'are'} too few"
        yield f"{few} to estimate an interval of {name}."
    small = [class_name for class_name, count in _class_rows(metrics) if count < SMALL_CLASS_ROWS]
    if small:
        names = f"{', '.join(small[:10])}{', …' if len(small) > 10 else ''}"
        yield (
            f"fewer than {SMALL_CLASS_ROWS} {split} rows of {names}; the metrics of so few rows "
            "are mostly noise."
        )


def _class_rows(metrics: Metrics) -> Iterator[tuple[str, int]]:
    """Yield each class or label, or the positive class of two, with its number of rows."""
    per_class = any(name.startswith("recall/") for name in metrics)
    for name, entry in metrics.items():
        kind, _, class_name = name.partition("/")
        if kind == "recall" and "support" in entry and (class_name or not per_class):
            yield class_name or "the positive class", entry["support"]
