"""A resumed run that trains longer than it was started for."""

from pathlib import Path
from typing import Any

import torch

from conftest import Cli

STEP = {"class_path": "StepLR", "init_args": {"step_size": 1}}
CYCLE = {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.01}}


def weights(run: str) -> dict[str, torch.Tensor]:
    path = Path("lightning_logs") / run / "checkpoints/last.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_a_schedule_without_a_length_may_go_on(experiment: Any, cli: Cli) -> None:
    """A run with a schedule that has no end could not be trained longer."""
    config = experiment(model={"scheduler": STEP})
    cli("fit", "--config", config, "--name", "short", "--trainer.max_epochs", "1")
    cli("fit", "--resume", "short", "--trainer.max_epochs", "2")
    cli("fit", "--config", config, "--name", "long", "--trainer.max_epochs", "2")
    short, long = weights("short"), weights("long")
    assert all(torch.equal(short[name], long[name]) for name in long)


def test_the_loggers_of_a_resumed_run_may_change(experiment: Any, cli: Cli) -> None:
    """A run could not be continued with another logger, or where its service is not there."""
    cli("fit", "--config", experiment(), "--name", "a")
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"]
    cli("fit", "--resume", "a", "--trainer.max_epochs", "3", *logger)
    folder = Path("csv/lightning_logs/version_0")
    assert "val/loss" in (folder / "metrics.csv").read_text()
    assert "trainer.max_epochs: 3" in (folder / "hparams.yaml").read_text()
    cli("test", "--run", "a")


def test_a_schedule_with_the_length_of_the_training_is_named(experiment: Any, cli: Cli) -> None:
    """The message would not say why a run may not be trained longer."""
    config = experiment(model={"scheduler": CYCLE, "scheduler_interval": "step"})
    cli("fit", "--config", config, "--name", "a")
    answer = cli("fit", "--resume", "a", "--trainer.max_epochs", "5", code=2)
    assert "max_epochs: 2 -> 5 (model.scheduler OneCycleLR takes its length from it)" in answer
