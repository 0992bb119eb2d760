"""The metrics of each task over a split, with exact ones where torchmetrics' are not exact.

Our own metrics are computed in float64, over all rows at once, and are NaN where they are not
defined.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

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

from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, SUM_DTYPE, Average, Schema


class StageMetrics(nn.Module):
    """All metrics of one split and its mean loss, updated batch by batch, computed once per epoch.

    The training split has no ranking metrics (AUROC, average precision): they would keep the scores
    of the whole epoch.

    Args:
        schema: schema of the data.
        split: train, val or test.
        extra: metrics of the user's own by name. They get what ``Model.predict_proba`` returns.
        average: how the values of several classes or labels become one.
    """

    def __init__(
        self,
        schema: Schema,
        split: str,
        extra: Mapping[str, Metric] | None = None,
        average: Average = "macro",
    ) -> None:
        super().__init__()
        self.names = schema.class_names or schema.target_names
        self.applies_threshold = schema.task in ("binary", "multilabel")
        self.loss = MeanLoss()
        ranked = schema.task != "regression" and split != "train"
        self.ranking = RankingMetrics(schema.num_outputs, average) if ranked else None
        self.counted = MetricCollection(_counted_metrics(schema, average))
        copies = {name: deepcopy(metric) for name, metric in (extra or {}).items()}
        self.extra = nn.ModuleDict(copies)

    def update(
        self,
        preds: Tensor,
        target: Tensor,
        losses: Tensor,
        weights: Tensor,
        thresholds: tuple[float, ...] = DEFAULT_THRESHOLD,
    ) -> None:
        """Add batches.

        Args:
            preds: what ``Model.predict_proba`` returns for all their rows.
            target: targets of all their rows.
            losses: mean loss of each batch [batches].
            weights: weight of each mean loss [batches].
            thresholds: probability above which a row is of the positive class, or has a label: one
                value or one for each label.
        """
        # An empty shard too: all processes gather their scores together at the end.
        if self.ranking is not None:
            self.ranking.update(preds, target)
        if len(target):
            for metric in self._extra_metrics():
                metric.update(preds, target)
            # torchmetrics takes one threshold for all labels, so it is applied here.
            if self.applies_threshold:
                limits = preds.new_tensor(thresholds) if len(thresholds) > 1 else thresholds[0]
                preds = (preds > limits).long()
            self.counted.update(preds, target)
            self.loss.update(losses, weights)

    def state(self) -> dict[str, Any]:
        """Return what has been counted so far, as tensors and lists of tensors."""
        return {
            f"{i}.{name}": value
            for i, metric in enumerate(self._stateful_metrics())
            for name, value in metric.metric_state.items()
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for i, metric in enumerate(self._stateful_metrics()):
            for name in metric.metric_state:
                value = state[f"{i}.{name}"]
                on_device = (
                    [part.to(metric.device) for part in value]
                    if isinstance(value, list)
                    else value.to(metric.device)
                )
                setattr(metric, name, on_device)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all processes, then reset them.

        Metrics of single classes are named ``f1/CLASS``.
        """
        values = {"loss": self.loss.compute(), **self.counted.compute()}
        if self.ranking is not None:
            values |= self.ranking.compute()
            self.ranking.reset()
        for name, metric in zip(self.extra, self._extra_metrics(), strict=True):
            values[name] = _checked(f"metrics.{name}", metric.compute(), len(self.names))
            metric.reset()
        self.loss.reset()
        self.counted.reset()
        return _by_class(values, self.names)

    def _extra_metrics(self) -> list[Metric]:
        return cast(list[Metric], list(self.extra.values()))

    def _stateful_metrics(self) -> list[Metric]:
        assert self.ranking is None, "the scores of ranking metrics are not saved"
        counted = cast(list[Metric], list(self.counted.values(copy_state=False)))
        return [self.loss, *counted, *self._extra_metrics()]


def _counted_metrics(schema: Schema, average: Average) -> dict[str, Any]:
    """Return the metrics that need no scores; those named with ``/`` have a value per class."""
    if schema.task == "regression":
        return {"errors": RegressionErrors(schema.target_mean)}
    if schema.task == "binary":
        return {
            "accuracy": BinaryAccuracy(validate_args=False),
            "precision": BinaryPrecision(validate_args=False),
            "recall": BinaryRecall(validate_args=False),
            "f1": BinaryF1Score(validate_args=False),
        }
    count = len(schema.class_names)
    multiclass = schema.task == "multiclass"
    metrics: dict[str, Any] = {
        "accuracy": MulticlassAccuracy(count, average="micro", validate_args=False)
        if multiclass
        else MultilabelExactMatch(count, validate_args=False)
    }
    kinds: dict[str, Any] = {
        "precision": MulticlassPrecision if multiclass else MultilabelPrecision,
        "recall": MulticlassRecall if multiclass else MultilabelRecall,
        "f1": MulticlassF1Score if multiclass else MultilabelF1Score,
    }
    for end, kind_of_mean in (("", average), ("/", "none")):
        for name, kind in kinds.items():
            metrics[f"{name}{end}"] = kind(count, average=kind_of_mean, validate_args=False)
    return metrics


def _checked(option: str, value: Any, classes: int) -> Tensor:
    if not isinstance(value, Tensor) or value.shape not in ((), (classes,)):
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(
            f"model.{option}: expected a metric that gives one number, or one for each class, got "
            f"{got}; choose another metric or average."
        )
    return value


def _by_class(values: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Name the values of single classes or targets.

    ``{"f1/": [2]}`` becomes ``f1/cat`` and ``f1/dog``; ``{"mse": [2]}`` becomes the mean ``mse``
    beside ``mse/a`` and ``mse/b``.
    """
    flat: dict[str, Tensor] = {}
    for key, value in values.items():
        if value.ndim == 0:
            flat[key] = value
            continue
        if not key.endswith("/"):
            flat[key] = value.mean()
        if len(names) > 1:
            kind = key.removesuffix("/")
            flat |= {f"{kind}/{name}": v for name, v in zip(names, value, strict=True)}
    return flat


class RankingMetrics(Metric):
    """Area under the ROC curve and average precision over all rows, each class against the rest.

    A class without both positive and negative rows has the value NaN; the mean is over the other
    classes and NaN if there are none.

    Args:
        columns: classes or labels; 1 for the positive class alone.
        average: ``macro`` is the plain mean over the classes, ``weighted`` the mean by their
            positive rows, ``micro`` the value over all pairs of a row and a class.
    """

    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, columns: int, average: Average = "macro") -> None:
        super().__init__()
        self.columns, self.average = columns, average
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add rows.

        Args:
            preds: probabilities [rows] or [rows, columns].
            target: class numbers [rows] or labels [rows, columns].
        """
        self.scores.append(preds)
        self.targets.append(target)

    def compute(self) -> dict[str, Tensor]:
        scores = dim_zero_cat(self.scores).view(-1, self.columns)
        target = dim_zero_cat(self.targets)
        if target.ndim == 1 and self.columns > 1:
            positives = [target == i for i in range(self.columns)]
        else:
            positives = [column == 1 for column in target.view(-1, self.columns).T]
        areas = [
            ranking_areas(score, positive)
            for score, positive in zip(scores.T, positives, strict=True)
        ]
        names = ("auroc", "average_precision")
        per_class = torch.stack(areas)  # [columns, 2]
        if self.average == "micro":
            means = ranking_areas(scores.T.flatten(), torch.cat(positives))
        elif self.average == "weighted":
            rows = torch.stack([p.sum() for p in positives]) * per_class[:, 0].isfinite()
            means = (per_class.nan_to_num() * rows[:, None]).sum(0) / rows.sum()
        else:
            means = per_class.nanmean(0)
        values = dict(zip(names, means, strict=True))
        if self.columns == 1:
            return values
        return values | {f"{name}/": v for name, v in zip(names, per_class.T, strict=True)}


def ranking_areas(score: Tensor, positive: Tensor) -> Tensor:
    """Return the area under the ROC curve and the average precision: [2], float64.

    Rows of equal score count as one threshold. The area is the Mann-Whitney statistic by the
    trapezoidal rule. Average precision is the sum over thresholds of the precision times the gain
    in recall, as in scikit-learn. Both are NaN without positive rows or without negative rows.

    Args:
        score: scores [rows].
        positive: whether a row is positive [rows], bool.
    """
    if not positive.any() or positive.all():
        return torch.full((2,), torch.nan, dtype=SUM_DTYPE, device=score.device)
    score, order = score.sort(descending=True)
    end = torch.ones(1, dtype=torch.bool, device=score.device)
    last_of_equal_scores = torch.cat([score.diff() != 0, end])
    true = positive[order].cumsum(0)[last_of_equal_scores]
    predicted = torch.arange(1, len(score) + 1, device=score.device)[last_of_equal_scores]
    true, false = true.to(SUM_DTYPE), (predicted - true).to(SUM_DTYPE)
    gained = true.diff(prepend=true.new_zeros(1))
    steps = false.diff(prepend=false.new_zeros(1))
    area = (steps * (true - gained / 2)).sum() / (true[-1] * false[-1])
    precision = (gained * true / (true + false)).sum() / true[-1]
    return torch.stack([area, precision])


class MeanLoss(Metric):
    """Weighted mean of the mean losses of batches. A NaN stays NaN; ``MeanMetric`` drops it.

    Batches are added one by one, so that the sum does not depend on how many are given at once.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")

    def update(self, losses: Tensor, weights: Tensor) -> None:
        """Add mean losses [batches] with their weights [batches]."""
        self.total = _add_in_order(self.total, losses.to(SUM_DTYPE) * weights)
        self.weight = _add_in_order(self.weight, weights)

    def compute(self) -> Tensor:
        return self.total / self.weight


class RegressionErrors(Metric):
    """MSE, RMSE, MAE and R² of each target [targets], in the target's own unit.

    The sums for R² are taken around ``center`` in float64, so that targets far from zero lose no
    digits. R² is NaN for fewer than two rows and for a constant target.

    Args:
        center: the training mean of each target.
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
        self.register_buffer("center", torch.tensor(center, dtype=SUM_DTYPE), persistent=False)
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("squared", "absolute", "sum", "sum_of_squares"):
            zeros = torch.zeros(len(center), dtype=SUM_DTYPE)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions and targets, both [rows, targets]."""
        preds, target = preds.to(SUM_DTYPE), target.to(SUM_DTYPE)
        error, centered = preds - target, target - self.center
        self.rows += len(target)
        self.squared = _add_in_order(self.squared, error.square())
        self.absolute = _add_in_order(self.absolute, error.abs())
        self.sum = _add_in_order(self.sum, centered)
        self.sum_of_squares = _add_in_order(self.sum_of_squares, centered.square())

    def compute(self) -> dict[str, Tensor]:
        mse = self.squared / self.rows
        variation = self.sum_of_squares - self.sum.square() / self.rows
        varies = (variation > 1e-12 * self.sum_of_squares) & (self.rows > 1)
        r2 = torch.where(varies, 1 - self.squared / variation, torch.nan)
        return {"mse": mse, "rmse": mse.sqrt(), "mae": self.absolute / self.rows, "r2": r2}


def _add_in_order(total: Tensor, values: Tensor) -> Tensor:
    """Add ``values`` [rows, ...] to ``total`` [...] row by row.

    On a CPU the bits do not depend on how the rows are divided into batches.
    """
    return torch.cat([total[None], values]).cumsum(0)[-1]
