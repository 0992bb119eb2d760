"""Prepared arrays on disk: written once, whole or not at all, and mapped by every process that trains on them."""

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

FORMAT = 2  # part of every key: raise it when what is written changes its meaning


def prepared(cache: Path, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder in ``cache`` with what was prepared for ``key`` (plain values).

    Unless it is there, ``build`` fills a temporary folder beside it, which gets its name once all is on the disk: an
    interrupted preparation is never used, and of two processes at once the first to finish wins.
    """
    if (done := place(cache, key)).is_dir():
        return done
    cache.mkdir(parents=True, exist_ok=True)
    if not (tag := cache / "CACHEDIR.TAG").exists():  # https://bford.info/cachedir: not for backups
        tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    temporary = Path(tempfile.mkdtemp(prefix=f".{done.name}.", dir=cache))
    try:
        build(temporary)
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            temporary.rename(done)
        except OSError:
            if not done.is_dir():  # else somebody was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def place(cache: Path, key: dict[str, Any]) -> Path:
    """Where in ``cache`` what is prepared for ``key`` is or will be."""
    return (
        cache / hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:32]
    )


def create(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A new array in a file, to be filled: what is written to it takes no memory of the process' own."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def mapped(path: Path) -> Tensor:
    """The array of a file as a tensor. Its pages are read when used and shared with other processes."""
    return torch.from_numpy(
        np.load(path, mmap_mode="c")
    )  # private copies of pages that are written to; none are


def fingerprint(files: Sequence[Path], cache: Path) -> str:
    """SHA-256 of names and contents, kept in ``cache`` under the files' sizes and times of change: read once only."""
    listing = [
        (str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files
    ]

    def read(folder: Path) -> None:
        digest = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                digest.update(
                    f"{path.name} ".encode() + hashlib.file_digest(file, "sha256").digest()
                )
        (folder / "sha256").write_text(digest.hexdigest())

    return (prepared(cache, {"files": listing}, read) / "sha256").read_text()
