"""Write and read the checkpoint of the preflight, to find values that no verb could read later."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from proj.engine.runs.plain_values import check_readable


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
