"""Start processes that are killed at chosen points, and compare the runs that they leave."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import processes
from conftest import QUIET
from proj.engine import security
from proj.engine.runs.checkpoint_file import read_checkpoint

security.allow_package("engine.faults")

# Names and paths of the run itself, which differ between two runs, and the number of steps that
# Lightning has made of a schedule.
IGNORED_KEYS = (
    "dirpath",
    "best_model_path",
    "last_model_path",
    "kth_best_model_path",
    "best_k_models",
    "kth_value",
    "epoch_loop.scheduler_progress",
)


def attempt(
    *args: Any,
    kill: str = "",
    by: Sequence[int] = (signal.SIGKILL,),
    after: float | None = None,
    env: dict[str, str] | None = None,
) -> int:
    """Run a command line and return its exit code, negative for a signal.

    The process sends itself the signals ``by`` at the point ``kill``, as in ``"step:20"``; see
    ``victim``. It is killed after ``after`` seconds.
    """
    signals = ",".join(str(int(number)) for number in by)
    environment = {**os.environ, "KILL": kill, "SIGNALS": signals, **(env or {})}
    flags = ["--allow", "engine.faults", *QUIET]
    with Path("log.txt").open("a") as log:
        process = processes.Process("proj", *args, *flags, env=environment, stdout=log, stderr=log)
    if after is not None:
        try:
            return process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait(300)


def said() -> str:
    """Return what all processes of a test have printed."""
    return Path("log.txt").read_text()


def digest(name: str) -> dict[str, str]:
    """Return SHA-256 of a run's weights, optimizer, schedules, callbacks, generators and curves."""
    run = Path("lightning_logs") / name
    last, best = (
        read_checkpoint(run / "checkpoints" / f"{which}.ckpt") for which in ("last", "best")
    )
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "epoch")
    states = {key: last[key] for key in keys}
    states |= {"best": best["state_dict"], "loops": last["loops"]["fit_loop"]}
    states["curves"] = curves(name)
    return {key: hashlib.sha256(to_bytes(state)).hexdigest() for key, state in states.items()}


def curves(name: str) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of a run's TensorBoard scalars, by tag."""
    return curves_of(Path(f"lightning_logs/{name}"))


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of the TensorBoard scalars in a folder, by tag."""
    events = EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
    }


def to_bytes(value: Any) -> bytes:
    """Return the content of nested values without ``IGNORED_KEYS``; tensors bit by bit."""
    if isinstance(value, torch.Tensor):
        # NumPy has no bfloat16.
        content = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} ".encode() + content
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in IGNORED_KEYS}
        return b"".join(f"{key}: ".encode() + to_bytes(item) for key, item in kept.items())
    if isinstance(value, list | tuple):
        return b"".join(map(to_bytes, value)) + b"; "
    return f"{value!r}, ".encode()
