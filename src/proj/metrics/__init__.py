"""The metrics of each task, and what every metric means: its direction and its unit."""

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

from proj.metrics.exact import MeanLoss, RankingMetrics, RegressionErrors
from proj.schema import DEFAULT_THRESHOLD, Schema, Task


class MetricInfo(NamedTuple):
    mode: Literal["min", "max"]  # which way is better
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

DEFAULT_MONITOR: dict[Task, str] = {
    "binary": "val/f1",
    "multiclass": "val/f1",
    "multilabel": "val/f1",
    "regression": "val/rmse",
}


def metric_info(name: str) -> MetricInfo | None:
    """What is known of a metric, with or without its stage and class (``val/f1/cat`` -> f1); None for a stranger's."""
    return next((METRIC_INFO[part] for part in name.split("/") if part in METRIC_INFO), None)


class StageMetrics(nn.Module):
    """All metrics of one stage, and its mean loss, gathered batch by batch and computed once.

    Training has the counted metrics only: the ranked ones would keep every score of the epoch.
    """

    def __init__(self, schema: Schema, stage: str) -> None:
        super().__init__()
        self.names = schema.class_names or schema.target_names
        self.decides = schema.task in ("binary", "multilabel")
        self.loss = MeanLoss()
        self.ranked = (
            RankingMetrics(schema.num_outputs)
            if schema.task != "regression" and stage != "train"
            else None
        )
        self.counted = (
            MetricCollection({"errors": RegressionErrors(schema.target_mean)})
            if schema.task == "regression"
            else MetricCollection(_COUNTED[schema.task](len(schema.class_names)))
        )

    def update(
        self,
        preds: Tensor,
        target: Tensor,
        loss: Tensor,
        weight: Tensor,
        thresholds: tuple[float, ...] = DEFAULT_THRESHOLD,
    ) -> None:
        """Take in some batches: what ``Model.predict_proba`` made of their rows, the rows' targets, and of each batch the
        mean loss and that mean's weight; and above which probability a row is of the positive class, or has a label: one
        threshold, or one for each label.
        """
        if (
            self.ranked is not None
        ):  # an empty shard too: all processes gather their scores together at the end
            self.ranked.update(preds, target)
        if len(target):
            if self.decides:  # here, since torchmetrics takes one threshold for all labels
                preds = (
                    preds > (preds.new_tensor(thresholds) if len(thresholds) > 1 else thresholds[0])
                ).long()
            self.counted.update(preds, target)
            self.loss.update(loss, weight)

    def metric_state_dict(self) -> dict[str, Tensor]:
        """What has been counted so far, for another process to go on from."""
        return {
            f"{i}.{name}": value
            for i, metric in enumerate(self._metrics())
            for name, value in cast(dict[str, Tensor], metric.metric_state).items()
        }

    def load_metric_state(self, sums: dict[str, Tensor]) -> None:
        for i, metric in enumerate(self._metrics()):
            for name in metric.metric_state:
                setattr(metric, name, sums[f"{i}.{name}"].to(metric.device))

    def _metrics(self) -> list[Metric]:
        counted = cast(list[Metric], list(self.counted.values(copy_state=False)))
        assert self.ranked is None, "its lists of scores are not kept"
        return [self.loss, *counted]

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
            flat |= {
                f"{key.removesuffix('/')}/{name}": v for name, v in zip(names, value, strict=True)
            }
    return flat


def _binary(_: int) -> dict[str, Any]:
    return {
        "accuracy": BinaryAccuracy(validate_args=False),
        "precision": BinaryPrecision(validate_args=False),
        "recall": BinaryRecall(validate_args=False),
        "f1": BinaryF1Score(validate_args=False),
    }


def _multiclass(classes: int) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False)
    }
    averages: dict[str, Literal["macro", "none"]] = {"": "macro", "/": "none"}
    for key, average in averages.items():
        metrics[f"precision{key}"] = MulticlassPrecision(
            classes, average=average, validate_args=False
        )
        metrics[f"recall{key}"] = MulticlassRecall(classes, average=average, validate_args=False)
        metrics[f"f1{key}"] = MulticlassF1Score(classes, average=average, validate_args=False)
    return metrics


def _multilabel(labels: int) -> dict[str, Any]:
    metrics: dict[str, Any] = {"accuracy": MultilabelExactMatch(labels, validate_args=False)}
    averages: dict[str, Literal["macro", "none"]] = {"": "macro", "/": "none"}
    for key, average in averages.items():
        metrics[f"precision{key}"] = MultilabelPrecision(
            labels, average=average, validate_args=False
        )
        metrics[f"recall{key}"] = MultilabelRecall(labels, average=average, validate_args=False)
        metrics[f"f1{key}"] = MultilabelF1Score(labels, average=average, validate_args=False)
    return metrics


_COUNTED = {"binary": _binary, "multiclass": _multiclass, "multilabel": _multilabel}
