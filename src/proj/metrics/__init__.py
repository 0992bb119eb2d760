"""The metrics of each task, and the direction and unit of every metric."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal, NamedTuple, cast

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

from proj.errors import UserError
from proj.metrics.exact import MeanLoss, RankingMetrics, RegressionErrors
from proj.schema import DEFAULT_THRESHOLD, Schema, Task


class MetricInfo(NamedTuple):
    mode: Literal["min", "max"]  # The direction that is better.
    unit: str


METRIC_INFO = {
    "loss": MetricInfo("min", "the loss"),
    "accuracy": MetricInfo("max", "share of rows"),
    "precision": MetricInfo("max", "share of predicted"),
    "recall": MetricInfo("max", "share of actual"),
    "f1": MetricInfo("max", "0 to 1"),
    "auroc": MetricInfo("max", "0.5 to 1"),
    "average_precision": MetricInfo("max", "0 to 1"),
    "mse": MetricInfo("min", "target units squared"),
    "rmse": MetricInfo("min", "target units"),
    "mae": MetricInfo("min", "target units"),
    "r2": MetricInfo("max", "share of variance"),
}

# The metric that the best epoch is chosen by, unless an experiment names another.
DEFAULT_MONITOR: dict[Task, str] = {
    "binary": "val/f1",
    "multiclass": "val/f1",
    "multilabel": "val/f1",
    "regression": "val/rmse",
}


def metric_info(name: str) -> MetricInfo | None:
    """Return direction and unit of a metric, or None for a user's own.

    The name may have a split and a class: ``val/f1/cat`` is f1.
    """
    return next((METRIC_INFO[part] for part in name.split("/") if part in METRIC_INFO), None)


class StageMetrics(nn.Module):
    """All metrics of one split and its mean loss, updated batch by batch, computed once per epoch.

    The training split has no ranking metrics (AUROC, average precision): they would keep the scores
    of the whole epoch.

    Args:
        schema: schema of the data.
        split: train, val or test.
        extra: metrics of the user's own by name. They get what ``Model.predict_proba`` returns.
    """

    def __init__(
        self, schema: Schema, split: str, extra: Mapping[str, Metric] | None = None
    ) -> None:
        super().__init__()
        self.names = schema.class_names or schema.target_names
        self.applies_threshold = schema.task in ("binary", "multilabel")
        self.loss = MeanLoss()
        ranked = schema.task != "regression" and split != "train"
        self.ranking = RankingMetrics(schema.num_outputs) if ranked else None
        self.counted = MetricCollection(_counted_metrics(schema))
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


def _counted_metrics(schema: Schema) -> dict[str, Any]:
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
    for end, average in (("", "macro"), ("/", "none")):
        for name, kind in kinds.items():
            metrics[f"{name}{end}"] = kind(count, average=average, validate_args=False)
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
