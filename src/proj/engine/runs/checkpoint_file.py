"""Checkpoint files that say whether they are whole: torch's zip archive with a checksum as the archive's comment.

Any reader of zip files ignores the comment, `torch.load` too. It checks nothing itself: a flipped bit is another weight.
"""

import hashlib
from pathlib import Path
from typing import IO, Any

import torch

MARK = b"sha256 of all before: "
LENGTH = len(MARK) + hashlib.sha256().digest_size * 2
NO_COMMENT, COMMENT = (
    bytes(2),
    LENGTH.to_bytes(2, "little"),
)  # a zip archive ends with the length of its comment, and it


def save(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    """Write a checkpoint as ``torch.save`` does, and the SHA-256 of it behind."""
    hashed = _Hashed(file)
    torch.save(checkpoint, hashed)  # type: ignore[arg-type]  # which wants no more than `write`
    hashed.close()


def is_whole(path: Path) -> bool:
    """Whether a file is one that ``save`` wrote, to its last byte."""
    left, digest = path.stat().st_size - LENGTH, hashlib.sha256()
    if left < len(COMMENT):
        return False
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(left, 2**20))
            if not block:
                return False
            digest.update(block)
            left -= len(block)
        return file.read() == MARK + digest.hexdigest().encode()


class _Hashed:
    """Hands on what is written, hashes it, and holds back the last two bytes: the length of a comment that is to come."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.held = file, hashlib.sha256(), b""

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        tail = self.held + bytes(view[-2:])
        self._pass(tail[:-2] if len(view) < 2 else self.held)
        self._pass(view[:-2])
        self.held = tail[-2:]
        return len(view)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        assert self.held == NO_COMMENT, (
            "torch.save wrote something else than a zip archive without a comment"
        )
        self._pass(COMMENT)
        self.file.write(MARK + self.digest.hexdigest().encode())

    def _pass(self, content: bytes | memoryview) -> None:
        self.digest.update(content)
        self.file.write(content)
