"""Stop training at a loss that is not finite, and find the step and the layer of its origin."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from proj.engine.callbacks.generators import restore_generators
from proj.engine.callbacks.multi_step import eager_step, gradient_clipping
from proj.engine.callbacks.process_messages import largest
from proj.engine.callbacks.resume_state import ResumeCheckpoint, process_states
from proj.engine.lightning_internals import train_loader_state
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import LAST
from proj.errors import TrainingError
from proj.models.base import Model
from proj.models.checks import leaf_hooks
from proj.schema import Batch, Execution


class StopOnNonFinite(Callback):
    """Check the loss once per ``training_step`` and raise TrainingError if it is not finite.

    After an execution of several steps, the step that failed is unknown, and the weights before
    that step are lost. Therefore training returns to ``last.ckpt`` and repeats the steps one at a
    time, up to the first number that is not finite.

    Args:
        folder: folder of the checkpoints; None if none are written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.batch: Any = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        # The sum holds the losses of all steps of the epoch, not only the last one's.
        epoch_loss = pl_module.loss_so_far if isinstance(pl_module, Model) else 0
        failed = int(not torch.isfinite(loss.detach() + epoch_loss))
        if trainer.world_size > 1:
            # The requests to save, or to stop, go with the same message.
            callbacks = cast(Any, trainer).callbacks
            savers = [saver for saver in callbacks if isinstance(saver, ResumeCheckpoint)]
            failed, *requests = largest(trainer, failed, *(saver.request() for saver in savers))
            for saver, request in zip(savers, requests, strict=True):
                saver.agreed_request = request
        if not failed:
            return
        step, origin = trainer.global_step + 1, "the loss"
        if isinstance(self.batch, Execution):
            origin = "the loss of that step or of one shortly before it"
            step, origin = self._repeat_steps(trainer, pl_module) or (step, origin)
        elif isinstance(pl_module, Model) and _has_our_batches(pl_module, self.batch):
            batch = pl_module.to_batch(self.batch)
            with _find_non_finite(pl_module, batch) as origins:
                pl_module.forward_loss(batch, "train")
            origin = origins[0] if origins else origin
        raise TrainingError(
            f"step {step} (epoch {trainer.current_epoch}) gave a number that is not finite, first "
            f"in {origin}; lower the learning rate, clip gradients, or look for extreme inputs. "
            "Earlier checkpoints are kept."
        )

    def _repeat_steps(self, trainer: Trainer, model: Any) -> tuple[int, str] | None:
        """Repeat training from ``last.ckpt``; return the step that fails, and where in the step.

        None if there is no checkpoint or no repeated step fails, and for several processes, whose
        gradients a repetition does not average.
        """
        if trainer.world_size > 1 or self.folder is None or not (self.folder / LAST).is_file():
            return None
        if any(isinstance(c, StochasticWeightAveraging) for c in cast(Any, trainer).callbacks):
            # It may have replaced the scheduler of the checkpoint.
            return None
        checkpoint = read_checkpoint(self.folder / LAST)
        optimizer, scheduler = _restore(model, checkpoint)
        interval = model.scheduler_interval if scheduler is not None else None
        clip = gradient_clipping(model)
        step = checkpoint["global_step"]
        for batches in _remaining_epochs(trainer, checkpoint):
            for batch in batches:
                step += 1
                with _find_non_finite(model, batch) as origins:
                    _, loss, _ = eager_step(model, batch, optimizer, clip)
                if origins or not torch.isfinite(loss):
                    return step, origins[0] if origins else "the loss"
                if name := _non_finite_gradient(model):
                    return step, f"the gradient of {name}"
                if interval == "step":
                    scheduler.step()
            if interval == "epoch":
                # The metric of ReduceLROnPlateau is no longer known.
                if isinstance(scheduler, ReduceLROnPlateau):
                    return None
                scheduler.step()
        return None


def _has_our_batches(model: Model, batch: Any) -> bool:
    """Return whether ``to_batch`` takes a batch; a training_step of the user's may take others."""
    return isinstance(batch, Batch) or type(model).training_step is Model.training_step


def _restore(model: Any, checkpoint: dict[str, Any]) -> tuple[Any, Any]:
    """Restore model, optimizer, scheduler and random generators of a process.

    Returns the optimizer, and the scheduler or None.
    """
    optimizer, scheduler = model.optimizers(use_pl_optimizer=False), model.lr_schedulers()
    # With `WeightAveraging`, `state_dict` holds the averages.
    model.load_state_dict(checkpoint.get("current_model_state", checkpoint["state_dict"]))
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    if scheduler is not None:
        scheduler.load_state_dict(checkpoint["lr_schedulers"][0])
    restore_generators(process_states(checkpoint)[0]["generators"])
    return optimizer, scheduler


def _remaining_epochs(trainer: Any, checkpoint: dict[str, Any]) -> Iterator[Iterator[Batch]]:
    """Yield the batches of each epoch from the checkpoint's epoch to the current one.

    The batches that were used before the checkpoint are left out.
    """
    data = trainer.datamodule
    loader = data.train_dataloader()
    loader.load_state_dict(train_loader_state(checkpoint))
    for epoch in range(checkpoint["epoch"], trainer.current_epoch + 1):
        loader.set_epoch(epoch)
        executions = iter(loader)
        if (first := next(executions, None)) is not None:
            yield (
                data.augment_batch(trainer.strategy.batch_to_device(batch))
                for execution in chain([first], executions)
                for batch in execution.batches()
            )


@contextmanager
def _find_non_finite(model: nn.Module, batch: Batch) -> Iterator[list[str]]:
    """Yield a list that receives the place of the first non-finite number of a forward pass."""
    origins: list[str] = []

    def check(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if origins or not isinstance(output, Tensor) or torch.isfinite(output).all():
            return
        for parameter_name, parameter in module.named_parameters():
            if not torch.isfinite(parameter).all():
                origins.append(f"the weights {name}.{parameter_name}")
                return
        origins.append(f"the outputs of {name} ({type(module).__name__})")

    x: Any = batch.x  # A user's loader may give a tuple, or a dict with more than tensors.
    inputs = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else [x]
    tensors = [values for values in inputs if isinstance(values, Tensor)]
    if not all(torch.isfinite(values).all() for values in tensors):
        origins.append("the inputs")
    with leaf_hooks(model, check):
        yield origins


def _non_finite_gradient(model: nn.Module) -> str | None:
    """Return the name of the first parameter, in backward order, whose gradient is not finite."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return name
    return None
