"""Parts of Lightning that a run cannot use, refused by name before its folder exists."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder

from proj.errors import UserError


def check_supported(trainer: Trainer) -> None:
    """Raise UserError if the Trainer has a callback that a run cannot use."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, BatchSizeFinder) for callback in callbacks):
        raise UserError(
            "trainer.callbacks: BatchSizeFinder is not supported, because config.yaml could not "
            "repeat a run with the size that it finds, and schedules have their length already; "
            "set data.batch_size, `check` estimates the memory."
        )
