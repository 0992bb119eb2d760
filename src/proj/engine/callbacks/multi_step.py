"""Several optimizer steps in one ``training_step`` (Keras' ``steps_per_execution``).

For a small net most of the time of a step is Lightning's own work, about 0.4 ms. An execution does
this work once for several steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from proj.engine.callbacks.gradient_average import ClipGradients, GradientAverage
from proj.engine.callbacks.step_callbacks import StepCallbacks
from proj.engine.lightning_internals import (
    averaging_method,
    schedulers,
    skips_optimizer_steps,
)
from proj.schema import Batch, Execution

# Raw outputs, mean loss, and the weight of that mean, as ``Model.forward_loss`` returns them.
StepResult: TypeAlias = tuple[Tensor, Tensor, Tensor | float]


def run_execution(model: Any, execution: Execution, average: GradientAverage) -> Tensor:
    """Make all optimizer steps of ``execution`` but the last, and return the loss of the last one.

    Lightning makes the last step with that loss. If it was a compiled step, it is complete: its
    loss has no graph, so the backward pass is skipped and the optimizer, without gradients, changes
    nothing.

    The result has the bits of the same steps made one at a time: weights, optimizer state,
    schedule, metrics and ``global_step``. Several processes average the gradients of each step,
    by ``average`` or by DDP.
    """
    trainer, optimizer = model.trainer, model.optimizers(use_pl_optimizer=False)
    # Weight averaging may replace the scheduler, and its interval, between two epochs.
    step_schedulers = [s for s, interval in schedulers(trainer) if interval == "step"]
    clip, compiled_step, callbacks = gradient_clipping(model), model.compiled_step, None
    forward_loss = averaging_method(trainer, "forward_loss")
    average.begin(trainer)
    if average.is_used:
        forward_loss, clip = model.forward_loss, partial(average.average, trainer, clip)
    batches = execution.batches()
    if skips_optimizer_steps(trainer):
        compiled_step = None
    else:
        callbacks = StepCallbacks(model)
        if trainer.max_steps > 0:
            batches = batches[: trainer.max_steps - trainer.global_step]
    outputs: list[Tensor] = []
    losses: list[Tensor] = []
    weights: list[Tensor | float] = []
    for number, batch in enumerate(batches, 1):
        is_last = number == len(batches)
        batch = trainer.datamodule.augment_batch(batch)
        if compiled_step is not None and len(batch.row) == compiled_step.rows:
            output, loss, weight = compiled_step(batch)
        elif is_last or callbacks is None:
            if number > 1:  # Before the first step, the forward pass around this execution did it.
                average.prepare_forward(trainer)
            output, loss, weight = model.forward_loss(batch, "train")
        else:
            if number > 1 and average.is_used:
                average.prepare_forward(trainer)
            output, loss, weight = eager_step(model, batch, optimizer, clip, forward_loss)
        if callbacks is not None and not is_last:
            for scheduler in step_schedulers:
                scheduler.step()
            callbacks.after_step(batch, loss.detach())
        outputs.append(output.detach())
        losses.append(loss if is_last else loss.detach())
        weights.append(weight)
    average.end(trainer)
    y, row_weights = execution.rows.y, execution.rows.weight
    assert y is not None
    used = sum(len(output) for output in outputs)
    row_weights = None if row_weights is None else row_weights[:used]
    model.update_metrics(torch.cat(outputs), y[:used], losses, weights, "train", row_weights)
    return losses[-1]


def eager_step(
    model: Any,
    batch: Batch,
    optimizer: Optimizer | None = None,
    clip: ClipGradients | None = None,
    forward_loss: Callable[..., StepResult] | None = None,
) -> StepResult:
    """Make one training step outside Lightning's loop: forward, backward, clip and update.

    Args:
        model: a ``Model`` with its net built.
        batch: training rows on the model's device, after augmentation.
        optimizer: None computes the gradients only.
        clip: called with the optimizer between backward and update.
        forward_loss: called in place of the model's own.
    """
    outputs, loss, weight = (forward_loss or model.forward_loss)(batch, "train")
    if optimizer is None:
        model.zero_grad()
        torch.autograd.backward(loss)
        return outputs, loss, weight
    # `optimizer.zero_grad` does the same, in more time.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    torch.autograd.backward(loss)
    if clip is not None:
        clip(optimizer)
    optimizer.step()
    return outputs, loss, weight


def gradient_clipping(model: Any) -> ClipGradients | None:
    """Return the gradient clipping of the model's Trainer; None if it clips nothing."""
    trainer = model.trainer
    if not trainer.gradient_clip_val:
        return None
    return partial(
        model.configure_gradient_clipping,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
    )
