"""Whole batches sliced out of tensors: no per-row Python, no collation, no worker processes."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from proj.schema import Batch, Execution


class ArrayLoader:
    """Batches of ``part``, in an order that is a function of ``seed`` and the epoch alone.

    With ``shuffle`` each epoch has its own permutation, drawn from a generator of the loader's own. In training, ``world``
    processes get equally many rows, and at most ``world - 1`` rows are left out of an epoch, other ones each time. In
    evaluation (``exact``) each row is seen by exactly one process, and all of them make equally many batches, of which
    the last may be empty. ``state_dict`` holds the epoch and the batches handed out, so a resumed epoch goes on there.

    With ``steps`` it hands out blocks of up to so many batches. ``period`` is the number of batches from one validation
    to the next: blocks end there, and each period has equally many, while what is left at the end of the epoch has fewer.
    """

    def __init__(
        self,
        part: Batch,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        exact: bool = True,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
        steps: int | None = None,
        period: int | None = None,
    ) -> None:
        self.part, self.batch_size, self.seed = part, batch_size, seed
        self.shuffle, self.exact, self.rank, self.world, self.pin_memory = (
            shuffle,
            exact,
            rank,
            world,
            pin_memory,
        )
        self.sampler, self.batch_sampler = (
            self,
            None,
        )  # Lightning calls `sampler.set_epoch` at the start of each epoch
        self.steps, self.period = steps, period
        self.epoch = self.position = 0
        self._resume: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def batches(self) -> int:
        """Batches an epoch."""
        rows = len(self.part.row)
        share = -(-rows // self.world) if self.exact else rows // self.world
        return -(-share // self.batch_size)

    def __len__(self) -> int:
        return len(self.cuts()) - 1

    def cuts(self) -> list[int]:
        """The numbers of the batches that a piece begins with, and of the one after the last: [pieces + 1]."""
        if self.steps is None:
            return list(range(self.batches + 1))
        period = min(self.period or self.batches, self.batches)
        left = self.batches % period
        steps = min(self.steps, period if not left else -(-period // 2))
        starts = [
            i
            for start in range(0, self.batches - left, period)
            for i in range(start, start + period, steps)
        ]
        if left:
            fewer = max(
                1, -(-period // steps) - 1
            )  # pieces, so that no validation falls on the last of them
            starts += range(self.batches - left, self.batches, -(-left // fewer))
        return [*starts, self.batches]

    def __iter__(self) -> Iterator[Batch | Execution]:
        start, self._resume = self._resume, None
        self.position = start[1] if start is not None and start[0] == self.epoch else 0
        order, size = self._order(), self.batch_size
        for begin, end in pairwise(self.cuts()):
            if end <= self.position:
                continue
            # Set before the batches are used: a checkpoint taken during their steps counts them as done.
            begin, self.position = max(begin, self.position), end
            batch = take(self.part, order[begin * size : end * size])
            batch = pin(batch) if self.pin_memory else batch
            yield batch if self.steps is None else Execution(batch, size)

    def _order(self) -> Tensor:
        """This process' row positions for this epoch, in order: [share]."""
        rows = len(self.part.row)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(rows, generator=generator)
        else:
            order = torch.arange(rows)
            if not self.exact and self.world > 1:
                order = order.roll(-self.epoch)  # so that other rows are left out each time
        return order[self.rank : None if self.exact else rows - rows % self.world : self.world]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = state["epoch"], state["position"]


def take(part: Batch, positions: Tensor) -> Batch:
    """The rows of ``part`` at ``positions``, on the part's device."""
    positions = positions.to(part.row.device, non_blocking=True)
    return each(lambda values: values[positions], part)


def pin(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which copies to an accelerator need not wait."""
    return each(Tensor.pin_memory, batch)


def to(part: Batch, device: torch.device) -> Batch:
    return each(lambda values: values.to(device), part)


def nbytes(part: Batch) -> int:
    inputs = part.x.values() if isinstance(part.x, dict) else [part.x]
    return sum(
        values.nbytes for values in (*inputs, part.row, *([] if part.y is None else [part.y]))
    )


def each(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """``change`` done to every tensor of a batch."""
    x = (
        {name: change(values) for name, values in batch.x.items()}
        if isinstance(batch.x, dict)
        else change(batch.x)
    )
    return Batch(x, None if batch.y is None else change(batch.y), change(batch.row))
