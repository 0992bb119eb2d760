"""Intervals of the user's own metrics agree with those of metrics whose method is known."""

import numpy as np
import pytest
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError

from proj.engine.evaluation.intervals import intervals
from proj.engine.evaluation.own_metrics import own_intervals
from proj.engine.evaluation.prediction_set import PredictionSet


def classes(rows: int, seed: int = 0, count: int = 3) -> PredictionSet:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, count, rows)
    logits = rng.normal(size=(rows, count)) + 1.2 * np.eye(count)[target]
    output = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return PredictionSet("multiclass", ("a", "b", "c"), np.arange(rows), target, output)


def test_accuracy_agrees_with_the_closed_form() -> None:
    """The limits of a share over 400 rows are known by Wilson's formula."""
    predictions = classes(400)
    expected = intervals(predictions)["accuracy"]
    metric = MulticlassAccuracy(3, average="micro")
    got = dict(own_intervals({"own": metric}, predictions, 0))["own"]
    assert got.value == pytest.approx(expected.value, abs=1e-6)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert got.method == "bootstrap (bias-corrected), 1000 resamples of rows"


def test_groups_are_drawn_as_a_whole() -> None:
    """Rows of one group repeat each other: the interval is that of the groups."""
    single = classes(100)
    repeated = PredictionSet(
        single.task,
        single.names,
        np.arange(400),
        single.target.repeat(4),
        single.output.repeat(4, axis=0),
        group=np.arange(100).repeat(4),
    )
    metric = MulticlassAccuracy(3, average="micro")
    alone = dict(own_intervals({"own": metric}, single, 0))["own"]
    grouped = dict(own_intervals({"own": metric}, repeated, 0))["own"]
    assert (grouped.low, grouped.high) == (alone.low, alone.high)
    assert "resamples of groups" in grouped.method


def test_a_metric_per_class_and_few_rows() -> None:
    """Each class has its interval; five rows or a metric that does not vary have none."""
    per_class = {"own": MulticlassAccuracy(3, average="none")}
    found = dict(own_intervals(per_class, classes(300), 0))
    assert list(found) == ["own/a", "own/b", "own/c"]
    assert all(one.low < one.value < one.high for one in found.values())
    few = dict(own_intervals(per_class, classes(4), 0))
    assert {one.why for one in few.values()} == {"too few rows (4) to estimate its variance"}
    rows = np.arange(50)
    perfect = PredictionSet("binary", ("n", "p"), rows, rows % 2, (rows % 2).astype(float))
    one = dict(own_intervals({"own": BinaryAccuracy()}, perfect, 0))["own"]
    assert (one.value, one.low) == (1.0, None)
    assert "does not vary" in one.why


@pytest.mark.slow
def test_coverage() -> None:
    """About 95 of 100 intervals hold the true value."""
    rng, hits, count = np.random.default_rng(0), 0, 300
    for seed in range(count):
        error = rng.exponential(size=(80, 1))
        predictions = PredictionSet("regression", ("y",), np.arange(80), np.zeros((80, 1)), error)
        one = dict(own_intervals({"own": MeanAbsoluteError()}, predictions, seed))["own"]
        hits += one.low < 1.0 < one.high
    assert 0.91 <= hits / count <= 0.98
