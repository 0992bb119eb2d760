"""Check that a scheduler which reads a metric after each step finds it."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from proj.errors import UserError
from proj.models.base import Model


class CheckPlateau(Callback):
    """Refuse ``ReduceLROnPlateau`` with the interval ``step`` over a metric of the epoch.

    Training would end at the first step. The check belongs to the first batch before training.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for config in trainer.lr_scheduler_configs:
            by_step = isinstance(config.scheduler, ReduceLROnPlateau) and config.interval == "step"
            if by_step and config.strict and config.monitor not in trainer.callback_metrics:
                option = "model.scheduler_interval" if isinstance(pl_module, Model) else "interval"
                raise UserError(
                    f"{option}: expected epoch for ReduceLROnPlateau, got step, after which "
                    f"{config.monitor} is not known; set {option} to epoch, or log the metric in "
                    "each training step."
                )
