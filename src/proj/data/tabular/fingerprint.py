"""Fingerprint of files: a SHA-256 of names and contents, without reading unchanged files again."""

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from proj.data.tabular.cache import folder_clock, read_array, write_array
from proj.errors import UserError
from proj.schema import Array

# Files are read at each start unless they take longer than 64 MB would. A file costs as much as
# 16 KB before its first byte is read.
ALWAYS_READ, COST_PER_FILE = 2**26, 2**14

# A file that changes again this soon may get the same times: some file systems count in seconds.
TICK = 2.0

# Files that a thread reads before it takes the next ones.
FILES_PER_TASK = 64

# Numbers of devices and files, and times before 1970, as 64 bits without a sign.
WORD = 2**64 - 1

# What is remembered of a file. ``state`` holds device, inode, size, and the times of the last
# change of the inode and of the content in nanoseconds. No program can set the first of these
# times, so equal states mean equal contents if ``certain``: the times were already older than
# TICK when the file was read. ``read`` is the time of reading.
RECORD = np.dtype(
    [("state", "u8", 5), ("sha256", "u1", 32), ("certain", "?"), ("read", "f8")], align=True
)


def fingerprint(files: Sequence[Path], cache: Path, unreadable: bool = False) -> str:
    """Return a SHA-256 of file names and contents.

    The contents of many or large files are remembered in ``cache`` with the state of each file.

    Args:
        unreadable: whether a file that cannot be read counts with the reason instead of its
            content. Otherwise it is an error.

    Raises:
        UserError: if a file cannot be read, or changes while it is read.
    """
    records = np.zeros(len(files), RECORD)
    paths = [os.fspath(path) for path in files]
    records["state"] = [_state(path) for path in paths]
    size = int(records["state"][:, 2].sum()) + COST_PER_FILE * len(files)
    if size <= ALWAYS_READ or os.name == "nt":  # Windows has no time of the last inode change.
        _read(paths, records, np.arange(len(files)), unreadable)
    else:
        _read_changed(paths, records, cache, unreadable)
    digest = hashlib.sha256()
    for path, content in zip(paths, records["sha256"], strict=True):
        digest.update(os.fsencode(os.path.basename(path)) + b" " + content.tobytes())
    return digest.hexdigest()


def check_unchanged(
    files: Sequence[Path], cache: Path, before: str, unreadable: bool = False
) -> None:
    """Raise UserError unless the files still have their fingerprint ``before``."""
    if fingerprint(files, cache, unreadable) != before:
        raise UserError(
            f"{files[0] if len(files) == 1 else files[0].parent}: expected files that stay as they "
            "are while they are read, got a change; start again when they are complete."
        )


def _read_changed(paths: list[str], records: Array, cache: Path, unreadable: bool) -> None:
    """Fill ``records``, and read the files whose state is new or not certain."""
    name = hashlib.sha256(os.fsencode("\0".join([os.getcwd(), *paths]))).hexdigest()[:32]
    file = cache / "files" / f"{name}.npy"
    known = read_array(file)
    if known is None or known.shape != records.shape or known.dtype != RECORD:
        known = np.zeros(len(paths), RECORD)
    same = (known["state"] == records["state"]).all(axis=1)
    done = same & known["certain"]
    records[done] = known[done]
    if done.all():
        return
    changed, started = np.flatnonzero(~done), time.time()
    device, clock = folder_clock(file.parent)
    _read(paths, records, changed, unreadable)
    state = records["state"]
    newest = state[:, 3:].max(axis=1).astype(np.float64) / 1e9
    old = (state[:, 0] == np.uint64(device)) & (newest + TICK <= clock)
    # The clock of a file system on another machine may differ. Then a state is certain if it was
    # the same at an earlier reading.
    seen = (known["state"] == state).all(axis=1) & (known["read"] + TICK <= started)
    is_certain = (old | (seen & (known["read"] > 0))) & state.any(axis=1)
    records["certain"][changed] = is_certain[changed]
    records["read"][changed] = started
    write_array(file, records)


def _state(path: str) -> tuple[int, ...]:
    """Return what changes whenever a file changes; zeros if it is not a regular file."""
    try:
        found = os.stat(path)
    except OSError:
        return (0,) * 5
    return _identity(found) if stat.S_ISREG(found.st_mode) else (0,) * 5


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (
        found.st_dev & WORD,
        found.st_ino & WORD,
        found.st_size,
        found.st_ctime_ns & WORD,
        found.st_mtime_ns & WORD,
    )


def _read(paths: list[str], records: Array, numbers: Array, unreadable: bool) -> None:
    """Set state and content of some files, with several threads."""

    def read_some(start: int) -> None:
        for i in numbers[start : start + FILES_PER_TASK]:
            try:
                state, digest = _hash_file(paths[i])
            except OSError as error:
                if not unreadable:
                    raise UserError(
                        f"{paths[i]}: cannot be read: {error.strerror or error}; expected a file "
                        "with read permission."
                    ) from error
                reason = f"{type(error).__name__} {error.errno}"
                state, digest = (0,) * 5, hashlib.sha256(reason.encode()).digest()
            records["state"][i] = state
            records["sha256"][i] = np.frombuffer(digest, np.uint8)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read_some, range(0, len(numbers), FILES_PER_TASK)):
            pass


def _hash_file(path: str) -> tuple[tuple[int, ...], bytes]:
    """Return state and SHA-256 of a file. Raises UserError if it changes meanwhile."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        # Opening a named pipe would wait for its writer.
        raise OSError(0, "it is not a regular file")
    with open(path, "rb") as file:
        before = _identity(os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").digest()
        if _identity(os.fstat(file.fileno())) != before:
            raise UserError(
                f"{path}: expected a file that stays as it is while it is read, got a change; "
                "start again when it is complete."
            )
    return before, digest
