"""Permutation importance equals a reference: permuted raw rows, `proj.load`, scikit-learn."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn import metrics as sk

import proj
from conftest import Cli, plain_schema, script_of
from proj.engine.evaluation.importance import REPEATS, Rows, importances, inputs_of
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.errors import UserError
from proj.schema import Batch, Column, Schema

RUN = Path("lightning_logs/version_0")
ROWS = 400


def written() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RUN / "validate/importance.json").read_text())
    return result


def table(rows: int = ROWS) -> pl.DataFrame:
    """``bought`` and ``spent`` depend on ``size`` and ``city`` only."""
    rng = np.random.default_rng(0)
    size, city = rng.normal(size=rows), rng.choice(["Oslo", "Bergen", "Roros"], rows)
    score = 3 * size + 2 * (city == "Oslo") - 1
    return pl.DataFrame(
        {
            "size": pl.Series(size).set(pl.Series(rng.random(rows) < 0.05), None),
            "city": city,
            "joined": pl.Series(rng.integers(15000, 19000, rows)).cast(pl.Date),
            "noise": rng.normal(size=rows),
            "bought": np.where(score > 0, "yes", "no"),
            "spent": 100 * score + 500,
        }
    )


def fit(cli: Cli, target: str = "bought", *flags: str) -> None:
    columns = {"spent" if target == "bought" else "bought": "drop"}
    model = "BinaryClassifier" if target == "bought" else "Regressor"
    cli(
        "fit",
        "--data",
        "Tabular",
        "--data.path",
        "table.csv",
        "--data.target",
        target,
        "--data.batch_size",
        "32",
        "--data.columns",
        json.dumps(columns),
        "--data.val_fraction",
        "0.3",
        "--model",
        model,
        "--model.net",
        "MLP",
        "--model.optimizer.lr",
        "0.02",
        "--trainer.max_epochs",
        "6",
        "--trainer.accelerator",
        "cpu",
        "--trainer.log_every_n_steps",
        "1",
        "--seed_everything",
        "7",
        *flags,
    )


@pytest.mark.parametrize("target", ["bought", "spent"])
def test_it_equals_that_of_permuted_raw_columns(target: str, cli: Cli) -> None:
    """Permuting prepared inputs must equal permuting the source."""
    table().write_csv("table.csv")
    fit(cli, target)
    out = cli("validate", "--importance")
    rows = pl.read_parquet(RUN / "validate/predictions.parquet")["row"].to_list()
    assert (
        "importance: 4 columns × 5 permutations, and once unpermuted: 21 passes over "
        f"{len(rows)} validation rows" in out
    )
    assert "drop of f1" in out or "rise of rmse" in out
    source, model = pl.read_csv("table.csv", try_parse_dates=True)[rows], proj.load(RUN)
    truth = source[target].to_numpy()

    def score(frame: pl.DataFrame) -> float:
        predicted = model.predict(frame)["prediction"].to_numpy()
        if target == "bought":
            return float(sk.f1_score(truth, predicted, pos_label="yes"))
        return -float(sk.root_mean_squared_error(truth, predicted))

    result, rng = written(), np.random.default_rng(7)
    orders = [rng.permutation(len(rows)) for _ in range(REPEATS)]
    assert result["metric"] == ("f1" if target == "bought" else "rmse")
    assert sorted(result["columns"]) == ["city", "joined", "noise", "size"]
    for name, entry in result["columns"].items():
        changed = [score(source.with_columns(source[name].gather(order))) for order in orders]
        assert entry["value"] == pytest.approx(
            score(source) - np.mean(changed), rel=1e-4, abs=1e-6
        ), name
        assert entry["low"] <= entry["value"] <= entry["high"]
    values = [entry["value"] for entry in result["columns"].values()]
    assert values == sorted(values, reverse=True)
    assert next(iter(result["columns"])) == "size"
    assert result["columns"]["size"]["low"] > 0
    cli("validate", "--importance")
    assert written() == result  # The seed determines it.


def test_test_rows_do_not_change_it(cli: Cli) -> None:
    """Importance is about the validation split only."""
    plain = table().with_columns(
        pl.Series("subset", ["train"] * 250 + ["val"] * 100 + ["test"] * 50)
    )
    plain.write_csv("table.csv")
    fit(cli, "bought", "--data.split", "subset")
    cli("validate", "--importance")
    result = written()
    test = pl.col("subset") == "test"
    other = plain.with_columns(
        pl.when(test).then(-pl.col("size")).otherwise("size").alias("size"),
        pl.when(test).then(pl.lit("Oslo")).otherwise("city").alias("city"),
    )
    other.write_csv("table.csv")
    cli("validate", "--importance")
    assert written() == result
    other.with_columns(
        pl.when(pl.col("subset") == "val").then(-pl.col("size")).otherwise("size").alias("size")
    ).write_csv("table.csv")
    cli("validate", "--importance")
    assert written() != result


@pytest.mark.long
def test_features_of_arrays_and_the_report(experiment: Any, cli: Cli) -> None:
    """The report shows importance exactly if it was computed."""
    cli("fit", "--config", experiment("multiclass", 200))
    cli("validate", "--importance", "--trainer.limit_val_batches", "1")
    assert sorted(written()["columns"]) == ["0", "1", "2", "3", "4", "5"]
    cli("validate", "--importance")
    assert written()["rows"] == 30
    cli("test")
    text = (RUN / "report.html").read_text()
    assert "Importance of the columns" in text
    assert "share their importance" in " ".join(text.split())
    assert 'aria-label="Importance of columns with 95 % intervals; ' in text
    (RUN / "validate/importance.json").unlink()
    cli("report", "version_0")
    assert "Importance of the columns" not in (RUN / "report.html").read_text()


def test_data_without_columns_are_an_error_before_the_work(experiment: Any, cli: Cli) -> None:
    """An error after the evaluation would waste time."""
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8)).astype(np.uint8)
    config = experiment()
    np.savez("data.npz", x=images, y=np.arange(60) % 3)
    cli("fit", "--config", config)
    assert "--importance: expected columns" in cli("validate", "--importance", code=2)
    assert not (RUN / "validate").exists()
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(60, 3)), y=np.arange(60) % 3)
    cli("fit", "--config", config)
    assert "got trainer.fast_dev_run" in cli(
        "validate", "--importance", "--trainer.fast_dev_run", "true", code=2
    )
    assert "importance" in cli("test", "--importance", code=2)  # `test` has no such flag
    assert "importance" not in (RUN / "config.yaml").read_text()


# Without a run


def features(x: Any) -> dict[str, dict[str, list[int]]]:
    return {str(i): {"": [i]} for i in range(x.shape[1])}


def rows_of(x: Any, predict: Callable[[Any], Any], size: int = 7) -> Rows:
    split = Batch(torch.from_numpy(x), None, torch.arange(len(x)))
    return Rows(split, torch.arange(len(x)), lambda batch: predict(batch.x.numpy()), size)


def regression(rows: int, group: Any = None) -> tuple[Any, PredictionSet]:
    """The prediction is of the first feature; the second is noise, the third constant."""
    rng = np.random.default_rng(rows)
    x = np.column_stack([rng.normal(size=(rows, 2)), np.ones(rows)])
    target = 2 * x[:, :1] + rng.normal(size=(rows, 1))
    return x, PredictionSet(
        "regression", ("y",), np.arange(rows), target, np.zeros((rows, 1)), group
    )


def test_unused_columns_have_importance_0() -> None:
    """Permuting a column that the net ignores must change nothing."""
    x, predictions = regression(60)
    result = importances(rows_of(x, lambda x: 2 * x[:, :1]), predictions, features(x))
    assert next(iter(result)) == "0"
    assert result["0"].low is not None
    assert result["0"].low > 0
    for name in ("1", "2"):
        assert result[name] == (0.0, 0.0, 0.0, "")


def test_a_column_of_noise_has_an_interval_that_includes_0() -> None:
    """A net that depends slightly on noise gives it an importance near 0."""
    x, predictions = regression(300)
    result = importances(
        rows_of(x, lambda x: 2 * x[:, :1] + 0.05 * x[:, 1:2]), predictions, features(x)
    )["1"]
    assert result.low is not None
    assert result.high is not None
    assert result.low <= 0 <= result.high


def test_groups_of_copies_do_not_narrow_the_interval() -> None:
    """Copies in groups carry no additional information."""
    x, predictions = regression(80)
    many, times = np.repeat(x, 6, axis=0), np.repeat(np.arange(80), 6)
    copies = PredictionSet(
        predictions.task,
        predictions.names,
        np.arange(480),
        predictions.target[times],
        predictions.output[times],
        times,
    )
    plain = importances(rows_of(x, lambda x: 2 * x[:, :1]), predictions, features(x))["0"]
    grouped = importances(rows_of(many, lambda x: 2 * x[:, :1]), copies, features(x))["0"]
    ungrouped = replace(copies, group=None)
    loose = importances(rows_of(many, lambda x: 2 * x[:, :1]), ungrouped, features(x))["0"]
    width = [
        importance.high - importance.low
        for importance in (plain, grouped, loose)
        if importance.high is not None and importance.low is not None
    ]
    assert width[1] > 0.7 * width[0]
    assert width[2] < 0.6 * width[0]


@pytest.mark.parametrize("case", ["one row", "four rows", "no number", "no number when permuted"])
def test_degenerate_rows(case: str) -> None:
    """Too few rows or undefined predictions give a reason instead of limits."""
    rows = {"one row": 1, "four rows": 4}.get(case, 50)
    x, predictions = regression(rows)

    def predict(x: Any) -> Any:
        odd = (
            x[:, :1] * x[:, 1:2]
            if case.endswith("permuted")
            else x[:, :1]
            if case == "no number"
            else None
        )
        return (
            2 * x[:, :1] if odd is None else np.where(np.isclose(odd, known), 2 * x[:, :1], np.nan)
        )

    known = x[:, :1] * x[:, 1:2] if case.endswith("permuted") else np.full((rows, 1), 1e9)
    result = importances(rows_of(x, predict, rows), predictions, features(x))
    if case.startswith("no number"):
        assert result["0"].value is None
        assert "are not finite numbers" in result["0"].why
        assert next(iter(result)) == ("2" if case.endswith("permuted") else "0")
    else:
        assert result["0"].value is not None
        assert result["0"].low is None
        assert f"too few rows ({rows})" in result["0"].why


@pytest.mark.long
def test_the_interval_covers_because_a_row_counts_twice() -> None:
    """An interval that counts a row by its target only would cover in 0.83 of the cases."""
    truth, held = script_of("coverage").importance_coverage("regression", 200, 150)
    assert truth == pytest.approx(2.0, abs=0.02)
    assert held >= 0.92


def test_a_date_counts_as_one_column() -> None:
    """The inputs of a date must be permuted together."""

    def column(source: str, kind: Any) -> Column:
        return Column(source, "date", kind, False, (0.0, 1.0), (0.0, 1.0), ())

    plain = plain_schema("binary", (5,), 1)
    columns = (
        column("day", "days"),
        column("city", "category"),
        column("day", "month"),
        column("size", "number"),
    )
    schema = Schema(**{**plain.__dict__, "columns": columns})
    assert inputs_of(schema) == {
        "day": {"numeric": [0, 1]},
        "city": {"categorical": [0]},
        "size": {"numeric": [2]},
    }
    with pytest.raises(UserError, match="such as images"):
        inputs_of(plain_schema("binary", (1, 8, 8), 1))
