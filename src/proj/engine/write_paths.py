"""Limits on where a config, a checkpoint or a run folder of other people may have files written.

A config may write into the working directory only, and a run into its own folder only. Paths are
resolved before they are compared. Words that are typed on the command line come from the user and
are trusted.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from proj.engine import PACKAGE
from proj.errors import UserError

# By the key of a setting, the file or folder that this program creates in such a folder. If it
# exists, the user has allowed the folder before, so a config may write into it again.
KNOWN_FOLDER_MARKS = {"default_root_dir": "lightning_logs", "cache_dir": "CACHEDIR.TAG"}

# Folders of this program in the working directory. The user may have linked them to another disk.
OWN_FOLDERS = {"cache_dir": f".cache/{PACKAGE}"}

# What fsspec, which Lightning writes with, takes as another file system or as an absolute path.
# http:// and https:// name servers, not folders.
OTHER_FILE_SYSTEM = re.compile(r"::|^(file|local|data):|^(?!https?://).*://", re.I | re.S)

# How a logger names a database that is a file.
SQLITE = "sqlite:///"


def check_paths(experiment: dict[str, Any], typed: list[str]) -> None:
    """Check that an experiment writes into the working directory only.

    Args:
        experiment: the resolved experiment.
        typed: words of the command line; a path that is the value of its flag is allowed anywhere.

    Raises:
        UserError: if a path leads elsewhere.
    """
    typed_paths: set[tuple[str, str]] | None = None
    for key, text in texts(experiment):
        if not _is_written(key):
            continue
        name = key.rpartition(".")[2]
        if _is_allowed(name, text):
            if name != "default_root_dir" and _is_subfolder(text):
                # Runs get new folders, but loggers and callbacks write into existing ones.
                check_links(Path(text), Path.cwd())
            continue
        if typed_paths is None:
            typed_paths = set(_typed_texts(typed))
        if (flag_key(key), text) not in typed_paths:
            raise UserError(
                f"{key}: expected a path in the working directory, because a config may write only "
                f"there, got {text}; to allow it, add --{key} {text} to the command line."
            )


def _is_written(key: str) -> bool:
    """Return whether a text of the experiment with this key may be a path to write to."""
    return key.startswith("trainer.") or key.rpartition(".")[2] == "cache_dir"


def _is_allowed(name: str, text: str) -> bool:
    """Return whether a text is no path out of the working directory, or a folder known before."""
    if OWN_FOLDERS.get(name) == text:
        return True
    mark = KNOWN_FOLDER_MARKS.get(name)
    if not _leads_out(text):
        # The user may have linked `lightning_logs` in the working directory, but not elsewhere.
        return mark is None or not _is_subfolder(text) or not _leads_out(f"{text}/{mark}")
    if mark is None or OTHER_FILE_SYSTEM.search(text):
        return False
    known = Path(text) / mark
    return known.exists() and not known.is_symlink()


def _is_subfolder(text: str) -> bool:
    """Return whether a text names an existing folder below the working directory."""
    return "\0" not in text and os.path.isdir(text) and Path(text).resolve() != Path.cwd().resolve()


def _leads_out(text: str) -> bool:
    """Return whether a text, taken as a path, is outside the working directory."""
    text = text.removeprefix(SQLITE)
    expanded = os.path.expanduser(os.path.expandvars(text))
    if OTHER_FILE_SYSTEM.search(text) or OTHER_FILE_SYSTEM.search(expanded):
        return True
    if ".." in Path(expanded).parts:  # The text may be the end of a longer path.
        return True
    return not _resolves_into(expanded, Path.cwd())


def _resolves_into(path: str | Path, folder: Path) -> bool:
    """Return whether a path lies in a folder after both are resolved."""
    try:
        return Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # A loop of links, a name that is no path.
        return False


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts in nested dictionaries and lists, each with its dotted key."""
    if isinstance(value, str):
        yield key, value
        return
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, inner in items:
        yield from texts(inner, f"{key}.{name}".strip("."))


def _typed_texts(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the texts among the values of flags, each with its key in the form of a flag."""
    for word, next_word in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            continue
        value = value if equals else next_word
        yield flag_key(flag[2:]), value
        if value[:1] in ("{", "["):
            try:
                section = yaml.safe_load(value)
            except yaml.YAMLError:  # The parser of the experiment reports it.
                continue
            for key, text in texts(section, flag[2:]):
                yield flag_key(key), text


def flag_key(key: str) -> str:
    """Return a key as its short flag, without numbers of list items.

    >>> flag_key("trainer.callbacks.0.init_args.dirpath"), flag_key("trainer.callbacks+.dirpath")
    ('trainer.callbacks.dirpath', 'trainer.callbacks.dirpath')
    """
    names = key.replace("+", "").split(".")
    return ".".join(name for name in names if name != "init_args" and not name.isdecimal())


def check_links(folder: Path, boundary: Path | None = None) -> None:
    """Check that no link in a folder leads out of it, or out of a wider ``boundary``.

    The folder itself may be reached by links.

    Raises:
        UserError: if a link leads out, because writing through it would change files elsewhere.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not _resolves_into(path, boundary or folder):
                raise UserError(
                    f"{path}: expected a file or folder of its own, got a link to "
                    f"{os.readlink(path)}, outside {boundary or folder}; replace the link by what "
                    "it leads to, or remove it."
                )


def check_appended(file: Path) -> None:
    """Check that a file to append to is missing or a file of its own, not a link to another one.

    Raises:
        UserError: if it is a symbolic link or has several hard links.
    """
    if file.is_symlink() or (file.is_file() and file.stat().st_nlink > 1):
        raise UserError(
            f"{file}: expected a file of its own, got a link, and writing would change another "
            "file; replace it by a copy."
        )


def check_callback_paths(checkpoint: dict[str, Any], source: Path) -> None:
    """Check that the state of each callback names files in its own folder only.

    Lightning deletes the file of the previous best checkpoint, so other paths would delete files of
    the user.

    Raises:
        UserError: if a path leads out of the folder.
    """
    for state in checkpoint.get("callbacks", {}).values():
        if not isinstance(state, dict):
            continue
        names = [state.get(f"{name}_model_path") for name in ("best", "kth_best", "last")]
        for path in filter(None, [*names, *(state.get("best_k_models") or {})]):
            folder = state.get("dirpath") or ""
            if not _lies_in(folder, str(path)):
                raise UserError(
                    f"{source}: expected the checkpoints of a callback to lie in "
                    f"{folder or 'its folder'}, got {path}; use another file, because this one was "
                    "tampered with."
                )


def _lies_in(folder: str, path: str) -> bool:
    """Return whether a path lies in a folder, by their texts: the run may have moved since."""
    if not folder or OTHER_FILE_SYSTEM.search(path) or OTHER_FILE_SYSTEM.search(folder):
        return False
    return Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))
