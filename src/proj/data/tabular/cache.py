"""Prepared arrays on disk: built once, complete or not at all, and memory-mapped."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from proj.errors import UserError
from proj.schema import Array

# Part of every key. Raise it when the written files change their meaning.
FORMAT = 12

# A backup program skips folders with this file: https://bford.info/cachedir
CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"

# Hidden files of an entry: the list of its files, and the lock that its builder holds.
LISTING, LOCK = ".complete", ".lock"
# Held while folders are created and removed.
GUARD = "lock"

# Where the system has no locks, an unfinished entry is abandoned after a day without a change.
ABANDONED_SECONDS = 86_400

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ZEROS = bytes(2**20)


def build_once(cache: Path, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Return the folder in ``cache`` for ``key`` (plain values), and build it unless it is there.

    ``build`` fills a temporary folder, which is renamed when all files are on disk. An interrupted
    build is therefore never used, and of two processes that build at once the first one wins.
    Folders of killed builds are removed, and so is an entry that lost files. Raises UserError if
    ``cache`` cannot be written or its disk is full.
    """
    folder = entry_folder(cache, key)
    if is_complete(folder):
        return folder
    with _write_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        if not (tag := cache / "CACHEDIR.TAG").exists():
            tag.write_text(CACHE_TAG, encoding="utf-8")
        temporary, lock = _new_folder(cache, folder)
    try:
        with _write_errors(cache, only_full=True):
            build(temporary)
            _finish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.close()
    return folder


def entry_folder(cache: Path, key: dict[str, Any]) -> Path:
    """Return the folder in ``cache`` for ``key``. It may not exist yet."""
    text = json.dumps([FORMAT, key], sort_keys=True)
    return cache / hashlib.sha256(text.encode()).hexdigest()[:32]


def is_complete(folder: Path) -> bool:
    """Return whether an entry exists and has all its files, in their sizes."""
    try:
        return (folder / LISTING).read_text(encoding="utf-8") == _list_files(folder)
    except (OSError, ValueError):
        return False


def _list_files(folder: Path) -> str:
    """Return names, sizes and checksums of the first 4 KB, which hold the headers of arrays."""
    lines = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            with path.open("rb") as file:
                lines.append(f"{path.name} {path.stat().st_size} {zlib.crc32(file.read(4096))}\n")
    return "".join(lines)


def _new_folder(cache: Path, folder: Path) -> tuple[Path, BinaryIO]:
    """Remove what cannot be used, and return a temporary folder for an entry with its lock."""
    # Without this lock, another process could take a folder for abandoned before it is locked.
    with (cache / GUARD).open("ab") as guard:
        has_locks = bool(_lock(guard, wait=True))
        for path in cache.glob(".*.*"):
            if path.is_dir() and _is_abandoned(path, has_locks):
                shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(folder) and not is_complete(folder):
            damaged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
            folder.rename(damaged / "damaged")
            shutil.rmtree(damaged, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
        lock = (temporary / LOCK).open("ab")
        _lock(lock)
        return temporary, lock


def _finish(temporary: Path, folder: Path) -> None:
    """Flush all files of an entry, list them, and give the entry its name."""
    (temporary / LISTING).write_text(_list_files(temporary), encoding="utf-8")
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        temporary.rename(folder)
    except OSError:
        # Another process may have finished first. Its result is the same.
        if not is_complete(folder):
            raise
    # Not earlier: a temporary folder without a lock counts as abandoned.
    (folder / LOCK).unlink(missing_ok=True)


def _is_abandoned(folder: Path, has_locks: bool) -> bool:
    """Return whether the process that fills a temporary folder has ended.

    The caller holds the guard. A folder is made and locked under it, so one without a lock is what
    a killed process has not yet locked or not quite removed.
    """
    try:
        if (folder / LOCK).exists():
            with (folder / LOCK).open("r+b") as lock:
                if (is_free := _lock(lock)) is not None:
                    return is_free
        elif has_locks:
            return True
        newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        # Its process has just finished or removed it.
        return False
    return time.time() - newest > ABANDONED_SECONDS


def _lock(file: BinaryIO, wait: bool = False) -> bool | None:
    """Lock a file until it is closed, also by the end of the process.

    Returns whether it worked; None if the system or the file system has no locks.
    """
    if os.name != "posix":
        return None
    import fcntl  # It exists on POSIX systems only.

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def _write_errors(cache: Path, only_full: bool = False) -> Iterator[None]:
    """Convert errors of writing to ``cache`` to a UserError."""
    try:
        yield
    except OSError as error:
        if only_full and error.errno not in DISK_FULL:
            raise
        free = f" ({shutil.disk_usage(cache).free:,} bytes are free)" if cache.is_dir() else ""
        raise UserError(
            f"data.cache_dir: cannot write to {cache}: {error.strerror or error}{free}; make space "
            "there, or set another folder."
        ) from error


def create_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> Array:
    """Create an array in a file. Written values go to the file and take no process memory.

    Raises UserError if the disk has no space for it.
    """
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            _allocate(file, size)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            written = sum(p.stat().st_size for p in path.parent.iterdir() if p != path)
            file.truncate(0)
            free = shutil.disk_usage(path.parent).free + written
            raise UserError(
                f"data.cache_dir: expected space for {written + size:,} bytes in "
                f"{path.parent.parent}, got {free:,} ({error.strerror}); make space there, or set "
                "another folder."
            ) from error
    array: Array = np.lib.format.open_memmap(path, mode="r+")
    return array


def save_array(path: Path, values: Array) -> None:
    """Write an array to a file. Raises UserError if the disk has no space for it."""
    create_array(path, values.dtype, values.shape)[...] = values


def _allocate(file: BinaryIO, size: int) -> None:
    """Take space for ``size`` bytes. A mapped write without space would kill the process."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    while (missing := size - file.tell()) > 0:
        file.write(ZEROS[:missing])
    file.flush()


def folder_clock(folder: Path) -> tuple[int, float]:
    """Create a folder; return the device of its file system, and the time that it gives a file."""
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            found = os.fstat(file.fileno())
            return found.st_dev, found.st_mtime


def write_array(path: Path, array: Array) -> None:
    """Write an array completely or not at all, into an existing folder."""
    with _write_errors(path.parent):
        for leftover in path.parent.glob(f".{path.name}.*"):
            if time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS:
                leftover.unlink()
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(handle)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def read_array(path: Path) -> Array | None:
    """Return an array that `write_array` wrote; None if there is none or it is damaged."""
    try:
        array: Array = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return array


def map_array(path: Path) -> Tensor:
    """Return the array of a file as a tensor. Pages are read on use and shared by all processes."""
    # Copy-on-write, because torch.from_numpy warns about read-only arrays. Nothing is written.
    return torch.from_numpy(np.load(path, mmap_mode="c"))
