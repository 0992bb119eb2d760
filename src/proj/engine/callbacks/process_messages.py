"""Messages between the processes of a training, as few as possible.

Over gloo a message takes longer than the step of a small net, whatever it holds. Lightning and
torchmetrics send two or three for one number.
"""

import json
import math
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed import ReduceOp, all_gather, all_reduce, broadcast, get_world_size
from torch.nn.functional import pad

# What fits into the first message of `gather_tensors`, and needs no second one.
FIRST_BYTES = 4096
# Each tensor begins at a multiple of this many bytes, as a view of any dtype must.
ALIGNMENT = 16
LENGTHS_BYTES = 16


def largest(trainer: Trainer, *numbers: int) -> list[int]:
    """Return the largest value of each number over all processes: one message.

    Of conditions it returns 1 for those that are true in any process.
    """
    if trainer.world_size == 1:
        return [int(number) for number in numbers]
    message = torch.tensor(numbers, dtype=torch.int64, device=trainer.strategy.root_device)
    all_reduce(message, ReduceOp.MAX)
    return [int(number) for number in message.tolist()]


def from_first(trainer: Trainer, *numbers: float) -> list[float]:
    """Return the numbers of process 0 on all processes: one message."""
    if trainer.world_size == 1:
        return list(numbers)
    message = torch.tensor(numbers, dtype=torch.float64, device=trainer.strategy.root_device)
    broadcast(message, 0)
    values: list[float] = message.tolist()
    return values


def gather_tensors(tensors: Sequence[Tensor], device: torch.device) -> list[list[Tensor]]:
    """Return the tensors of each process, in order of the ranks, as views of the messages.

    It takes one message if the tensors of each process are small, and two otherwise. Number,
    shapes and dtypes may differ between the processes. All bits are kept.

    Args:
        tensors: dense tensors of any shape.
        device: device of the messages, and of the tensors returned.
    """
    packed = _pack(tensors, device)
    received = _gather_bytes(packed[:FIRST_BYTES], FIRST_BYTES)
    longest = max(_lengths(message)[1] for message in received)
    if longest > FIRST_BYTES:
        received = _gather_bytes(packed, longest)
    return [_unpack(message) for message in received]


def _gather_bytes(message: Tensor, length: int) -> list[Tensor]:
    """Return the messages of all processes, each padded with zeros to ``length`` bytes."""
    padded = pad(message, (0, length - len(message)))
    received = [torch.empty_like(padded) for _ in range(get_world_size())]
    all_gather(received, padded)
    return received


def _pack(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return tensors as bytes: two lengths, a header with dtypes and shapes, and the values.

    The lengths are those of the header, and of all bytes.
    """
    kinds = [(str(tensor.dtype).removeprefix("torch."), tensor.shape) for tensor in tensors]
    header = torch.frombuffer(bytearray(json.dumps(kinds).encode()), dtype=torch.uint8)
    flat = [tensor.detach().to(device).contiguous().reshape(-1) for tensor in tensors]
    values = [tensor.view(torch.uint8) for tensor in flat]
    parts = [
        pad(part, (0, _padded(len(part)) - len(part))) for part in (header.to(device), *values)
    ]
    total = LENGTHS_BYTES + sum(map(len, parts))
    lengths = torch.tensor([len(header), total], device=device).view(torch.uint8)
    return torch.cat([lengths, *parts])


def _lengths(packed: Tensor) -> list[int]:
    lengths: list[int] = packed[:LENGTHS_BYTES].view(torch.int64).tolist()
    return lengths


def _unpack(packed: Tensor) -> list[Tensor]:
    """Return the tensors that ``_pack`` has packed, as views of the bytes."""
    position = LENGTHS_BYTES
    header = packed[position : position + _lengths(packed)[0]]
    tensors: list[Tensor] = []
    position += _padded(len(header))
    for name, shape in json.loads(header.cpu().numpy().tobytes()):
        dtype = getattr(torch, name)
        size = dtype.itemsize * math.prod(shape)
        tensors.append(packed[position : position + size].view(dtype).view(shape))
        position += _padded(size)
    return tensors


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT
