"""How checkpoints come to the disk: whole or not at all, and with their checksum."""

import io
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import TorchCheckpointIO

from proj.engine.runs import checkpoint_file
from proj.engine.runs.run import LAST, PREVIOUS, atomic_write
from proj.errors import TrainingError


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes the files of ``folder`` atomically; ``last.ckpt`` becomes ``previous.ckpt`` when the next one is written.

    What is not ``last.ckpt`` waits in memory until that is written, or the training ends in whatever way but by SIGKILL:
    of a tiny net, a file for each better epoch would take longer than the epochs. Going on from ``last.ckpt``, training
    comes by what was not written again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()  # as Lightning's callback has it
        self.waiting: dict[Path, memoryview] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path).resolve()
        if path.parent != self.folder:  # another callback's
            super().save_checkpoint(checkpoint, path, storage_options)
        elif path.name == LAST:
            self.write_waiting()
            self._write(path, lambda file: checkpoint_file.save(checkpoint, file), keep=PREVIOUS)
        else:
            buffer = io.BytesIO()
            checkpoint_file.save(checkpoint, buffer)
            self.waiting[path] = buffer.getbuffer()

    def write_waiting(self) -> None:
        while self.waiting:
            path, content = self.waiting.popitem()
            self._write(path, lambda file, content=content: file.write(content))

    def _write(self, path: Path, fill: Any, keep: str | None = None) -> None:
        try:
            atomic_write(path, fill, keep)
        except OSError as error:
            self.waiting.clear()  # they could not be written either, and one message is enough
            raise TrainingError(
                f"cannot write {path}: {error.strerror or error}; training stops, what was written before is whole. Make "
                "room there, then go on with `fit --resume`."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.write_waiting()
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        self.waiting.pop(Path(path).resolve(), None)
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        self.write_waiting()
        super().teardown()
