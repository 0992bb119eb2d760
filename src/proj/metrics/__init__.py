"""The direction and unit of every metric.

``stage`` computes the metrics. It is not imported here, because ``runs`` needs no torch.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from proj.schema import Task


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
DEFAULT_MONITOR: dict["Task", str] = {
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
