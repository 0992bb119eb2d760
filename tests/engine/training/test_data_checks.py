"""The data doctor: each finding on data made to have it, none on data that have not."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from conftest import Cli, make_arrays
from proj.data.arrays import ArrayDataModule
from proj.data.tabular.datamodule import Tabular
from proj.engine.training.data_checks import check_data, digests


def ready(path: str = "t.csv", **options: Any) -> Tabular:
    data = Tabular(path, "y", **options)
    data.prepare_data()
    data.setup("fit")
    return data


def table(rows: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=rows), rng.choice(list("uvw"), rows)
    return pl.DataFrame({"a": a, "b": b, "y": np.where(a + rng.normal(size=rows) > 0, "yes", "no")})


def found(data: Any) -> str:
    return "\n".join(map(str, check_data(data)))


def test_nothing_is_found_where_nothing_is_odd(work: Any) -> None:
    table().write_csv("t.csv")
    assert found(ready()) == ""


def test_copies_across_parts_are_counted(work: Any) -> None:
    """Against a count by hand, through the source's own rows."""
    rows = table()
    pl.concat([rows, rows[:60]]).write_csv("t.csv")
    data = ready()
    keys = {
        stage: [rows.row(i % 400) for i in part.row.tolist()] for stage, part in data.splits.items()
    }
    for later, earlier in (("val", "train"), ("test", "train")):
        count = sum(key in set(keys[earlier]) for key in keys[later])
        assert count > 0
        assert f"{count} of 69 {later} rows are exact copies of {earlier} rows" in found(data)


def test_equal_inputs_with_different_labels_are_counted(work: Any) -> None:
    rows = table()
    other = rows[:5].with_columns(
        y=pl.when(pl.col("y") == "yes").then(pl.lit("no")).otherwise(pl.lit("yes"))
    )
    pl.concat([rows, other]).write_csv("t.csv")
    assert "10 of 405 rows have the inputs of another row and a different label" in found(ready())


@pytest.mark.parametrize("kind", ["number", "text"])
def test_a_column_that_gives_the_target_away_is_named(kind: str, work: Any) -> None:
    rows = table()
    told = (
        pl.col("y").replace_strict({"yes": 3.5, "no": 1.25})
        if kind == "number"
        else "because " + pl.col("y")
    )
    rows.with_columns(told=told).write_csv("t.csv")
    text = found(ready())
    assert "column told alone explains 100.0% of the target" in text
    assert "data.columns: {told: drop}" in text
    assert "column a" not in text


def test_a_column_that_gives_a_number_away_is_named(work: Any) -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=2000)
    pl.DataFrame({"a": rng.normal(size=2000) + y, "cents": 100 * y, "y": y}).write_csv("t.csv")
    text = found(ready())
    assert "column cents alone explains" in text
    assert "column a" not in text


def test_rare_classes_and_rows_without_target_are_named(work: Any) -> None:
    rows = table()
    y = ["odd"] * 6 + [None] * 4 + rows["y"].to_list()[10:]
    rows.with_columns(y=pl.Series(y)).write_csv("t.csv")
    text = found(ready())
    assert "fewer than 10 training rows of odd (4)" in text
    assert "4 of 400 rows of t.csv have no target: they are left out" in text


def test_equal_rows_have_equal_digests_and_others_do_not(work: Any) -> None:
    arrays = make_arrays("multiclass", 3000)
    arrays["x"][7] = arrays["x"][2000]
    np.savez("data.npz", **arrays)
    data = ArrayDataModule("data.npz", val_fraction=0, test_fraction=0)
    data.setup("fit")
    keys = digests(data.splits["train"], chunk=64)
    assert keys[7] == keys[2000]
    assert len(set(keys.tolist())) == 2999


def test_strict_makes_findings_errors(work: Any, cli: Cli) -> None:
    table().with_columns(id=pl.Series(range(400))).write_csv("t.csv")
    assert "--strict: expected no findings, got 1: column id" in cli(
        "init", "t.csv", "--target", "y", "--strict", code=2
    )
    cli("init", "t.csv", "--target", "y")
    cli("check", "--config", "configs/t.yaml", "--strict")  # init has dropped the identifier
    flags = ["--config", "configs/t.yaml", "--data.columns", "null", "--strict"]
    assert "column id is left out, an identifier" in cli("check", *flags, code=2)
