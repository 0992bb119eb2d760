"""Training whose loss ends far above its start is reported, and no other training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Cli, make_arrays
from proj.engine.callbacks.divergence import DIVERGED, FACTOR, Divergence
from proj.engine.runs.run import Run

DIVERGING = ["--model.optimizer.lr", "1e10"]


def findings(name: str) -> list[str]:
    entries = json.loads(Path(f"lightning_logs/{name}/findings.json").read_text())
    return [entry["what"] for entry in entries if entry["effect"] == DIVERGED]


@pytest.mark.parametrize(("task", "rate"), [("multiclass", "1e10"), ("regression", "1e4")])
def test_training_that_diverges_is_reported(
    task: str, rate: str, experiment: Any, cli: Cli
) -> None:
    config = experiment(task, trainer={"max_epochs": 2})
    cli("fit", "--config", config, "--name", "bad", "--model.optimizer.lr", rate)
    (found,) = findings("bad")
    assert found.startswith("the training loss of the last epoch is ")
    (warning,) = Run(Path("lightning_logs/bad")).manifest["warnings"]
    assert "training diverged; lower the learning rate" in warning
    # The value is that of the curve.
    value = float(found.removeprefix("the training loss of the last epoch is ").split(",")[0])
    assert value > FACTOR
    cli("test", "--run", "bad")
    assert found in Path("lightning_logs/bad/report.html").read_text()


def test_the_warning_is_printed(experiment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from proj.engine.cli import main

    assert main(["fit", "--config", str(experiment()), *DIVERGING]) == 0
    assert "training diverged" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--model.optimizer", "SGD", "--model.optimizer.lr", "1.0"],
        ["--model.loss", "torch.nn.CrossEntropyLoss", "--model.loss.reduction", "sum"],
        ["--model.class_weights", "auto", "--model.compile", "none"],
        [
            *("--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.1"),
            *("--model.scheduler_interval", "step"),
        ],
    ],
)
def test_ordinary_training_is_not_reported(flags: list[str], experiment: Any, cli: Cli) -> None:
    cli("fit", "--config", experiment(), "--name", "good", *flags)
    assert not findings("good")
    assert "warnings" not in Run(Path("lightning_logs/good")).manifest


def test_a_large_target_that_is_not_standardized_is_not_reported(experiment: Any, cli: Cli) -> None:
    config = experiment("regression", model={"standardize_target": False})
    cli("fit", "--config", config, "--name", "good")
    assert not findings("good")


def test_a_start_from_trained_weights_is_not_reported(experiment: Any, cli: Cli) -> None:
    """The loss rises from almost 0 to that of another task's constant."""
    x = make_arrays("regression")["x"]
    config = experiment("regression", trainer={"max_epochs": 30})
    np.savez("data.npz", x=x, y=x[:, 0])
    cli("fit", "--config", config, "--name", "first", "--model.optimizer.lr", "0.03")
    np.savez("data.npz", x=x, y=np.random.default_rng(1).normal(size=len(x)))
    again = ["--init_from", "first", "--model.optimizer.lr", "0.1", "--trainer.max_epochs", "2"]
    cli("fit", "--config", config, "--name", "second", *again)
    assert not findings("second")


def watch(start: float, train: list[float], val: list[float] | None = None) -> Divergence:
    """Return the callback after epochs with these mean losses."""
    callback = Divergence()
    callback.start = start
    for epoch, loss in enumerate(train):
        callback.worst = max(callback.worst, (loss, epoch))
        callback.last = {"train": loss}
        if val:
            callback.last["val"] = val[epoch]
            callback.best_val = min(callback.best_val, val[epoch])
    return callback


@pytest.mark.parametrize(
    ("start", "train", "val", "found"),
    [
        (0.7, [0.6, 0.5], None, ""),
        (0.7, [7.0, 0.5], None, ""),  # warm-up
        (0.7, [0.6, 5.0], [0.7, 9.0], ""),  # a generator that loses; overfitting
        (0.7, [900.0, 0.5], None, "the training loss of epoch 0 is 900"),
        (0.7, [0.6, 2e19], None, "the training loss of the last epoch is 2e+19"),
        (-3.0, [-40.0, -5000.0], None, ""),
        (-3.0, [-4.0, 400.0], None, "the training loss of the last epoch is 400"),
        (1.0, [0.9, 0.8], [170.0, 168.0], ""),  # outliers in the validation split
        (1.0, [0.9, 0.8], [1.0, 1e4], "the validation loss at the end is 1e+04"),
        (float("inf"), [1.0, 1e30], None, ""),  # the start is not known
    ],
)
def test_the_rule(start: float, train: list[float], val: list[float] | None, found: str) -> None:
    finding = watch(start, train, val).finding()
    assert (finding is not None) == bool(found)
    assert finding is None or finding.what.startswith(found)


def test_the_state_survives_a_resume() -> None:
    callback = watch(0.7, [0.6, 2e19], [0.5, 3.0])
    callback.total, callback.count = torch.tensor(1.5, dtype=torch.float64), 3
    twin = Divergence()
    twin.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert twin.state_dict() == callback.state_dict()
    assert twin.finding() == callback.finding()


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:no validation took place")
@pytest.mark.filterwarnings("default:the training data loader has no state_dict")
@pytest.mark.parametrize(("rate", "diverges"), [("1e-3", False), ("1e8", True)])
def test_a_users_own_model_is_watched(rate: str, diverges: bool, cli: Cli) -> None:
    Path("own.py").write_text("""
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

class Own(LightningModule):
    def __init__(self, rate: float):
        super().__init__()
        self.net, self.rate = torch.nn.Linear(6, 1), rate

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.rate)

class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), 16)
""")
    flags = "--model own.Own --data own.Data --trainer.accelerator cpu --trainer.max_epochs 2"
    monitor = ["--trainer.enable_checkpointing", "false", "--trainer.log_every_n_steps", "1"]
    cli("fit", *flags.split(), *monitor, "--model.rate", rate, "--name", "own")
    assert bool(findings("own")) == diverges
