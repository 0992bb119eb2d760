"""Read and write the files of a run: complete or not at all, validated when read."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from proj.errors import UserError


def atomic_write(path: Path, fill: Callable[[IO[bytes]], Any], backup: str | None = None) -> None:
    """Write a file completely or not at all.

    The content goes into a temporary file beside it, is flushed to the disk, and is renamed.

    Args:
        path: the file. Its folder is created.
        fill: writes the content.
        backup: new name of an existing file; None replaces the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if backup and path.exists():
            path.replace(path.with_name(backup))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    # The new names are durable only after the folder is flushed, too.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file in a run's folder; raise UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}; write it again with `test` or `validate`."
        ) from error
