"""Checkpoint files with a checksum, so that damage is detected.

The file is torch's zip archive with the SHA-256 of its content as the archive's comment. Readers of
zip files, ``torch.load`` included, ignore the comment. ``torch.load`` itself checks nothing: a
flipped bit would be another weight.
"""

import hashlib
import re
from pathlib import Path
from typing import IO, Any

import torch

from proj.engine.class_paths import update_class_paths
from proj.engine.write_paths import check_callback_paths
from proj.errors import UserError
from proj.schema import Schema

MARK = b"sha256 of all before: "
COMMENT_LENGTH = len(MARK) + hashlib.sha256().digest_size * 2

# A zip archive ends with the length of its comment in two bytes, followed by the comment.
NO_COMMENT = bytes(2)
COMMENT_LENGTH_BYTES = COMMENT_LENGTH.to_bytes(2, "little")

READ_SIZE = 2**20
# How torch names a type that `weights_only=True` does not read.
NAMED_TYPE = re.compile(r"GLOBAL (\S+) (?:was not|whose module)|got <class '(\S+)'>")
# The key of Lightning's version in a checkpoint that it wrote.
VERSION = "pytorch-lightning_version"


def save(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    """Write a checkpoint as ``torch.save`` does, and append its SHA-256 as the zip comment."""
    hashing_file = _HashingFile(file)
    torch.save(checkpoint, hashing_file)  # type: ignore[arg-type]  # It needs only `write`.
    hashing_file.close()


def is_whole(path: Path) -> bool:
    """Return whether a file is one that ``save`` wrote, unchanged to its last byte."""
    remaining, digest = path.stat().st_size - COMMENT_LENGTH, hashlib.sha256()
    if remaining < len(COMMENT_LENGTH_BYTES):
        return False
    with path.open("rb") as file:
        while remaining > 0:
            content = file.read(min(remaining, READ_SIZE))
            if not content:
                return False
            digest.update(content)
            remaining -= len(content)
        return file.read() == MARK + digest.hexdigest().encode()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint of plain values and tensors.

    The class paths of older versions in its config are replaced by today's. Raises UserError if the
    file is missing, damaged, or holds other objects.
    """
    checkpoint = _load(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(
            f"{path}: expected a checkpoint with a state_dict, got a file without one; use another "
            "file."
        )
    _check_types(checkpoint, path)
    check_callback_paths(checkpoint, path)
    if checkpoint.get("schema"):
        try:
            Schema.from_dict(checkpoint["schema"])
        except (TypeError, LookupError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: expected the schema of a data set, got another value ({error}); use "
                "another checkpoint."
            ) from error
    if "config" in checkpoint:
        checkpoint["config"] = update_class_paths(checkpoint["config"])
    return checkpoint


def read_weights(path: Path) -> dict[str, Any]:
    """Return a checkpoint. A file that holds nothing but a state_dict becomes one.

    Raises UserError as ``read_checkpoint`` does.
    """
    content = _load(path)
    if not isinstance(content, dict) or not content or "state_dict" in content:
        return read_checkpoint(path)
    checkpoint = {"state_dict": dict(content)}
    _check_types(checkpoint, path)
    return checkpoint


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint {path}; expected a file that `fit` wrote.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file.
        raise UserError(
            f"{path} cannot be read as a checkpoint: {_reason(error)}; use another checkpoint."
        ) from error


def _reason(error: Exception) -> str:
    """Return why a file could not be read, with the type that is in the way if torch names it."""
    if found := NAMED_TYPE.search(str(error)):
        name = found[1] or found[2]
        return f"it holds {name:.80}, which is neither a plain value nor a tensor"
    reason = "it is cut off, damaged, or holds more than plain values and tensors"
    # The texts of torch explain how to load the file without protection.
    return f"{reason} ({error.strerror})" if isinstance(error, OSError) else reason


def _check_types(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise UserError unless the values that the verbs read are of their types."""
    problems = [
        f"a tensor for {name}, got {type(value).__name__}"
        for name, value in checkpoint["state_dict"].items()
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided
    ]
    # Lightning writes these two. A file of weights only need not have them.
    required = ("epoch", "global_step") if VERSION in checkpoint else ()
    problems += [
        f"an integer for {name}, got {checkpoint.get(name)!r:.60}"
        for name in required
        if type(value := checkpoint.get(name)) is not int or not 0 <= value < 2**63
    ]
    problems += [
        f"{kind} for {name}, got {checkpoint[name]!r:.60}"
        for name, kind in (("config", "an experiment"), ("callbacks", "a section"))
        if not isinstance(checkpoint.get(name, {}), dict)
    ]
    if problems:
        raise UserError(
            f"{path} cannot be read as a checkpoint: expected {problems[0]}; use another one."
        )


class _HashingFile:
    """File that hashes the written content and passes it on.

    The last two bytes are held back, because at the end they are the length of the archive's
    comment.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.held_back = file, hashlib.sha256(), b""

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        tail = self.held_back + bytes(view[-2:])
        self._pass_on(tail[:-2] if len(view) < 2 else self.held_back)
        self._pass_on(view[:-2])
        self.held_back = tail[-2:]
        return len(view)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        assert self.held_back == NO_COMMENT, "torch.save wrote no zip archive without a comment"
        self._pass_on(COMMENT_LENGTH_BYTES)
        self.file.write(MARK + self.digest.hexdigest().encode())

    def _pass_on(self, content: bytes | memoryview) -> None:
        self.digest.update(content)
        self.file.write(content)
