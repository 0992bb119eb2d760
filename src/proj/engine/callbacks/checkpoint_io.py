"""Atomic checkpoint files with checksums."""

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.plugins import TorchCheckpointIO

from proj.engine.runs import checkpoint_file
from proj.engine.runs.files import atomic_write
from proj.engine.runs.plain_values import check_plain, with_plain_rates
from proj.engine.runs.run import LAST, PREVIOUS
from proj.engine.secrets import split_secrets
from proj.errors import TrainingError, UserError


class DurableCheckpointIO(TorchCheckpointIO):
    """Write the checkpoints of a folder atomically, and the previous ``last.ckpt`` as a backup.

    Checkpoints other than ``last.ckpt`` are held in memory until ``last.ckpt`` is written or
    training ends. For a tiny net, a file after each better epoch would take longer than the epochs.
    Only SIGKILL loses checkpoints in memory, and training that resumes from ``last.ckpt`` writes
    them again.

    Args:
        folder: folder of the checkpoints. Files elsewhere are written as Lightning writes them.
        copies: whether a checkpoint is held in memory as a copy, which takes less time than the
            content of its file: most better epochs are followed by a still better one, and never
            written. The copy stays on the device, so False saves the memory of a GPU.
    """

    def __init__(self, folder: Path, copies: bool = False) -> None:
        self.folder = folder.resolve()  # Lightning's checkpoint callback resolves its folder, too.
        self.copies = copies
        # Functions that write the checkpoints.
        self.pending: dict[Path, Callable[[IO[bytes]], Any]] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        # Lightning adds what a model saves with `save_hyperparameters`.
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if isinstance(checkpoint.get(key), dict):
                checkpoint[key] = split_secrets(dict(checkpoint[key]))[0]
        checkpoint = with_plain_rates(checkpoint)
        try:
            check_plain(checkpoint)
        except UserError as error:
            # The preflight checks the first checkpoint; a value may have come later.
            raise TrainingError(
                f"{error} Training stops, and the checkpoints written before are intact."
            ) from error
        # Not the file: a link of this name is replaced, and what it leads to stays as it is.
        path = Path(path).parent.resolve() / Path(path).name
        if path.parent != self.folder:
            super().save_checkpoint(checkpoint, path, storage_options)
        elif path.name == LAST:
            self.write_pending()
            self._write(path, partial(checkpoint_file.save, checkpoint), backup=PREVIOUS)
        else:
            self.pending[path] = self._held(checkpoint)

    def _held(self, checkpoint: dict[str, Any]) -> Callable[[IO[bytes]], Any]:
        """Return a function that writes the checkpoint, however training changes it."""
        if self.copies:
            fixed = [checkpoint[key] for key in ("config", "schema") if key in checkpoint]
            try:
                copied = copy.deepcopy(checkpoint, {id(value): value for value in fixed})
                return partial(checkpoint_file.save, copied)
            except RuntimeError:
                # torch copies no tensor with a graph. A user's callback may save one.
                pass
        buffer = io.BytesIO()
        checkpoint_file.save(checkpoint, buffer)
        return partial(_write_content, buffer.getbuffer())

    def write_pending(self) -> None:
        """Write the checkpoints that are held in memory."""
        while self.pending:
            self._write(*self.pending.popitem())

    def _write(
        self, path: Path, fill: Callable[[IO[bytes]], Any], backup: str | None = None
    ) -> None:
        try:
            atomic_write(path, fill, backup)
        except OSError as error:
            # The pending files could not be written either, and one message is enough.
            self.pending.clear()
            raise TrainingError(
                f"cannot write {path}: {error.strerror or error}; training stops, and the "
                "checkpoints written before are intact. Free some space, then run `fit --resume`."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.write_pending()
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        self.pending.pop(Path(path).resolve(), None)
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        self.write_pending()
        super().teardown()


def _write_content(content: memoryview, file: IO[bytes]) -> None:
    file.write(content)
