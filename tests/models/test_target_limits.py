"""Numbers beyond the limits of a target are not predicted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import root_mean_squared_error

import proj
from conftest import Cli, make_arrays
from engine.deployment.conftest import BUNDLE
from engine.deployment.test_eject import check_style, run_here
from proj.data.arrays import ArrayDataModule
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.schema import Schema

LARGEST = 1.7976931348623157e308
RNG = np.random.default_rng(0)
WAITS = RNG.exponential(size=500)


def schema_of(y: Any) -> Schema:
    x = np.zeros((len(y), 1), np.float32)
    data = ArrayDataModule.from_arrays((x, y), (x, y), (x, y), task="regression")
    data.setup("fit")
    assert data.schema is not None
    return data.schema


@pytest.mark.parametrize(
    ("y", "limits"),
    [
        (WAITS, None),
        (WAITS.round(1), None),  # 5 % of the rows are 0.0, and more are 0.1
        (RNG.poisson(3, 500), None),  # the largest count is rare
        (RNG.poisson(0.5, 500), (0, LARGEST)),
        (WAITS.clip(max=2), (-LARGEST, 2)),
        (-WAITS.clip(max=2), (-2, LARGEST)),
        (WAITS.clip(0.1, 2), (0.1, 2)),
        (WAITS[:40].clip(max=2), None),  # in 9 rows or fewer
        (np.full(50, 3.5), (3.5, 3.5)),
    ],
)
def test_a_limit_is_an_extreme_that_many_rows_have(y: Any, limits: Any) -> None:
    found = schema_of(y.astype(np.float64))
    pairs = list(zip(found.target_low, found.target_high, strict=True))
    assert pairs == ([] if limits is None else [limits])


def test_each_target_has_its_own_limits() -> None:
    found = schema_of(np.stack([WAITS, WAITS.clip(max=2)], axis=1))
    assert found.target_low == (-LARGEST, -LARGEST)
    assert found.target_high == (LARGEST, 2)


def train(experiment: Callable[..., Path], cli: Cli, task: str, name: str, *flags: str) -> None:
    config = experiment(task, rows=400, trainer={"max_epochs": 12})
    arrays = make_arrays(task, 400)
    # Of two targets one is limited.
    limits = [[-np.inf, 980]] if task == "regression" else [[-np.inf] * 2, [1020, np.inf]]
    low, high = np.array(limits[0]), np.array(limits[-1])
    y = arrays["y"].clip(*limits[0]) if task == "regression" else arrays["y"].clip(low, high)
    np.savez("data.npz", x=arrays["x"], y=y)
    cli("fit", "--config", config, "--name", name, *flags)
    cli("test", "--run", name)


@pytest.mark.parametrize("task", ["regression", "regression_2"])
def test_predictions_and_metrics_are_those_of_clipped_numbers(
    task: str, experiment: Callable[..., Path], cli: Cli
) -> None:
    train(experiment, cli, task, "free", "--model.clip", "false")
    train(experiment, cli, task, "clipped")
    weights = [
        read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/last.ckpt"))["state_dict"]
        for name in ("free", "clipped")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    tables = [
        pl.read_parquet(f"lightning_logs/{name}/test/predictions.parquet")
        for name in ("free", "clipped")
    ]
    errors = []
    limits = {"": 980} if task == "regression" else {"_target_0": 1020}
    for column in (name for name in tables[0].columns if name.startswith("prediction")):
        suffix = column.removeprefix("prediction")
        free = tables[0][column].to_numpy()
        expected = free.clip(max=limits.get(suffix, np.inf))
        assert (free > expected).any() == (suffix in limits)
        np.testing.assert_array_equal(tables[1][column], expected)
        target = tables[1][f"target{suffix}"].to_numpy()
        errors.append(root_mean_squared_error(target, expected))
    metrics = json.loads(Path("lightning_logs/clipped/test/metrics.json").read_text())
    assert metrics["rmse"]["value"] == pytest.approx(np.mean(errors), rel=1e-9)


@pytest.mark.long
def test_deployed_models_clip(
    experiment: Callable[..., Path], cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    """`proj.load`, a bundle and an ejected script predict what `test` does."""
    train(experiment, cli, "regression", "version_0")
    expected = pl.read_parquet("lightning_logs/version_0/test/predictions.parquet")
    assert expected["prediction"].max() == 980
    rows = np.load("data.npz")["x"][expected["row"].to_numpy()]
    loaded = proj.load("version_0").predict(rows)
    np.testing.assert_allclose(loaded["prediction"], expected["prediction"], rtol=1e-6)
    cli("export")
    assert "verified: " in cli("verify", BUNDLE)
    bundle = proj.deploy.load(BUNDLE).predict(rows)
    np.testing.assert_allclose(bundle["prediction"], expected["prediction"], rtol=1e-6)
    assert max(bundle["prediction"]) == 980
    cli("eject")
    run_here(capsys)
    check_style()


def test_baselines_end_at_the_limits(experiment: Callable[..., Path], cli: Cli) -> None:
    train(experiment, cli, "regression", "a")
    cli("baseline", "--run", "a")
    for name in ("a_linear", "a_hist_gradient_boosting"):
        table = pl.read_parquet(f"lightning_logs/{name}/test/predictions.parquet")
        assert table["prediction"].max() == 980


def test_init_names_the_limits(work: Path, cli: Cli) -> None:
    y = WAITS.clip(0.5, 2)
    pl.DataFrame({"x": RNG.normal(size=500), "wait": y}).write_csv("waits.csv")
    cli("init", "waits.csv", "--target", "wait", "--output", "waits.yaml")
    assert "# numbers: wait (at least 0.5, at most 2)\n" in Path("waits.yaml").read_text()
