"""Parts of Lightning that a run cannot use, refused by name before its folder exists."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder

from proj.engine.lightning_internals import start_method
from proj.errors import UserError


def check_supported(trainer: Trainer) -> None:
    """Raise UserError if the Trainer has a strategy or a callback that a run cannot use."""
    if method := start_method(trainer):
        raise UserError(
            "trainer.strategy: expected one whose processes are programs of their own, such as "
            f"ddp, got ddp_{method}, whose results do not come back to this process, so that the "
            "run would be recorded as one without an epoch; use ddp, on the command line."
        )
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, BatchSizeFinder) for callback in callbacks):
        raise UserError(
            "trainer.callbacks: BatchSizeFinder is not supported, because config.yaml could not "
            "repeat a run with the size that it finds, and schedules have their length already; "
            "set data.batch_size, `check` estimates the memory."
        )
