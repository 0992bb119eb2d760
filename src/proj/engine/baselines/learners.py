"""The standard learners: what each fits to one target, and with which settings."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error

from proj.engine.baselines.features import Features, LinearEncoder, TreeEncoder
from proj.schema import Array

# Values of the inverse regularization strength C, tried from the strongest regularization on while
# the validation loss falls. Ridge's alpha is 1/C.
LINEAR_C = tuple(10.0**power for power in range(-3, 3))
RIDGE_ALPHA = tuple(10.0**power for power in range(5, -3, -1))
DEFAULT_C, DEFAULT_ALPHA = 1.0, 1.0
# Trees at most, and how many of them without a better validation loss end the training.
MAX_TREES, PATIENCE = 1000, 10
MAX_LINEAR_ITERATIONS = 100
# Of a larger training split, random rows with so many values (rows × columns) choose the strength.
MAX_SEARCH_VALUES = 5_000_000


class Problem(NamedTuple):
    """One target to learn.

    Attributes:
        x: encoded inputs of the training split [rows, columns].
        y: class numbers from 0, or numbers [rows].
        val: the same of the validation split; None if it has no rows.
        classes: number of classes; 0 for a number.
        seed: of every random choice.
        threads: number of threads of packages without OpenMP; None means one for each processor.
        weight: weights of the training rows [rows]; None weights all equally.
        val_weight: those of the validation rows.
    """

    x: Any
    y: Array
    val: tuple[Any, Array] | None
    classes: int
    seed: int
    threads: int | None
    weight: Array | None = None
    val_weight: Array | None = None


class Fitted(NamedTuple):
    """A learner after fitting.

    Attributes:
        predict: returns probabilities of the classes [rows, classes], or numbers [rows].
        settings: the arguments of the estimator that differ from its defaults.
        trees: the number of boosting rounds that are used; None without trees.
    """

    predict: Callable[[Any], Array]
    settings: dict[str, Any]
    trees: int | None = None


class Learner(ABC):
    """A kind of standard learner.

    Attributes:
        name: ending of the names of its runs.
        title: its name for readers.
        package: distribution and module that it comes from.
        class_paths: import paths of the estimators for classes and for numbers.
        needs_columns: whether it takes columns only, no images.
    """

    name: str
    title: str
    package: tuple[str, str] = ("scikit-learn", "sklearn")
    class_paths: tuple[str, str]
    needs_columns = False

    @abstractmethod
    def encoder(self, train: Features) -> Callable[[Features], Any]:
        """Return the function from inputs to the matrix that the learner takes."""

    @abstractmethod
    def fit(self, problem: Problem) -> Fitted:
        """Fit the learner to one target."""


class Linear(Learner):
    """Logistic regression or ridge regression, with the strength that validation rows choose."""

    name, title = "linear", "linear model"
    class_paths = ("sklearn.linear_model.LogisticRegression", "sklearn.linear_model.Ridge")

    def encoder(self, train: Features) -> Callable[[Features], Any]:
        return LinearEncoder(train)

    def fit(self, problem: Problem) -> Fitted:
        part, best_loss, best = _search_part(problem), np.inf, None
        for settings in self._candidates(problem):
            estimator = _fit_linear(part, settings)
            loss = _validation_loss(problem, estimator)
            # The loss has one minimum, and weaker regularization takes longest.
            if best is not None and loss >= best_loss:
                break
            best_loss, best = loss, (estimator, settings)
        assert best is not None
        estimator, settings = best
        if part is not problem:
            estimator = _fit_linear(problem, settings)
        return Fitted(_predictor(problem, estimator), settings)

    def _candidates(self, problem: Problem) -> Iterator[dict[str, Any]]:
        common = {"max_iter": MAX_LINEAR_ITERATIONS} if problem.classes else {}
        key, values = ("C", LINEAR_C) if problem.classes else ("alpha", RIDGE_ALPHA)
        if problem.val is None:
            values = (DEFAULT_C if problem.classes else DEFAULT_ALPHA,)
        for value in values:
            yield {key: value, **common}


def _search_part(problem: Problem) -> Problem:
    """Return the problem, or a random part of a large one that has all of its classes."""
    rows, columns = problem.x.shape
    size = MAX_SEARCH_VALUES // columns
    if problem.val is None or rows <= size:
        return problem
    chosen = np.random.default_rng(problem.seed).permutation(rows)[: max(1, size)]
    if problem.classes:
        # scikit-learn has no probability for a class that it has not seen.
        chosen = np.union1d(chosen, np.unique(problem.y, return_index=True)[1])
    chosen = np.sort(chosen)
    weight = None if problem.weight is None else problem.weight[chosen]
    return problem._replace(x=problem.x[chosen], y=problem.y[chosen], weight=weight)


def _fit_linear(problem: Problem, settings: dict[str, Any]) -> Any:
    estimator = LogisticRegression(**settings) if problem.classes else Ridge(**settings)
    with warnings.catch_warnings():
        # Weights that still grow after so many iterations no longer change the loss.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(problem.x, problem.y, sample_weight=problem.weight)


def _predictor(problem: Problem, estimator: Any) -> Callable[[Any], Array]:
    predict: Callable[[Any], Array]
    predict = estimator.predict_proba if problem.classes else estimator.predict
    return predict


def _validation_loss(problem: Problem, estimator: Any) -> float:
    if problem.val is None:
        return 0.0
    (x, y), weight = problem.val, problem.val_weight
    predicted = _predictor(problem, estimator)(x)
    if problem.classes:
        labels = np.arange(problem.classes)
        return float(log_loss(y, predicted, labels=labels, sample_weight=weight))
    return float(mean_squared_error(y, predicted, sample_weight=weight))


class HistGradientBoosting(Learner):
    """scikit-learn's gradient boosting on histograms, stopped by the validation loss."""

    name, title = "hist_gradient_boosting", "HistGradientBoosting"
    class_paths = (
        "sklearn.ensemble.HistGradientBoostingClassifier",
        "sklearn.ensemble.HistGradientBoostingRegressor",
    )
    needs_columns = True

    def encoder(self, train: Features) -> Callable[[Features], Any]:
        encoder = TreeEncoder(train)
        self.categories = encoder.categories
        return encoder

    def fit(self, problem: Problem) -> Fitted:
        kind = HistGradientBoostingClassifier if problem.classes else HistGradientBoostingRegressor
        settings: dict[str, Any] = {"early_stopping": False, "random_state": problem.seed}
        val: dict[str, Any] = {}
        if problem.val is not None:
            settings["early_stopping"] = True
            settings |= {"max_iter": MAX_TREES, "n_iter_no_change": PATIENCE}
            val = dict(zip(("X_val", "y_val"), problem.val, strict=True))
            val["sample_weight_val"] = problem.val_weight
        estimator = kind(**settings, categorical_features=self.categories)
        estimator.fit(problem.x, problem.y, problem.weight, **val)
        return Fitted(_predictor(problem, estimator), settings, int(estimator.n_iter_))
