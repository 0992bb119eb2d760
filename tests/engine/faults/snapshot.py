"""What a command line has left in its folder, in a form that is equal for equal results."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from engine.faults.harness import curves_of, to_bytes
from proj.engine.runs import checkpoint_file
from proj.engine.runs.checkpoint_file import read_checkpoint

# What differs between two equal runs: the time, the process, and how often the run was started.
OF_THE_START = ("start", "end", "resumed", "hardware", "git", "packages")
# Logs, and a backup that depends on when the run was resumed. An Optuna journal holds times.
WITHOUT_CONTENT = ("previous.ckpt", "study.journal")
CACHE = ".cache"
# The time of a run's start and end in its report.
TIME = re.compile(r"\d{4}-\d\d-\d\d(T| at )[\d:.+]+")


def snapshot(folder: Path, repeats_points: bool = False) -> dict[str, Any]:
    """Return the names of all files and folders, with a digest of the content of each file.

    With ``repeats_points``, a point that is twice in a curve counts once.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith((CACHE, "log.txt", "__pycache__")):
            continue
        if path.name.startswith("events.out.tfevents"):
            found[f"{Path(name).parent}/curves"] = path.parent
        else:
            found[name] = path
    contents = {name: _content(name, path) for name, path in found.items()}
    if repeats_points:
        for name in contents:
            if name.endswith("/curves"):
                contents[name] = {tag: sorted(set(c)) for tag, c in contents[name].items()}
    return contents | {CACHE: sorted(_cached(folder / CACHE))}


def _content(name: str, path: Path) -> Any:
    if name.endswith("/curves"):
        return curves_of(path)
    if path.is_dir():
        return "folder"
    if path.name in WITHOUT_CONTENT or path.name.endswith(".txt"):
        return "file"
    if path.suffix == ".ckpt":
        checkpoint = read_checkpoint(path)
        return {key: _digest(to_bytes(value)) for key, value in checkpoint.items()}
    if path.name == "manifest.json":
        manifest = json.loads(path.read_text())
        return {key: value for key, value in manifest.items() if key not in OF_THE_START}
    if path.name == "trials.csv":
        return pl.read_csv(path, infer_schema_length=None).drop("seconds").to_dicts()
    if path.suffix == ".html":
        return _digest(TIME.sub("", path.read_text()).encode())
    return _digest(path.read_bytes())


def _cached(cache: Path) -> Iterator[str]:
    """Yield the entries of the cache by content. Their names depend on the folder and the time."""
    for entry in cache.glob("*/*"):
        files = [path for path in sorted(entry.rglob("*")) if path.is_file()]
        contents = b"".join(path.name.encode() + path.read_bytes() for path in files)
        kind = "unfinished " if entry.name.startswith(".") else ""
        yield f"{kind}{' '.join(path.name for path in files)} {_digest(contents)}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the differences between two snapshots, each as a line."""
    lines = [f"only undisturbed: {name}" for name in one.keys() - other.keys()]
    lines += [f"left over: {name}" for name in other.keys() - one.keys()]
    for name in one.keys() & other.keys():
        before, after = one[name], other[name]
        if isinstance(before, dict) and isinstance(after, dict):
            keys = [key for key in before | after if before.get(key) != after.get(key)]
            pairs = {key: (before.get(key), after.get(key)) for key in keys}
            lines += [f"{name}: {key} differs: {pair!r:.500}" for key, pair in pairs.items()]
        elif before != after:
            lines.append(f"{name} differs: {(before, after)!r:.900}")
    return sorted(lines)


def check_readable(folder: Path) -> None:
    """Raise unless each file that has its final name is complete."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not path.is_file() or hidden:
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict), path
        elif path.suffix == ".parquet":
            pl.read_parquet(path)
        elif path.suffix == ".ckpt":
            assert checkpoint_file.is_whole(path), path
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        elif path.name in ("trials.csv", "predictions.csv"):
            assert path.read_bytes().endswith(os.linesep.encode()), path
