"""Scores of a cross-validation: summaries over the fold runs and out-of-fold metrics."""

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.special import stdtrit

from proj.engine.evaluation.counts import metric_names, scores, sums_of
from proj.engine.evaluation.prediction_set import (
    PredictionSet,
    average_of,
    read_prediction_set,
    read_table,
)
from proj.engine.runs import calibration
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import Run
from proj.schema import Array, Schema

# Content of a metrics.json: entries by name, such as {"value": 0.97}.
Metrics = dict[str, dict[str, Any]]
# Largest difference between a metric of `test` and the same metric of its predictions file, which
# has the probabilities in single precision; relative to values above 1.
TOLERANCE = 1e-5


class FoldRun(NamedTuple):
    """The run of one fold and one seed.

    Attributes:
        seed: seed of the experiment.
        fold: number of the fold that is the test split, from 0.
        folder: the run's folder.
        flags: flags of ``fit`` that set the seed and the fold.
    """

    seed: int
    fold: int
    folder: Path
    flags: list[str]

    def metrics(self) -> Metrics:
        return Run(self.folder).metrics("test")

    def predictions(self) -> pl.DataFrame:
        """Return the test predictions, after columns with the seed and the fold."""
        table = read_table(self.folder / "test" / "predictions.parquet")
        seed, fold = pl.lit(self.seed).alias("seed"), pl.lit(self.fold).alias("fold")
        return table.select(seed, fold, pl.all())


class FoldSummary(NamedTuple):
    """Mean, standard deviation and 95 % interval of a metric over all fold runs."""

    mean: float
    std: float
    low: float
    high: float


def summarize_folds(values: list[float], folds: int) -> FoldSummary:
    """Return the mean, the standard deviation and the 95 % interval of a metric.

    The training splits overlap, so the variance of the mean is larger than for independent values.
    The interval uses the correction of Nadeau and Bengio (2003), "Inference for the Generalization
    Error": (1/n + test rows / training rows) s², with Student's t distribution.

    Args:
        values: the metric of each run, all folds of all seeds.
        folds: number of folds of each seed.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return FoldSummary(mean, 0.0, mean, mean)
    std = statistics.stdev(values)
    scale = std * (1 / len(values) + 1 / (folds - 1)) ** 0.5
    half_width = stdtrit(len(values) - 1, 0.975) * scale
    return FoldSummary(mean, std, mean - half_width, mean + half_width)


def out_of_fold_metrics(fold_runs: list[FoldRun]) -> dict[str, float]:
    """Return metrics of the test predictions of all folds together, the mean over the seeds.

    The definitions are those of ``engine.evaluation.counts`` for the task of the runs' schema.
    Metrics that are not defined are left out, and so are metrics that the model defines in another
    way: in some fold, their value differs from that of the fold's predictions.
    """
    predictions = [_read_predictions(Run(fold_run.folder)) for fold_run in fold_runs]
    if len({fold.names for fold in predictions}) > 1:
        # The training splits of the folds have different classes.
        return {}
    by_seed: dict[int, list[PredictionSet]] = {}
    for fold_run, fold in zip(fold_runs, predictions, strict=True):
        by_seed.setdefault(fold_run.seed, []).append(fold)
    values = np.mean([_pooled_scores(folds) for folds in by_seed.values()], axis=0)
    names = metric_names(predictions[0])
    for fold_run, fold in zip(fold_runs, predictions, strict=True):
        names = _matching_names(names, fold, fold_run.metrics())
    by_name = dict(zip(metric_names(predictions[0]), values.tolist(), strict=True))
    return {name: by_name[name] for name in names if math.isfinite(by_name[name])}


def _read_predictions(run: Run) -> PredictionSet:
    """Return the test predictions of a run, with the thresholds that ``test`` applied."""
    schema = Schema.from_dict(read_checkpoint(run.checkpoint("best"))["schema"])
    folder = run.path / "test"
    predictions = read_prediction_set(schema, read_table(folder / "predictions.parquet"))
    predictions = replace(predictions, average=average_of(run))
    applied = folder / calibration.FILE
    if not applied.is_file():
        return predictions
    return replace(predictions, thresholds=calibration.read(applied).settings(schema)[1])


def _pooled_scores(folds: list[PredictionSet]) -> Array:
    """Return the metrics [metrics] of the rows of several folds together."""
    if folds[0].task != "regression":
        # Counts add up, and each fold may have thresholds of its own.
        return scores(np.sum([_total(fold) for fold in folds], axis=0), folds[0])
    # The sums of a regression are centered on the mean target, which must be that of all folds.
    weights = [fold.weights for fold in folds]
    pooled = replace(
        folds[0],
        weight=None if folds[0].weight is None else np.concatenate(weights),
        row=np.concatenate([fold.row for fold in folds]),
        target=np.concatenate([fold.target for fold in folds]),
        output=np.concatenate([fold.output for fold in folds]),
    )
    return scores(_total(pooled), pooled)


def _total(predictions: PredictionSet) -> Array:
    """Return the sums [sums] over all rows."""
    total: Array = sums_of(predictions, np.zeros(len(predictions), np.int64), 1)[0]
    return total


def _matching_names(names: list[str], fold: PredictionSet, metrics: Metrics) -> list[str]:
    """Return the names of the metrics whose written value is that of the predictions."""
    computed = dict(zip(metric_names(fold), scores(_total(fold), fold).tolist(), strict=True))

    def matches(name: str) -> bool:
        written = metrics.get(name, {}).get("value")
        if written is None:
            # The metric is not defined in this fold.
            return True
        return bool(abs(computed[name] - written) <= TOLERANCE * max(1.0, abs(written)))

    return [name for name in names if matches(name)]
