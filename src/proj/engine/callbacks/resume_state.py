"""Save and restore the complete state of training, so that a resumed run has the same bits."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from proj.engine import PACKAGE
from proj.engine.callbacks.best_checkpoint import EarlyStopping
from proj.engine.callbacks.checkpoint_io import DurableCheckpointIO
from proj.engine.callbacks.generators import generator_states, restore_generators
from proj.engine.callbacks.process_messages import largest
from proj.engine.console import plural
from proj.engine.exit_codes import stop_signals
from proj.engine.lightning_internals import (
    has_default_checkpoint_io,
    is_accumulating,
    is_restarting,
    restore_current_scores,
    restore_metrics,
    set_accumulation,
    set_checkpoint_io,
    set_step_limit,
    step_plateau_schedulers,
    validation_follows,
)
from proj.engine.runs.run import LAST
from proj.engine.runs.weights import has_lazy_parameters, restore_state_types
from proj.errors import Stopped, UserError
from proj.models.base import Model

# Requests to `_save_if_requested`, ordered so that the largest one of all processes wins. A larger
# number than SAVE is a signal, which asks to save and stop.
NO_REQUEST, SAVE = 0, 1

# The callback's key in a checkpoint, today and in version 0.1, and the version of its state.
STATE_KEY, OLD_STATE_KEY = "ResumeCheckpoint", "LastCheckpoint"
FORMAT = 2
# What Lightning restores from a checkpoint before training, by key.
TRAINING_STATE = {
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


class ResumeCheckpoint(Checkpoint):
    """Save ``last.ckpt`` at the start, regularly, at the end, and when SIGINT or SIGTERM arrives.

    Lightning saves weights, optimizers, schedulers, loops and the loader's position. This callback
    adds the remaining state of each process: random generators, the metrics of the epoch so far,
    the logged metrics that other callbacks read, and whether training should stop. Nothing is saved
    during a validation or the end of an epoch, only afterwards, so that no work is half done.

    It is a ``Checkpoint`` because Lightning calls those after all other callbacks.

    Args:
        folder: folder of the file.
        every_seconds: seconds between two saves; 0 saves after each execution, None disables it.
        every_n_steps: optimizer steps between two saves; None disables it.
    """

    def __init__(
        self, folder: Path, every_seconds: float | None, every_n_steps: int | None
    ) -> None:
        self.folder, self.every_seconds, self.every_n_steps = folder, every_seconds, every_n_steps
        self.saved_step, self.saved_time = 0, time.monotonic()
        # The number of the signal that arrived, or 0.
        self.signal = 0
        # The largest request of all processes in this `training_step`, if they have exchanged it.
        self.agreed_request: int | None = None
        # Whether the epoch is over, but Lightning has not yet stepped ReduceLROnPlateau.
        self.after_epoch = False
        # Whether training is over, and Lightning has stepped it.
        self.after_training = False
        # How often each parameter had been changed at the last save.
        self.saved_versions: list[int] = []
        self.restored: dict[str, Any] | None = None
        # The states of the optimizers in the resumed checkpoint, until training starts.
        self.optimizer_states: list[dict[str, Any]] = []
        # The generators before a user's DataLoader draws from them, until the first save.
        self.first_generators: dict[str, Any] | None = None
        self.model: LightningModule | None = None
        self.signal_handlers = ExitStack()

    # State

    @property
    def state_key(self) -> str:
        return STATE_KEY

    def state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        trainer = self.trainer
        metric_state = self.model.metric_state() if isinstance(self.model, Model) else {}
        generators = self.first_generators or generator_states()
        process = {"generators": generators, "metric_state": metric_state}
        # During the validation after the last batch of an epoch, Lightning does not know them yet.
        values = metric_state.get("values", {}).items()
        epoch_values = {f"train/{name}": value for name, value in values if "/" not in name}
        metrics = {**trainer.callback_metrics, **epoch_values}.items()
        return {
            "format": FORMAT,
            "processes": _gather_from_processes(process),
            "metrics": {name: value.detach().cpu() for name, value in metrics},
            "should_stop": trainer.should_stop and not _out_of_time(trainer),
            "early_stopping": bool(_early_stopping(trainer)),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "after_epoch": self.after_epoch or self.after_training,
            "after_training": self.after_training,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict

    # Saving

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer, self.model, self.max_steps = trainer, pl_module, trainer.max_steps
        if has_default_checkpoint_io(trainer):
            on_cpu = trainer.strategy.root_device.type == "cpu"
            set_checkpoint_io(trainer, DurableCheckpointIO(self.folder, on_cpu))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        agreed, self.agreed_request = self.agreed_request, None
        if not trainer.is_last_batch and not validation_follows(trainer, batch_idx):
            self._save_if_requested(trainer, within_epoch=True, agreed=agreed)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and not trainer.is_last_batch:
            self._save_if_requested(trainer, within_epoch=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after_epoch = True
        self._save_if_requested(trainer, within_epoch=False)
        self.after_epoch = False
        if is_restarting(trainer):
            # Lightning does not step these schedulers in an epoch that it resumes.
            step_plateau_schedulers(trainer, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A callback may have ended the training after the last save, or changed the weights since,
        # as weight averaging does.
        if trainer.global_step > self.saved_step:
            self._save(trainer)
        elif _versions(pl_module) != self.saved_versions:
            self.after_training = True
            self._save(trainer)
            self.after_training = False
        self.signal_handlers.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.signal_handlers.close()

    def request(self) -> int:
        """Return what a signal or the clock of this process asks for."""
        seconds = self.every_seconds
        due = seconds is not None and time.monotonic() - self.saved_time >= seconds
        return self.signal or (SAVE if due else NO_REQUEST)

    def _save_if_requested(
        self, trainer: Trainer, within_epoch: bool, agreed: int | None = None
    ) -> None:
        """Save if it is time; save and raise Stopped if a signal arrived in any process.

        Args:
            agreed: the largest request of all processes, if they have exchanged it already.
        """
        # A checkpoint does not hold the gradients of accumulated batches. If training should stop,
        # the end of the epoch follows at once and saves.
        if within_epoch and (is_accumulating(trainer) or trainer.should_stop):
            return
        request = largest(trainer, self.request())[0] if agreed is None else agreed
        # All processes count the same steps and epochs.
        if self._is_due(trainer) or (not within_epoch and _is_last_epoch(trainer)):
            request = max(request, SAVE)
        if request != NO_REQUEST and (self.loader_has_state or not within_epoch):
            self._save(trainer)
        if request > SAVE:
            raise Stopped(request)

    def _is_due(self, trainer: Trainer) -> bool:
        steps = self.every_n_steps
        return steps is not None and trainer.global_step // steps > self.saved_step // steps

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # A resumed run does not log the values before the checkpoint again.
                logger.experiment.flush()
        trainer.save_checkpoint(self.folder / LAST)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        self.saved_versions = _versions(trainer.lightning_module)

    def _on_signal(self, number: int) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        # `print` is not safe in a signal handler.
        os.write(
            2,
            b"\nstopping after this step and its checkpoint; press Ctrl-C again to stop at once\n",
        )

    # Resuming

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.optimizer_states = checkpoint.get("optimizer_states", [])
        restore_current_scores(trainer, checkpoint["callbacks"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.restored is not None:
            # With a step limit, Lightning takes a finished epoch for one to be resumed (the setter
            # `restarting` in fit_loop.py). So there is no limit until training starts.
            set_step_limit(trainer, -1)
            # A user's DataLoader draws its seed from the generators before training starts.
            self._restore_process(trainer)
        else:
            self.first_generators = generator_states()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's own handlers save nothing, and one of them waits for the other processes.
        self.signal_handlers.enter_context(stop_signals(self._on_signal))
        self.loader_has_state = hasattr(trainer.train_dataloader, "state_dict")
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        # Otherwise a resumed training that makes no step would save another state of its end.
        self.saved_versions = _versions(pl_module)
        if self.loader_has_state:
            self.first_generators = None
        if self.restored is None:
            # From now on, the run can always be resumed. Lazy parameters cannot be saved.
            if not has_lazy_parameters(pl_module):
                self._save(trainer)
            self.first_generators = None
            return
        set_step_limit(trainer, self.max_steps)
        for optimizer, state in zip(trainer.optimizers, self.optimizer_states, strict=False):
            restore_state_types(optimizer, state)
        self.optimizer_states = []
        if self.loader_has_state:
            self._restore_process(trainer)
        else:
            rank_zero_warn(
                "the training data loader has no state_dict, so training resumes at the end of an "
                "epoch."
            )
        self._restore_trainer(trainer, self.restored)
        self.restored = None

    def _restore_process(self, trainer: Trainer) -> None:
        """Restore generators and metrics, unless the number of processes has changed."""
        assert self.restored is not None
        processes = self.restored["processes"]
        if len(processes) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint was written by {plural(len(processes), 'process', 'processes')}, "
                f"this training has {trainer.world_size}: random generators and the metrics of the "
                "interrupted epoch start anew."
            )
            return
        process = processes[trainer.global_rank]
        restore_generators(process["generators"])
        if isinstance(self.model, Model):
            self.model.load_metric_state(process["metric_state"])

    def _restore_trainer(self, trainer: Trainer, state: dict[str, Any]) -> None:
        restore_metrics(trainer, state["metrics"])
        # A GradientAccumulationScheduler may have changed the number of batches.
        set_accumulation(trainer, state["accumulate_grad_batches"])
        early_stopping = _early_stopping(trainer)
        was_switched_off = state["early_stopping"] and not early_stopping
        was_raised = any(callback.patience_was_raised for callback in early_stopping)
        trainer.should_stop = state["should_stop"] and not was_switched_off and not was_raised
        if state["after_epoch"] and not state.get("after_training"):
            step_plateau_schedulers(trainer, trainer.current_epoch)


def _versions(model: LightningModule) -> list[int]:
    """Return how often each parameter was changed in place."""
    return [parameter._version for parameter in model.parameters()]


def check_resumable(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError unless this version wrote the checkpoint's training state."""
    states = checkpoint.get("callbacks")
    if isinstance(states, dict):
        state = states.get(STATE_KEY, {"format": FORMAT})
        if OLD_STATE_KEY in states or not isinstance(state, dict) or state.get("format") != FORMAT:
            raise UserError(
                f"{path}: expected a checkpoint of this version of {PACKAGE}, got one of another "
                "version, which training cannot resume; start a new run from its weights with "
                "--init_from."
            )
    for key, kind in TRAINING_STATE.items():
        if type(value := checkpoint.get(key)) is not kind:
            raise UserError(
                f"{path}: expected a checkpoint of training, whose {key} is of type "
                f"{kind.__name__}, got {type(value).__name__}; use another checkpoint, or start a "
                "new run from its weights with --init_from."
            )


def process_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what ``ResumeCheckpoint`` saved for each process: ``generators``, ``metric_state``."""
    states: list[dict[str, Any]] = checkpoint["callbacks"][STATE_KEY]["processes"]
    return states


def _is_last_epoch(trainer: Trainer) -> bool:
    """Return whether training ends after the epoch that is just over."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return (
        trainer.should_stop
        or 0 < epochs <= trainer.current_epoch + 1
        or 0 < steps <= trainer.global_step
    )


def _early_stopping(trainer: Any) -> list[EarlyStopping]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]


def _out_of_time(trainer: Any) -> bool:
    """Return whether a Timer (``max_time``) ends training. A resumed run starts a new one."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]
    return any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers)


def _gather_from_processes(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the states of all processes, in order of their ranks."""
    if not torch.distributed.is_initialized():
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
