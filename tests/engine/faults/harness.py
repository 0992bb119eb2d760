"""Start processes that are killed at chosen points, and compare the runs that they leave."""

import hashlib
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import QUIET
from engine.faults.victim import reached
from proj.engine import security
from proj.engine.cli import main
from proj.engine.evaluation import tensorboard
from proj.engine.runs.run import read_checkpoint

security.allow_package("engine.faults")

# Keys that differ between equal runs: their names and paths, and Lightning's own count of scheduler
# steps.
IGNORED_KEYS = (
    "dirpath",
    "best_model_path",
    "last_model_path",
    "kth_best_model_path",
    "best_k_models",
    "kth_value",
    "epoch_loop.scheduler_progress",
)


def _call(args: list[str], log: Path) -> None:
    reached.clear()  # of the parent process
    # No figures: polars hangs in a forked process if it was used before the fork.
    tensorboard.MIN_SECONDS_BETWEEN_FIGURES = math.inf
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    os.dup2(sys.stdout.fileno(), 2)
    raise SystemExit(main([*args, *QUIET]))


def attempt(
    *args: Any, kill: str = "", by: Sequence[int] = (signal.SIGKILL,), after: float | None = None
) -> int:
    """Run a command line in one process; return its exit code, negative for a signal.

    Args:
        kill: point at which the process receives the signals ``by``, as ``point:n``.
        after: seconds after which it is killed.
    """
    os.environ |= {"KILL": kill, "SIGNALS": ",".join(str(int(number)) for number in by)}
    process = multiprocessing.get_context("fork").Process(
        target=_call, args=([str(a) for a in args], Path("log.txt"))
    )
    process.start()
    if after is not None:
        process.join(after)
        if process.is_alive():
            process.kill()
    process.join(300)
    del os.environ["KILL"], os.environ["SIGNALS"]
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def said() -> str:
    """The output of all processes of a test so far."""
    return Path("log.txt").read_text()


def digest(name: str) -> dict[str, str]:
    """SHA-256 of a run's results: weights, optimizer, schedulers, callbacks, generators, curves."""
    run = Path("lightning_logs") / name
    last, best = (
        read_checkpoint(run / "checkpoints" / f"{which}.ckpt") for which in ("last", "best")
    )
    parts = {
        key: last[key]
        for key in (
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "callbacks",
            "global_step",
            "epoch",
        )
    }
    parts |= {"best": best["state_dict"], "loops": last["loops"]["fit_loop"]}
    parts["curves"] = curves(name)
    return {key: hashlib.sha256(_bytes(part)).hexdigest() for key, part in parts.items()}


def curves(name: str) -> dict[str, list[tuple[int, float]]]:
    """The curves of a run in TensorBoard: steps and values by name."""
    events = EventAccumulator(f"lightning_logs/{name}", {"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
    }


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)} ".encode() + value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return b"".join(
            f"{key}: ".encode() + _bytes(value[key]) for key in value if key not in IGNORED_KEYS
        )
    if isinstance(value, list | tuple):
        return b"".join(map(_bytes, value)) + b"; "
    return f"{value!r}, ".encode()
