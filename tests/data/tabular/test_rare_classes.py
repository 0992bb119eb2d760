"""Rare classes of a table: they stop no verb, and findings and messages name them."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from conftest import Cli
from proj.data.tabular.datamodule import Tabular
from proj.engine.training.data_checks import check_data
from proj.errors import UserError


def write(labels: list[str], name: str = "t.csv") -> None:
    rng = np.random.default_rng(len(labels))
    columns = {"x": rng.normal(size=len(labels)).round(3), "y": labels}
    part = ["train"] * (len(labels) - 6) + ["val"] * 3 + ["test"] * 3
    group = [i // 5 for i in range(len(labels))]
    pl.DataFrame(columns | {"part": part, "g": group, "t": range(len(labels))}).write_csv(name)


def ready(**options: Any) -> Tabular:
    data = Tabular("t.csv", "y", columns={"t": "drop"}, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_rare_classes_are_trained_on_and_named() -> None:
    """A single row of a class stopped `init`."""
    write(["four", "six", "eight"] * 40 + ["rotary", "wankel", "wankel"])
    data = ready()
    assert data.schema is not None
    assert set(data.schema.classes) == {"four", "six", "eight", "rotary", "wankel"}
    (finding,) = [f.what for f in check_data(data) if " rows of " in f.what and "no val" in f.what]
    absent = {
        f"{label} ({count})"
        for label, count in zip(data.schema.classes, data.schema.class_counts, strict=True)
        if count < 10
    }
    assert finding.startswith("no val and no test rows of ")
    assert set(finding.removeprefix("no val and no test rows of ").split(", ")) == absent
    assert "rotary (1)" in absent


@pytest.mark.slow
def test_a_target_with_a_rare_class_is_trained_and_tested(cli: Cli) -> None:
    """Losses, metrics and the report must bear a class that the scored split does not have."""
    write(["a", "b"] * 30 + ["c"])
    assert "c 1 (" in cli("init", "t.csv", "--target", "y")
    length = ("--trainer.max_epochs", 1, "--trainer.accelerator", "cpu", "--model.net", "MLP")
    cli("fit", "--config", "configs/t.yaml", "--data.fold", "[test, 0, 2]", *length)
    cli("test")
    table = pl.read_parquet("lightning_logs/version_0/test/predictions.parquet")
    assert table["target"].value_counts().sort("target").rows() == [("a", 15), ("b", 15)]


LATE = ["a", "b"] * 40 + ["a", "b", "z", "a", "b", "z"]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LATE, {"split": "part"}, "class 'z' has no training rows, but 1 val row, such as row 82"),
        (LATE, {"time": "t"}, "class 'z' has no training rows, but 2 test rows, such as row 82"),
        (
            ["z"] * 5 + ["a", "b"] * 40,
            {"group": "g", "split_seed": 18},
            "class 'z' has no training rows, but 5 test rows, such as row 0",
        ),
        (["a", "b"] * 40, {"test_path": "u.csv"}, "u.csv: class 'z' .* but 2 test rows"),
        # The training rows have one class only.
        (["a"] * 83 + ["b"] * 3, {"split": "part"}, "class 'b' has no training rows, but 3 test"),
    ],
)
def test_a_class_without_training_rows_is_named(
    labels: list[str], options: dict[str, Any], message: str
) -> None:
    """The message says where its rows are and which classes training has."""
    write(labels)
    write(LATE, "u.csv")
    with pytest.raises(UserError, match=f"{message}.*training has 'a'"):
        ready(**options)


def test_a_class_that_is_later_than_a_fold() -> None:
    """Rows that a fold in time leaves out do not matter to it."""
    write(LATE)
    assert ready(time="t", fold=("test", 0, 4)).rows("test") > 0
