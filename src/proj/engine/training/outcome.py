"""What a training has reached, also in processes that Python has started.

The strategies ``ddp_spawn``, ``ddp_fork`` and ``ddp_notebook`` train in such processes. Lightning
brings back their weights and metrics, but not the counts of the Trainer and the state of callbacks.
Those are in ``last.ckpt``.
"""

from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from proj.engine.callbacks.best_checkpoint import BestCheckpoint
from proj.engine.callbacks.deadline import Deadline
from proj.engine.callbacks.divergence import Divergence
from proj.engine.lightning_internals import start_method
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.engine.runs.run import LAST, Run


class Outcome(NamedTuple):
    """Epochs and optimizer steps of a training."""

    epochs: int
    steps: int


def is_elsewhere(trainer: Trainer) -> bool:
    """Return whether the training runs in processes that Python starts."""
    return start_method(trainer) is not None


def outcome(run: Run, trainer: Trainer) -> Outcome:
    """Return the length of a training so far; zeros if other processes have left no checkpoint."""
    if not is_elsewhere(trainer):
        return Outcome(trainer.current_epoch, trainer.global_step)
    checkpoint = _last(run)
    if checkpoint is None:
        return Outcome(0, 0)
    return Outcome(checkpoint["epoch"] + 1, checkpoint["global_step"])


def restore_callbacks(run: Run, trainer: Any) -> None:
    """Give the callbacks that the result is read from the state that they have elsewhere."""
    checkpoint = _last(run) if is_elsewhere(trainer) else None
    if checkpoint is None:
        return
    for callback in trainer.callbacks:
        state = checkpoint["callbacks"].get(callback.state_key)
        if state is not None and isinstance(callback, BestCheckpoint | Deadline | Divergence):
            callback.load_state_dict(state)
        if isinstance(callback, Divergence):
            # The checkpoint was written before the end of the last epoch was recorded.
            callback.on_train_end(trainer, trainer.lightning_module)


def _last(run: Run) -> dict[str, Any] | None:
    path = run.path / "checkpoints" / LAST
    return read_checkpoint(path) if path.is_file() else None
