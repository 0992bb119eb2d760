"""Read and write the files of a run: complete or not at all, validated when read."""

import contextlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import yaml

from proj.engine.runs.validation import check_tree, mismatch, shown
from proj.errors import UserError

# No file of text that a run holds is larger: a config or a manifest has some kilobytes.
MAX_BYTES = 64_000_000
# libyaml recurses in C. Text that could be nested deeper than this is read in Python.
MAX_C_DEPTH = 500


class Stamp(NamedTuple):
    """What changes whenever a file is written: if two are equal, so is the content.

    The time of the last change of the inode (``ctime``) cannot be set by programs.
    """

    mtime: int
    ctime: int
    size: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


# Writing


def atomic_write(path: Path, fill: Callable[[IO[bytes]], Any], backup: str | None = None) -> None:
    """Write a file completely or not at all.

    The content goes into a temporary file beside it, is flushed to the disk, and is renamed. What
    a killed process has left of an earlier write is removed.

    Args:
        path: the file. Its folder is created.
        fill: writes the content.
        backup: new name of an existing file; None replaces the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path.parent}: expected a folder, got a file; rename it.") from error
    if path.is_dir():
        raise UserError(f"{path}: expected a file, got a folder; rename it.")
    temporary, file = _new_temporary(path)
    try:
        _remove_abandoned(path)
        fill(file)
        file.flush()
        os.fsync(file.fileno())
        if os.name != "posix":
            file.close()  # Windows renames no open file.
        if backup and path.exists():
            path.replace(path.with_name(backup))
        temporary.replace(path)
    finally:
        try:
            file.close()  # It writes what is left, which fails again on a full disk.
        finally:
            temporary.unlink(missing_ok=True)
    # The new names are durable only after the folder is flushed, too.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _new_temporary(path: Path) -> tuple[Path, IO[bytes]]:
    """Create a temporary file beside ``path``, locked until it is closed or its process ends."""
    while True:
        # Processes of several machines may have the same number, so it is not enough.
        temporary = path.with_name(f".{path.name}.{os.getpid()}{secrets.token_hex(4)}")
        # A link to a file elsewhere cannot have this name.
        file = temporary.open("xb")
        _lock(file, wait=True)
        if temporary.exists():
            return temporary, file
        file.close()  # Another process removed it before it was locked.


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of ``path`` whose processes were killed."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+[0-9a-f]{{8}}")
    for other in path.parent.iterdir():
        if pattern.fullmatch(other.name):
            with contextlib.suppress(FileNotFoundError), other.open("rb") as file:
                if _lock(file):
                    other.unlink()


def _lock(file: IO[bytes], wait: bool = False) -> bool:
    """Lock a file; return False if another process holds the lock or the system has no locks."""
    if os.name != "posix":
        return False
    import fcntl  # It exists on POSIX systems only.

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON; see ``as_plain``."""
    text = json.dumps(as_plain(content), indent=2, allow_nan=False)
    atomic_write(path, lambda file: file.write(text.encode()))


def as_plain(value: Any) -> Any:
    """Return a value as JSON has it.

    Scalars and arrays of NumPy and torch become plain values, tuples become lists. Numbers that are
    not finite become None, because JSON has none.

    >>> import numpy as np
    >>> as_plain({"pruned": np.bool_(True), "f1": np.float32(0.5), "std": float("nan"), 1: (2,)})
    {'pruned': True, 'f1': 0.5, 'std': None, '1': [2]}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(name): as_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # Scalars and arrays of NumPy, tensors.
        return as_plain(value.tolist())
    raise TypeError(f"expected a plain value, got {type(value).__name__}")


# Reading


def is_present(path: Path) -> bool:
    """Return whether a path has an entry in its folder, even a link to nothing."""
    return os.path.lexists(path)


@contextmanager
def open_regular(path: Path, remedy: str) -> Iterator[IO[bytes]]:
    """Open a file for reading, unless it is a folder, or a pipe or device, which may never end.

    Raises UserError if it cannot be read.
    """
    try:
        # A folder cannot be opened as a file, and opening a pipe waits for its writer.
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: expected a file, got a pipe or a device; {remedy}.")
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {remedy}.") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: Path, remedy: str) -> tuple[bytes, Stamp]:
    """Return the content of a file and its stamp; raise UserError if it cannot be read."""
    with open_regular(path, remedy) as file:
        stamp = Stamp.of(os.fstat(file.fileno()))
        content = file.read(MAX_BYTES + 1)
        is_unchanged = Stamp.of(os.fstat(file.fileno())) == stamp
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: expected at most {MAX_BYTES:,} bytes, got more; {remedy}.")
    # A stamp of a file that was written meanwhile must not stand for this content.
    return content, stamp if is_unchanged else Stamp(0, 0, 0, 0)


def read_json(path: Path, kind: Any, remedy: str) -> Any:
    """Return the content of a JSON file that is of a type; see ``parse_json``."""
    return parse_json(read_bytes(path, remedy)[0], path, kind, remedy)


def parse_json(content: bytes, path: Path, kind: Any, remedy: str) -> Any:
    """Return the content of a JSON file that is of a type, such as a ``TypedDict``.

    Args:
        content: bytes of the file.
        path: the file, for the message.
        kind: the expected type; see ``mismatch``.
        remedy: what the user can do about a damaged file.

    Raises:
        UserError: the content is not JSON or of another type.
    """
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: it is damaged: {reason}; {remedy}.") from error
    if problem := mismatch(value, kind):
        raise UserError(f"{path} is damaged: {problem}; {remedy}.")
    return value


def parse_yaml(content: bytes, path: Path, remedy: str) -> dict[str, Any]:
    """Return the content of a YAML file that holds a mapping with texts as keys.

    Raises:
        UserError: the content is not YAML, no mapping, or nested too deep or too large.
    """
    problem = None
    try:
        text = content.decode()
        value = yaml.load(text, _loader(text))
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            check_tree(value)
        else:
            problem = f"expected a mapping with texts as keys, got {shown(value)}"
    except (ValueError, yaml.YAMLError, RecursionError, TypeError) as error:
        problem = " ".join(str(error).split())
    if problem:
        raise UserError(f"{path} is damaged: {problem}; {remedy}.")
    plain: dict[str, Any] = value
    return plain


def _loader(text: str) -> Any:
    """Return the loader of YAML in C, which is eight times as fast, if its recursion is safe."""
    # A level of nesting needs a bracket somewhere, or a blank or a mark in the line; a list may
    # have the same indentation as its key.
    brackets = text.count("[") + text.count("{")
    marks = max((sum(map(line.count, " -?:\t")) for line in text.splitlines()), default=0)
    is_safe = brackets + 2 * marks < MAX_C_DEPTH
    return yaml.CSafeLoader if yaml.__with_libyaml__ and is_safe else yaml.SafeLoader
