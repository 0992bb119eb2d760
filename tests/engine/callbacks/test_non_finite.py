"""A number that is not finite ends training; the message names the step and where it appeared."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import processes
from conftest import Cli
from engine.faults.test_processes import TWO
from proj.engine.callbacks.non_finite import StopOnNonFinite
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import TrainingError
from proj.models import Regressor

CHECKPOINTS = Path("lightning_logs/version_0/checkpoints")
NETS = """
import torch
from torch import nn
from proj.nets.mlp import MLP

class Corrupting(nn.Module):
    '''Return the input, but a non-finite output or gradient from the 15th training step on.'''

    def __init__(self, where):
        super().__init__()
        self.where, self.steps = where, nn.Buffer(torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.steps += 1
            if self.steps >= 15 and self.where == "outputs":
                return x / 0
            if self.steps >= 15 and self.where == "gradient":
                return x + (x - x.detach()).abs().sqrt()
        return x

class Net(nn.Module):
    def __init__(self, where: str):
        super().__init__()
        self.first, self.corrupting, self.last = nn.Linear(6, 8), Corrupting(where), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.corrupting(self.first(x)))
"""


@pytest.mark.parametrize("steps", ["single steps", "1", "4", "64"])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("outputs", "first in the outputs of net.corrupting (Corrupting)"),
        ("gradient", "first in the gradient of net.first.bias"),
    ],
)
def test_the_step_and_the_layer_are_reported(
    where: str, said: str, steps: str, experiment: Any, cli: Cli
) -> None:
    Path("nets.py").write_text(NETS)
    config = experiment(trainer={"max_epochs": 9})
    flags = [
        "--model.net",
        "nets.Net",
        "--model.net.where",
        where,
        *(
            ["--trainer.limit_train_batches", "6"]
            if steps == "single steps"
            else ["--model.steps_per_execution", steps]
        ),
    ]
    message = cli("fit", "--config", config, *flags, code=3)
    if (where, steps) == ("gradient", "single steps"):
        # The loss shows it one step later, through the weights.
        assert "step 16 (epoch 2)" in message
        assert "first in the weights net.first" in message
    else:
        assert "step 15 (epoch 2)" in message
        assert said in message
    assert json.loads((CHECKPOINTS.parent / "manifest.json").read_text())["status"] == "failed"
    for path in CHECKPOINTS.glob("*.ckpt"):
        assert all(
            torch.isfinite(values).all() for values in read_checkpoint(path)["state_dict"].values()
        )


def test_an_extreme_input_is_reported_with_its_step(experiment: Any, cli: Cli) -> None:
    config = experiment("regression")
    arrays = dict(np.load("data.npz"))
    arrays["x"][:, 0] *= 1e30
    arrays["x"][50, 0] = 3e38
    np.savez("data.npz", **arrays)
    message = cli(
        "fit",
        "--config",
        config,
        "--model.optimizer",
        "SGD",
        "--model.optimizer.lr",
        "1e20",
        code=3,
    )
    assert re.search(
        r"step \d+ \(epoch \d\) gave a number that is not finite, first in the", message
    )


def test_the_loss_of_any_lightning_module_is_checked(cli: Cli) -> None:
    Path("own.py").write_text("""
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

class Own(LightningModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        return (self.w * batch).sum() / (0 if self.trainer.global_step == 3 else 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(torch.ones(10), 2)
""")
    flags = [
        "--model",
        "own.Own",
        "--data",
        "own.Data",
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_epochs",
        "1",
    ]
    message = cli("fit", *flags, "--early_stopping.patience", "null", code=3)
    assert "step 4 (epoch 0) gave a number that is not finite, first in the loss" in message


@pytest.mark.long
@pytest.mark.parametrize("steps", [1, 4])
def test_all_processes_stop_at_a_loss_that_is_not_finite_in_one(
    steps: int, experiment: Any, work: Path
) -> None:
    """The others would wait for its gradients, or train on with numbers that are not finite."""
    Path("own.py").write_text("""
import torch

class Loss(torch.nn.CrossEntropyLoss):
    calls = 0

    def forward(self, outputs, targets):
        self.calls += outputs.requires_grad
        last = self.calls == 8 and torch.distributed.is_initialized()
        factor = torch.nan if last and torch.distributed.get_rank() == 1 else 1.0
        return super().forward(outputs, targets) * factor
""")
    model = {"steps_per_execution": steps, "loss": "own.Loss"}
    config = experiment(rows=120, model=model, data={"batch_size": 2})
    done = processes.run("proj", "fit", "--config", config, "--allow", "own", *TWO)
    assert done.returncode == 3, done.stderr
    assert "gave a number that is not finite" in done.stderr


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out((a + b) / 0)


@pytest.mark.parametrize(
    ("x", "said"),
    [((0.0, float("nan")), "the inputs"), ((1.0, 1.0), r"the outputs of net\.out \(Linear\)")],
    ids=["inputs", "a layer"],
)
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_batches_of_a_users_loader(x: tuple[float, float], said: str) -> None:
    """Several inputs of a user's loader would end in an error about tuples."""
    rows = [((torch.full((2,), x[0]), torch.full((2,), x[1])), torch.zeros(1))] * 8
    loader: Any = DataLoader(rows, batch_size=4)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[StopOnNonFinite(None)], **quiet)
    model = Regressor(Sum(), standardize_target=False)
    with pytest.raises(TrainingError, match=rf"^step 1 \(epoch 0\) .* first in {said}"):
        trainer.fit(model, loader)
