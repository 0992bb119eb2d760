"""States of the random generators of a process."""

import random
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """Return the states of the random generators as tensors and plain values."""
    name, keys, *position = np.random.get_state(legacy=True)
    version, words, gauss_next = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *position],
        # As single numbers, the 625 words would be a third of the time of saving a small net.
        "python": (version, torch.tensor(words), gauss_next),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Restore what ``generator_states`` returned."""
    torch.set_rng_state(states["torch"])
    name, keys, *position = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *position))
    version, words, gauss_next = states["python"]
    # Earlier checkpoints have a tuple of numbers.
    words = words.tolist() if isinstance(words, torch.Tensor) else words
    random.setstate((version, tuple(words), gauss_next))
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
