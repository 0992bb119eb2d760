"""Baselines of packages that are optional: LightGBM, XGBoost and CatBoost."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from conftest import Cli
from proj.engine.baselines import fitting
from proj.engine.runs.run import Run

LOGS = Path("lightning_logs")
PACKAGES = ("lightgbm", "xgboost", "catboost")
pytestmark = [
    pytest.mark.long,
    # Of the packages' own code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def use_only(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the other packages, whose fits take time; skip the test if this one is missing."""
    pytest.importorskip(package, reason=f"{package} is not installed; it is of the extra baselines")
    hidden = [other for other in PACKAGES if other != package]
    monkeypatch.setattr(fitting, "find_spec", lambda name: None if name in hidden else object())


def write_experiment(work: Path, target: str) -> Path:
    """Write a table whose targets depend on a number and a category, both with missing values."""
    rng = np.random.default_rng(0)
    size = 400
    number = rng.normal(size=size)
    colour = rng.choice(["red", "blue", "green"], size)
    score = number + 2 * (colour == "red")
    table = pl.DataFrame(
        {
            "number": pl.Series(number).scatter(np.arange(0, size, 9), None),
            "colour": pl.Series(colour).scatter(np.arange(0, size, 11), None),
            "other": rng.normal(size=size),
            "binary": np.where(score > 1, "yes", "no"),
            "multiclass": np.where(score > 1.5, "high", np.where(score > 0, "middle", "low")),
            "regression": 1e6 + 10 * score + rng.normal(size=size),
        }
    )
    others = {"binary", "multiclass", "regression"} - {target}
    table.drop(others).write_csv(work / "table.csv")
    models = {"binary": "BinaryClassifier", "multiclass": "MulticlassClassifier"}
    model = {"class_path": models.get(target, "Regressor"), "init_args": {"net": "MLP"}}
    data = {"class_path": "Tabular", "init_args": {"path": "table.csv", "target": target}}
    path = work / "table.yaml"
    path.write_text(json.dumps({"model": model, "data": data}))
    return path


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_is_installed_is_fitted(
    package: str, task: str, work: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is better than a constant, stops early, and gives the same twice."""
    use_only(package, monkeypatch)
    config = write_experiment(work, task)
    cli("baseline", "--config", config)
    cli("baseline", "--config", config)
    first, second = (
        pl.read_parquet(LOGS / f"{name}_{package}" / "test" / "predictions.parquet")
        for name in ("table", "table_2")
    )
    assert first.equals(second)
    metric, limit = ("r2", 0.6) if task == "regression" else ("accuracy", 0.85)
    value = Run(LOGS / f"table_{package}").metrics("test")[metric]["value"]
    assert value > limit
    facts = yaml.safe_load((LOGS / f"table_{package}" / "config.yaml").read_text())["baseline"]
    assert facts["learner"] == package
    assert 0 < facts["trees"] < 1000


@pytest.mark.parametrize("package", PACKAGES)
def test_without_validation_rows_all_trees_are_used(
    package: str, work: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to stop by."""
    use_only(package, monkeypatch)
    cli("baseline", "--config", write_experiment(work, "binary"), "--data.val_fraction", 0)
    facts = yaml.safe_load((LOGS / f"table_{package}" / "config.yaml").read_text())["baseline"]
    assert facts["trees"] == {"lightgbm": 100, "xgboost": 100, "catboost": 1000}[package]
