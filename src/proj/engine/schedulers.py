"""Learning-rate schedules made of several schedulers, in a form that a config can hold.

torch's own classes take schedulers that exist already. These take their classes with options, as
in ``schedulers: [{class_path: LinearLR, init_args: {total_iters: 5}}, …]``.
"""

from collections.abc import Callable

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from proj.errors import UserError

Build = Callable[[Optimizer], LRScheduler]


class SequentialLR(lr_scheduler.SequentialLR):
    """Schedulers one after the other, such as a warm-up and a cosine.

    Args:
        optimizer: the optimizer.
        schedulers: the schedulers, as classes with their options.
        milestones: after how many steps of the schedule the next scheduler begins, one number less
            than there are schedulers.
        last_epoch: the index of the last epoch, as in torch.

    Raises:
        UserError: the numbers of schedulers and milestones do not fit together.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[Build],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        if len(milestones) != len(schedulers) - 1 or sorted(set(milestones)) != milestones:
            raise UserError(
                "model.scheduler.milestones: expected one number less than schedulers, in "
                f"ascending order, got {milestones} for {len(schedulers)}; change one of them."
            )
        built = [build(optimizer) for build in schedulers]
        super().__init__(optimizer, built, milestones, last_epoch)


class ChainedScheduler(lr_scheduler.ChainedScheduler):
    """Schedulers at the same time: each changes the rate that the one before it has set.

    Args:
        optimizer: the optimizer.
        schedulers: the schedulers, as classes with their options.
    """

    def __init__(self, optimizer: Optimizer, schedulers: list[Build]) -> None:
        super().__init__([build(optimizer) for build in schedulers], optimizer)
