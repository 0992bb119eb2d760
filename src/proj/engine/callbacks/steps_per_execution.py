"""Choose the number of optimizer steps per ``training_step``."""

import copy
import math
import time
from bisect import bisect_left
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    ModelPruning,
)
from lightning.pytorch.utilities.seed import isolate_rng

from proj.data.base import DataModule
from proj.data.loader import ArrayLoader, nbytes, take
from proj.engine import console
from proj.engine.callbacks.compiled_step import CompiledStep, NotCompiled
from proj.engine.callbacks.gradient_average import GradientAverage
from proj.engine.callbacks.multi_step import eager_step, run_execution
from proj.engine.callbacks.process_messages import from_first
from proj.engine.callbacks.resume_state import ResumeCheckpoint
from proj.engine.callbacks.single_steps import obstacles
from proj.engine.lightning_internals import (
    set_validation_interval,
)
from proj.errors import UserError
from proj.models.base import Model
from proj.schema import Batch

# Time of an execution in seconds: long enough that Lightning's work is one or two percent of it.
EXECUTION_SECONDS = 0.2
# Limit of the steps in an execution. More would leave too few points for the curves.
MAX_STEPS = 512
# Limit of the memory for the rows of an execution, which are copied out of the split at once.
EXECUTION_BYTES = 2**27
# The time of a step is the shortest of these measurements. Measuring ends early for a slow step.
TIMINGS, MEASURING_SECONDS = 8, 0.1

# Callbacks that change the parameters during training. A compiled step would not see the change.
UNCOMPILED_CALLBACKS = (BaseFinetuning, ModelPruning)


class StepsPerExecution(Callback):
    """Make several optimizer steps per ``training_step`` if this changes the speed only.

    If it would change anything else, print the reason and make single steps. Lightning counts
    executions, so a resumed run keeps the number of steps of its checkpoint.
    """

    # The steps of an execution; None for single steps.
    steps: int | None = None
    restored = False

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        steps = state_dict["steps"]
        if steps is not None and (type(steps) is not int or steps < 1):
            # The loader would yield batches without an end.
            raise UserError(
                f"expected a checkpoint with a number of steps per execution from 1 up, got "
                f"{steps!r:.60}; it is damaged, use another one."
            )
        self.steps, self.restored = steps, True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        requested = getattr(pl_module, "steps_per_execution", "auto")
        compile_step = getattr(pl_module, "compile_mode", "none") == "step"
        if isinstance(requested, int) and requested < 1:
            raise UserError(
                "model.steps_per_execution: expected auto or a number from 1 up, got "
                f"{requested}; change the number."
            )
        if reason := next(obstacles(trainer, pl_module), None):
            if trainer.is_global_zero and (requested != 1 or compile_step):
                not_compiled = ", not compiled" if compile_step else ""
                console.say(f"one optimizer step at a time{not_compiled}: {reason}.")
            if self.steps is not None and _is_within_epoch(trainer):
                raise UserError(
                    f"model.steps_per_execution: expected executions of {self.steps} steps up to "
                    f"the end of the checkpoint's epoch, got single steps, because {reason}; "
                    "remove that setting."
                )
            return
        if self.restored and self.steps is None and _is_within_epoch(trainer):
            # The remaining steps of the epoch must be single steps, too.
            return
        assert isinstance(pl_module, Model)
        self._set_up(trainer, pl_module, requested)

    def _set_up(self, trainer: Any, model: Model, requested: int | str) -> None:
        """Choose the steps per execution and let loader, model and Trainer use them."""
        data, interval = trainer.datamodule, trainer.val_check_interval
        loader = data.train_dataloader()
        if isinstance(interval, float):
            loader.period = max(1, int(loader.batches * interval))
        else:
            loader.period = int(interval)
        with isolate_rng():
            if model.compile_mode == "step":
                model.compiled_step = _compile(trainer, model, data)
            if self.steps is not None:
                loader.steps = self.steps
            elif isinstance(requested, int):
                loader.steps = requested
            else:
                batch = _example_batch(trainer, data)
                loader.steps = _steps_for(_step_seconds(trainer, model, batch), nbytes(batch))
        last_batches = max(0, trainer.max_steps) % loader.batches
        while not _fits_max_steps(loader, last_batches):
            loader.steps -= 1
        self.steps = loader.steps
        model.run_execution = partial(run_execution, average=GradientAverage())
        data.steps_per_execution, data.validation_period = loader.steps, loader.period
        # An integer equal to the number of batches asks for one validation per epoch.
        within_epoch = loader.period < loader.batches
        once_per_epoch = isinstance(interval, int) and loader.period == loader.batches
        if within_epoch or once_per_epoch:
            set_validation_interval(trainer, loader.cuts().index(loader.period))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (compiled_step := getattr(pl_module, "compiled_step", None)) is not None:
            # The optimizer's state may have been loaded from a checkpoint since.
            compiled_step.bind(pl_module, trainer.optimizers[0])


def _is_within_epoch(trainer: Any) -> bool:
    """Return whether training resumes from a checkpoint written during an epoch."""
    savers = [callback for callback in trainer.callbacks if isinstance(callback, ResumeCheckpoint)]
    return any(saver.restored is not None and not saver.restored["after_epoch"] for saver in savers)


def _fits_max_steps(loader: ArrayLoader, last_batches: int) -> bool:
    """Return whether ``max_steps`` does not shorten an execution that a validation follows.

    Args:
        loader: with ``steps`` and ``period`` set.
        last_batches: batches of the last epoch, up to ``max_steps``.
    """
    assert loader.period is not None
    cuts = loader.cuts()
    # The execution that contains `max_steps`.
    last = bisect_left(cuts, last_batches)
    if cuts[last] == last_batches:
        return True
    executions_per_period = cuts.index(min(loader.period, loader.batches))
    return last < len(cuts) - 1 and last % executions_per_period > 0


def _example_batch(trainer: Any, data: DataModule) -> Batch:
    """Return the first training rows as a batch on the Trainer's device, not augmented."""
    rows = len(data.splits["train"].row)
    positions = torch.arange(min(rows, data.batch_size or rows))
    batch: Batch = trainer.strategy.batch_to_device(take(data.splits["train"], positions))
    return batch


def _compile(trainer: Any, model: Model, data: DataModule) -> CompiledStep | None:
    """Compile the model's step; print the reason and return None if that is not possible."""
    if trainer.world_size > 1:
        console.say("steps are not compiled: several processes exchange gradients.")
        return None
    batch = data.augment_batch(_example_batch(trainer, data))
    for callback in trainer.callbacks:
        if isinstance(callback, UNCOMPILED_CALLBACKS):
            name = type(callback).__name__
            console.say(f"steps are not compiled: {name} changes the parameters during training.")
            return None
    limit = trainer.gradient_clip_val
    clip = (str(trainer.gradient_clip_algorithm or "norm"), float(limit)) if limit else None
    try:
        return CompiledStep(model, trainer.optimizers[0], clip, batch)
    except NotCompiled as reason:
        console.say(f"steps are not compiled: {reason}.")
        return None


def _step_seconds(trainer: Any, model: Model, batch: Batch) -> float:
    """Return the time of a step without the optimizer, measured on a copy of the model."""
    if model.compiled_step is not None:
        return float(model.compiled_step.seconds)
    timings: list[float] = []
    # The metrics are left as they are, and take most of the time of a copy.
    twin = copy.deepcopy(model, {id(model.split_metrics): model.split_metrics})
    while len(timings) < TIMINGS and sum(timings) < MEASURING_SECONDS:
        start = time.perf_counter()
        _, loss, _ = eager_step(twin, trainer.datamodule.augment_batch(batch))
        loss.item()  # Wait for the device.
        # All processes make the same number of steps: synchronized batch normalization waits for
        # all of them.
        timings += from_first(trainer, time.perf_counter() - start)
    return min(timings)


def _steps_for(seconds: float, batch_bytes: int) -> int:
    """Return the number of steps that take ``EXECUTION_SECONDS``, given time and memory of one.

    It is a power of two, so that a repeated measurement usually gives the same number, unless the
    rows would take more than ``EXECUTION_BYTES``.
    """
    steps = 2 ** round(math.log2(EXECUTION_SECONDS / seconds))
    return int(max(1, min(MAX_STEPS, steps, EXECUTION_BYTES // batch_bytes)))
