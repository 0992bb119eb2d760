"""Fit a standard learner to every target of a task."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from proj.engine.baselines.boosting import CatBoost, LightGBM, XGBoost
from proj.engine.baselines.features import features_of, is_flat
from proj.engine.baselines.learners import Fitted, HistGradientBoosting, Learner, Linear, Problem
from proj.engine.evaluation.baseline import constant_output
from proj.schema import Array, Batch, Schema, mean_and_std

# The name, title and estimators of the constant, which is computed from counts and means.
CONSTANT, CONSTANT_TITLE = "constant", "constant"
CONSTANT_CLASSES = ("sklearn.dummy.DummyClassifier", "sklearn.dummy.DummyRegressor")
# Threads of OpenMP wait for each other after each step of a tree. On a busy machine that takes
# longer than the work on fewer values (rows × columns).
MIN_PARALLEL_VALUES = 2_000_000


class FittedBaseline(NamedTuple):
    """A fitted baseline.

    Attributes:
        name: ending of its run's name, such as ``linear``.
        title: its name for readers.
        class_path: import path of the estimator.
        settings: arguments of the estimator; lists where they differ between several targets.
        trees: boosting rounds of each target; empty without trees.
        predict: returns outputs in the shape of ``PredictionSet.output`` for a split.
    """

    name: str
    title: str
    class_path: str
    settings: dict[str, Any]
    trees: list[int]
    predict: Callable[[Batch], Array]


def learners_for(schema: Schema) -> tuple[list[Learner], list[Learner]]:
    """Return the learners for the inputs of a schema: installed ones, and others.

    Boosting takes columns. Of images and other arrays, a linear model is fitted only.
    """
    learners = [Linear(), HistGradientBoosting(), LightGBM(), XGBoost(), CatBoost()]
    fitting = [one for one in learners if is_flat(schema) or not one.needs_columns]
    installed = [one for one in fitting if find_spec(one.package[1]) is not None]
    return installed, [one for one in fitting if one not in installed]


def constant(train: Batch, schema: Schema) -> FittedBaseline:
    """Return the baseline that predicts the class frequencies or mean targets of training."""
    output = constant_output(_with_statistics(train, schema))
    is_number = schema.task == "regression"
    return FittedBaseline(
        CONSTANT,
        CONSTANT_TITLE,
        CONSTANT_CLASSES[is_number],
        {"strategy": "mean" if is_number else "prior"},
        [],
        lambda batch: np.tile(output, (len(batch.row), *[1] * output.ndim)),
    )


def _with_statistics(train: Batch, schema: Schema) -> Schema:
    """Return the schema with the statistics of the training split, which it may not have."""
    y, weight = targets_of(train), weights_of(train)
    if schema.task == "regression":
        mean, std = mean_and_std([y])
        if weight is not None:
            mean = tuple(np.average(y, axis=0, weights=weight).tolist())
        return replace(schema, rows=len(y), target_mean=mean, target_std=std)
    if schema.task == "multilabel":
        counts = y.sum(axis=0) if weight is None else weight @ y
    else:
        counts = np.bincount(y, weight, len(schema.classes))
    exact = counts.astype(np.int64) if weight is None else counts
    return replace(schema, rows=len(y), class_counts=tuple(exact.tolist()))


def fit_baseline(
    learner: Learner, train: Batch, val: Batch, schema: Schema, seed: int
) -> FittedBaseline:
    """Fit a learner to each target of the training split; the validation split may be empty."""
    features = features_of(train, schema)
    encode = learner.encoder(features)
    x, x_val = encode(features), encode(features_of(val, schema)) if len(val.row) else None
    y, y_val = targets_of(train), targets_of(val)
    several = schema.task in ("multilabel", "regression")
    columns = zip(y.T, y_val.T, strict=True) if several else [(y, y_val)]
    classes = {"regression": 0, "multiclass": len(schema.classes)}.get(schema.task, 2)
    weights = weights_of(train), weights_of(val)
    threads = 1 if np.prod(x.shape) < MIN_PARALLEL_VALUES else None
    fitted = []
    for target, target_val in columns:
        held_out = None if x_val is None else (x_val, target_val)
        with threadpool_limits(threads, "openmp"):
            problem = Problem(x, target, held_out, classes, seed, threads, *weights)
            fitted.append(_fit_one(learner, problem))

    def predict(batch: Batch) -> Array:
        inputs = encode(features_of(batch, schema))
        with threadpool_limits(threads, "openmp"):
            output = _joined([one.predict(inputs) for one in fitted], schema)
        # As the numbers of nets: see `Regressor`.
        return output.clip(schema.target_low, schema.target_high) if schema.target_low else output

    settings = _joined_settings([one.settings for one in fitted])
    trees = [one.trees for one in fitted if one.trees is not None]
    class_path = learner.class_paths[schema.task == "regression"]
    return FittedBaseline(learner.name, learner.title, class_path, settings, trees, predict)


def _fit_one(learner: Learner, problem: Problem) -> Fitted:
    """Fit a learner to one target, whose training rows may lack some of the classes.

    A class without a training row gets probability 0, and a single class 1.
    """
    if not problem.classes:
        return learner.fit(problem)
    present, y = np.unique(problem.y, return_inverse=True)
    if len(present) == 1:
        only = np.eye(problem.classes)[present]
        return Fitted(lambda x: np.repeat(only, x.shape[0], axis=0), {})
    val, val_weight = None, None
    if problem.val is not None and (known := np.isin(problem.val[1], present)).any():
        x_val, y_val = problem.val
        val = (x_val[known], np.searchsorted(present, y_val[known]))
        val_weight = None if problem.val_weight is None else problem.val_weight[known]
    present_only = problem._replace(y=y, val=val, val_weight=val_weight, classes=len(present))
    fitted = learner.fit(present_only)
    if len(present) == problem.classes:
        return fitted

    def predict(x: Any) -> Array:
        probability = np.zeros((x.shape[0], problem.classes))
        probability[:, present] = fitted.predict(x)
        return probability

    return fitted._replace(predict=predict)


def _joined(outputs: list[Array], schema: Schema) -> Array:
    """Return the outputs of all targets in the shape of ``PredictionSet.output``."""
    if schema.task == "regression":
        return np.stack(outputs, axis=1)
    if schema.task == "multiclass":
        return outputs[0]
    positive = np.stack([output[:, 1] for output in outputs], axis=1)
    return positive[:, 0] if schema.task == "binary" else positive


def _joined_settings(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one value for each setting, or a list of values if targets have different ones."""
    joined = {}
    for key in dict.fromkeys(key for one in settings for key in one):
        values = [one.get(key) for one in settings]
        joined[key] = values[0] if all(value == values[0] for value in values) else values
    return joined


def targets_of(batch: Batch) -> Array:
    assert isinstance(batch.y, Tensor)
    return np.asarray((batch.y.long() if batch.y.dtype == torch.uint8 else batch.y).numpy())


def weights_of(batch: Batch) -> Array | None:
    """Return the weights of rows, divided by their mean; None for rows without."""
    if batch.weight is None:
        return None
    weight = batch.weight.double().numpy()
    return np.asarray(weight / weight.mean()) if len(weight) else weight
