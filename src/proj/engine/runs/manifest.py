"""Write the manifest of a run during training."""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from proj.engine.runs.run import Run
from proj.engine.secrets import split_words
from proj.errors import UserError

# Packages whose versions the manifest records.
PACKAGES = ("torch", "lightning", "torchmetrics", "jsonargparse", "numpy", "polars", "scikit-learn")


@contextmanager
def record_manifest(
    run: Run,
    command: list[str],
    seed: int,
    fingerprint: str,
    device: torch.device,
    resumed: bool = False,
) -> Iterator[None]:
    """Write the manifest at the start of training, and its status and time at the end.

    For a resumed run, command and start time stay, and the time of the resume is added.
    """
    if resumed:
        start: dict[str, Any] = {"resumed": [*run.manifest.get("resumed", []), _now()]}
    else:
        start = {"start": _now(), "command": split_words(command)[0]}
    run.write_manifest(
        **start,
        seed=seed,
        status="running",
        end=None,
        packages={name: metadata.version(name) for name in PACKAGES},
        git=_git_state(),
        data=fingerprint,
        hardware=_hardware(device),
    )
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        try:
            run.write_manifest(status="stopped" if stopped else "failed", end=_now())
        except (OSError, UserError) as write_error:  # The first error is the cause.
            rank_zero_warn(
                f"the manifest of {run.path} cannot be written: {write_error}; its status is still "
                "running."
            )
        raise
    run.write_manifest(status="finished", end=_now())


def _git_state() -> dict[str, Any] | None:
    """Return commit and uncommitted changes of the working directory.

    None outside a repository or without git.
    """

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], capture_output=True, check=True)
        return done.stdout.decode(errors="replace").strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware(device: torch.device) -> dict[str, Any]:
    gpus = []
    # The query reserves memory on the GPU, so it is made only for CUDA.
    if device.type == "cuda":
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat()
