"""The selection of the best epoch and early stopping, on models that log given values."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from proj.engine.callbacks.best_checkpoint import BestCheckpoint, EarlyStopping

ROWS = DataLoader(torch.zeros(2, 1), batch_size=2)


class Logs(LightningModule):
    """A model that logs one value of each list per epoch."""

    def __init__(self, **values: list[float]) -> None:
        super().__init__()
        self.net, self.values = nn.Linear(1, 1), values

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for name, values in self.values.items():
            self.log(f"val/{name}", values[self.current_epoch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def train(work: Path) -> Callable[..., BestCheckpoint]:
    """Return a function that trains as long as there are values, with ``callbacks``."""

    def run(model: Logs, monitor: str = "val/f1", *callbacks: Any, **options: Any) -> Any:
        saver = BestCheckpoint(monitor, "max", work)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = Trainer(
            max_epochs=options.pop("epochs", len(model.values["f1"])),
            callbacks=[saver, *callbacks],
            accelerator="cpu",
            num_sanity_val_steps=0,
            **quiet,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(num_workers|logging interval).*")
            warnings.filterwarnings("ignore", ".*(Checkpoint directory|LeafSpec).*")
            trainer.fit(model, ROWS, ROWS, weights_only=True, **options)
        trainer.save_checkpoint(work / "last.ckpt")
        return saver

    return run


@pytest.mark.parametrize(
    ("f1", "loss", "best"),
    [
        ([0.5, 0.9, 0.9, 0.9, 0.7], [1.0, 0.5, 0.3, 0.4, 0.1], 2),  # the smallest loss of the tied
        ([0.5, 0.9, 0.8, 0.95], [0.1, 0.2, 0.3, 0.9], 3),  # the metric comes first
        ([1.0, 1.0, 1.0], [0.3, float("nan"), 0.1], 2),
        ([0.0, 0.0, 0.0], [0.3, 0.2, 0.1], 2),
        ([0.4, 0.4], [0.3, 0.3], 0),
    ],
)
def test_the_best_epoch(
    train: Callable[..., BestCheckpoint], f1: list[float], loss: list[float], best: int
) -> None:
    """The rule in one line: ``max(epochs, key=(f1, -loss))``, the earliest of equal ones."""
    saver = train(Logs(f1=f1, loss=loss))
    assert saver.best_epoch == best
    checkpoint = torch.load(saver.best_model_path, weights_only=True)
    assert checkpoint["epoch"] == best
    assert saver.best_metrics["val/loss"] == pytest.approx(loss[best])


def test_without_a_loss_the_first_of_tied_epochs_is_the_best(
    train: Callable[..., BestCheckpoint],
) -> None:
    assert train(Logs(f1=[0.5, 0.7, 0.7])).best_epoch == 1


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])
def test_ties_are_broken_the_same_after_a_resume(
    train: Callable[..., BestCheckpoint], work: Path, interrupted_after: int
) -> None:
    values = {"f1": [0.8, 0.9, 0.9, 0.9, 0.9], "loss": [0.1, 0.4, 0.45, 0.3, 0.35]}
    train(Logs(**values), epochs=interrupted_after)
    assert train(Logs(**values), ckpt_path=work / "last.ckpt").best_epoch == 3


def test_a_constant_metric_is_a_warning(train: Callable[..., BestCheckpoint]) -> None:
    """It says by what the best epoch was chosen; perfect and changing values are no reason."""
    losses = [0.5, 0.4, 0.3, 0.2, 0.1]
    with pytest.warns(UserWarning, match="val/f1 was 0 in each of the 5 validations.*by val/loss"):
        train(Logs(f1=[0.0] * 5, loss=losses))
    with pytest.warns(UserWarning, match="no epoch is the best one"):
        train(Logs(f1=[0.0] * 5))
    train(Logs(f1=[1.0] * 5, loss=losses))
    train(Logs(f1=[0.0, 0.0, 0.0, 0.0, 0.1], loss=losses))


@pytest.mark.parametrize(
    ("f1", "loss", "epochs"),
    [
        ([0.0] * 6, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 6),  # never moved, the loss improves
        ([0.0] * 6, [6.0, 5.0, 5.0, 5.0, 2.0, 1.0], 4),  # neither does
        ([0.1, 0.5, 0.5, 0.5, 0.5, 0.5], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4),  # it moved before
    ],
)
def test_early_stopping_follows_the_loss_while_the_metric_is_constant(
    train: Callable[..., BestCheckpoint], f1: list[float], loss: list[float], epochs: int
) -> None:
    stopping = EarlyStopping("val/f1", "max", patience=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "val/f1 was 0.*")
        saver = train(Logs(f1=f1, loss=loss), "val/f1", stopping)
    assert saver.progress.validations == epochs


# A loss that is halved in each epoch, as that of classes which are easily told apart.
HALVED = [2.0**-i for i in range(30)]


@pytest.mark.parametrize(
    ("task", "monitor", "min_delta", "epochs"),
    [
        ("binary", "val/loss", None, 15),  # 2^-9 at the ninth epoch, 2^-11 two epochs later
        ("binary", "val/loss", 0.0, 30),  # as older versions, whose configs have a 0
        ("binary", "val/f1", None, 15),  # f1 is 1 in each epoch, so the loss decides
        ("regression", "val/loss", None, 30),  # an error may be smaller by any factor
        (None, "val/loss", None, 30),  # a loss of the user's own may have any unit
        ("multiclass", "val/loss", 0.1, 10),
    ],
)
def test_a_loss_of_classes_that_falls_by_less_than_a_thousandth_is_finished(
    train: Callable[..., BestCheckpoint],
    task: str | None,
    monitor: str,
    min_delta: float | None,
    epochs: int,
) -> None:
    """Training would go on for a thousand epochs in which no prediction changes."""
    model = Logs(f1=[1.0] * len(HALVED), loss=HALVED)
    if task is not None:
        model.task = task  # type: ignore[assignment]
    mode: Any = "min" if monitor == "val/loss" else "max"
    saver = train(model, "val/f1", EarlyStopping(monitor, mode, patience=3, min_delta=min_delta))
    assert saver.progress.validations == epochs


def test_small_changes_within_the_patience_add_up(train: Callable[..., BestCheckpoint]) -> None:
    """A slow, steady improvement would end the training."""
    loss = [1 - 0.0004 * i for i in range(30)]
    model = Logs(f1=[0.5] * 30, loss=loss)
    model.task = "binary"  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "val/f1 was 0.*")
        saver = train(model, "val/f1", EarlyStopping("val/loss", "min", patience=4))
    assert saver.progress.validations == 30
