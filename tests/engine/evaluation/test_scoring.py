"""What `test` and `validate` print and write: intervals, warnings, predictions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from conftest import Cli, Trained, plain_schema
from proj.engine.cli import main
from proj.engine.evaluation.prediction_set import load_predictions
from proj.engine.evaluation.scoring import (
    SMALL_CLASS_ROWS,
    add_intervals,
    small_sample_warnings,
)
from proj.engine.runs.run import Run

RUN = Path("lightning_logs/version_0")
TASKS = ("binary", "multiclass", "multilabel", "regression", "regression_2")


def metrics(verb: str = "test") -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads((RUN / verb / "metrics.json").read_text())
    return entries


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_has_its_interval(task: str, experiment: Any, cli: Cli) -> None:
    """Every metric and the loss have an interval, which the seed determines."""
    cli(
        "fit",
        "--config",
        experiment(task, 300, trainer={"max_epochs": 10}),
        "--model.optimizer.lr",
        "0.03",
    )
    out = cli("test")
    assert "95 % interval" in out
    first = metrics()
    for name, entry in first.items():
        assert entry["low"] <= entry["value"] <= entry["high"], name
        assert entry["low"] < entry["high"], name
        assert 0 < entry["support"] <= 45
    cli("test")
    assert metrics() == first
    cli("validate")
    assert metrics("validate").keys() == first.keys()
    assert pl.read_parquet(RUN / "validate/predictions.parquet").height == 45


def test_metrics_of_validate_agree_with_its_predictions(trained: Trained, cli: Cli) -> None:
    """Row numbers must point at the rows of the source."""
    trained("binary")
    cli("validate", "--data.batch_size", "7")
    table = pl.read_parquet(RUN / "validate/predictions.parquet")
    accuracy = (table["target"] == table["prediction"]).mean()
    assert metrics("validate")["accuracy"]["value"] == pytest.approx(accuracy)
    source = np.load("data.npz")["y"]
    assert table["target"].to_list() == source[table["row"].to_numpy()].tolist()


def test_a_loss_with_options_has_a_reason_instead_of_an_interval(experiment: Any, cli: Cli) -> None:
    """The predictions do not determine such a loss."""
    cli("fit", "--config", experiment(model={"label_smoothing": 0.2}))
    out = cli("test")
    assert metrics()["loss"]["low"] is None
    assert "not a plain mean" in metrics()["loss"]["why"]
    assert "loss: the loss has options" in out


def test_a_rounded_probability_of_0_is_given_as_the_reason(experiment: Any, cli: Cli) -> None:
    """A logit of 60 gives probability 1, although the loss from the logit is finite."""
    Path("own.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(6, 1)\n"
        "    def forward(self, x):\n        return 0 * super().forward(x) + 60\n"
    )
    cli("fit", "--config", experiment("binary"), "--model.net", "own.Net")
    assert "gives probability 0 to the target of a row" in cli("test")


def test_few_rows_give_warnings(trained: Trained, capsys: Any) -> None:
    """A user would take a metric of nine rows for certain."""
    trained("multiclass", 60)
    assert main(["test"]) == 0
    err = capsys.readouterr().err
    assert "warning: with 9 test rows the 95 % interval of f1 is" in err
    assert "the metrics of so few rows are mostly noise" in err


def test_many_rows_give_no_warning() -> None:
    """Warnings without cause would be ignored."""
    entry = {"value": 0.9, "low": 0.89, "high": 0.91, "support": 1000}
    assert list(small_sample_warnings({"f1": entry, "recall": entry}, "binary", "test")) == []
    rare = {**entry, "support": SMALL_CLASS_ROWS - 1}
    assert list(small_sample_warnings({"f1": entry, "recall": rare}, "binary", "test")) == [
        "fewer than 10 test rows of the positive class; the metrics of so few rows are mostly "
        "noise."
    ]


@pytest.mark.long
def test_groups_are_resampled_as_a_whole(cli: Cli, work: Path) -> None:
    """An interval over rows, not customers of ten equal rows, would be far too narrow."""
    rng = np.random.default_rng(0)
    size = np.repeat(rng.normal(size=100), 10)
    noise = np.repeat(rng.normal(size=100), 10)
    pl.DataFrame(
        {
            "size": size,
            "customer": [f"c{i // 10}" for i in range(1000)],
            "spent": np.where(size + noise > 0, "much", "little"),
        }
    ).write_csv("table.csv")
    flags = [
        "--data",
        "Tabular",
        "--data.path",
        "table.csv",
        "--data.target",
        "spent",
        "--model",
        "BinaryClassifier",
        "--model.net",
        "MLP",
        "--trainer.max_epochs",
        "1",
        "--trainer.log_every_n_steps",
        "1",
    ]
    cli("fit", *flags, "--data.group", "customer")
    cli("test")
    table = pl.read_parquet(RUN / "test/predictions.parquet")
    assert table.columns == [
        "row",
        "target",
        "prediction",
        "probability_much",
        "probability_little",
        "customer",
    ]
    source = pl.read_csv("table.csv")
    assert table["customer"].to_list() == source["customer"].gather(table["row"]).to_list()
    grouped = metrics()["accuracy"]
    assert "15 groups" in grouped["method"]
    shutil.rmtree("lightning_logs")
    cli("fit", *flags)
    cli("test")
    assert grouped["high"] - grouped["low"] > 2 * (
        metrics()["accuracy"]["high"] - metrics()["accuracy"]["low"]
    )
    cli(
        "fit", *flags, "--data.group", "customer", "--data.test_path", "table.csv"
    )  # from another source than validation
    cli("test", "--run", "version_1")
    cli("validate", "--run", "version_1")
    for verb in ("test", "validate"):
        table = pl.read_parquet(f"lightning_logs/version_1/{verb}/predictions.parquet")
        assert table["customer"].to_list() == source["customer"].gather(table["row"]).to_list()


def test_a_value_that_differs_from_the_predictions_has_no_interval(work: Path) -> None:
    """The limits would be those of another value."""
    run = Run(work / "run")
    (run.path / "test").mkdir(parents=True)
    (run.path / "config.yaml").write_text("seed_everything: 0\ntrainer: {}\nmodel: {}\n")
    rng = np.random.default_rng(0)
    pl.DataFrame(
        {"row": np.arange(50), "target": rng.normal(size=50), "prediction": rng.normal(size=50)}
    ).write_parquet(run.path / "test/predictions.parquet")
    schema = plain_schema("regression", (1,), 1)
    written = {"mae": {"value": 7.0}, "rmse": {"value": None}, "mine": {"value": 3.0}}
    done = add_intervals(written, load_predictions(run, "test", schema), schema, seed=0)
    assert done["mae"]["value"] == 7.0
    assert done["mae"]["low"] is None
    assert done["mae"]["why"].startswith("the predictions file gives")
    assert done["rmse"]["value"] is None
    assert done["mine"] == {"value": 3.0}


def test_test_does_not_read_the_predictions_that_it_writes(
    trained: Trained, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a large predictions file for each section of the report would take long."""
    trained("binary")
    read: list[Path] = []
    original = pl.read_parquet
    monkeypatch.setattr(
        pl, "read_parquet", lambda file: read.append(Path(file.name)) or original(file)
    )
    cli("test")
    assert read == []
    cli("report")
    assert [path.name for path in read] == ["predictions.parquet"]


def test_names_in_brackets_and_colons_are_printed_unchanged(work: Path, cli: Cli) -> None:
    """Rich would take them for markup or emoji."""
    lines = "".join(f"{i % 7},{('[/b] hi', '[bold]lo', ':smile:')[i % 3]}\n" for i in range(90))
    Path("t.csv").write_text(f"size,kind\n{lines}")
    data = [
        "--data",
        "Tabular",
        "--data.path",
        "t.csv",
        "--data.target",
        "kind",
        "--data.batch_size",
        "32",
    ]
    model = ["--model", "MulticlassClassifier", "--model.net", "MLP"]
    cli("fit", *data, *model, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")
    said = cli("test")
    assert all(name in said for name in ("[/b] hi", "[bold]lo", ":smile:"))
    assert "report: " in said
