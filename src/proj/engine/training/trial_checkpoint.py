"""Write and read the checkpoint of the preflight, to find values that no verb could read later."""

import io
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor, nn

from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import UserError, quoted


class CheckpointCheck(TorchCheckpointIO):
    """Check a checkpoint instead of writing it: it must be readable with ``weights_only=True``."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        check_readable(checkpoint)


class TrialCheckpoint(ModelCheckpoint):
    """Save a checkpoint at the end of the preflight, as training does."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint("not written")


def check_readable(checkpoint: dict[str, Any]) -> None:
    """Raise UserError, which names the key, unless the verbs could read a checkpoint."""
    small = without_tensors(checkpoint)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trial.ckpt"
            torch.save(small, file)
            read_checkpoint(file)
    except Exception as error:  # Pickling calls the user's classes, which may raise anything.
        if (found := unreadable(small)) is None:
            # Each value can be read, and the verbs refuse one of them for its type.
            reason = str(error).partition(": expected ")[2].partition(";")[0]
            raise UserError(
                f"the checkpoint could not be read again: expected {reason}; save it in "
                "on_save_checkpoint under a key of its own."
            ) from error
        key, value = found
        raise UserError(
            f"the checkpoint's {key}: expected tensors and plain values, which every verb can read "
            f"again, got {type(value).__name__} ({quoted(value)}); {_remedy(key, value)}."
        ) from error


def _remedy(key: str, value: Any) -> str:
    section, _, name = key.partition(".")
    if section.endswith("hyper_parameters"):
        name = name.partition(".")[0]
        return f"leave it out: self.save_hyperparameters(ignore=[{name!r}])"
    if type(value).__module__ == "numpy":
        return "convert it with .item(), .tolist() or torch.from_numpy"
    return "save its state_dict(), or plain values"


def without_tensors(value: Any) -> Any:
    """Return a checkpoint with an empty tensor in place of each tensor, to save memory."""
    if type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided:
        return torch.empty(0, dtype=value.dtype)
    if type(value) in (dict, OrderedDict):
        return type(value)((name, without_tensors(part)) for name, part in value.items())
    return type(value)(map(without_tensors, value)) if type(value) in (list, tuple) else value


def unreadable(value: Any, key: str = "") -> tuple[str, Any] | None:
    """Return key and value of a part that cannot be read back; None if everything can."""
    if _can_be_read_back(value):
        return None
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = enumerate(value)
    for name, part in parts:
        if found := unreadable(part, f"{key}.{name}".lstrip(".")):
            return found
    return key, value


def _can_be_read_back(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # As above.
        return False
    return True
