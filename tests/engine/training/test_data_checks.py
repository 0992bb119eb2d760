"""Checks of a data set: each finding on data made to have it, and none on clean data."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from conftest import Cli, make_arrays
from proj.data.arrays import ArrayDataModule
from proj.data.tabular.datamodule import Tabular
from proj.engine.training.data_checks import check_data, find_leaking_columns
from proj.engine.training.equal_rows import find_equal_rows, hash_rows


def ready(path: str = "t.csv", **options: Any) -> Tabular:
    data = Tabular(path, "y", **options)
    data.prepare_data()
    data.setup("fit")
    return data


def table(rows: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=rows), rng.choice(list("uvw"), rows)
    return pl.DataFrame({"a": a, "b": b, "y": np.where(a + rng.normal(size=rows) > 0, "yes", "no")})


def findings_text(data: Any) -> str:
    """All findings, one per line."""
    return "\n".join(map(str, check_data(data)))


def test_clean_data_have_no_findings(work: Any) -> None:
    """A false alarm would teach users to ignore findings."""
    table().write_csv("t.csv")
    assert findings_text(ready()) == ""


def test_copies_in_another_split_are_counted(work: Any) -> None:
    """A wrong count would differ from the count over the rows of the source."""
    rows = table()
    pl.concat([rows, rows[:60]]).write_csv("t.csv")
    data = ready()
    keys = {
        name: [rows.row(i % 400) for i in split.row.tolist()] for name, split in data.splits.items()
    }
    for later, earlier in (("val", "train"), ("test", "train")):
        count = sum(key in set(keys[earlier]) for key in keys[later])
        assert count > 0
        assert f"{count} of 69 {later} rows are exact copies of {earlier} rows" in findings_text(
            data
        )


def test_equal_inputs_with_different_labels_are_counted(work: Any) -> None:
    """Five rows are repeated with the other label, so ten rows contradict."""
    rows = table()
    other = rows[:5].with_columns(
        y=pl.when(pl.col("y") == "yes").then(pl.lit("no")).otherwise(pl.lit("yes"))
    )
    pl.concat([rows, other]).write_csv("t.csv")
    assert "10 of 405 rows have the inputs of another row and a different label" in findings_text(
        ready()
    )


@pytest.mark.parametrize("kind", ["number", "text"])
def test_a_column_that_contains_the_target_is_named(kind: str, work: Any) -> None:
    """The finding names the column and how to drop it, whatever its type."""
    rows = table()
    leak = (
        pl.col("y").replace_strict({"yes": 3.5, "no": 1.25})
        if kind == "number"
        else "because " + pl.col("y")
    )
    rows.with_columns(leak=leak).write_csv("t.csv")
    text = findings_text(ready())
    assert "column leak alone explains 100.0% of the target" in text
    assert "data.columns: {leak: drop}" in text
    assert "column a" not in text


def test_a_few_rows_that_agree_by_chance_are_no_leak(work: Any) -> None:
    """On ten validation rows a good column has no error, which does not make it the target."""
    rows = table()
    wrong = [i % 16 == 0 for i in range(len(rows))]
    other = pl.when(pl.col("y") == "yes").then(pl.lit("no")).otherwise(pl.lit("yes"))
    rows = rows.with_columns(good=pl.when(pl.Series(wrong)).then(other).otherwise(pl.col("y")))
    rows.write_csv("t.csv")
    data = ready()
    assert data.schema is not None
    codes = data.splits["val"].x["categorical"][:, -1]
    right = codes == 2 + data.splits["val"].y
    val = data.splits["val"]
    few = val._replace(
        x={kind: x[right] for kind, x in val.x.items()}, y=val.y[right], row=val.row[right]
    )
    assert list(find_leaking_columns(data.schema, data.splits["train"], few)) == []


def test_the_parts_of_a_date_are_one_finding(work: Any) -> None:
    """Its days, months and hours are one column of the file."""
    rows = table()
    day = pl.when(pl.col("y") == "yes").then(pl.lit("2020-01-01")).otherwise(pl.lit("2021-03-02"))
    rows.with_columns(end=day).write_csv("t.csv")
    assert findings_text(ready()).count("alone explains") == 1


def test_a_column_that_contains_a_number_to_predict_is_named(work: Any) -> None:
    """The target in another unit is found, a correlated column is not."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=2000)
    pl.DataFrame({"a": rng.normal(size=2000) + y, "cents": 100 * y, "y": y}).write_csv("t.csv")
    text = findings_text(ready())
    assert "column cents alone explains" in text
    assert "column a" not in text


def test_rare_classes_and_missing_targets_are_named(work: Any) -> None:
    """Counts are those of the training split and of the whole file."""
    rows = table()
    y = ["odd"] * 6 + [None] * 4 + rows["y"].to_list()[10:]
    rows.with_columns(y=pl.Series(y)).write_csv("t.csv")
    text = findings_text(ready())
    assert "fewer than 10 training rows of odd (4)" in text
    assert "4 of 400 rows of t.csv have no target: they are left out" in text


def test_equal_rows_have_equal_hashes_and_others_do_not(work: Any) -> None:
    """A collision would report a row as a duplicate."""
    arrays = make_arrays("multiclass", 3000)
    arrays["x"][7] = arrays["x"][2000]
    np.savez("data.npz", **arrays)
    data = ArrayDataModule("data.npz", val_fraction=0, test_fraction=0)
    data.setup("fit")
    hashes = hash_rows([data.splits["train"].x.numpy()], chunk=4096)
    assert hashes[7] == hashes[2000]
    assert len(set(hashes.tolist())) == 2999


@pytest.mark.parametrize("kinds", [30, 3000])
def test_equal_rows_are_those_that_a_count_finds(
    work: Any, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rows whose inputs repeat are looked at closely, in chunks."""
    rng = np.random.default_rng(kinds)
    x = {split: rng.integers(kinds, size=(300, 1)) for split in ("train", "val", "test")}
    y = {split: rng.integers(2, size=300) for split in x}
    rows = {
        split: list(zip(x[split][:, 0].tolist(), y[split].tolist(), strict=True)) for split in x
    }
    data = ArrayDataModule.from_arrays(*((x[split].astype(float), y[split]) for split in x))
    data.setup("fit")
    monkeypatch.setattr("proj.engine.training.equal_rows.CHUNK", 256)
    found = " ".join(map(str, find_equal_rows(data, data.splits)))
    for later, earlier in (("val", "train"), ("test", "train"), ("test", "val")):
        count = sum(row in rows[earlier] for row in rows[later])
        assert f"{count} of 300 {later} rows are exact copies of {earlier} rows" in found
    labels: dict[int, set[int]] = {}
    for value, label in (pair for split in rows.values() for pair in split):
        labels.setdefault(value, set()).add(label)
    count = sum(len(labels[value]) > 1 for split in rows.values() for value, _ in split)
    assert f"{count} of 900 rows have the inputs of another row and a different label" in found


def test_strict_makes_findings_errors(work: Any, cli: Cli) -> None:
    """`init` drops the identifier in the experiment, so that `check` has no finding."""
    table().with_columns(id=pl.Series(range(400))).write_csv("t.csv")
    assert "--strict: expected no findings, got 1: column id" in cli(
        "init", "t.csv", "--target", "y", "--strict", code=2
    )
    cli("init", "t.csv", "--target", "y")
    cli("check", "--config", "configs/t.yaml", "--strict")
    flags = ["--config", "configs/t.yaml", "--data.columns", "null", "--strict"]
    assert "column id is left out: an identifier" in cli("check", *flags, code=2)
