"""Reuse of freed memory, measured by page faults."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import os, resource, torch
from proj.engine.memory import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    for size in (3, 12, 48):  # MB
        torch.ones(size * 2**18)
def measure():
    for _ in range(5):
        step()
    before = faults()
    for _ in range(10):
        step()
    print(faults() - before, flush=True)
if os.fork() == 0:
    measure()
    os._exit(0)
os.wait()
keep_freed_memory(torch.device("cpu"))
measure()
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_step_takes_the_memory_that_the_last_one_freed() -> None:
    """Each step on a CPU would get its memory from the system again, page by page."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    # The page faults of ten steps, after five steps to warm up.
    without, kept = map(int, done.stdout.split())
    assert without > 100_000  # 48 MB are 12,000 pages in each step.
    assert kept < 1_000
