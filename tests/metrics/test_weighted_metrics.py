"""Metrics of rows with weights are those of scikit-learn, and a weight of 2 is a doubled row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from conftest import plain_schema
from proj.errors import UserError
from proj.metrics.stage import StageMetrics
from proj.schema import Average, Schema

TASKS = ("binary", "multiclass", "multilabel", "regression")
OUTPUTS = {"binary": 1, "multiclass": 4, "multilabel": 3, "regression": 2}


def rows_of(task: str, count: int = 200) -> tuple[Schema, Any, Any]:
    """Return a schema for weights, predictions with ties, and targets."""
    rng = np.random.default_rng(3)
    schema = replace(plain_schema(task, (1,), OUTPUTS[task]), weight_mean=1.0)
    if task == "regression":
        target = rng.normal(50, 3, (count, 2))
        return schema, target + rng.normal(size=(count, 2)), target
    if task == "multiclass":
        odds = rng.integers(1, 9, (count, 4)).astype(float)
        return schema, odds / odds.sum(1, keepdims=True), rng.integers(0, 4, count)
    shape = (count,) if task == "binary" else (count, 3)
    return schema, rng.integers(0, 9, shape) / 8.5, rng.integers(0, 2, shape)


def computed(
    schema: Schema, output: Any, target: Any, weight: Any, average: Average, size: int = 60
) -> dict[str, float]:
    metrics = StageMetrics(schema, "test", average=average)
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        tensors = (torch.from_numpy(values[part]) for values in (output, target))
        zero, one = torch.zeros(1), torch.ones(1, 2, dtype=torch.float64)
        metrics.update(*tensors, zero, one, row_weights=torch.from_numpy(weight[part]))
    return {name: value.item() for name, value in metrics.compute().items()}


def reference(task: str, output: Any, target: Any, weight: Any, average: str) -> dict[str, float]:
    """Return the metrics by scikit-learn."""
    options = {"sample_weight": weight}
    if task == "regression":
        return {
            "mse": sklearn_metrics.mean_squared_error(target, output, **options),
            "mae": sklearn_metrics.mean_absolute_error(target, output, **options),
            "r2": sklearn_metrics.r2_score(target, output, **options),
            "rmse/a": sklearn_metrics.root_mean_squared_error(
                target[:, 0], output[:, 0], **options
            ),
        }
    decided = output.argmax(1) if task == "multiclass" else (output > 0.5).astype(int)
    hits = np.eye(4)[target] if task == "multiclass" else target
    values = {"accuracy": sklearn_metrics.accuracy_score(target, decided, **options)}
    mean = "binary" if task == "binary" else average
    for name in ("precision", "recall", "f1"):
        score = getattr(sklearn_metrics, f"{name}_score")
        values[name] = score(target, decided, average=mean, zero_division=0, **options)
    values["auroc"] = sklearn_metrics.roc_auc_score(hits, output, average=average, **options)
    values["average_precision"] = sklearn_metrics.average_precision_score(
        hits, output, average=average, **options
    )
    return values


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("task", TASKS)
def test_metrics_are_those_of_scikit_learn(task: str, average: Average) -> None:
    """Weights must enter each metric, each average and each class, weights of 0 among them."""
    schema, output, target = rows_of(task)
    weight = np.random.default_rng(5).choice([0.0, 0.25, 1.0, 7.5], len(target))
    values = computed(schema, output, target, weight, average)
    expected = reference(task, output, target, weight, average)
    if task == "regression":
        expected = {
            name.replace("/a", f"/{schema.target_names[0]}"): v for name, v in expected.items()
        }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_a_weight_of_2_is_a_doubled_row(task: str) -> None:
    """Integer weights give the metrics of repeated rows, computed by torchmetrics."""
    schema, output, target = rows_of(task)
    times = np.random.default_rng(7).integers(0, 4, len(target))
    weighted = computed(schema, output, target, times.astype(float), "macro")
    plain = StageMetrics(replace(schema, weight_mean=0.0), "test")
    repeated = (torch.from_numpy(values.repeat(times, axis=0)) for values in (output, target))
    plain.update(*repeated, torch.zeros(1), torch.ones(1))
    expected = {name: value.item() for name, value in plain.compute().items()}
    assert weighted == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("task", TASKS)
def test_the_bits_do_not_depend_on_the_batches(task: str) -> None:
    """Several steps in one execution must log the bits of single steps."""
    schema, output, target = rows_of(task)
    weight = np.random.default_rng(9).random(len(target))
    several = [computed(schema, output, target, weight, "macro", size) for size in (7, 200)]
    assert several[0] == several[1]


def test_metrics_of_the_users_own_are_refused() -> None:
    """torchmetrics' metrics would ignore the weights without a word."""
    schema, *_ = rows_of("regression")
    with pytest.raises(UserError, match=r"model.metrics: expected none beside data.weight"):
        StageMetrics(schema, "val", {"own": torch.nn.Identity()})  # type: ignore[dict-item]
