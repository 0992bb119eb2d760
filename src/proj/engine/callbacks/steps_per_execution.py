"""How many optimizer steps one ``training_step`` makes: decided before the first one."""

import copy
import math
import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim.lr_scheduler import ReduceLROnPlateau

from proj.data.base import DataModule
from proj.data.loader import ArrayLoader, take
from proj.engine import console
from proj.engine.callbacks.best_checkpoint import BestCheckpoint
from proj.engine.callbacks.compiled_step import CompiledStep, NotCompiled
from proj.engine.callbacks.monitoring import StepLogger
from proj.engine.callbacks.multi_step import run_execution
from proj.engine.callbacks.non_finite import StopOnNonFinite
from proj.engine.callbacks.resume_state import ResumeCheckpoint
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Batch

SECONDS = 0.05  # that a block is to last: so long that Lightning's work for it is a percent or two
MOST = 512  # steps in a block, so that curves stay curves

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
    "loss_of",
    "count",
    "backward",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
    *BATCH_HOOKS,
)
TRANSFER_HOOKS = (
    "train_dataloader",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


class StepsPerExecution(Callback):
    """Lets the loader hand out blocks of batches, where that changes nothing but the speed; else says why not.

    Lightning counts blocks. So training that goes on has the same number of steps in each, not one measured anew.
    """

    steps: int | None = None
    restored = False

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.restored = state_dict["steps"], True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wanted = getattr(pl_module, "steps_per_execution", "auto")
        compiled = getattr(pl_module, "compile_what", "none") == "step"
        if isinstance(wanted, int) and wanted < 1:
            raise UserError(
                f"model.steps_per_execution: expected auto or a number from 1 up, got {wanted}."
            )
        if why := next(obstacles(trainer, pl_module), None):
            if trainer.is_global_zero and (wanted != 1 or compiled):
                console.say(
                    f"one optimizer step at a time{', not compiled' if compiled else ''}: {why}."
                )
            if self.steps is not None and _within_epoch(trainer):
                raise UserError(
                    f"the checkpoint was written within an epoch of {self.steps} optimizer steps at a time, and "
                    f"that cannot change before its end: {why}; leave that out."
                )
            return
        if self.restored and self.steps is None and _within_epoch(trainer):
            return  # one at a time, as before
        data: Any = getattr(trainer, "datamodule", None)
        assert isinstance(pl_module, Model)
        loader, interval = data.train_dataloader(), trainer.val_check_interval
        loader.period = (
            max(1, int(loader.batches * interval)) if isinstance(interval, float) else int(interval)
        )
        with isolate_rng():
            if compiled:
                pl_module.compiled_step = _compiled(
                    trainer, pl_module, data.augment_batch(_example(trainer, data))
                )
            loader.steps = self.steps or (
                wanted if isinstance(wanted, int) else _fitting_steps(trainer, pl_module, data)
            )
        while not _ends_well(loader, max(0, trainer.max_steps) % loader.batches):
            loader.steps -= 1
        self.steps = loader.steps
        pl_module.run_execution = run_execution
        data.steps_per_execution, data.validation_period = loader.steps, loader.period
        if loader.period < loader.batches or (
            isinstance(interval, int) and loader.period == loader.batches
        ):
            trainer.val_check_interval = loader.cuts().index(loader.period)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (step := getattr(pl_module, "compiled_step", None)) is not None:
            step.bind(
                pl_module, trainer.optimizers[0]
            )  # whose state may have come from a checkpoint since


def _within_epoch(trainer: Any) -> bool:
    """Whether training goes on from a checkpoint that was not written at the end of an epoch."""
    savers = [callback for callback in trainer.callbacks if isinstance(callback, ResumeCheckpoint)]
    return any(saver.restored is not None and not saver.restored["after_epoch"] for saver in savers)


def _ends_well(loader: ArrayLoader, stop: int) -> bool:
    """Whether ``max_steps``, after ``stop`` batches of an epoch, does not cut off a block that a validation follows."""
    assert loader.period is not None
    cuts = loader.cuts()
    block = bisect_left(cuts, stop)
    return cuts[block] == stop or (
        block < len(cuts) - 1 and block % cuts.index(min(loader.period, loader.batches)) > 0
    )


def obstacles(trainer: Any, model: LightningModule) -> Iterator[str]:
    """Why optimizer steps have to be made one by one."""
    for flag, off in {
        "accumulate_grad_batches": 1,
        "limit_train_batches": 1.0,
        "overfit_batches": 0.0,
    }.items():
        if getattr(trainer, flag) != off:
            yield f"trainer.{flag} {getattr(trainer, flag)} counts batches"
    if trainer.check_val_every_n_epoch is None:
        yield "trainer.val_check_interval counts single steps over several epochs"
    if not isinstance(trainer.val_check_interval, int | float):
        yield "trainer.val_check_interval is a time"
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        yield "several processes exchange gradients after each step"
    if trainer.precision not in ("32-true", "64-true"):
        yield f"trainer.precision {trainer.precision} is made for single steps"
    if not isinstance(model, Model):
        yield f"{type(model).__name__} has a training_step of its own"
    if hook := _overridden(model, Model, STEP_HOOKS):
        yield f"{type(model).__name__} has a {hook} of its own"
    data = trainer.datamodule
    if not isinstance(data, DataModule):
        yield "the batches do not come from one of our data modules"
    if hook := _overridden(data, DataModule, TRANSFER_HOOKS):
        yield f"{type(data).__name__} has a {hook} of its own"
    for callback in trainer.callbacks:
        known = isinstance(
            callback,
            BestCheckpoint
            | ResumeCheckpoint
            | StopOnNonFinite
            | StepLogger
            | EarlyStopping
            | ProgressBar
            | Timer
            | StepsPerExecution,
        )
        if not known and (hook := _overridden(callback, Callback, BATCH_HOOKS)):
            yield f"{type(callback).__name__} has a {hook}, and batches come one by one to that"
        if isinstance(
            callback, LearningRateFinder | GradientAccumulationScheduler | StochasticWeightAveraging
        ):
            yield f"{type(callback).__name__} looks at single steps"
    for optimizer in trainer.optimizers:
        if not type(optimizer).__module__.startswith("torch.optim") or isinstance(
            optimizer, torch.optim.LBFGS
        ):
            yield f"{type(optimizer).__name__} may want to see the loss of a step several times"
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau) and config.interval == "step":
            yield "ReduceLROnPlateau looks at a metric after each step"


def _overridden(of: Any, base: type, hooks: tuple[str, ...]) -> str | None:
    """The first of ``hooks`` that an object does not have from ``base``."""
    return next(
        (hook for hook in hooks if getattr(type(of), hook, None) is not getattr(base, hook, None)),
        None,
    )


def _example(trainer: Any, data: DataModule) -> Batch:
    rows = torch.arange(min(data.rows("train"), data.batch_size or data.rows("train")))
    batch: Batch = trainer.strategy.batch_to_device(take(data.splits["train"], rows))
    return batch


def _compiled(trainer: Any, model: Model, batch: Batch) -> CompiledStep | None:
    limit = trainer.gradient_clip_val
    clip = (str(trainer.gradient_clip_algorithm or "norm"), float(limit)) if limit else None
    try:
        return CompiledStep(model, trainer.optimizers[0], clip, batch)
    except NotCompiled as reason:
        console.say(f"steps are not compiled: {reason}.")
        return None


def _fitting_steps(trainer: Any, model: Model, data: DataModule) -> int:
    """How many steps take about ``SECONDS``, by some that are made with a copy of the net."""
    if model.compiled_step is not None:
        return _steps_in_a_block(model.compiled_step.seconds)
    batch, seconds, twin = _example(trainer, data), math.inf, copy.deepcopy(model)
    for _ in range(4):
        start = time.perf_counter()
        _, loss, _ = twin.forward_loss(data.augment_batch(batch), "train")
        torch.autograd.backward(loss)
        loss.item()  # waits for the device
        seconds = min(seconds, time.perf_counter() - start)
        if seconds > SECONDS:
            break
    return _steps_in_a_block(seconds)


def _steps_in_a_block(seconds: float) -> int:
    """A power of two, so that a measurement repeated mostly finds the same."""
    return int(max(1, min(MOST, 2 ** round(math.log2(SECONDS / seconds)))))
