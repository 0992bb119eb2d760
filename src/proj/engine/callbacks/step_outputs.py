"""What the steps return, as arrays and from all processes."""

from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor


def as_arrays(outputs: dict[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    exact = {
        name: v.float() if v.dtype == torch.bfloat16 else v for name, v in outputs.items()
    }  # NumPy has none
    return {name: value.detach().cpu().numpy() for name, value in exact.items()}


def gather_chunks(chunks: list[Any]) -> list[Any]:
    """Every process' chunks, on process 0; nothing on the others."""
    if not torch.distributed.is_initialized():
        return chunks
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gather_chunks: list[Any] | None = [None] * world if rank == 0 else None
    torch.distributed.gather_object(chunks, gather_chunks)
    return [chunk for part in gather_chunks for chunk in part] if gather_chunks is not None else []
