"""Check the optimizer and the scheduler of a model in its first batch, before training."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from proj.errors import UserError
from proj.models.base import Model


class CheckOptimizers(Callback):
    """Refuse optimizers and schedulers with which training would learn nothing, or end at once.

    The callback belongs to the preflight, whose model is a copy.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(pl_module, Model):
            pl_module.optimizer = Checked("optimizer", pl_module.optimizer)
            if pl_module.scheduler is not None:
                pl_module.scheduler = Checked("scheduler", pl_module.scheduler)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refuse ``ReduceLROnPlateau`` by step over a metric that is not known after a step."""
        for config in trainer.lr_scheduler_configs:
            by_step = isinstance(config.scheduler, ReduceLROnPlateau) and config.interval == "step"
            if by_step and config.strict and config.monitor not in trainer.callback_metrics:
                option = "model.scheduler_interval" if isinstance(pl_module, Model) else "interval"
                raise UserError(
                    f"{option}: expected epoch for ReduceLROnPlateau, got step, after which "
                    f"{config.monitor} is not known; set {option} to epoch, or log the metric in "
                    "each training step."
                )


class Checked:
    """A function like ``build`` that refuses None, as a function without ``return`` gives.

    Lightning trains without an optimizer then. It is a class so that spawned processes can have it.
    """

    def __init__(self, name: str, build: Callable[..., Any]) -> None:
        self.name, self.build = name, build
        # A partial of jsonargparse has no name, and its options decide on the length of a schedule.
        self.keywords = getattr(build, "keywords", {})
        if hasattr(build, "__name__"):
            update_wrapper(self, build)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if (built := self.build(*args, **options)) is None:
            function = getattr(self.build, "__name__", "its function")
            raise UserError(
                f"model.{self.name}: expected {self.name} of torch.optim, got None from "
                f"{function}; return the {self.name} at its end."
            )
        return built
