"""Staged unfreezing: the training of Lightning's callback, also with schedulers and resumes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, callbacks
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from conftest import Cli
from proj.engine import schedulers
from proj.engine.callbacks.finetuning import BackboneFinetuning
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.models import Regressor

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:You defined a `validation_step`",
    "ignore:A `OneCycleLR` scheduler is using 'interval'",
)

OWN = """
import shutil
from pathlib import Path

from lightning.pytorch import Callback
from torch import nn

from proj.schema import Schema


class Net(nn.Module):
    def __init__(self, schema: Schema):
        super().__init__()
        first = nn.Linear(schema.num_features, 5)
        self.backbone = nn.Sequential(first, nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(5, schema.num_outputs)

    def forward(self, x):
        return self.head(self.backbone(x))


class Copy(Callback):
    def __init__(self, step: int = 0):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not trainer.fast_dev_run:
            # last.ckpt is that of the step before.
            shutil.copytree("lightning_logs/run", "copy")
"""
EPOCHS, FIRST = 7, 2
SHARES = [1.0, 1.0, 0.1, 0.2, 0.4, 0.8, 1.0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.backbone(x))
        return output


class Record(Callback):
    """The rates of the groups in the first batch of each epoch, and the weights at its end."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.weights: list[list[Tensor]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.weights.append([p.detach().clone() for p in module.net.parameters()])


def fitted(callback: Callback, **options: Any) -> Record:
    record = Record()
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, x[:, :1]), batch_size=20)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=EPOCHS, callbacks=[callback, record], barebones=False, **quiet
    )
    trainer.fit(Regressor(Net(), standardize_target=False, **options), loader, loader)
    return record


def momentum(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


# The batch normalization, which Lightning trains from the start.
@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_the_weights_are_those_with_lightnings_callback() -> None:
    theirs = fitted(
        callbacks.BackboneFinetuning(FIRST, lambda_func=lambda epoch: 2.0), optimizer=momentum
    )
    ours = fitted(BackboneFinetuning(FIRST), optimizer=momentum)
    for own, other in zip(ours.weights, theirs.weights, strict=True):
        for value, expected in zip(own, other, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    first_layer = [weights[0] for weights in ours.weights]
    assert torch.equal(first_layer[0], Net().backbone[0].weight)
    assert torch.equal(first_layer[1], first_layer[0])
    assert not torch.equal(first_layer[2], first_layer[1])
    assert [after / before for before, after in ours.rates] == pytest.approx(SHARES)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS),
        lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=EPOCHS),
        lambda o: schedulers.SequentialLR(
            o,
            [
                lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=3),
                lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
            ],
            [4],
        ),
    ],
    ids=["StepLR", "CosineAnnealingLR", "LambdaLR", "OneCycleLR", "SequentialLR"],
)
def test_a_scheduler_changes_both_rates_alike(scheduler: Any) -> None:
    """A group that is added later has no base rate, from which a scheduler computes."""
    record = fitted(BackboneFinetuning(FIRST), optimizer=momentum, scheduler=scheduler)
    optimizer = momentum([nn.Parameter(torch.zeros(1))])
    by_hand, expected = scheduler(optimizer), []
    for _ in range(EPOCHS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        by_hand.step()
    assert [rates[0] for rates in record.rates] == pytest.approx(expected)
    shares = [after / before for before, after in record.rates]
    assert shares == pytest.approx(SHARES)


def test_groups_of_layers_and_patterns_keep_their_ratios() -> None:
    record = fitted(
        BackboneFinetuning(0, should_align=False),
        optimizer=momentum,
        learning_rates={"head.bias": 0.4, "backbone.0.bias": 0.3},
        layer_decay=0.5,
    )
    # The rest of the head with 0.05, the scale of the norm with 0.025, the weight with 0.0125.
    assert record.rates[0] == pytest.approx([0.4, 0.025, 0.05, 0.03, 0.00125])
    assert record.rates[4] == pytest.approx([0.4, 0.025, 0.05, 0.48, 0.02])


@pytest.mark.parametrize("step", [*(pytest.param(n, marks=pytest.mark.long) for n in (9, 15)), 18])
def test_a_resumed_run_has_the_same_bits(step: int, experiment: Any, cli: Cli) -> None:
    """Of 7 steps an epoch, the run is resumed within epochs 1 and 2, and between them."""
    Path("own.py").write_text(OWN)
    finetuning = {
        "class_path": "BackboneFinetuning",
        "init_args": {"unfreeze_backbone_at_epoch": 1},
    }
    config = experiment(
        rows=140,
        model={
            "net": "own.Net",
            "scheduler": {"class_path": "StepLR", "init_args": {"step_size": 2, "gamma": 0.5}},
            "layer_decay": 0.8,
        },
        trainer={
            "max_epochs": 4,
            "callbacks": [{"class_path": "own.Copy", "init_args": {"step": step}}, finetuning],
        },
        checkpoint={"every_n_steps": 1},
    )
    cli("fit", "--config", config, "--name", "run")
    whole = read_checkpoint(Path("lightning_logs/run/checkpoints/last.ckpt"))
    shutil.rmtree("lightning_logs/run")
    shutil.move("copy", "lightning_logs/run")
    cli("fit", "--resume", "run")
    resumed = read_checkpoint(Path("lightning_logs/run/checkpoints/last.ckpt"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    groups = [content["optimizer_states"][0]["param_groups"] for content in (whole, resumed)]
    assert groups[0] == groups[1]


def test_the_bits_do_not_depend_on_the_steps_per_execution(experiment: Any, cli: Cli) -> None:
    Path("own.py").write_text(OWN)
    callback = {"class_path": "BackboneFinetuning", "init_args": {"unfreeze_backbone_at_epoch": 1}}
    config = experiment(
        rows=140, model={"net": "own.Net"}, trainer={"max_epochs": 3, "callbacks": [callback]}
    )
    states = []
    for size in ("1", "3"):
        flags = ["--name", f"by_{size}", "--model.steps_per_execution", size]
        assert "at a time" not in cli("fit", "--config", config, *flags)
        checkpoint = read_checkpoint(Path(f"lightning_logs/by_{size}/checkpoints/last.ckpt"))
        states.append(checkpoint["state_dict"])
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_net_without_a_backbone_is_an_error(experiment: Any, cli: Cli) -> None:
    error = cli(
        "fit", "--config", experiment(), "--trainer.callbacks", "BackboneFinetuning", code=2
    )
    assert "expected a net with an attribute backbone, got MLP" in error


def test_the_path_of_lightnings_class_is_that_of_ours(experiment: Any, cli: Cli) -> None:
    """A config cannot hold the function that is the default of Lightning's class."""
    Path("own.py").write_text(OWN)
    path = "lightning.pytorch.callbacks.BackboneFinetuning"
    config = experiment(model={"net": "own.Net"}, trainer={"callbacks": [{"class_path": path}]})
    assert "proj.engine.callbacks.finetuning" in cli("fit", "--config", config, "--print_config")
