"""The reasons why optimizer steps have to be made one at a time."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ProgressBar,
    Timer,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from proj.data.base import DataModule
from proj.engine.callbacks.best_checkpoint import BestCheckpoint
from proj.engine.callbacks.deadline import Deadline, StopAt
from proj.engine.callbacks.divergence import Divergence
from proj.engine.callbacks.monitoring import StepLogger
from proj.engine.callbacks.non_finite import StopOnNonFinite
from proj.engine.callbacks.resume_state import ResumeCheckpoint
from proj.engine.callbacks.step_callbacks import STEP_CALLBACKS
from proj.engine.lightning_internals import (
    averages_gradients,
    saves_by_steps,
    schedulers,
    steps_between_schedules,
    validates_by_time,
)
from proj.models.base import Model

BATCH_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
STEP_HOOKS = (
    "training_step",
    "to_batch",
    "forward_loss",
    "update_metrics",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    *BATCH_HOOKS,
)
TRANSFER_HOOKS = (
    "train_dataloader",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
# Callbacks whose batch hooks work with executions. A subclass with a batch hook of its own needs
# single steps, except for progress bars.
COMPATIBLE_CALLBACKS: tuple[type[Callback], ...] = (
    BestCheckpoint,
    ResumeCheckpoint,
    StopOnNonFinite,
    StepLogger,
    Deadline,
    StopAt,
    Divergence,
    EarlyStopping,
    Timer,
    *STEP_CALLBACKS,
)
# Callbacks that need single steps although they override no batch hook.
STEPWISE_CALLBACKS = (
    LearningRateFinder,
    GradientAccumulationScheduler,
)


def obstacles(trainer: Any, model: LightningModule) -> Iterator[str]:
    """Yield the reasons why optimizer steps have to be made one at a time."""
    return chain(
        _trainer_obstacles(trainer),
        _class_obstacles(model, trainer.datamodule),
        callback_obstacles(trainer.callbacks),
        _optimizer_obstacles(trainer),
    )


def _trainer_obstacles(trainer: Any) -> Iterator[str]:
    defaults = {"accumulate_grad_batches": 1, "limit_train_batches": 1.0, "overfit_batches": 0.0}
    for flag, default in defaults.items():
        if getattr(trainer, flag) != default:
            yield f"trainer.{flag} {getattr(trainer, flag)} counts batches"
    if validates_by_time(trainer):
        yield "trainer.val_check_interval is a time"
    elif trainer.check_val_every_n_epoch is None:
        yield "trainer.val_check_interval counts single steps over several epochs"
    if not isinstance(trainer.strategy, SingleDeviceStrategy) and not averages_gradients(trainer):
        yield f"{type(trainer.strategy).__name__} exchanges gradients in a way of its own"
    if trainer.precision not in ("32-true", "64-true"):
        yield f"trainer.precision {trainer.precision} is made for single steps"


def _class_obstacles(model: LightningModule, data: Any) -> Iterator[str]:
    if not isinstance(model, Model):
        yield f"{type(model).__name__} has a training_step of its own"
    if hook := overridden(model, Model, STEP_HOOKS):
        yield f"{type(model).__name__} has a {hook} of its own"
    if not isinstance(data, DataModule):
        yield "the batches do not come from a data module of this package"
    if hook := overridden(data, DataModule, TRANSFER_HOOKS):
        yield f"{type(data).__name__} has a {hook} of its own"


def callback_obstacles(callbacks: list[Callback]) -> Iterator[str]:
    """Yield why callbacks need single steps."""
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, STEPWISE_CALLBACKS):
            yield f"{name} needs single steps"
        elif isinstance(callback, ProgressBar):
            continue
        elif hook := overridden(callback, _compatible_base(callback), BATCH_HOOKS):
            yield f"{name} has a {hook}, which needs single batches"


def _compatible_base(callback: Callback) -> type[Callback]:
    """Return the class of a callback, or a base, whose batch hooks work with executions."""
    if isinstance(callback, ModelCheckpoint) and not saves_by_steps(callback):
        return ModelCheckpoint
    return next((base for base in COMPATIBLE_CALLBACKS if isinstance(callback, base)), Callback)


def _optimizer_obstacles(trainer: Any) -> Iterator[str]:
    for optimizer in trainer.optimizers:
        from_torch = type(optimizer).__module__.startswith("torch.optim")
        if not from_torch or isinstance(optimizer, torch.optim.LBFGS):
            yield f"{type(optimizer).__name__} may compute the loss of a step several times"
    for scheduler, interval in schedulers(trainer):
        if isinstance(scheduler, ReduceLROnPlateau) and interval == "step":
            yield "ReduceLROnPlateau reads a metric after each step"
    if (steps := steps_between_schedules(trainer)) > 1:
        yield f"a scheduler steps after every {steps} steps"


def overridden(instance: Any, base: type, hooks: tuple[str, ...]) -> str | None:
    """Return the first of ``hooks`` that an object does not inherit from ``base``.

    ``LambdaCallback`` has its hooks as attributes of the object.
    """
    for hook in hooks:
        inherits = getattr(type(instance), hook, None) is getattr(base, hook, None)
        if not inherits or hook in vars(instance):
            return hook
    return None
