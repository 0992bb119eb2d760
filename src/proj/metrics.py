"""The metrics of each task, and what every metric means: its direction and its unit."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelPrecision,
    MultilabelRecall,
)
from torchmetrics.utilities import dim_zero_cat

from proj.schema import Schema, Task


# Sums and areas are computed in float64, but Apple's GPUs have none.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


class About(NamedTuple):
    mode: Literal["min", "max"]  # which way is better
    unit: str


ABOUT = {
    "loss": About("min", "the loss"),
    "accuracy": About("max", "share of rows"),
    "precision": About("max", "share of predicted"),
    "recall": About("max", "share of actual"),
    "f1": About("max", "0 to 1"),
    "auroc": About("max", "0.5 to 1"),
    "average_precision": About("max", "0 to 1"),
    "mse": About("min", "target units squared"),
    "rmse": About("min", "target units"),
    "mae": About("min", "target units"),
    "r2": About("max", "share of variance"),
}

MONITOR: dict[Task, str] = {
    "binary": "val/f1",
    "multiclass": "val/f1",
    "multilabel": "val/f1",
    "regression": "val/rmse",
}


def about(name: str) -> About | None:
    """What is known of a metric, with or without its stage and class (``val/f1/cat`` -> f1); None for a stranger's."""
    return next((ABOUT[part] for part in name.split("/") if part in ABOUT), None)


class Ranked(Metric):
    """Exact area under the ROC curve and average precision, one against the rest, over all rows of a stage.

    A class without both kinds of row has no such area: its value is NaN, and the mean is over the others (NaN if none).

    Args:
        columns: classes or labels; 1 for the positive class alone.
    """

    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """``preds`` [rows] or [rows, columns] probabilities, ``target`` class numbers [rows] or labels [rows, columns]."""
        self.scores.append(preds)
        self.targets.append(target)

    def compute(self) -> dict[str, Tensor]:
        scores, target = dim_zero_cat(self.scores), dim_zero_cat(self.targets).long()
        if target.ndim == 1 and self.columns > 1:
            target = torch.nn.functional.one_hot(target, self.columns)
        areas = [
            ranked_areas(score, hit)
            for score, hit in zip(scores.view(-1, self.columns).T, target.view(-1, self.columns).T, strict=True)
        ]
        per_class = dict(zip(("auroc", "average_precision"), torch.stack(areas).T, strict=True))
        means = {name: values.nanmean() for name, values in per_class.items()}
        return means if self.columns == 1 else means | {f"{name}/": values for name, values in per_class.items()}


def ranked_areas(score: Tensor, hit: Tensor) -> Tensor:
    """Area under the ROC curve and average precision of ``score`` [rows] for ``hit`` [rows] of 0 and 1: [2], float64.

    Rows of equal score count as one threshold. The first is the Mann-Whitney statistic by the trapezoid rule, the second
    the sum over thresholds of precision times the recall gained (as in scikit-learn). NaN without both kinds of row.
    """
    if not hit.any() or hit.all():
        return torch.full((2,), torch.nan, dtype=EXACT, device=score.device)
    score, order = score.sort(descending=True)
    last = torch.cat([score.diff() != 0, torch.ones(1, dtype=torch.bool, device=score.device)])  # of each equal score
    true = hit[order].cumsum(0)[last].to(EXACT)
    false = (1 - hit[order]).cumsum(0)[last].to(EXACT)
    gained = true.diff(prepend=true.new_zeros(1))
    area = (false.diff(prepend=false.new_zeros(1)) * (true - gained / 2)).sum() / (true[-1] * false[-1])
    return torch.stack([area, (gained * true / (true + false)).sum() / true[-1]])


class MeanLoss(Metric):
    """Mean of batch means by their weights. A NaN stays one, where torchmetrics' ``MeanMetric`` drops it."""

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=EXACT), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=EXACT), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: Tensor | float) -> None:
        self.total += loss.to(EXACT) * weight
        self.weight += weight

    def compute(self) -> Tensor:
        return self.total / self.weight


class Errors(Metric):
    """Mean squared error, its root, mean absolute error and R² of each target: [targets], in the target's own units.

    Sums are kept in float64, those for R² around ``center`` (the training mean), so that targets far from zero lose no
    digits. R² of less than two rows, or of a target that does not vary, is not defined: NaN.
    """

    full_state_update = False
    center: Tensor
    rows: Tensor
    squared: Tensor
    absolute: Tensor
    sum: Tensor
    sum_of_squares: Tensor

    def __init__(self, center: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("center", torch.tensor(center), persistent=False)
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("squared", "absolute", "sum", "sum_of_squares"):
            self.add_state(name, torch.zeros(len(center), dtype=EXACT), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """``preds`` and ``target`` [rows, targets]."""
        preds, target = preds.to(EXACT), target.to(EXACT)
        error, centered = preds - target, target - self.center
        self.rows += len(target)
        self.squared += error.square().sum(0)
        self.absolute += error.abs().sum(0)
        self.sum += centered.sum(0)
        self.sum_of_squares += centered.square().sum(0)

    def compute(self) -> dict[str, Tensor]:
        mse = self.squared / self.rows
        variation = self.sum_of_squares - self.sum.square() / self.rows
        varies = (variation > 1e-12 * self.sum_of_squares) & (self.rows > 1)
        r2 = torch.where(varies, 1 - self.squared / variation, torch.nan)
        return {"mse": mse, "rmse": mse.sqrt(), "mae": self.absolute / self.rows, "r2": r2}


class Meter(nn.Module):
    """All metrics of one stage, and its mean loss, gathered batch by batch and computed once.

    Training has the counted metrics only: the ranked ones would keep every score of the epoch.
    """

    def __init__(self, schema: Schema, stage: str) -> None:
        super().__init__()
        self.names = schema.class_names or schema.target_names
        self.loss = MeanLoss()
        self.ranked = Ranked(schema.outputs) if schema.task != "regression" and stage != "train" else None
        self.counted = (
            MetricCollection({"errors": Errors(schema.target_mean)})
            if schema.task == "regression"
            else MetricCollection(_COUNTED[schema.task](len(schema.class_names)))
        )

    def update(self, preds: Tensor, target: Tensor, loss: Tensor, weight: Tensor | float) -> None:
        """Take in a batch: what ``Model.predictions`` made of it, its targets, its mean loss and that mean's weight."""
        if self.ranked is not None:  # an empty shard too: all processes gather their scores together at the end
            self.ranked.update(preds, target)
        if len(target):
            self.counted.update(preds, target)
            self.loss.update(loss, weight)

    def finish(self) -> dict[str, Tensor]:
        """The stage's metrics over all processes by name, those of single classes as ``f1/CLASS``; then start anew."""
        values = {"loss": self.loss.compute(), **self.counted.compute()}
        if self.ranked is not None:
            values |= self.ranked.compute()
            self.ranked.reset()
        self.loss.reset()
        self.counted.reset()
        return _named(values, self.names)


def _named(values: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Results with one value a class or target under names of their own.

    ``{"f1/": [2]}`` becomes ``f1/cat`` and ``f1/dog``; ``{"mse": [2]}`` becomes their mean ``mse`` beside ``mse/a`` and
    ``mse/b``.
    """
    flat: dict[str, Tensor] = {}
    for key, value in values.items():
        if value.ndim == 0:
            flat[key] = value
            continue
        if not key.endswith("/"):
            flat[key] = value.mean()
        if len(names) > 1:
            flat |= {f"{key.removesuffix('/')}/{name}": v for name, v in zip(names, value, strict=True)}
    return flat


def _binary(_: int) -> dict[str, Metric]:
    return {
        "accuracy": BinaryAccuracy(validate_args=False),
        "precision": BinaryPrecision(validate_args=False),
        "recall": BinaryRecall(validate_args=False),
        "f1": BinaryF1Score(validate_args=False),
    }


def _multiclass(classes: int) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {"accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False)}
    for key, average in (("", "macro"), ("/", "none")):
        metrics[f"precision{key}"] = MulticlassPrecision(classes, average=average, validate_args=False)
        metrics[f"recall{key}"] = MulticlassRecall(classes, average=average, validate_args=False)
        metrics[f"f1{key}"] = MulticlassF1Score(classes, average=average, validate_args=False)
    return metrics


def _multilabel(labels: int) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {"accuracy": MultilabelExactMatch(labels, validate_args=False)}
    for key, average in (("", "macro"), ("/", "none")):
        metrics[f"precision{key}"] = MultilabelPrecision(labels, average=average, validate_args=False)
        metrics[f"recall{key}"] = MultilabelRecall(labels, average=average, validate_args=False)
        metrics[f"f1{key}"] = MultilabelF1Score(labels, average=average, validate_args=False)
    return metrics


_COUNTED = {"binary": _binary, "multiclass": _multiclass, "multilabel": _multilabel}
