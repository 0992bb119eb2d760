"""Checkpoint files written at a pace: of a tiny net, they would take longer than its epochs."""

import io
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from proj.run import write


class PacedCheckpointIO(TorchCheckpointIO):
    """Writes each file of ``folder`` at most once in ``every_seconds``, atomically; what is newer waits in memory.

    What waits is written when any of the files is, and when the training ends in whatever way but by SIGKILL.
    """

    def __init__(self, folder: Path, every_seconds: float) -> None:
        self.folder, self.every_seconds = folder, every_seconds
        self.waiting: dict[Path, memoryview] = {}
        self.written: dict[Path, float] = {}  # when, by the monotonic clock

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if Path(path).parent != self.folder:  # another callback's
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        self.waiting[Path(path)] = buffer.getbuffer()
        if time.monotonic() - self.written.get(Path(path), -math.inf) >= self.every_seconds:
            self.write()

    def write(self) -> None:
        """Write all that waits."""
        for path in list(self.waiting):
            content = self.waiting[path]
            write(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
            del self.waiting[path]
            self.written[path] = time.monotonic()

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.write()
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        self.waiting.pop(Path(path), None)
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        self.write()
        super().teardown()
