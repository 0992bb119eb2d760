"""``last.ckpt``: everything training needs to go on to the bit, saved while it runs and when a signal stops it."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from proj.engine.callbacks.best_checkpoint import EarlyStopping
from proj.engine.callbacks.checkpoint_io import DurableCheckpointIO
from proj.engine.runs.run import LAST
from proj.errors import Stopped
from proj.models.base import Model

SAVE = 1  # less than the number of any signal that stops


class ResumeCheckpoint(
    lightning.Checkpoint
):  # Lightning calls checkpoint callbacks after all others
    """Saves at the start, at a pace, at the end, and when SIGINT or SIGTERM asks to stop.

    Lightning keeps weights, optimizers, schedules, loops and the loader's place. Kept here is what a process has beside
    that: random generators, the epoch's metrics so far, metrics that others look at, whether somebody wants to stop.
    Under a validation or at the end of an epoch nothing is saved, only after; so nothing is half done.

    Args:
        folder: where the file goes.
        every_seconds: how old the file may become; 0 saves after each step, or block of steps.
        every_n_steps: optimizer steps from one save to the next.
    """

    def __init__(
        self, folder: Path, every_seconds: float | None, every_n_steps: int | None
    ) -> None:
        self.folder, self.every_seconds, self.every_n_steps = folder, every_seconds, every_n_steps
        self.saved_step, self.saved_time = 0, time.monotonic()
        self.signal = 0  # that came
        self.after_epoch = False  # Lightning has still to step ReduceLROnPlateau
        self.restored: dict[str, Any] | None = None
        self.model: LightningModule | None = None
        self.handlers: dict[int, Any] = {}

    # What is saved

    def state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        sums = self.model.metric_state() if isinstance(self.model, Model) else {}
        return {
            "processes": _of_all_processes({"generators": generators(), "sums": sums}),
            "metrics": {
                name: value.detach().cpu() for name, value in self.trainer.callback_metrics.items()
            },
            "stop": self.trainer.should_stop and not _out_of_time(self.trainer),
            "early_stopping": bool(_early_stopping(self.trainer)),
            "accumulate": self.trainer.accumulate_grad_batches,
            "after_epoch": self.after_epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()  # the curves up to here, since they are not drawn again
        trainer.save_checkpoint(self.folder / LAST)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()

    # When it is saved

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer, self.model, self.max_steps = trainer, pl_module, trainer.max_steps
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else one of the user's own
            trainer.strategy.checkpoint_io = DurableCheckpointIO(self.folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and not _validation_follows(trainer, batch_idx):
            self._save_if_wanted(trainer, within_epoch=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and not trainer.is_last_batch:
            self._save_if_wanted(trainer, within_epoch=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after_epoch = True
        self._save_if_wanted(trainer)
        self.after_epoch = False
        if (
            trainer.fit_loop.restarting
        ):  # in the epoch that it goes on with, Lightning leaves them out
            _step_plateau_schedules(trainer, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self.saved_step:  # it ended in a way that was not foreseen
            self._save(trainer)
        self._listen_no_more()

    def _save_if_wanted(self, trainer: Trainer, within_epoch: bool = False) -> None:
        gradients_wait = (
            within_epoch and (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches > 0
        )
        if gradients_wait or (
            within_epoch and trainer.should_stop
        ):  # the end of the epoch follows, and saves
            return
        wanted = self.signal or int(self._due(trainer) or (not within_epoch and _ends(trainer)))
        if trainer.world_size > 1:  # what one process wants, all do
            voice = torch.tensor(wanted, device=trainer.strategy.root_device)
            wanted = int(trainer.strategy.reduce(voice, reduce_op="max"))
        if wanted and (self.stateful or not within_epoch):
            self._save(trainer)
        if wanted > SAVE:
            raise Stopped(wanted)

    def _due(self, trainer: Trainer) -> bool:
        steps, seconds = self.every_n_steps, self.every_seconds
        by_steps = steps is not None and trainer.global_step // steps > self.saved_step // steps
        return by_steps or (seconds is not None and time.monotonic() - self.saved_time >= seconds)

    # Signals

    def _listen(self) -> None:
        """Take Lightning's place: its handlers save nothing, and one waits for other processes until they come by."""
        if threading.current_thread() is threading.main_thread():
            self.handlers = {
                number: signal.signal(number, self._on_signal)
                for number in (signal.SIGINT, signal.SIGTERM)
            }

    def _listen_no_more(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._listen_no_more()

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        os.write(
            2,
            b"\nstopping after this step, when the checkpoint is written; a second Ctrl-C stops at once\n",
        )

    # Going on

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.restored is not None:
            # A limit on steps makes Lightning take an epoch that is over for one to be gone on with (fit_loop.py, the
            # setter of `restarting`), so there is none until training starts. A test holds this.
            trainer.fit_loop.epoch_loop.max_steps = -1
            self._restore_process(trainer)  # before a user's DataLoader draws its seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        self.stateful = hasattr(trainer.train_dataloader, "state_dict")
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        if self.restored is None:
            self._save(trainer)  # so that there is always something to go on from
            return
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps
        if self.stateful:
            self._restore_process(trainer)
        else:
            rank_zero_warn(
                "the data come from a loader without a state, so training goes on at the end of an epoch."
            )
        trainer.callback_metrics.update(self.restored["metrics"])
        trainer.accumulate_grad_batches = self.restored[
            "accumulate"
        ]  # which a callback may have changed
        stopping = _early_stopping(trainer)
        more = any(callback.goes_on for callback in stopping) or (
            self.restored["early_stopping"] and not stopping
        )
        trainer.should_stop = self.restored["stop"] and not more
        if self.restored["after_epoch"]:
            _step_plateau_schedules(trainer, trainer.current_epoch)
        self.restored = None

    def _restore_process(self, trainer: Trainer) -> None:
        """Random generators and sums as they were, unless the number of processes has changed."""
        assert self.restored is not None
        processes = self.restored["processes"]
        if len(processes) == trainer.world_size:
            here = processes[trainer.global_rank]
            restore_generators(here["generators"])
            if isinstance(self.model, Model):
                self.model.load_metric_state(here["sums"])
        else:
            rank_zero_warn(
                f"the checkpoint is of {len(processes)} processes, now there are {trainer.world_size}: random "
                "numbers and the metrics of the epoch begun start anew."
            )


def _validation_follows(trainer: Any, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch, by its own rule (``_should_check_val_fx``)."""
    if not trainer.enable_validation or trainer.val_check_batch in (
        None,
        float("inf"),
    ):  # None: at certain times, unknown here
        return False
    if trainer.check_val_every_n_epoch is None:
        batch_idx = trainer.fit_loop.total_batch_idx
    elif (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch:
        return False
    return bool((batch_idx + 1) % trainer.val_check_batch == 0)


def _ends(trainer: Trainer) -> bool:
    """Whether the epoch that is over is the last one."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return (
        trainer.should_stop
        or 0 < epochs <= trainer.current_epoch + 1
        or 0 < steps <= trainer.global_step
    )


def _early_stopping(trainer: Any) -> list[EarlyStopping]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]


def _out_of_time(trainer: Any) -> bool:
    timers = [callback for callback in trainer.callbacks if isinstance(callback, lightning.Timer)]
    return any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers)


def _step_plateau_schedules(trainer: Trainer, epochs: int) -> None:
    """What Lightning does at the very end of an epoch, after all callbacks."""
    for config in trainer.lr_scheduler_configs:
        if (
            config.reduce_on_plateau
            and config.interval == "epoch"
            and epochs % config.frequency == 0
        ):
            value = trainer.callback_metrics.get(str(config.monitor))
            if value is not None or config.strict:
                trainer.lightning_module.lr_scheduler_step(config.scheduler, value)


def _of_all_processes(here: dict[str, Any]) -> list[dict[str, Any]]:
    if not torch.distributed.is_initialized():
        return [here]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, here)
    return everyone


def generators() -> dict[str, Any]:
    """The states of all random generators as tensors and plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {**states, "cuda": torch.cuda.get_rng_state()} if on_cuda else states


def restore_generators(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
