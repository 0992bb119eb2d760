"""The help of each verb in a file, which is printed and searched for flags without importing torch.

The parser of an experiment takes seconds of imports. Its help depends on the versions of packages,
on our own sources and on the width of the terminal only, so it is written once for each of these.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from proj.engine import PACKAGE

ROOT = Path(__file__).parents[2]
# Packages whose versions decide which flags there are.
PACKAGES = ("torch", "lightning", "jsonargparse", "torchmetrics")
# The words that ask for the help of a verb.
HELP = (["-h"], ["--help"])


def cache_file(kind: str) -> Path:
    """Return a file of a kind in the user's cache, one for each installed copy.

    Raises FileNotFoundError if there is no folder for it.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # The user has no home, as in some containers.
        raise FileNotFoundError(str(error)) from error
    copy = hashlib.sha256(f"{ROOT} {sys.prefix}".encode()).hexdigest()[:16]
    return cache / PACKAGE / f"{kind}-{copy}.json"


def package_versions() -> list[str]:
    return [f"{name} {metadata.version(name)}" for name in (*PACKAGES, PACKAGE)]


def write_cache(path: Path, content: object) -> None:
    """Write a file of the cache, which another process may read or write at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)


def _state() -> list[str]:
    """Return what the help of a verb depends on."""
    sources = (
        f"{path.relative_to(ROOT)} {path.stat().st_mtime_ns}" for path in sorted(ROOT.rglob("*.py"))
    )
    # Installing a package changes its folder, and may add a class.
    installed = Path(sysconfig.get_path("purelib")).stat().st_mtime_ns
    sources_hash = hashlib.sha256("\n".join(sources).encode()).hexdigest()
    return [*package_versions(), sys.version, sources_hash, str(installed), str(_columns())]


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _read() -> dict[str, str]:
    """Return the help of each verb that was kept in the present state."""
    try:
        content = json.loads(cache_file("help").read_bytes())
        return dict(content["help"]) if content["state"] == _state() else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def kept_help(verb: str) -> str | None:
    """Return the help of a verb; None if nothing of the present state was kept."""
    return _read().get(verb)


def keep_help(verb: str, text: str) -> None:
    """Keep the help of a verb, unless it is kept. Without a cache, each help takes seconds."""
    known = _read()
    if known.get(verb) != text:
        with contextlib.suppress(OSError):
            content = {"state": _state(), "help": {**known, verb: text}}
            write_cache(cache_file("help"), content)


def keep_flags(verb: str, text: str) -> None:
    """Keep the flags in a help, which lists modules of this experiment, too."""
    keep_help(f"{verb} flags", " ".join(f"--{flag}" for flag in flags_in(text)))


def kept_flags(verb: str) -> list[str]:
    """Return the flags of a verb that a kept help lists; none if nothing was kept."""
    return flags_in(kept_help(verb) or kept_help(f"{verb} flags") or "")


def flags_in(text: str) -> list[str]:
    """Return the flags that the help of a verb lists, without dashes."""
    return re.findall(r"(?<![\w-])--([a-z_][\w.]*)", text)
