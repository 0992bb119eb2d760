"""The simplest baseline equals scikit-learn's DummyClassifier and DummyRegressor."""

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.dummy import DummyClassifier, DummyRegressor

from conftest import Cli, Trained, plain_schema
from proj.engine.console import signed
from proj.engine.evaluation.baseline import constant_baseline
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.schema import Schema


def schema_of(task: str, outputs: int, **fields: Any) -> Schema:
    """A schema that knows its training split, of 100 rows."""
    return Schema.from_dict({**plain_schema(task, (1,), outputs).to_dict(), "rows": 100, **fields})


@pytest.mark.parametrize("counts", [[94, 6], [6, 94]])
def test_the_most_frequent_class_of_two(counts: list[int]) -> None:
    """It is that of training, whatever is more frequent among the scored rows."""
    rng = np.random.default_rng(0)
    target = (rng.random(300) < 0.3).astype(np.int64)
    output = rng.random(300)
    predictions = PredictionSet(
        "binary", ("0", "1"), np.arange(300), target, output, thresholds=(0.9,)
    )
    baseline = constant_baseline(predictions, schema_of("binary", 1, class_counts=counts))
    assert baseline is not None
    train = np.repeat([0, 1], counts)
    dummy = DummyClassifier(strategy="most_frequent").fit(train[:, None], train)
    always = dummy.predict(target[:, None])
    assert baseline.scores == {
        "f1": pytest.approx(sk.f1_score(target, always, zero_division=0)),
        "accuracy": pytest.approx(sk.accuracy_score(target, always)),
    }
    assert baseline.run_scores["f1"] == pytest.approx(sk.f1_score(target, output > 0.9))
    assert baseline.prediction == f"always {counts[1] // 94}, the most frequent class in training"


def test_the_most_frequent_of_several_classes() -> None:
    """A macro average leaves out classes that are neither actual nor predicted."""
    rng = np.random.default_rng(0)
    target, output = rng.integers(3, size=200), rng.random((200, 4))
    predictions = PredictionSet("multiclass", tuple("0123"), np.arange(200), target, output)
    schema = schema_of("multiclass", 4, class_counts=[10, 50, 20, 20])
    baseline = constant_baseline(predictions, schema)
    assert baseline is not None
    always = np.ones(200, int)
    assert baseline.scores == {
        "f1": pytest.approx(sk.f1_score(target, always, average="macro", zero_division=0)),
        "accuracy": pytest.approx((target == 1).mean()),
    }
    assert str(baseline).startswith(
        "baseline, always 1, the most frequent class in training: f1 0.1"
    )
    difference = (predictions.predicted == target).mean() - (target == 1).mean()
    assert str(baseline).endswith(f"(this run: {signed(float(difference))})")


def test_the_most_frequent_value_of_each_label() -> None:
    """Exact match of the labels that more than half of the training rows have."""
    rng = np.random.default_rng(0)
    target = (rng.random((200, 3)) < [0.8, 0.3, 0.6]).astype(np.int64)
    predictions = PredictionSet(
        "multilabel", ("a", "b", "c"), np.arange(200), target, rng.random((200, 3))
    )
    baseline = constant_baseline(predictions, schema_of("multilabel", 3, class_counts=[80, 50, 51]))
    assert baseline is not None
    always = np.tile([1, 0, 1], (200, 1))
    assert baseline.scores == {
        "f1": pytest.approx(sk.f1_score(target, always, average="macro", zero_division=0)),
        "accuracy": pytest.approx((target == always).all(1).mean()),
    }
    assert "target_0, target_2" in baseline.prediction


@pytest.mark.parametrize("targets", [1, 2])
def test_the_mean_of_training(targets: int) -> None:
    """Not the mean of the scored rows, which is not known before."""
    rng = np.random.default_rng(0)
    train, target = rng.normal(5, 2, (100, targets)), rng.normal(6, 2, (80, targets))
    names = tuple("ab"[:targets])
    predictions = PredictionSet("regression", names, np.arange(80), target, target + 1)
    schema = schema_of("regression", targets, target_mean=train.mean(axis=0).tolist())
    baseline = constant_baseline(predictions, schema)
    assert baseline is not None
    always = DummyRegressor().fit(train, train).predict(target).reshape(80, targets)
    expected = np.mean(sk.root_mean_squared_error(target, always, multioutput="raw_values"))
    assert baseline.scores == {"rmse": pytest.approx(expected)}
    assert baseline.run_scores == {"rmse": pytest.approx(1.0)}


def test_without_a_training_split_or_finite_predictions_there_is_none() -> None:
    """A schema of the user's own has no counts, and a difference of NaN would be shown."""
    predictions = PredictionSet(
        "binary", ("0", "1"), np.arange(4), np.array([0, 1, 1, 0]), np.full(4, 0.5)
    )
    known = schema_of("binary", 1, class_counts=[60, 40])
    assert constant_baseline(predictions, known) is not None
    assert constant_baseline(predictions, plain_schema("binary", (1,), 1)) is None
    assert constant_baseline(predictions, schema_of("binary", 1)) is None
    predictions.output[0] = np.nan
    assert constant_baseline(predictions, known) is None


def test_the_baseline_is_printed_by_test(trained: Trained, cli: Cli) -> None:
    """An accuracy of 0.94 looks fine where always one class has 0.94, too."""
    trained("binary", 300)
    lines = cli("test").splitlines()
    (line,) = [line for line in lines if line.startswith("baseline, always")]
    assert "the most frequent class in training: f1 " in line
    assert ", accuracy 0." in line
