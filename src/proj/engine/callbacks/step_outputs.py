"""Outputs of steps as arrays, gathered from all processes.

Training uses this module. It is separate from ``prediction_writer``, which imports polars.
"""

from itertools import chain
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from proj.schema import Array


def to_array(values: Tensor) -> Array:
    """Return a tensor as a NumPy array. NumPy has no bfloat16, so it becomes float32."""
    values = values.float() if values.dtype == torch.bfloat16 else values
    array: Array = values.detach().cpu().numpy()
    return array


def as_arrays(outputs: dict[str, Tensor]) -> dict[str, Array]:
    """Return a step's outputs as NumPy arrays."""
    return {name: to_array(values) for name, values in outputs.items()}


# What the steps of our models return. A user's subclass may return more.
ANSWERS = ("row", "output", "target", "weight")


def answers_in(outputs: Any) -> dict[str, Any] | None:
    """Return what the steps of our models return, from outputs that may hold more; None without."""
    if not isinstance(outputs, dict) or not {"row", "output"} <= outputs.keys():
        return None
    return {name: outputs[name] for name in ANSWERS if name in outputs}


def gather_chunks(chunks: list[Any]) -> list[Any]:
    """Return the chunks of all processes on process 0, and an empty list on the others."""
    if not torch.distributed.is_initialized():
        return chunks
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    torch.distributed.gather_object(chunks, gathered)
    return list(chain.from_iterable(gathered or []))
