"""Freed memory is kept for the next batch, where the C library would give it back to the system."""

import ctypes
import platform

import torch

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # options of mallopt, by their numbers in <malloc.h>


def keep_freed_memory(device: torch.device) -> None:
    """Have glibc keep what is freed, from here to the end of the process, where steps are made on a CPU.

    To be called as late as may be: what reading the data takes for a moment should go back. Other C libraries are left as
    they are.

    By its defaults a large tensor goes back to the system when it is freed, and the next step's comes from there again, page
    by page: a fifth of the time of a convolutional net (`docs/performance.md`). The options are those of mallopt(3).
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        kept = libc.mallopt(TRIM_THRESHOLD, -1)  # freed memory stays
        kept &= libc.mallopt(MMAP_MAX, 0)  # and large blocks, too, come from there
        assert kept
