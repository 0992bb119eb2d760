"""Metrics against scikit-learn, on the predictions that `test` wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn import metrics as sk

from conftest import Cli, plain_schema
from proj.metrics import METRIC_INFO, metric_info
from proj.metrics.stage import RegressionErrors, StageMetrics, ranking_areas
from proj.schema import Average


def columns(table: pl.DataFrame, start: str) -> np.ndarray[Any, Any]:
    return table.select(pl.col(f"^{start}.*$")).to_numpy()


def single(name: str, classes: list[str], score: Any) -> dict[str, float]:
    return {f"{name}/{c}": v for c, v in zip(classes, score, strict=True)}


def expected(task: str, table: pl.DataFrame) -> dict[str, float]:
    """What scikit-learn makes of the predictions file."""
    if task.startswith("regression"):
        target, prediction = columns(table, "target"), columns(table, "prediction")
        values: dict[str, float] = {}
        scores = {
            "mse": sk.mean_squared_error,
            "rmse": sk.root_mean_squared_error,
            "mae": sk.mean_absolute_error,
            "r2": sk.r2_score,
        }
        for name, score in scores.items():
            values[name] = score(target, prediction)
            if target.shape[1] > 1:
                per_target = score(target, prediction, multioutput="raw_values")
                values |= single(name, ["target_0", "target_1"], per_target)
        return values
    if task == "multilabel":
        target, prediction = columns(table, "target"), columns(table, "prediction")
        probability, classes = columns(table, "probability"), [f"target_{i}" for i in range(3)]
    else:
        target, prediction = table["target"].to_numpy(), table["prediction"].to_numpy()
        classes = [
            c.removeprefix("probability_") for c in table.columns if c.startswith("probability_")
        ]
        probability = columns(table, "probability")
    values = {"accuracy": sk.accuracy_score(target, prediction)}
    hits = target
    if task == "binary":
        options: dict[str, Any] = {"average": "binary", "pos_label": "yes"}
        probability, hits = probability[:, 1:], (target == "yes").astype(int)[:, None]
    else:
        options = {"average": "macro", "zero_division": 0}
        if task == "multiclass":
            hits = target[:, None] == np.unique(target)
    for name, score in (
        ("precision", sk.precision_score),
        ("recall", sk.recall_score),
        ("f1", sk.f1_score),
    ):
        values[name] = score(target, prediction, **options)
        if task != "binary":
            values |= single(
                name, classes, score(target, prediction, average=None, zero_division=0)
            )
    for name, score in (
        ("auroc", sk.roc_auc_score),
        ("average_precision", sk.average_precision_score),
    ):
        per_target = [score(hits[:, i], probability[:, i]) for i in range(probability.shape[1])]
        values[name] = float(np.mean(per_target))
        if task != "binary":
            values |= single(name, classes, per_target)
    if task == "multiclass":
        values["loss"] = sk.log_loss(target, probability)
    if task == "binary":
        values["loss"] = sk.log_loss(hits[:, 0], probability[:, 0])
    return values


@pytest.mark.long
@pytest.mark.parametrize(
    "task", ["binary", "multiclass", "multilabel", "regression", "regression_2"]
)
def test_metrics_equal_scikit_learns_on_the_predictions_file(
    task: str, experiment: Any, cli: Cli
) -> None:
    """Whatever the batch size; 60 test rows do not divide by 7 or 16."""
    config = experiment(task, 200, data={"val_fraction": 0.2, "test_fraction": 0.3})
    cli("fit", "--config", config)
    folder = Path("lightning_logs/version_0/test")
    for batch_size in (1, 7, 16, 64):
        cli("test", "--data.batch_size", str(batch_size))
        got = {
            name: entry["value"]
            for name, entry in json.loads((folder / "metrics.json").read_text()).items()
        }
        table = pl.read_parquet(folder / "predictions.parquet")
        assert table.height == 60
        assert table["row"].n_unique() == 60
        want = expected(task, table)
        assert want.keys() <= got.keys()
        assert got.keys() - want.keys() <= {"loss"}
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=1e-6, abs=1e-6), (name, batch_size)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_averages_equal_scikit_learns(task: str, average: Average) -> None:
    rng = np.random.default_rng(0)
    hits = rng.random((200, 3)) < [0.6, 0.3, 0.1]
    target = hits.astype(int) if task == "multilabel" else rng.choice(3, 200, p=[0.6, 0.3, 0.1])
    hits = hits if task == "multilabel" else target[:, None] == np.arange(3)
    scores = np.exp(rng.normal(size=(200, 3)) + hits)
    scores = scores / (1 + scores) if task == "multilabel" else scores / scores.sum(1)[:, None]
    predicted = (scores > 0.5).astype(int) if task == "multilabel" else scores.argmax(1)
    metrics = StageMetrics(plain_schema(task, (1,), 3), "test", average=average)
    tensors = map(torch.from_numpy, (scores, target))
    metrics.update(*tensors, torch.zeros(1), torch.ones(1))
    got = metrics.compute()
    for name, score in (
        ("precision", sk.precision_score),
        ("recall", sk.recall_score),
        ("f1", sk.f1_score),
    ):
        want = score(target, predicted, average=average, zero_division=0)
        assert got[name].item() == pytest.approx(want, abs=1e-6), name
    for name, score in (
        ("auroc", sk.roc_auc_score),
        ("average_precision", sk.average_precision_score),
    ):
        want = score(hits.astype(int), scores, average=average)
        assert got[name].item() == pytest.approx(want, abs=1e-12), name


def test_predictions_hold_the_targets_of_the_source(experiment: Any, cli: Cli) -> None:
    """`row` is the number in the source, and labels are the user's own."""
    config = experiment("binary")
    cli("fit", "--config", config)
    cli("test")
    table = pl.read_parquet("lightning_logs/version_0/test/predictions.parquet")
    source = np.load("data.npz")["y"]
    assert table["target"].to_list() == source[table["row"].to_numpy()].tolist()
    assert table.columns == ["row", "target", "prediction", "probability_no", "probability_yes"]
    assert table["row"].is_sorted()


@pytest.mark.parametrize("levels", [3, 1000])
def test_ranked_areas_equal_scikit_learns_with_ties(levels: int) -> None:
    rng = np.random.default_rng(0)
    score, hit = rng.integers(levels, size=5000) / levels, rng.random(5000) < 0.3
    auroc, precision = ranking_areas(torch.from_numpy(score), torch.from_numpy(hit).long()).tolist()
    assert auroc == pytest.approx(sk.roc_auc_score(hit, score), abs=1e-12)
    assert precision == pytest.approx(sk.average_precision_score(hit, score), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_areas_of_scores_that_are_sorted_in_parts_equal_scikit_learns(dtype: Any) -> None:
    """The parts begin between scores. Ties across a border would be counted as two thresholds."""
    rng = np.random.default_rng(0)
    score = rng.normal(size=1_000_000).astype(dtype)
    score[::5] = score[::5].round(1)
    score[::7] = 1e9
    score[::11] = -1e9
    hit = rng.random(len(score)) < 1 / (1 + np.exp(-np.clip(score, -3, 3)))
    auroc, precision = ranking_areas(torch.from_numpy(score), torch.from_numpy(hit)).tolist()
    assert auroc == pytest.approx(sk.roc_auc_score(hit, score), abs=1e-12)
    assert precision == pytest.approx(sk.average_precision_score(hit, score), abs=1e-12)


@pytest.mark.parametrize("hits", [[0, 0, 0], [1, 1, 1], []])
def test_an_area_that_is_not_defined_is_nan(hits: list[int]) -> None:
    areas = ranking_areas(torch.linspace(0, 1, len(hits)), torch.tensor(hits, dtype=torch.long))
    assert areas.isnan().all()


def test_r2_keeps_its_digits_far_from_zero_and_for_tiny_units() -> None:
    """torchmetrics takes a target of little variation for constant and cancels far from zero."""
    rng = np.random.default_rng(0)
    for scale, offset in ((1e-4, 0.0), (1.0, 1e6)):
        target = offset + scale * rng.normal(size=(50, 1))
        predicted = target + 0.3 * scale * rng.normal(size=(50, 1))
        metric = RegressionErrors((offset,))
        metric.update(torch.from_numpy(predicted), torch.from_numpy(target))
        assert metric.compute()["r2"].item() == pytest.approx(
            sk.r2_score(target, predicted), abs=1e-6
        )


def test_r2_of_one_row_is_not_defined() -> None:
    metric = RegressionErrors((0.0,))
    metric.update(torch.ones(1, 1), torch.zeros(1, 1))
    assert metric.compute()["r2"].isnan().all()
    assert metric.compute()["mse"].item() == 1.0


def test_the_table_knows_a_metric_with_its_stage_and_class() -> None:
    assert metric_info("val/f1/cat") is metric_info("f1") is METRIC_INFO["f1"]
    assert metric_info("val/rmse").mode == "min"
    assert metric_info("my_metric") is None
