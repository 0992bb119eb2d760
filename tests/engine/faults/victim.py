"""A net and a callback that kill their own process at the point in the environment variable KILL.

Its value is ``point:n``, for the n-th time that the point is reached. COPIES is JSON: folders by
points at which the run ``killed`` is copied to them.
"""

import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback
from torch import Tensor

from proj.engine.callbacks import resume_state
from proj.nets.mlp import MLP
from proj.schema import Tensors

reached: Counter[str] = Counter()


def at(point: str) -> None:
    """Count the point; if KILL names it, send SIGNALS, or SIGKILL without them, to the process."""
    reached[point] += 1
    here = f"{point}:{reached[point]}"
    if here in (copies := json.loads(os.environ.get("COPIES", "{}"))):
        shutil.copytree("lightning_logs/killed", copies[here])
    if here == os.environ.get("KILL"):
        for number in os.environ.get("SIGNALS", str(int(signal.SIGKILL))).split(","):
            os.kill(os.getpid(), int(number))


class Noisy(MLP):
    """An MLP that also draws from the random generators of NumPy and Python."""

    def forward(self, x: Tensors) -> Tensor:
        if self.training:
            at("step")
            return super().forward(x) + 0.1 * float(np.random.rand() + random.random())
        return super().forward(x)


class Points(Callback):
    """Points at hooks and at the disk operations of a save. It has no batch or step hooks.

    Hooks of the preflight, where ``trainer.fast_dev_run`` is true, are no points.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.fast_dev_run:
            return
        if os.environ.get("KILL") or os.environ.get("COPIES"):
            for owner, name in ((os, "fsync"), (Path, "replace")):
                setattr(owner, name, around(getattr(owner, name), name))
        if os.environ.get("FORGET_GENERATORS"):
            resume_state.restore_generators = lambda states: None

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.fast_dev_run:
            at("train start")

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.fast_dev_run:
            at("epoch start")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        if not trainer.fast_dev_run:
            at("epoch end")

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.fast_dev_run:
            at("validation start")

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        if not trainer.fast_dev_run:
            at("validation end")

    def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
        if not trainer.fast_dev_run:
            at("save")


def around(function: Any, name: str) -> Any:
    def wrapped(*args: Any) -> Any:
        at(f"before {name}")
        result = function(*args)
        at(f"after {name}")
        return result

    return wrapped
