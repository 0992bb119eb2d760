"""Several optimizer steps in one ``training_step``: Keras' ``steps_per_execution``.

For a small net most of a step's time is Lightning's own work around it, some 0.4 ms, which is done once a block here. All
steps but the last are made here; the last one's loss is returned, and Lightning makes that step as it always does, unless
it was a compiled one: of a loss without a graph nothing goes back, and an optimizer without gradients changes nothing.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from proj.engine.callbacks.compiled_step import CompiledStep
from proj.schema import Execution


def run_execution(model: Any, block: Execution) -> Tensor:
    """Make all optimizer steps of ``block`` but the last, count its rows in the metrics, return the last step's loss.

    The bits are those of the same steps made one by one: weights, optimizer state, schedule, metrics and ``global_step``.
    """
    trainer, optimizer = model.trainer, model.optimizers(use_pl_optimizer=False)
    scheduler = model.lr_schedulers() if model.scheduler_interval == "step" else None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batches = block.batches()
    if trainer.max_steps > 0:
        batches = batches[: trainer.max_steps - trainer.global_step]
    outputs: list[Tensor] = []
    losses: list[Tensor] = []
    weights: list[Tensor | float] = []
    compiled: CompiledStep | None = model.compiled_step
    for i, batch in enumerate(batches, 1):
        batch = trainer.datamodule.augment_batch(batch)
        whole = compiled is not None and len(batch.row) == compiled.rows
        output, loss, weight = (
            compiled(batch)
            if compiled is not None and whole
            else model.forward_loss(batch, "train")
        )
        if i < len(batches):
            if not whole:
                optimizer_step(model, optimizer, parameters, loss)
            if scheduler is not None:
                scheduler.step()
        outputs.append(output.detach())
        losses.append(loss if i == len(batches) else loss.detach())
        weights.append(weight)
    _count_steps(trainer, len(batches) - 1)
    assert block.rows.y is not None
    y = block.rows.y[: sum(len(output) for output in outputs)]
    model.update_metrics(torch.cat(outputs), y, losses, weights, "train")
    return losses[-1]


def optimizer_step(
    model: Any, optimizer: Optimizer, parameters: list[Tensor], loss: Tensor
) -> None:
    """The rest of an optimizer step, as Lightning makes it."""
    for parameter in parameters:
        parameter.grad = None
    torch.autograd.backward(loss)
    if clip := model.trainer.gradient_clip_val:
        model.configure_gradient_clipping(optimizer, clip, model.trainer.gradient_clip_algorithm)
    optimizer.step()


def _count_steps(trainer: Any, steps: int) -> None:
    """Add to ``trainer.global_step``. Lightning has no public way to say that a step was made; a test holds this one."""
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.increment_by(
        steps
    )
