"""Each shipped experiment runs through `fit`, `test` and `predict`, with the expected accuracy."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from conftest import CONFIGS, ROOT, Cli
from proj.engine.runs.checkpoint_file import read_checkpoint

MINIMUM_ACCURACY = {"digits": 0.985, "breast_cancer": 0.96}
LOGS = Path("lightning_logs")
MACHINES = sorted((ROOT / "configs/machine").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_experiment_runs_through_all_verbs(config: Path, cli: Cli) -> None:
    """A shipped experiment would fail, or reach a lower score than the documents state."""
    cli("fit", "--config", config, "--name", "run")
    cli("test")
    cli("predict")
    metrics = json.loads((LOGS / "run/test/metrics.json").read_text())
    table = pl.read_parquet(LOGS / "run/test/predictions.parquet")
    assert table.height == pl.read_parquet(LOGS / "run/predict/predictions.parquet").height > 0
    if config.stem in MINIMUM_ACCURACY:
        assert metrics["accuracy"]["value"] >= MINIMUM_ACCURACY[config.stem]


@pytest.mark.long
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_config_of_a_run_repeats_it_to_the_bit(config: Path, cli: Cli) -> None:
    """A recorded experiment would not give the recorded weights."""
    cli("fit", "--config", config, "--name", "first", "--trainer.max_epochs", "2")
    cli("fit", "--config", LOGS / "first/config.yaml", "--name", "again")
    first, again = (
        read_checkpoint(LOGS / name / "checkpoints/last.ckpt")["state_dict"]
        for name in ("first", "again")
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.stem)
def test_machine_settings_can_be_added_to_each_experiment(machine: Path, cli: Cli) -> None:
    """The settings of a second config would be lost."""
    for config in CONFIGS:
        text = cli("fit", "--config", config, "--config", machine, "--print_config")
        settings: dict[str, Any] = yaml.safe_load(machine.read_text())["trainer"]
        assert settings.items() <= yaml.safe_load(text)["trainer"].items()


def test_the_debug_settings_train(cli: Cli) -> None:
    """Deterministic algorithms or anomaly detection would stop the training."""
    configs = [
        "--config",
        ROOT / "configs/digits.yaml",
        "--config",
        ROOT / "configs/machine/debug.yaml",
    ]
    cli("fit", *configs, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4")


def test_an_experiment_works_as_a_copy_elsewhere(cli: Cli) -> None:
    """An experiment would depend on files beside it."""
    shutil.copy(ROOT / "configs/linnerud.yaml", "mine.yaml")
    cli("fit", "--config", "mine.yaml", "--trainer.max_epochs", "1")
