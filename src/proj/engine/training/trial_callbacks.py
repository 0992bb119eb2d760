"""Copies of the user's callbacks for the preflight, and a logger that writes nothing."""

import contextlib
import copy
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.nn.parameter import UninitializedBuffer

# Callbacks that show the progress or write checkpoints. They log nothing.
LEFT_OUT = (Checkpoint, ModelSummary, ProgressBar)
HOOKS = [name for name in vars(Callback) if name.startswith("on_")] + ["setup", "teardown"]


class TrialLogger(DummyLogger):
    """Logger whose methods do nothing, with a folder for callbacks that write files themselves."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = str(folder)

    @property
    def save_dir(self) -> str:
        return self.folder

    log_dir = root_dir = save_dir


def copy_for_trial(
    model: LightningModule, callbacks: Sequence[Callback]
) -> tuple[LightningModule, list[Callback], list[str]]:
    """Return copies of a model and of callbacks, and the names of callbacks that cannot be copied.

    What the copies have in common stays common. Their hooks print nothing, because the hooks of
    the callbacks print it again in training.
    """
    memo = copies_of_lazy_buffers(model)
    model = copy.deepcopy(model, memo)
    copies: list[Callback] = []
    failed: list[str] = []
    for callback in callbacks:
        if isinstance(callback, LEFT_OUT):
            continue
        try:
            copies.append(copy.deepcopy(callback, memo))
        except Exception as error:  # A callback may hold anything, such as an open file.
            failed.append(f"{type(callback).__name__} ({error})")
    for callback in copies:
        for name in HOOKS:
            if getattr(type(callback), name) is not getattr(Callback, name):
                setattr(callback, name, _silent(getattr(callback, name)))
    return model, copies, failed


def copies_of_lazy_buffers(model: nn.Module) -> dict[int, Any]:
    """Return a memo for ``copy.deepcopy`` with copies of the buffers that have no shape yet.

    Lazy modules such as ``LazyBatchNorm1d`` have them. torch copies uninitialized parameters only.
    """
    empty: Any = UninitializedBuffer  # Its class in torch has no types.
    return {
        id(buffer): empty(device=buffer.device, dtype=buffer.dtype)
        for buffer in model.buffers()
        if isinstance(buffer, UninitializedBuffer)
    }


def _silent(hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def call(*args: Any, **options: Any) -> Any:
        unseen = io.StringIO()
        with contextlib.redirect_stdout(unseen), contextlib.redirect_stderr(unseen):
            return hook(*args, **options)

    return call
