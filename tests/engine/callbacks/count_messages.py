"""Callback that counts the messages between the processes of a training."""

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import ProcessGroup

# Every function of torch.distributed ends in one of these. DDP's own messages, one for each
# `training_step` of a small net, are sent in C++ and are not counted.
KINDS = (
    "_allgather_base",
    "allgather",
    "allgather_into_tensor_coalesced",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "gather",
    "monitored_barrier",
    "recv",
    "reduce",
    "reduce_scatter",
    "scatter",
    "send",
)


COUNTS: Counter[str] = Counter()


def count_messages() -> None:
    """Count the calls of this process from now on."""
    for kind in KINDS:
        setattr(ProcessGroup, kind, counted(kind, getattr(ProcessGroup, kind)))


def counted(kind: str, send: Any) -> Any:
    @functools.wraps(send)
    def count_and_send(*args: Any, **options: Any) -> Any:
        COUNTS[kind] += 1
        return send(*args, **options)

    return count_and_send


class CountMessages(Callback):
    """Write the steps, executions and messages of each epoch but the last to ``messages.json``.

    It has no hook of batches, which would need single steps.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, int]] = []
        self.last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:  # The preflight has one process.
            count_messages()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch > 0:
            steps = trainer.global_step - self.last_step
            executions = int(trainer.num_training_batches)
            self.epochs.append({"steps": steps, "executions": executions, **COUNTS})
        self.last_step = trainer.global_step
        COUNTS.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.world_size > 1:
            Path("messages.json").write_text(json.dumps(self.epochs), encoding="utf-8")
