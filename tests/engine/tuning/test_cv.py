"""Cross-validation against a loop over scikit-learn's splitters, and its statistics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit, train_test_split

from conftest import Cli
from engine.tuning.conftest import run
from proj.data.tabular.row_splits import split
from proj.data.tabular.splits import split_by_time, split_groups
from proj.engine.tuning import cv
from proj.engine.tuning.fold_scores import FoldRun, out_of_fold_metrics, summarize_folds
from proj.errors import UserError

OPTIMIZER = ["--model.optimizer", "Adam", "--model.optimizer.lr", "0.05"]
FOLDER = Path("lightning_logs/studies/experiment_cv")

SUBCLASSES = """
from proj.models import BinaryClassifier, MultilabelClassifier, Regressor
class OwnBinary(BinaryClassifier): pass
class OwnMultilabel(MultilabelClassifier): pass
class OwnRegressor(Regressor): pass
"""


@pytest.mark.long
def test_scores_equal_a_loop_over_the_splitters_of_scikit_learn(experiment: Any, cli: Cli) -> None:
    """Each fold is trained and scored as a single run on the same rows would be."""
    config = experiment(rows=150)
    run("cv", "--config", str(config), "--folds", "2", "--seeds", "2", "--workers", "2", *OPTIMIZER)
    data = np.load("data.npz")
    x, y, metrics = data["x"], data["y"], json.loads((FOLDER / "metrics.json").read_text())
    expected = []
    for i in range(2):
        splitter = StratifiedKFold(2, shuffle=True, random_state=i)
        for fold, (rest, test) in enumerate(splitter.split(x, y)):
            train, val = train_test_split(
                rest, test_size=round(0.15 * len(x)), random_state=i, stratify=y[rest]
            )
            splits = {"train": np.sort(train), "val": np.sort(val), "test": test}
            arrays = {f"x_{name}": x[rows] for name, rows in splits.items()}
            arrays |= {f"y_{name}": y[rows] for name, rows in splits.items()}
            np.savez("single.npz", **arrays)
            name = f"single_{i}_{fold}"
            seed = ["--seed_everything", str(1 + i)]
            flags = ["--data.path", "single.npz", *seed, "--name", name, *OPTIMIZER]
            cli("fit", "--config", config, *flags)
            cli("test", "--run", name)
            content = Path(f"lightning_logs/{name}/test/metrics.json").read_text()
            expected.append(json.loads(content)["f1"]["value"])
    assert metrics["f1"]["folds"] == expected
    assert metrics["f1"]["value"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert metrics["f1"]["std"] == pytest.approx(np.std(expected, ddof=1), abs=1e-12)
    predictions = pl.read_parquet(FOLDER / "predictions.parquet")
    for _, table in predictions.group_by("seed"):
        # Each row occurs once for each seed.
        assert sorted(table["row"]) == list(range(150))
    seeds = [table for _, table in predictions.group_by("seed", maintain_order=True)]
    accuracy = np.mean(
        [sklearn_metrics.accuracy_score(table["target"], table["prediction"]) for table in seeds]
    )
    f1 = np.mean(
        [
            sklearn_metrics.f1_score(table["target"], table["prediction"], average="macro")
            for table in seeds
        ]
    )
    assert metrics["accuracy"]["out_of_fold"] == pytest.approx(accuracy, abs=1e-12)
    assert metrics["f1"]["out_of_fold"] == pytest.approx(f1, abs=1e-12)
    assert "different settings" in cli("cv", "--config", config, "--folds", "4", code=2)


def reference_scores(task: str, table: pl.DataFrame) -> dict[str, float]:
    """Compute the metrics of a task with scikit-learn."""
    target = table.select(pl.col("^target.*$")).to_numpy()
    prediction = table.select(pl.col("^prediction.*$")).to_numpy()
    if task == "regression_2":
        names = [name.removeprefix("target_") for name in table.columns if "target_" in name]
        errors = sklearn_metrics.mean_squared_error(target, prediction, multioutput="raw_values")
        return {
            "mse": errors.mean(),
            "rmse": np.sqrt(errors).mean(),
            f"rmse/{names[1]}": np.sqrt(errors)[1],
            "mae": sklearn_metrics.mean_absolute_error(target, prediction),
            "r2": sklearn_metrics.r2_score(target, prediction),
        }
    if task == "binary":
        target, prediction = target[:, 0] == "yes", prediction[:, 0] == "yes"
    average = "binary" if task == "binary" else "macro"
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
        target, prediction, average=average, zero_division=0
    )
    accuracy = sklearn_metrics.accuracy_score(target, prediction)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("binary", "OwnBinary"),
        ("multilabel", "OwnMultilabel"),
        ("regression_2", "OwnRegressor"),
    ],
)
def test_out_of_fold_metrics_of_a_subclass_are_those_of_its_task(
    task: str, model: str, experiment: Any, cli: Cli
) -> None:
    """The metrics follow the task of the schema, not the name of the model's class."""
    Path("own.py").write_text(SUBCLASSES)
    file = experiment(task)
    config = json.loads(file.read_text())
    config["model"]["class_path"] = f"own.{model}"
    file.write_text(json.dumps(config))
    cli("cv", "--config", file, "--folds", "2", *OPTIMIZER)
    entries = json.loads((FOLDER / "metrics.json").read_text())
    expected = reference_scores(task, pl.read_parquet(FOLDER / "predictions.parquet"))
    for name, value in expected.items():
        assert entries[name]["out_of_fold"] == pytest.approx(value, abs=1e-6, rel=1e-6), name


@pytest.fixture
def fold_run(experiment: Any, cli: Cli) -> FoldRun:
    """A tested run in place of a fold."""
    cli("fit", "--config", experiment("binary"), "--name", "fold")
    cli("test", "--run", "fold")
    return FoldRun(1, 0, Path("lightning_logs/fold"), [])


def test_a_metric_with_another_definition_has_no_out_of_fold_value(fold_run: FoldRun) -> None:
    """A metric that the predictions do not reproduce is left out instead of being redefined."""
    metrics = fold_run.metrics()
    assert out_of_fold_metrics([fold_run])["f1"] == pytest.approx(metrics["f1"]["value"], abs=1e-6)
    metrics["f1"]["value"] += 0.01
    (fold_run.folder / "test" / "metrics.json").write_text(json.dumps(metrics))
    values = out_of_fold_metrics([fold_run])
    assert "f1" not in values
    assert values["accuracy"] == pytest.approx(metrics["accuracy"]["value"], abs=1e-6)


def test_the_interval_has_the_correction_of_nadeau_and_bengio() -> None:
    """The interval is the one of the formula in their paper."""
    values = [0.8, 0.9, 0.85, 0.7, 0.95]
    half_width = stats.t(4).ppf(0.975) * np.sqrt((1 / 5 + 1 / 4) * np.var(values, ddof=1))
    summary = summarize_folds(values, 5)
    assert (summary.low, summary.high) == pytest.approx(
        (np.mean(values) - half_width, np.mean(values) + half_width), abs=1e-12
    )


def test_a_data_module_with_the_option_fold_only() -> None:
    """`cv` ended with a KeyError: such a module has neither split_seed nor fractions."""
    experiment = {
        "seed_everything": 4,
        "data": {"class_path": "own.Data", "init_args": {"fold": 0}},
    }
    runs = list(cv._plan_runs(experiment, Path("x"), folds=2, seeds=2))
    assert [run.flags for run in runs[1:3]] == [
        ["--seed_everything", "4", "--data.fold", "[test, 1, 2]"],
        ["--seed_everything", "5", "--data.fold", "[test, 0, 2]"],
    ]
    flags = cv._refit_flags(experiment["data"], 7)
    assert not any(flag.startswith("--data") for flag in flags)
    experiment["data"]["init_args"] = {"split_seed": 3, "val_fraction": 0.2}
    runs = list(cv._plan_runs(experiment, Path("x"), folds=2, seeds=2))
    assert "--data.split_seed 4" in " ".join(runs[2].flags)
    assert cv._refit_flags(experiment["data"], 7)[:2] == ["--data.val_fraction", "0"]


def test_a_data_module_without_options_is_refused(cli: Cli, work: Path) -> None:
    """It has no fold; a config without options of its data module ended with a KeyError."""
    (work / "plain.py").write_text(
        "from lightning.pytorch import LightningDataModule\n\n"
        "class Plain(LightningDataModule):\n    pass\n"
    )
    flags = ["--model", "MulticlassClassifier", "--model.net", "MLP"]
    config = work / "own.yaml"
    config.write_text("data: {class_path: plain.Plain}\n")
    message = cli("cv", "--config", config, *flags, code=2)
    assert "expected a data module with the option fold" in message
    assert "plain.Plain" in message


def test_one_fold_is_refused_and_leaves_no_folder(cli: Cli) -> None:
    assert "--folds: expected a number from 2 up, got 1" in cli(
        "cv", "--config", "missing.yaml", "--folds", "1", code=2
    )
    assert not Path("lightning_logs").exists()


def test_folds_are_those_of_scikit_learn() -> None:
    """The test rows of each fold are those of KFold and TimeSeriesSplit; groups stay together."""
    rows, rng = np.arange(100, 160), np.random.default_rng(0)
    for fold, (_, test) in enumerate(KFold(4, shuffle=True, random_state=3).split(rows)):
        assert np.array_equal(split(rows, 0.1, 0.2, 3, None, ("test", fold, 4))["test"], rows[test])
    test = split(rows, 0.1, 0.2, 3, None)["test"]
    folds = [split(rows, 0.1, 0.2, 3, None, ("val", fold, 4)) for fold in range(4)]
    # The test rows depend on the seed only.
    assert all(np.array_equal(splits["test"], test) for splits in folds)
    validated = np.concatenate([splits["val"] for splits in folds])
    assert sorted(validated) == sorted(set(rows) - set(test))
    for wrong in (("test", 4, 4), ("val", 0, 1), ("test", -1, 3)):
        with pytest.raises(UserError, match=r"data\.fold"):
            split(rows, 0.1, 0.2, 0, None, wrong)  # type: ignore[arg-type]

    groups = rng.integers(0, 9, 60)
    folds = [split_groups(rows, 0.2, 0.2, 0, groups, ("test", fold, 3)) for fold in range(3)]
    assert sorted(np.concatenate([splits["test"] for splits in folds])) == list(rows)
    for splits in folds:
        members = {name: set(groups[np.isin(rows, chosen)]) for name, chosen in splits.items()}
        assert not members["train"] & members["test"]
        assert not members["val"] & (members["train"] | members["test"])

    times = rng.permutation(60)
    for fold, (before, test) in enumerate(TimeSeriesSplit(4).split(np.arange(60))):
        splits = split_by_time(rows, 0.1, 0.2, times, ("test", fold, 4))
        remaining = np.concatenate([splits["train"], splits["val"]])
        assert set(times[np.isin(rows, splits["test"])]) == set(test)
        assert set(times[np.isin(rows, remaining)]) == set(before)
        train_times, val_times = (times[np.isin(rows, splits[name])] for name in ("train", "val"))
        assert train_times.max() < val_times.min()


@pytest.mark.slow
def test_the_refit_trains_on_all_rows(experiment: Any) -> None:
    """``--refit`` leaves a checkpoint, and the runs of the folds can be tested again."""
    run("cv", "--config", str(experiment(rows=90)), "--folds", "2", "--refit")
    assert (FOLDER / "refit" / "checkpoints" / "last.ckpt").exists()
    run("test", "--run", str(FOLDER / "seed_1_fold_0"))
