"""Gradient boosting by LightGBM, XGBoost and CatBoost, where they are installed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from proj.engine.baselines.features import Features, TreeEncoder
from proj.engine.baselines.learners import MAX_TREES, PATIENCE, Fitted, Learner, Problem
from proj.schema import Array

# The packages are optional and are imported where they are used.


class Boosting(Learner):
    """A package of gradient boosting with its default settings, stopped by the validation loss."""

    needs_columns = True

    def encoder(self, train: Features) -> Callable[[Features], Any]:
        encoder = TreeEncoder(train)
        self.categories = encoder.categories
        return encoder


class LightGBM(Boosting):
    """LightGBM (Ke et al. 2017)."""

    name, title, package = "lightgbm", "LightGBM", ("lightgbm", "lightgbm")
    class_paths = ("lightgbm.LGBMClassifier", "lightgbm.LGBMRegressor")

    def fit(self, problem: Problem) -> Fitted:
        import lightgbm

        settings: dict[str, Any] = {"random_state": problem.seed, "deterministic": True}
        settings |= {"force_row_wise": True, "verbosity": -1}
        options: dict[str, Any] = {}
        problem, scale = _standardized(problem)
        if problem.val is not None:
            settings["n_estimators"] = MAX_TREES
            options |= dict(zip(("eval_X", "eval_y"), problem.val, strict=True))
            if problem.val_weight is not None:
                options["eval_sample_weight"] = [problem.val_weight]
            options["callbacks"] = [lightgbm.early_stopping(PATIENCE, verbose=False)]
        kind = lightgbm.LGBMClassifier if problem.classes else lightgbm.LGBMRegressor
        columns = np.flatnonzero(self.categories).tolist()
        estimator = kind(**settings, n_jobs=problem.threads)
        options["sample_weight"] = problem.weight
        estimator.fit(problem.x, problem.y, categorical_feature=columns, **options)
        # The scikit-learn interface warns of matrices without names of columns.
        booster, best = estimator.booster_, estimator.best_iteration_ or None

        def predict(x: Any) -> Array:
            output = np.asarray(booster.predict(x, num_iteration=best))
            return _two_columns(output) if problem.classes == 2 else scale(output)

        return Fitted(predict, settings, int(best or booster.num_trees()))


class XGBoost(Boosting):
    """XGBoost (Chen and Guestrin 2016)."""

    name, title, package = "xgboost", "XGBoost", ("xgboost", "xgboost")
    class_paths = ("xgboost.XGBClassifier", "xgboost.XGBRegressor")

    def fit(self, problem: Problem) -> Fitted:
        import xgboost

        settings: dict[str, Any] = {"random_state": problem.seed, "tree_method": "hist"}
        settings["enable_categorical"] = True
        options: dict[str, Any] = {}
        problem, scale = _standardized(problem)
        if problem.val is not None:
            settings |= {"n_estimators": MAX_TREES, "early_stopping_rounds": PATIENCE}
            options["eval_set"] = [problem.val]
            if problem.val_weight is not None:
                options["sample_weight_eval_set"] = [problem.val_weight]
        kind = xgboost.XGBClassifier if problem.classes else xgboost.XGBRegressor
        types = ["c" if is_category else "q" for is_category in self.categories]
        estimator = kind(**settings, feature_types=types, n_jobs=problem.threads)
        options["sample_weight"] = problem.weight
        estimator.fit(problem.x, problem.y, verbose=False, **options)

        def predict(x: Any) -> Array:
            return np.asarray(
                estimator.predict_proba(x) if problem.classes else scale(estimator.predict(x)),
                np.float64,
            )

        has_stopped = problem.val is not None
        trees = estimator.best_iteration + 1 if has_stopped else estimator.get_num_boosting_rounds()
        return Fitted(predict, settings, int(trees))


class CatBoost(Boosting):
    """CatBoost (Prokhorenkova et al. 2018)."""

    name, title, package = "catboost", "CatBoost", ("catboost", "catboost")
    class_paths = ("catboost.CatBoostClassifier", "catboost.CatBoostRegressor")

    def fit(self, problem: Problem) -> Fitted:
        import catboost

        settings: dict[str, Any] = {"random_seed": problem.seed, "verbose": False}
        settings["allow_writing_files"] = False
        problem, scale = _standardized(problem)
        options: dict[str, Any] = {}
        if problem.val is not None:
            settings |= {"iterations": MAX_TREES, "early_stopping_rounds": PATIENCE}
            options["eval_set"] = self._pool(*problem.val, problem.val_weight)
        kind = catboost.CatBoostClassifier if problem.classes else catboost.CatBoostRegressor
        estimator = kind(**settings, thread_count=problem.threads)
        estimator.fit(self._pool(problem.x, problem.y, problem.weight), **options)

        def predict(x: Any) -> Array:
            data = self._pool(x)
            return np.asarray(
                estimator.predict_proba(data) if problem.classes else scale(estimator.predict(data))
            )

        return Fitted(predict, settings, int(estimator.tree_count_))

    def _pool(self, x: Array, y: Array | None = None, weight: Array | None = None) -> Any:
        """Return rows as numbers and categories; a category is text, here its code."""
        import catboost

        numbers = np.ascontiguousarray(x[:, ~self.categories])
        codes = np.nan_to_num(x[:, self.categories], nan=-1).astype(np.int64)
        texts = codes.astype("S").astype(object)
        data = catboost.FeaturesData(
            num_feature_data=numbers if numbers.shape[1] else None,
            cat_feature_data=texts if texts.shape[1] else None,
        )
        return catboost.Pool(data, y, weight=weight)


def _standardized(problem: Problem) -> tuple[Problem, Callable[[Array], Array]]:
    """Return the problem with numbers of mean 0 and standard deviation 1, and the way back.

    The packages compute with targets in float32, which would round large ones.
    """
    if problem.classes:
        return problem, lambda output: output
    mean, std = problem.y.mean(), problem.y.std() or 1.0
    val = None if problem.val is None else (problem.val[0], (problem.val[1] - mean) / std)
    scaled = problem._replace(y=(problem.y - mean) / std, val=val)
    return scaled, lambda output: output.astype(np.float64) * std + mean


def _two_columns(positive: Array) -> Array:
    return np.stack([1 - positive, positive], axis=1)
