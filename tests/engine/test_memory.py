"""Reuse of freed memory, measured by page faults."""

import platform
import re
import subprocess
import sys
from pathlib import Path

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


EPOCH = """
import os, torch
from proj.data.loader import ArrayLoader
from proj.engine.memory import keep_freed_memory
from proj.schema import Batch
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
rows = 6_000_000
split = Batch(torch.zeros(rows, 1), None, torch.zeros(rows, dtype=torch.int32))
keep_freed_memory(torch.device("cpu"))
before = resident()
loader = iter(ArrayLoader(split, rows // 100, shuffle=True))
next(loader)
training = resident() - before
for batch in loader:
    pass
print(training, resident() - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_order_of_an_epoch_is_returned_to_the_system() -> None:
    """The validation that follows takes memory of its own."""
    done = subprocess.run([sys.executable, "-c", EPOCH], capture_output=True, text=True, check=True)
    training, between = map(float, done.stdout.split())
    order = 6_000_000 * 4 / 1e6
    assert order < training
    assert between < order / 2


VALIDATION = """
import os, torch
from proj.engine.memory import keep_freed_memory
from proj.metrics.stage import RankingMetrics
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
metrics = RankingMetrics(1)
def validate(batches):
    for _ in range(batches):
        layers = [torch.ones(2**20), torch.ones(2**20)]  # 4 MB each
        metrics.update(torch.rand(2**16, dtype=torch.float64), torch.ones(2**16))
        del layers
keep_freed_memory(torch.device("cpu"))
validate(1)  # what torch loads once
metrics.reset()
before = resident()
validate(100)
kept = resident() - before
metrics.reset()
print(kept, resident() - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_scores_of_a_validation_are_returned_to_the_system() -> None:
    """In the heap, they would lie between the outputs of layers, and it would grow around them."""
    command = [sys.executable, "-c", VALIDATION]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, after = map(float, done.stdout.split())
    scores = 100 * 2**16 * 8 / 1e6
    assert scores < kept
    assert after < 0.75 * scores


PEAK = """
import sys, tracemalloc
import numpy as np
from torch.profiler import ProfilerActivity, profile
from proj.engine.cli import main
def peak(rows):
    random = np.random.default_rng(0)
    counts = {"train": rows, "val": rows // 5, "test": 100}
    x = {f"x_{name}": random.normal(size=(n, 10)).astype(np.float32) for name, n in counts.items()}
    y = {f"y_{name}": random.integers(0, 3, n) for name, n in counts.items()}
    np.savez("data.npz", **x, **y)
    flags = "fit --data ArrayDataModule --data.path data.npz --data.batch_size 8192 "
    flags += "--model MulticlassClassifier --model.net MLP --model.steps_per_execution 8 "
    flags += "--trainer.max_epochs 1 --trainer.logger false --trainer.enable_progress_bar false"
    del x, y
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        assert main(flags.split()) == 0
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return arrays + np.cumsum(sizes).max()
peak(10_000)  # what is imported once
small, large = 600_000, 900_000
print("bytes per row:", (peak(large) - peak(small)) / (1.2 * (large - small)), file=sys.stderr)
"""


@pytest.mark.slow
def test_a_row_takes_little_more_memory_than_its_data(work: Path) -> None:
    """The peaks of NumPy's and torch's allocations grow with the rows; the data are 41 bytes of it.

    The rest is the row's number, its place in the order of the epoch, and what validation keeps.
    """
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    found = re.search(r"bytes per row: ([\d.]+)", done.stderr)
    assert found
    assert 41 < float(found[1]) < 60
