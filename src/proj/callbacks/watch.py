"""What one sees of single steps: the progress bar, and curves of the loss, the gradients' norm and the learning rates."""

import sys
import time
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor, nn
from torch.optim import Optimizer

FRAMES = 10  # of the progress bar a second


class Progress(RichProgressBar):
    """Lightning's progress bar in steps, with the last step's loss, without the last letters of the run's name.

    It is drawn ten times a second. Lightning's way, after each batch, takes a tenth of the time of a tiny net.
    """

    loss: Tensor | None = None
    drawn = 0.0  # when, by the monotonic clock

    def __init__(self) -> None:
        super().__init__(refresh_rate=FRAMES)

    @property
    def total_train_batches(self) -> int | float:
        return getattr(self.trainer.train_dataloader, "batches", super().total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.loss = outputs.get("loss") if isinstance(outputs, dict) else None
        done = getattr(trainer.train_dataloader, "position", batch_idx + 1)
        if done == self.total_train_batches or time.monotonic() - self.drawn >= 1 / FRAMES:
            self.drawn = time.monotonic()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, done - 1)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items: dict[str, Any] = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items if self.loss is None else {"train/loss_step": self.loss.item(), **items}


class Watch(Callback):
    """Log the loss of a step, the norm of its gradients before clipping, and the learning rates, as often as the Trainer
    logs. Of a block of steps, the last one is looked at.
    """

    def __init__(self) -> None:
        self.logged = -1  # how often so far, in multiples of `log_every_n_steps`
        self.values: dict[str, Tensor | float] = {}  # of the step to log

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged = (trainer.global_step - 1) // self._every(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.loggers and trainer.global_step // self._every(trainer) > self.logged:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients) if gradients else cast(Any, pl_module).compiled_step.gradient_norm
            self.values = {"gradient_norm": norm, **_rates(trainer.optimizers)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.values:
            return
        self.logged = (trainer.global_step - 1) // self._every(trainer)
        if isinstance(outputs, dict) and "loss" in outputs:
            self.values["train/loss_step"] = outputs["loss"]
        values = {name: float(value) for name, value in self.values.items()}
        self.values = {}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _every(self, trainer: Trainer) -> int:
        return cast(int, cast(Any, trainer).log_every_n_steps) or sys.maxsize


def _rates(optimizers: list[Optimizer]) -> dict[str, float]:
    """The learning rate of each group, under the names that Lightning's LearningRateMonitor gives."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        name, groups = f"lr-{type(optimizer).__name__}", optimizer.param_groups
        for i, group in enumerate(groups, 1):
            rates[name if len(groups) == 1 else f"{name}/pg{i}"] = float(group["lr"])
    return rates
