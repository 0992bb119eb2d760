"""Conformal limits equal a computation with NumPy alone; their coverage is the nominal one."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import proj
from conftest import Cli, Trained
from proj.engine.evaluation.conformal import (
    conformal_metrics,
    fit_limits,
    parse_coverage,
    quantile_rank,
)
from proj.engine.evaluation.prediction_set import PredictionSet
from proj.errors import UserError

RUN = Path("lightning_logs/version_0")


def test_the_rank_is_that_of_finite_samples() -> None:
    """A rank from floats is off by one for some coverages; too few rows have none."""
    for rows, coverage, rank in ((9, 0.9, 9), (29, 0.9, 27), (99, 0.95, 95), (100, 0.9, 91)):
        assert quantile_rank(rows, coverage) == rank
    with pytest.raises(UserError, match=r"expected 99 validation rows or more .* got 98"):
        quantile_rank(98, 0.99)


@pytest.mark.parametrize("text", ["0", "1", "90", "nan", "many"])
def test_a_coverage_is_a_share(text: str) -> None:
    with pytest.raises(UserError, match="--coverage: expected a share between 0 and 1"):
        parse_coverage(text)


def test_limits_and_metrics_equal_numpy() -> None:
    rng = np.random.default_rng(0)
    target, output = rng.normal(size=(99, 2)), rng.normal(size=(99, 2))
    numbers = PredictionSet("regression", ("a", "b"), np.arange(99), target, output)
    limits = fit_limits(numbers, 0.9)
    assert limits == tuple(np.sort(abs(target - output), axis=0)[89])
    metrics = conformal_metrics(numbers, limits, ("a", "b"), 0)
    assert metrics["interval_coverage/b"]["value"] == pytest.approx(90 / 99)
    assert metrics["interval_width/a"]["value"] == 2 * limits[0]

    p, y = rng.dirichlet(np.ones(4), 99), rng.integers(4, size=99)
    classes = PredictionSet("multiclass", tuple("abcd"), np.arange(99), y, p)
    (limit,) = fit_limits(classes, 0.9)
    true = p[np.arange(99), y]
    assert np.sort(true)[8] < limit <= np.sort(true)[9]
    metrics = conformal_metrics(classes, (limit,), ("kind",), 0)
    assert metrics["set_coverage"]["value"] == pytest.approx((true >= limit).mean())
    assert metrics["set_size"]["value"] == pytest.approx((p >= limit).sum(axis=1).mean())


@pytest.mark.parametrize("task", ["regression_2", "binary", "multilabel"])
def test_test_predict_and_load_apply_the_limits(task: str, trained: Trained, cli: Cli) -> None:
    trained(task)
    cli("validate", "--coverage", "0.8")
    before = pl.read_parquet(RUN / "validate/predictions.parquet")
    assert "calibrated: coverage 0.8" in cli("test")
    table = pl.read_parquet(RUN / "test/predictions.parquet")
    rank = quantile_rank(len(before), 0.8)
    if task == "regression_2":
        errors = (before["target_target_0"] - before["prediction_target_0"]).abs().sort()
        assert np.allclose(table["high_target_0"] - table["prediction_target_0"], errors[rank - 1])
        middle = (table["low_target_0"] + table["high_target_0"]) / 2
        assert np.allclose(middle, table["prediction_target_0"])
    elif task == "binary":
        true = np.where(
            before["target"] == "yes", before["probability_yes"], before["probability_no"]
        )
        least = np.sort(true)[::-1][rank - 1] - 1e-5
        for row in table.to_dicts():
            assert row["set"] == [c for c in ("no", "yes") if row[f"probability_{c}"] >= least]
    x = np.load("data.npz")["x"][table["row"].to_numpy()]
    names = [name for name in table.columns if name.startswith(("low", "high", "set"))]
    assert names
    loaded = proj.load("version_0").predict(x)
    for name in names:
        same = loaded[name].to_list(), table[name].to_list()
        assert same[0] == (pytest.approx(same[1]) if task == "regression_2" else same[1])
