"""A column of weights is read strictly, is no input, and is needed in no row to predict."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from proj.data.arrays import ArrayDataModule
from proj.data.tabular.datamodule import Tabular
from proj.errors import UserError

ROWS = 60


def write(weights: Any, name: str = "table.csv") -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=ROWS), np.arange(ROWS) % 2
    pl.DataFrame({"x": x, "w": weights, "y": y}).write_csv(name)


def ready(**options: Any) -> Tabular:
    data = Tabular("table.csv", "y", weight="w", **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_weights_belong_to_their_rows_and_are_no_input() -> None:
    """A weight at the wrong row, or as an input, would make every result false."""
    weights = np.arange(ROWS) / 4
    write(weights)
    data = ready()
    assert data.schema is not None
    assert [column.name for column in data.schema.columns] == ["x"]
    for split in data.splits.values():
        assert split.weight is not None
        assert split.weight.numpy() == pytest.approx(weights[split.row.numpy()])
    train = data.splits["train"].row.numpy()
    assert data.schema.weight_mean == pytest.approx(weights[train].mean())
    assert any("1 of " in f.what and "weight 0" in f.what for f in data.findings)


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "heavy", "", "1,5"])
def test_a_bad_weight_is_named_with_its_row(value: str) -> None:
    """A weight that is dropped or guessed would change the result without a word."""
    write(["1"] * 7 + [value] + ["2"] * (ROWS - 8))
    with pytest.raises(UserError, match=r"column w: expected a weight .* in row 7"):
        ready()


def test_weights_of_0_in_a_whole_split_are_refused() -> None:
    write(np.zeros(ROWS))
    with pytest.raises(UserError, match=r"expected weights above 0 in each split, got 0 in all"):
        ready()


def test_the_column_has_no_other_role() -> None:
    write(np.ones(ROWS))
    with pytest.raises(UserError, match=r"data.weight: .*w, which is also data.group"):
        ready(group="w")


def test_a_test_file_has_weights_of_its_own() -> None:
    write(np.ones(ROWS))
    write(np.full(ROWS, 3.0), "test.csv")
    weight = ready(test_path="test.csv").splits["test"].weight
    assert weight is not None
    assert weight.tolist() == [3.0] * ROWS


def test_rows_to_predict_need_no_weights() -> None:
    write(np.ones(ROWS))
    Path("new.csv").write_text("x\n1.5\n2.5\n")
    data = ready(predict_path="new.csv")
    data.setup("predict")
    assert data.splits["predict"].weight is None
    assert len(data.splits["predict"].row) == 2


def test_arrays_take_weights() -> None:
    """``from_arrays`` and ``.npz`` files have the same weights, which need one for each row."""
    x, y, weight = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2, np.arange(40)
    np.savez("data.npz", x=x, y=y, weight=weight)
    for data in (ArrayDataModule("data.npz"), ArrayDataModule.from_arrays((x, y, weight))):
        data.setup("fit")
        for split in data.splits.values():
            assert split.weight is not None
            assert split.weight.tolist() == split.row.tolist()
    with pytest.raises(UserError, match=r"weight_train: expected a number for each of the 40 rows"):
        ArrayDataModule.from_arrays((x, y, weight[:9])).setup("fit")
