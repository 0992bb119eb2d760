"""Every shipped experiment runs fit, test and predict, and two of them end with the scores they promise."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml

from conftest import CONFIGS, ROOT, Cli
from proj.engine.runs.run import read_checkpoint

PROMISED = {"digits": 0.985, "breast_cancer": 0.96}
LOGS = Path("lightning_logs")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_experiment_goes_through(config: Path, cli: Cli) -> None:
    cli("fit", "--config", config, "--name", "run")
    cli("test")
    cli("predict")
    metrics = json.loads((LOGS / "run/test/metrics.json").read_text())
    table = pl.read_parquet(LOGS / "run/test/predictions.parquet")
    assert table.height == pl.read_parquet(LOGS / "run/predict/predictions.parquet").height > 0
    if config.stem in PROMISED:
        assert metrics["accuracy"]["value"] >= PROMISED[config.stem]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_a_runs_own_config_repeats_it_to_the_bit(config: Path, cli: Cli) -> None:
    short = ["--trainer.max_epochs", "3"]
    cli("fit", "--config", config, "--name", "first", *short)
    cli("fit", "--config", LOGS / "first/config.yaml", "--name", "again")
    first, again = (
        read_checkpoint(LOGS / f"{name}/checkpoints/last.ckpt") for name in ("first", "again")
    )
    assert all(
        torch.equal(first["state_dict"][k], again["state_dict"][k]) for k in first["state_dict"]
    )


@pytest.mark.parametrize(
    "machine", sorted((ROOT / "configs/machine").glob("*.yaml")), ids=lambda p: p.stem
)
def test_machine_settings_lie_on_top_of_any_experiment(machine: Path, cli: Cli) -> None:
    for config in CONFIGS:
        text = cli("fit", "--config", config, "--config", machine, "--print_config")
        given: dict[str, Any] = yaml.safe_load(machine.read_text())["trainer"]
        assert given.items() <= yaml.safe_load(text)["trainer"].items()


def test_the_debug_settings_train(cli: Cli) -> None:
    cli(
        "fit",
        "--config",
        ROOT / "configs/digits.yaml",
        "--config",
        ROOT / "configs/machine/debug.yaml",
        "--trainer.max_epochs",
        "1",
    )


def test_experiments_work_from_a_copy_of_the_file_alone(cli: Cli) -> None:
    shutil.copy(ROOT / "configs/linnerud.yaml", "mine.yaml")
    cli("fit", "--config", "mine.yaml", "--trainer.max_epochs", "1")
