"""Whole batches sliced out of tensors: no per-row Python, no collation, no worker processes."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from proj.schema import Batch, Execution, empty_pages


class ArrayLoader:
    """Batches of ``split``, in an order that is a function of ``seed`` and the epoch only.

    With ``shuffle`` each epoch has its own permutation, drawn from the loader's own generator. In
    training (``exact=False``) all ``world`` processes get the same number of rows, and at most
    ``world - 1`` rows are left out of an epoch, different ones each time. In evaluation
    (``exact=True``) exactly one process sees each row, and all processes make the same number of
    batches, of which the last may be empty. ``state_dict`` holds the epoch and the number of
    batches handed out, so that a resumed epoch continues there.

    With ``steps`` the loader yields executions of up to ``steps`` batches. ``period`` is the number
    of batches between two validations. Executions end at a validation, and each period has the same
    number of executions; the rest at the end of an epoch has fewer.
    """

    def __init__(
        self,
        split: Batch,
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
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.shuffle, self.exact, self.pin_memory = shuffle, exact, pin_memory
        self.rank, self.world = rank, world
        # Lightning calls `sampler.set_epoch` at the start of each epoch.
        self.sampler, self.batch_sampler = self, None
        self.steps, self.period = steps, period
        self.epoch = self.position = 0
        self._resume: tuple[int, int] | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def batches(self) -> int:
        """Number of batches per epoch."""
        rows = len(self.split.row)
        share = -(-rows // self.world) if self.exact else rows // self.world
        return -(-share // self.batch_size)

    def __len__(self) -> int:
        return len(self.cuts()) - 1

    def cuts(self) -> list[int]:
        """Return the first batch of each yielded item, and the number of batches: [items + 1]."""
        if self.steps is None:
            return list(range(self.batches + 1))
        period = min(self.period or self.batches, self.batches)
        rest = self.batches % period
        steps = min(self.steps, period if not rest else -(-period // 2))
        first_batches = [
            batch
            for start in range(0, self.batches - rest, period)
            for batch in range(start, start + period, steps)
        ]
        if rest:
            # One execution fewer than a period has, so that no validation falls on the last one.
            executions = max(1, -(-period // steps) - 1)
            first_batches += range(self.batches - rest, self.batches, -(-rest // executions))
        return [*first_batches, self.batches]

    def __iter__(self) -> Iterator[Batch | Execution]:
        resume, self._resume = self._resume, None
        self.position = resume[1] if resume is not None and resume[0] == self.epoch else 0
        order, size = self._order(), self.batch_size
        for begin, end in pairwise(self.cuts()):
            if end <= self.position:
                continue
            # Set before the batches are used: a checkpoint taken during their steps counts them as
            # done.
            begin, self.position = max(begin, self.position), end
            batch = take(self.split, order[begin * size : end * size])
            if end == self.batches:
                del order  # A validation follows, which needs memory of its own.
            if self.pin_memory:
                # An accelerator copies from page-locked memory without waiting.
                batch = map_tensors(Tensor.pin_memory, batch)
            yield batch if self.steps is None else Execution(batch, size)

    def _order(self) -> Tensor:
        """Return the row positions of this process for this epoch, in order: [share]."""
        rows = len(self.split.row)
        order = empty_pages(rows, torch.int32 if rows <= 2**31 else torch.int64)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            torch.randperm(rows, generator=generator, out=order)
        else:
            torch.arange(rows, out=order)
            if not self.exact and self.world > 1:
                # Leave different rows out in each epoch.
                order = order.roll(-self.epoch)
        return order[self.rank : None if self.exact else rows - rows % self.world : self.world]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = state["epoch"], state["position"]


def take(split: Batch, positions: Tensor) -> Batch:
    """Return the rows of ``split`` at ``positions``, on the device of the split."""
    positions = positions.to(split.row.device, torch.int64, non_blocking=True)
    rows = map_tensors(lambda values: values[positions], split)
    if rows.y is not None and rows.y.dtype == torch.uint8:
        return rows._replace(y=rows.y.long())  # Losses take class numbers as int64.
    return rows


def nbytes(split: Batch) -> int:
    """Return the memory that the tensors of a split take, in bytes."""
    inputs = split.x.values() if isinstance(split.x, dict) else [split.x]
    others = (split.y, split.row, *split.weights)
    return sum(values.nbytes for values in (*inputs, *others) if values is not None)


def map_tensors(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return a batch of ``function`` applied to each tensor of ``batch``."""
    x, y, row, weights = batch
    x = {name: function(part) for name, part in x.items()} if isinstance(x, dict) else function(x)
    y = None if y is None else function(y)
    return Batch(x, y, function(row), tuple(map(function, weights)))
