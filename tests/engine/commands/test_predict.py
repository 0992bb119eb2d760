"""``predict`` says which rows it predicts."""

from pathlib import Path

import numpy as np
import polars as pl

from conftest import Cli, Trained, make_arrays


def test_predict_without_a_path_says_that_it_predicts_the_test_split(
    trained: Trained, cli: Cli
) -> None:
    """A user would take them for predictions of new rows."""
    trained()
    said = "no data.predict_path is given, so the rows of the test split are predicted"
    assert said in cli("predict")
    np.savez("new.npz", x=make_arrays("multiclass", 7)["x"])
    out = cli("predict", "--data.predict_path", "new.npz", "--output", "new.parquet")
    assert said not in out
    assert len(pl.read_parquet(Path("new.parquet"))) == 7
