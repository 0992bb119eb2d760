"""Metrics of a table of predictions, by scikit-learn: a second opinion on the folds' own."""

import numpy as np
import polars as pl
from sklearn import metrics as sklearn


def scores(table: pl.DataFrame, model: str) -> dict[str, float]:
    """Metrics by name, of predictions as ``test`` writes them; the mean over the seeds, if there are several."""
    each = [
        _scores(part, model.rpartition(".")[2])
        for _, part in table.group_by("seed", maintain_order=True)
    ]
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}


def _scores(table: pl.DataFrame, model: str) -> dict[str, float]:
    if model == "Regressor":
        target, prediction = (_columns(table, what) for what in ("target", "prediction"))
        error = target.astype(float) - prediction
        return {
            "mse": float(np.mean(error**2)),
            "rmse": float(np.mean(np.sqrt(np.mean(error**2, axis=0)))),
            "mae": float(np.mean(np.abs(error))),
            "r2": float(sklearn.r2_score(target, prediction)),
        }
    if model == "MultilabelClassifier":
        target, prediction = (_columns(table, what) for what in ("target", "prediction"))
        return {
            "accuracy": float(sklearn.accuracy_score(target, prediction)),
            **_precision(target, prediction, "macro"),
        }
    target, prediction = table["target"].to_numpy(), table["prediction"].to_numpy()
    found = {"accuracy": float(sklearn.accuracy_score(target, prediction))}
    if model == "BinaryClassifier":
        names = [
            name.removeprefix("probability_")
            for name in table.columns
            if name.startswith("probability_")
        ]
        positive = table["target"].cast(pl.String).to_numpy() == names[1]
        guessed = table["prediction"].cast(pl.String).to_numpy() == names[1]
        return found | _precision(positive, guessed, "binary")
    return found | _precision(target, prediction, "macro")


def _precision(target: object, prediction: object, average: str) -> dict[str, float]:
    three = sklearn.precision_recall_fscore_support(
        target, prediction, average=average, zero_division=0
    )
    return {
        name: float(value)
        for name, value in zip(("precision", "recall", "f1"), three, strict=False)
    }


def _columns(table: pl.DataFrame, what: str) -> np.ndarray:
    names = [name for name in table.columns if name == what or name.startswith(f"{what}_")]
    return table.select(names).to_numpy()
