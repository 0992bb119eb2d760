"""Batches of rows that are read from shards while they are used, in a bounded buffer."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from proj.data.loader import ArrayLoader, map_tensors, take
from proj.data.tabular.shards import Block
from proj.errors import UserError
from proj.schema import Batch, Execution


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of those rows of a block that have a target."""

    block: Block
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


class StreamLoader(ArrayLoader):
    """Batches of a split whose rows do not fit into memory.

    The order is a function of seed, epoch, rank and number of processes. An epoch has a random
    order of the blocks. Of the rows in this order, each process gets an equal, consecutive share,
    and fills a buffer with them. The rows in the buffer are shuffled and handed out, while a thread
    reads the next ones. So at most two buffers are in memory. Without ``shuffle``, rows keep the
    order of their source.

    Steps, shares of processes and ``state_dict`` are those of ``ArrayLoader``: in training, all
    processes get the same number of rows and at most ``world - 1`` rows are left out of an epoch;
    in evaluation (``exact=True``), exactly one process sees each row.

    Args:
        example: some rows, whose form the batches have.
        batch_size: rows of a batch.
        blocks: the blocks of the split.
        read: returns the rows of a block that have a target, ``block.count`` of them.
        buffer_rows: rows in a buffer at most, and at least one block.
    """

    def __init__(
        self,
        example: Batch,
        batch_size: int,
        blocks: list[Block],
        read: Callable[[Block], Batch],
        buffer_rows: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        exact: bool = True,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            example,
            batch_size,
            seed=seed,
            shuffle=shuffle,
            exact=exact,
            rank=rank,
            world=world,
            pin_memory=pin_memory,
        )
        self.blocks, self.read, self.buffer_rows = blocks, read, buffer_rows
        self.rows = sum(block.count for block in blocks)

    @property
    def batches(self) -> int:
        share = -(-self.rows // self.world) if self.exact else self.rows // self.world
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[Batch | Execution]:
        resume, self._resume = self._resume, None
        self.position = resume[1] if resume is not None and resume[0] == self.epoch else 0
        steps = [
            (max(begin, self.position), end)
            for begin, end in pairwise(self.cuts())
            if end > self.position
        ]
        sizes = ((end - begin) * self.batch_size for begin, end in steps)
        buffers = self._buffers(self.position * self.batch_size)
        batches = rebatch(buffers, sizes, take(self.split, torch.arange(0)))
        for (_, end), batch in zip(steps, batches, strict=True):
            # Set before the batches are used: a checkpoint taken during their steps counts them as
            # done.
            self.position = end
            if self.pin_memory:
                batch = map_tensors(Tensor.pin_memory, batch)
            yield batch if self.steps is None else Execution(batch, self.batch_size)

    def pieces(self) -> list[Piece]:
        """Return what this process reads in this epoch, in order."""
        order = np.arange(len(self.blocks))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        elif not self.exact and self.world > 1:
            # Leave different rows out in each epoch.
            order = np.roll(order, -self.epoch)
        share = -(-self.rows // self.world) if self.exact else self.rows // self.world
        first, position, pieces = self.rank * share, 0, []
        for block in (self.blocks[i] for i in order):
            start, stop = first - position, min(first + share - position, block.count)
            if max(start, 0) < stop:
                pieces.append(Piece(block, max(start, 0), stop))
            position += block.count
        return pieces

    def windows(self) -> list[list[Piece]]:
        """Return the pieces that are in the buffer at the same time."""
        windows: list[list[Piece]] = []
        rows = self.buffer_rows
        for piece in self.pieces():
            if not windows or rows + piece.rows > self.buffer_rows:
                windows.append([])
                rows = 0
            windows[-1].append(piece)
            rows += piece.rows
        return windows

    def _buffers(self, skipped: int) -> Iterator[Batch]:
        """Yield the buffers of this epoch without the first ``skipped`` rows."""
        windows = list(enumerate(self.windows()))
        while windows and (rows := _count(windows[0][1])) <= skipped:
            skipped -= rows
            del windows[0]
        with ThreadPoolExecutor(1, "shards") as reader:
            following = [reader.submit(self._fill, *window) for window in windows[:1]]
            for window in [*windows[1:], None]:
                if not following:
                    return
                buffer = following.pop().result()
                if window is not None:
                    following.append(reader.submit(self._fill, *window))
                yield _without(buffer, skipped)
                del buffer
                skipped = 0

    def _fill(self, number: int, window: list[Piece]) -> Batch:
        """Read the rows of a window, shuffled."""
        count, filled = _count(window), 0
        order = torch.arange(count)
        if self.shuffle:
            key = np.random.SeedSequence((self.seed, self.epoch, self.rank, number))
            seed = int(key.generate_state(1, np.uint64)[0] >> 1)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        buffer = map_tensors(lambda v: v.new_empty((count, *v.shape[1:])), self.split)
        for piece in window:
            rows = self.read(piece.block)
            if len(rows.row) != piece.block.count:
                raise UserError(
                    f"{piece.block.shard}: expected {piece.block.count} targets from row "
                    f"{piece.block.start} on, as before, got {len(rows.row)}; start again when "
                    "the file is complete."
                )
            # Rows go to their place at once, so that only one copy is in memory.
            _scatter(buffer, order[filled : filled + piece.rows], rows, piece.start, piece.stop)
            filled += piece.rows
        return buffer


def _scatter(buffer: Batch, places: Tensor, rows: Batch, start: int, stop: int) -> None:
    """Write rows ``start`` to ``stop`` of a block to their places in the buffer."""
    parts = map_tensors(lambda values: values[start:stop], rows)
    for target, values in zip(_tensors(buffer), _tensors(parts), strict=True):
        target[places] = values


def _tensors(batch: Batch) -> list[Tensor]:
    inputs = list(batch.x.values()) if isinstance(batch.x, dict) else [batch.x]
    return [*inputs, *([] if batch.y is None else [batch.y]), batch.row, *batch.weights]


def _without(batch: Batch, rows: int) -> Batch:
    return map_tensors(lambda values: values[rows:], batch)


def _count(window: list[Piece]) -> int:
    return sum(piece.rows for piece in window)


def rebatch(chunks: Iterator[Batch], sizes: Iterable[int], empty: Batch) -> Iterator[Batch]:
    """Yield consecutive rows of ``chunks`` in pieces of ``sizes``; the last ones may be smaller.

    The pieces are copies, so that a chunk is free when the next one is taken.
    """
    held, start = empty, 0
    for missing in sizes:
        parts: list[Batch] = []
        while missing:
            stop = min(start + missing, len(held.row))
            parts.append(_copy(held, start, stop))
            missing, start = missing - (stop - start), stop
            if not missing:
                break
            held, start = empty, 0
            if (chunk := next(chunks, None)) is None:
                break
            held = chunk
            del chunk
        yield parts[0] if len(parts) == 1 else concatenate(parts)


def _copy(batch: Batch, start: int, stop: int) -> Batch:
    return map_tensors(lambda values: values[start:stop].clone(), batch)


def concatenate(parts: list[Batch]) -> Batch:
    """Return the rows of several batches as one."""
    tensors = iter([torch.cat(same) for same in zip(*map(_tensors, parts), strict=True)])
    return map_tensors(lambda _: next(tensors), parts[0])
