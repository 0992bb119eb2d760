"""One message per step that averages the gradients of several processes, for small nets."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed import all_reduce
from torch.optim import Optimizer

from proj.engine.callbacks.process_messages import largest
from proj.engine.lightning_internals import gradient_groups, prepare_forward
from proj.errors import UserError

ClipGradients: TypeAlias = Callable[[Optimizer], None]


class GradientAverage:
    """Average the gradients of the steps inside an execution, with the bits of DDP's average.

    DistributedDataParallel prepares each forward pass and watches for each gradient, which takes
    longer than the step of a small net. Where it sends all gradients together after the backward
    pass, the same message is sent here without that work. Larger nets are left to it: it sends
    the first gradients while the others are computed.

    Call ``begin`` before each execution and ``end`` after it.
    """

    def __init__(self) -> None:
        # The parameters in the order of the message.
        self.parameters: list[nn.Parameter] = []
        self.executions = 0
        # Whether training changes buffers, as batch normalization does.
        self.changes_buffers = False
        self.buffers: list[Tensor] = []

    @property
    def is_used(self) -> bool:
        """Whether the steps use this average. If not, DDP averages their gradients."""
        return bool(self.parameters)

    def begin(self, trainer: Trainer) -> None:
        """Look at how DDP averages, after the first execution: it has not decided before."""
        if self.executions == 1:
            self.parameters = _parameters_of_one_message(trainer)
        if self._watches_buffers(trainer):
            self.buffers = [buffer.clone() for buffer in trainer.lightning_module.buffers()]

    def end(self, trainer: Trainer) -> None:
        """See whether the execution has changed buffers."""
        if self.buffers and self._watches_buffers(trainer):
            buffers = trainer.lightning_module.buffers()
            is_equal = all(map(torch.equal, self.buffers, buffers))
            # All processes must take part in sharing the buffers, or none of them.
            self.changes_buffers = largest(trainer, not is_equal) == [1]
        self.executions += 1

    def _watches_buffers(self, trainer: Trainer) -> bool:
        may_be_used = (trainer.world_size > 1 and self.executions == 0) or self.is_used
        return may_be_used and not self.changes_buffers

    def prepare_forward(self, trainer: Trainer) -> None:
        """Do what DDP does before each forward pass, unless it would change nothing."""
        if self.changes_buffers or not self.is_used:
            prepare_forward(trainer)

    def average(self, trainer: Trainer, clip: ClipGradients | None, optimizer: Optimizer) -> None:
        """Replace the gradients of this process by their mean over all processes, and clip it."""
        gradients = [parameter.grad for parameter in self.parameters]
        if any(gradient is None for gradient in gradients):
            raise UserError(
                "trainer.strategy: expected a gradient of each parameter in each step, got none of "
                "some, which ddp does not take; set ddp_find_unused_parameters_true."
            )
        message = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        message *= 1 / trainer.world_size
        all_reduce(message)
        parts = torch.split(message, [parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        if clip is not None:
            clip(optimizer)


def _parameters_of_one_message(trainer: Trainer) -> list[nn.Parameter]:
    """Return the parameters whose gradients DDP sends in one message, in its order."""
    groups: list[list[nn.Parameter]] = gradient_groups(trainer)
    is_one = len(groups) == 1 and all(parameter.is_contiguous() for parameter in groups[0])
    return groups[0] if is_one else []
