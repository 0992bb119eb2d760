"""A run with weights: test metrics are those of scikit-learn, and executions are single steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn import metrics

from conftest import Cli, make_arrays
from proj.engine.runs.run import Run


def test_a_run_is_scored_with_weights(experiment: Callable[..., Path], cli: Cli) -> None:
    """Weights must pass from the file through loaders, executions, predictions and intervals."""
    path = experiment("binary", model={"steps_per_execution": 3})
    weight = np.random.default_rng(0).choice([0.0, 1.0, 4.0], 120)
    np.savez("data.npz", **make_arrays("binary"), weight=weight)
    cli("fit", "--config", path, "--name", "several")
    cli("fit", "--config", path, "--name", "single", "--model.steps_per_execution", 1)
    folders = [Path("lightning_logs") / name for name in ("several", "single")]
    several, single = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in folders
    )
    for name, values in several["state_dict"].items():
        assert torch.equal(values, single["state_dict"][name]), name
    cli("test", "--run", "several")
    table = pl.read_parquet(folders[0] / "test" / "predictions.parquet")
    used, reported = table["weight"].to_numpy(), Run(folders[0]).metrics("test")
    assert used == pytest.approx(weight[table["row"].to_numpy()])
    target, probability = (table["target"] == "yes").to_numpy(), table["probability_yes"].to_numpy()
    options: dict[str, Any] = {"sample_weight": used}
    expected = {
        "loss": metrics.log_loss(target, probability, **options),
        "f1": metrics.f1_score(target, probability > 0.5, **options),
        "auroc": metrics.roc_auc_score(target, probability, **options),
    }
    assert {n: reported[n]["value"] for n in expected} == pytest.approx(expected, abs=1e-6)
    assert reported["loss"]["low"] < expected["loss"] < reported["loss"]["high"]
