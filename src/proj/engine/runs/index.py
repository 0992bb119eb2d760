"""An index of the files of many runs, so that `runs` reads only those that are new.

The index of `config.yaml` is `.index-config.yaml.gz` in the folder of the runs, and so on. It may
be deleted at any time. An entry counts only while its file has the same stamp, so it is never
stale. Processes that write an index at the same time replace each other's as a whole. A folder that
cannot be written to works without an index.
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from time import time_ns
from typing import Any

from proj.engine.runs.files import Stamp, atomic_write, is_present, read_bytes
from proj.errors import UserError

# An index of another format is replaced.
FORMAT = 1
# Reading this many files takes less than a tenth of a second, so an index is written for more.
MIN_FILES = 100
# A file system may give two writes within two seconds the same time.
SETTLED_NANOSECONDS = 2_000_000_000
COMPRESSION_LEVEL = 1

# What is kept of a file: the facts, or the message of the error that its content raises.
Outcome = tuple[Any, str | None]


class FileIndex:
    """Facts of the files with one name in all runs of a folder.

    Args:
        root: folder of the runs.
        file: path of the files in their run's folder.
        parse: returns the facts of a content, plain values; raises UserError if it is damaged.
        remedy: what the user can do about a file that cannot be read.
    """

    def __init__(
        self, root: Path, file: str, parse: Callable[[bytes, Path], Any], remedy: str
    ) -> None:
        self.root, self.file, self.parse, self.remedy = root, file, parse, remedy
        self.path = root / f".index-{file.replace('/', '-')}.gz"
        self.files_read = 0
        self.entries: dict[str, Any] | None = None

    def read_all(self, names: Iterable[str], required: bool = False) -> dict[str, Outcome]:
        """Return the facts or the error of each run's file.

        Runs without the file are left out, unless it is required.
        """
        outcomes: dict[str, Outcome] = {}
        try:
            for name in names:
                path = self.root / name / self.file
                try:
                    outcomes[name] = self._read(name, path, Stamp.of(os.stat(path)))
                except OSError as error:
                    if required or not isinstance(error, FileNotFoundError) or is_present(path):
                        reason = f"{path} cannot be read: {error.strerror}; {self.remedy}."
                        outcomes[name] = None, reason
        finally:
            # What has been read so far is kept when Ctrl-C stops the first, slow call.
            if self.files_read > MIN_FILES:
                self._save(outcomes.keys())
        return outcomes

    def _read(self, name: str, path: Path, stamp: Stamp) -> Outcome:
        entries = self._load()
        entry = entries.get(name)
        if entry is not None and entry[0] == list(stamp):
            return entry[1], entry[2]
        entries.pop(name, None)
        self.files_read += 1
        now = time_ns()
        try:
            content, stamp = read_bytes(path, self.remedy)
        except UserError as error:
            return None, str(error)
        try:
            outcome: Outcome = self.parse(content, path), None
        except UserError as error:
            outcome = None, str(error)
        if max(stamp.mtime, stamp.ctime) < now - SETTLED_NANOSECONDS and stamp.inode:
            entries[name] = [list(stamp), *outcome]
        return outcome

    def _load(self) -> dict[str, Any]:
        """Return the entries of the index by run; none if it is missing, damaged or a copy."""
        if self.entries is None:
            self.entries = {}
            try:
                # gzip checks the content: a damaged index must not give other numbers.
                index = json.loads(gzip.decompress(read_bytes(self.path, "delete it")[0]))
                if index["header"] == self._header():
                    self.entries = index["entries"]
            except (UserError, OSError, EOFError, zlib.error, ValueError, LookupError, TypeError):
                # The index is written again from the files.
                pass
        return self.entries

    def _header(self) -> list[Any]:
        """Return what an index must have been written for: this format, and this very folder."""
        status = os.stat(self.root)
        return [FORMAT, status.st_dev, status.st_ino]

    def _save(self, present: Iterable[str]) -> None:
        """Write the index of the runs that are present."""
        entries = self._load()
        kept = {name: entries[name] for name in present if name in entries}
        text = json.dumps({"header": self._header(), "entries": kept}, separators=(",", ":"))
        content = gzip.compress(text.encode(), COMPRESSION_LEVEL)
        # If the folder is read-only, the disk is full, or a folder has the name of the index, each
        # call reads all files.
        with suppress(OSError, UserError):
            atomic_write(self.path, lambda file: file.write(content))


def run_names(root: Path) -> list[str]:
    """Return the names of the folders in a folder of runs, hidden ones left out."""
    try:
        with os.scandir(root) as entries:
            return [
                entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
            ]
    except OSError as error:
        raise UserError(
            f"{root}: expected a folder of runs that can be read, got: {error.strerror}; name "
            "another, or change its permissions."
        ) from error
