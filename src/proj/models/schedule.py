"""Learning-rate schedules: a length left open is filled in from the Trainer's own limits."""

import math
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable
from torch.optim import Optimizer

from proj.errors import UserError


def schedule(build: LRSchedulerCallable, optimizer: Optimizer, interval: Literal["step", "epoch"], trainer: Trainer) -> Any:
    """The scheduler; where it takes ``total_steps`` and none is given, it gets the length of the training.

    ``build`` is a ``functools.partial`` from the command line, or a user's own function, which is called as it is.
    """
    given = getattr(build, "keywords", {})
    if "total_steps" not in given or given["total_steps"] is not None or given.get("epochs") is not None:
        return build(optimizer)
    return build(optimizer, total_steps=training_length(trainer, interval))  # type: ignore[call-arg]


def training_length(trainer: Trainer, interval: Literal["step", "epoch"]) -> int:
    """How many optimizer steps, or epochs, the training lasts by ``max_steps`` and ``max_epochs``.

    Our loaders tell their length. ``estimated_stepping_batches`` would load the data too early for a resumed loader to
    keep its state (Lightning issue 20550); only for a user's own DataLoader there is no other way.
    """
    if interval == "epoch" and trainer.max_epochs and trainer.max_epochs > 0:
        return trainer.max_epochs
    steps = math.inf if interval == "epoch" else _steps(trainer)
    if not math.isfinite(steps):
        raise UserError(
            "model.scheduler: total_steps is not given and the training has no fixed length; set trainer.max_epochs "
            f"{'' if interval == 'epoch' else 'or trainer.max_steps '}or total_steps."
        )
    return int(steps)


def _steps(trainer: Any) -> float:
    loader = trainer.datamodule.train_dataloader() if trainer.datamodule else None
    if loader is None or not hasattr(loader, "batches"):
        return float(trainer.estimated_stepping_batches)
    batches: float = loader.batches
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * _epochs(trainer)
    return float(min(steps, trainer.max_steps)) if trainer.max_steps > 0 else steps


def _epochs(trainer: Trainer) -> float:
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else math.inf
