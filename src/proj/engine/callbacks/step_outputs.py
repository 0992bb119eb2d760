"""Outputs of steps as arrays, gathered from all processes.

Training uses this module. It is separate from ``prediction_writer``, which imports polars.
"""

from itertools import chain
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from proj.schema import Array


def as_arrays(outputs: dict[str, Tensor]) -> dict[str, Array]:
    """Return a step's outputs as NumPy arrays. NumPy has no bfloat16, so it becomes float32."""
    arrays = {}
    for name, values in outputs.items():
        values = values.float() if values.dtype == torch.bfloat16 else values
        arrays[name] = values.detach().cpu().numpy()
    return arrays


def gather_chunks(chunks: list[Any]) -> list[Any]:
    """Return the chunks of all processes on process 0, and an empty list on the others."""
    if not torch.distributed.is_initialized():
        return chunks
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    torch.distributed.gather_object(chunks, gathered)
    return list(chain.from_iterable(gathered or []))
