"""Find out whether training has diverged: a loss far above that of the untrained net.

The rule: the mean training loss of the last epoch, or of any epoch, is more than ``FACTOR`` times
the loss at the start. The start is the loss of the untrained net on a batch, or the loss of the
best constant prediction if it is larger, so that trained initial weights do not lower the limit.
Single rows may make the validation loss large, so it must also be ``FACTOR`` times its smallest
value.

A net that learns nothing stays near the constant prediction. Warm-up, overfitting, dropout and
noise raise a loss by a factor of ten at most, and the losses of a GAN by about as much, so
``FACTOR`` is 100. A loss below zero has no factor; there the rise is compared with the size of the
start.
"""

import math
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from proj.data.base import DataModule
from proj.data.loader import take
from proj.engine.callbacks.best_checkpoint import InitialWeights
from proj.models.base import Model
from proj.models.checks import evaluating
from proj.schema import Batch, Finding, Schema

FACTOR = 100
# The effect of the finding. It distinguishes the finding from those about the data.
DIVERGED = "training diverged"
# Rows of the untrained net's loss, if an epoch is a single batch.
MAX_ROWS = 1024


class Divergence(Callback):
    """Record the loss at the start and the extreme losses of the epochs.

    Attributes:
        start: loss at the start; None if it is not known.
        worst: largest mean training loss of an epoch, and that epoch counted from 0.
        last: mean losses of the last epoch, ``train`` and ``val``.
        best_val: smallest validation loss.
    """

    def __init__(self) -> None:
        self.start: float | None = None
        self.worst = (-math.inf, 0)
        self.last: dict[str, float] = {}
        self.best_val = math.inf
        # Sum and number of the losses of this epoch, for a model that is not one of ours.
        self.total: Tensor | float = 0.0
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "worst": list(self.worst),
            "last": self.last,
            "best_val": self.best_val,
            "sum": [float(self.total), self.count],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.last = state_dict["start"], dict(state_dict["last"])
        self.worst, self.best_val = tuple(state_dict["worst"]), state_dict["best_val"]
        self.total, self.count = state_dict["sum"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.start is None and trainer.global_step == 0 and isinstance(pl_module, Model):
            self.start = _start_loss(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(pl_module, Model) or not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        if self.start is None and trainer.current_epoch == 0 and not self.count:
            self.start = math.inf if _starts_trained(trainer) else loss.item()
        self.total, self.count = self.total + loss.detach().double(), self.count + 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._record_epoch(trainer, pl_module, trainer.current_epoch - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_epoch(trainer, pl_module, max(0, trainer.current_epoch - 1))

    def _record_epoch(self, trainer: Trainer, model: LightningModule, epoch: int) -> None:
        """Record the losses of an epoch that is over; a second call changes nothing."""
        losses: dict[str, float] = {}
        if isinstance(model, Model):
            for split in ("train", "val"):
                if (value := trainer.callback_metrics.get(f"{split}/loss")) is not None:
                    losses[split] = float(value)
        elif self.count:
            losses["train"] = float(self.total) / self.count
            self.total, self.count = 0.0, 0
        if "train" in losses and losses["train"] > self.worst[0]:
            self.worst = (losses["train"], epoch)
        self.best_val = min(self.best_val, losses.get("val", math.inf))
        self.last |= losses

    def finding(self) -> Finding | None:
        """Return a finding if training has diverged."""
        if self.start is None or not math.isfinite(self.start):
            return None
        limit = self.start + (FACTOR - 1) * abs(self.start)
        train, val = self.last.get("train", -math.inf), self.last.get("val", -math.inf)
        what = ""
        if train > limit:
            what = f"the training loss of the last epoch is {train:.3g}"
        elif self.worst[0] > limit:
            what = f"the training loss of epoch {self.worst[1]} is {self.worst[0]:.3g}"
        elif val > max(limit, self.best_val + (FACTOR - 1) * abs(self.best_val)):
            what = f"the validation loss at the end is {val:.3g}"
        if not what:
            return None
        return Finding(
            f"{what}, that of the untrained net {self.start:.3g}",
            DIVERGED,
            "lower the learning rate, clip gradients with trainer.gradient_clip_val, or look for "
            "extreme inputs",
        )


def divergence(trainer: Trainer) -> Finding | None:
    """Return the finding of a Trainer's ``Divergence``; None without one."""
    watches = [c for c in _callbacks(trainer) if isinstance(c, Divergence)]
    return watches[0].finding() if watches else None


def _callbacks(trainer: Any) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks
    return callbacks


def _starts_trained(trainer: Trainer) -> bool:
    """Return whether the weights at the start are those of another run."""
    return any(isinstance(callback, InitialWeights) for callback in _callbacks(trainer))


def _start_loss(trainer: Any, model: Model) -> float | None:
    """Return the loss of the net on evenly spread training rows, or of a constant if it is larger.

    None if it is not known: the data module is a user's own, the net is not complete in one
    process, or weights that are trained already meet a loss whose size is not known.
    """
    data, constant = trainer.datamodule, constant_loss(model)
    if constant is None and _starts_trained(trainer):
        return None
    complete = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if not complete or not isinstance(data, DataModule):
        return None
    rows = len(data.splits["train"].row)
    size = min(rows, data.batch_size or MAX_ROWS)
    positions = torch.linspace(0, rows - 1, size).long()
    # The hooks of the data module would augment the batch.
    device = trainer.strategy.root_device
    batch: Batch = move_data_to_device(take(data.splits["train"], positions), device)
    with (
        isolate_rng(),
        evaluating(model),
        torch.compiler.set_stance("force_eager"),
        trainer.precision_plugin.val_step_context(),
    ):
        loss = float(model.forward_loss(batch, "train")[1])
    return loss if constant is None else max(loss, constant)


def constant_loss(model: Model) -> float | None:
    """Return the mean loss of the best constant prediction.

    None if the schema has no counts, or if the experiment names a loss of its own.
    """
    schema = model.schema
    assert schema is not None
    if schema.task == "regression":
        if not isinstance(model.loss, torch.nn.MSELoss):
            return None
        if getattr(model, "standardize_target", False):
            return 1.0
        return sum(std**2 for std in schema.target_std) / len(schema.target_std)
    if model.loss is not None or not schema.class_counts:
        return None
    return _class_entropy(schema)


def _class_entropy(schema: Schema) -> float:
    """Return the entropy of the classes, or the mean entropy of the labels, in nats."""
    shares = torch.tensor(schema.class_counts, dtype=torch.float64) / schema.rows
    if schema.task == "multilabel":
        shares = torch.stack([shares, 1 - shares])
        return float(-torch.xlogy(shares, shares).sum(0).mean())
    return float(-torch.xlogy(shares, shares).sum())
