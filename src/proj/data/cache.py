"""Prepared arrays on disk, built once, complete or not at all, and memory-mapped."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proj.schema import Array

# Part of every key. Raise it when the written files change their meaning.
FORMAT = 4

# A backup program skips folders with this file: https://bford.info/cachedir
CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"


def build_once(cache: Path, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Return the folder in ``cache`` for ``key`` (plain values), and build it if it does not exist.

    ``build`` fills a temporary folder, which is renamed when all files are on disk. An interrupted
    build is therefore never used, and of two processes that build at once the first one wins.
    """
    folder = entry_folder(cache, key)
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    if not (tag := cache / "CACHEDIR.TAG").exists():
        tag.write_text(CACHE_TAG, encoding="utf-8")
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
    try:
        build(temporary)
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            temporary.rename(folder)
        except OSError:
            # Another process may have finished first. Its result is the same.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def entry_folder(cache: Path, key: dict[str, Any]) -> Path:
    """Return the folder in ``cache`` for ``key``. It may not exist yet."""
    text = json.dumps([FORMAT, key], sort_keys=True)
    return cache / hashlib.sha256(text.encode()).hexdigest()[:32]


def create_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> Array:
    """Create an array in a file. Written values go to the file and take no process memory."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def map_array(path: Path) -> Tensor:
    """Return the array of a file as a tensor. Pages are read on use and shared by all processes."""
    # Copy-on-write, because torch.from_numpy warns about read-only arrays. Nothing is written.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def fingerprint(files: Sequence[Path], cache: Path) -> str:
    """Return a SHA-256 of file names and contents.

    The result is kept in ``cache`` under the sizes and modification times of the files, so that
    unchanged files are read only once.
    """
    stats = [(str(path.resolve()), path.stat()) for path in files]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def hash_files(folder: Path) -> None:
        digest = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(f"{path.name} ".encode() + content)
        (folder / "sha256").write_text(digest.hexdigest(), encoding="utf-8")

    return (build_once(cache, {"files": listing}, hash_files) / "sha256").read_text(
        encoding="utf-8"
    )
