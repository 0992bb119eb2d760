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


def has_answers(outputs: Any) -> bool:
    """Return whether a step has returned what the steps of our models return."""
    if not isinstance(outputs, dict):
        return False
    return {"row", "output"} <= outputs.keys() <= {"row", "output", "target"}


def gather_chunks(chunks: list[Any]) -> list[Any]:
    """Return the chunks of all processes on process 0, and an empty list on the others."""
    if not torch.distributed.is_initialized():
        return chunks
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gathered: list[Any] | None = [None] * world_size if rank == 0 else None
    torch.distributed.gather_object(chunks, gathered)
    return list(chain.from_iterable(gathered or []))
