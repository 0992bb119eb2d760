"""Processes that are killed and go on, and what is left of them at the end."""

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

# Names and paths of the run's own, which differ between two runs; and how often Lightning itself has stepped a schedule.
OWN = (
    "dirpath",
    "best_model_path",
    "last_model_path",
    "kth_best_model_path",
    "best_k_models",
    "kth_value",
    "epoch_loop.scheduler_progress",
)


def _call(args: list[str], log: Path) -> None:
    reached.clear()  # what this process came by before it was forked
    # Polars, used before the fork, hangs after it: no figures even if a minute passes.
    tensorboard.MIN_SECONDS_BETWEEN_FIGURES = math.inf
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    os.dup2(sys.stdout.fileno(), 2)
    raise SystemExit(main([*args, *QUIET]))


def attempt(
    *args: Any, kill: str = "", by: Sequence[int] = (signal.SIGKILL,), after: float | None = None
) -> int:
    """One process, from its start to its end; the exit code, negative for a signal. ``after`` seconds it is killed."""
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
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def said() -> str:
    """What all processes of a test have printed."""
    return Path("log.txt").read_text()


def digest(name: str) -> dict[str, str]:
    """SHA-256 of what a run has come to: weights, optimizer, schedules, callbacks, generators, curves."""
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
    """What TensorBoard shows of a run: steps and values."""
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
        return b"".join(f"{key}: ".encode() + _bytes(value[key]) for key in value if key not in OWN)
    if isinstance(value, list | tuple):
        return b"".join(map(_bytes, value)) + b"; "
    return f"{value!r}, ".encode()
