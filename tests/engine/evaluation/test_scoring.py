"""What `test` and `validate` print and write with this room, and what they do without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from conftest import ROOT, Cli, make_arrays, plain_schema
from proj.engine.cli import main
from proj.engine.evaluation.scoring import FEW_OF_A_CLASS, small_sample_warnings, with_intervals
from proj.engine.runs.run import Run

RUN = Path("lightning_logs/version_0")
TASKS = ("binary", "multiclass", "multilabel", "regression", "regression_2")


def metrics(verb: str = "test") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((RUN / verb / "metrics.json").read_text())
    return found


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_has_its_interval(task: str, experiment: Any, cli: Cli) -> None:
    """The loss too, which is a plain mean over the rows here; the same again with the same seed."""
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


def test_what_validate_predicts_is_what_its_metrics_are_of(experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment("binary"))
    cli("validate", "--data.batch_size", "7")
    table = pl.read_parquet(RUN / "validate/predictions.parquet")
    accuracy = (table["target"] == table["prediction"]).mean()
    assert metrics("validate")["accuracy"]["value"] == pytest.approx(accuracy)
    source = np.load("data.npz")["y"]
    assert table["target"].to_list() == source[table["row"].to_numpy()].tolist()


def test_a_loss_with_options_has_no_interval_and_says_so(experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment(model={"label_smoothing": 0.2}))
    out = cli("test")
    assert metrics()["loss"]["low"] is None
    assert "no plain mean" in metrics()["loss"]["why"]
    assert "loss: it has options" in out


def test_a_loss_that_the_file_calls_infinite_is_no_matter_of_options(
    experiment: Any, cli: Cli
) -> None:
    """A wrong row with a logit of 60 has a probability of 1 exactly; the loss from the logit is finite."""
    Path("own.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(6, 1)\n"
        "    def forward(self, x):\n        return 0 * super().forward(x) + 60\n"
    )
    cli("fit", "--config", experiment("binary"), "--model.net", "own.Net")
    assert "a row with probability 0 of its target" in cli("test")


def test_few_rows_are_told(experiment: Any, cli: Cli, capsys: Any) -> None:
    cli("fit", "--config", experiment("multiclass", 60))
    assert main(["test"]) == 0
    err = capsys.readouterr().err
    assert "warning: test: 9 rows know f1 only as" in err
    assert "their own metrics are mostly chance" in err


def test_many_rows_are_not_doubted() -> None:
    entry = {"value": 0.9, "low": 0.89, "high": 0.91, "support": 1000}
    assert list(small_sample_warnings({"f1": entry, "recall": entry}, "binary")) == []
    rare = {**entry, "support": FEW_OF_A_CLASS - 1}
    assert list(small_sample_warnings({"f1": entry, "recall": rare}, "binary")) == [
        "fewer than 10 rows of the positive class: their own metrics are mostly chance."
    ]


def test_groups_are_what_is_drawn(cli: Cli, work: Path) -> None:
    """Customers of ten rows, all alike: an interval over rows would be far too narrow."""
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
        "probability_little",
        "probability_much",
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


def test_a_value_that_the_predictions_do_not_give_keeps_no_interval(work: Path) -> None:
    run = Run(work / "run")
    (run.path / "test").mkdir(parents=True)
    (run.path / "config.yaml").write_text("seed_everything: 0\n")
    rng = np.random.default_rng(0)
    pl.DataFrame(
        {"row": np.arange(50), "target": rng.normal(size=50), "prediction": rng.normal(size=50)}
    ).write_parquet(run.path / "test/predictions.parquet")
    schema = plain_schema("regression", (1,), 1)
    written = {"mae": {"value": 7.0}, "rmse": {"value": None}, "mine": {"value": 3.0}}
    done = with_intervals(written, run, "test", schema)
    assert done["mae"]["value"] == 7.0
    assert done["mae"]["low"] is None
    assert done["mae"]["why"].startswith("the predictions file gives")
    assert done["rmse"]["value"] is None
    assert done["mine"] == {"value": 3.0}


@pytest.mark.slow
def test_without_this_room_test_prints_plain_values(work: Path) -> None:
    """That the rest of the suite passes then is shown by `.ci/run`."""
    package = next(path.parent for path in ROOT.glob("src/*/__main__.py")).name
    shutil.copytree(
        ROOT / "src",
        work / "src",
        ignore=shutil.ignore_patterns("evaluate", "__pycache__", "*.egg-info"),
    )
    np.savez("data.npz", **make_arrays("binary"))
    environment = os.environ | {"PYTHONPATH": str(work / "src")}

    def call(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", package, *args],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(
        "fit",
        "--data",
        "Arrays",
        "--data.path",
        "data.npz",
        "--model",
        "BinaryClassifier",
        "--model.net",
        "MLP",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--trainer.log_every_n_steps",
        "1",
    )
    out = call("test")
    assert "95 %" not in out
    assert "report" not in out + call("--help")
    assert all(entry.keys() == {"value"} for entry in metrics().values())


def test_names_in_brackets_and_colons_are_printed_as_they_are(work: Path, cli: Cli) -> None:
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
