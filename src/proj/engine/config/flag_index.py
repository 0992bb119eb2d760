"""Index of all flags and classes, which is read without importing torch.

`complete` takes its answers from it, and a mistyped flag is answered before torch is imported,
which takes seconds. It is built once per version of the packages, in a process of its own, and may
be missing: then the parser answers.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from proj.engine import PACKAGE
from proj.engine.class_paths import SEARCHED_MODULES, own_classes, public_classes
from proj.engine.config.help_cache import (
    ROOT,
    cache_file,
    flags_in,
    kept_flags,
    package_versions,
    write_cache,
)
from proj.engine.config.options import COMMON_OPTIONS
from proj.engine.config.parser_errors import class_options, unknown_flag, unknown_option
from proj.engine.verbs import EXTRAS
from proj.errors import UserError

# Keys with a class, by the name of its base class.
GROUPS = {
    "model": "LightningModule",
    "data": "LightningDataModule",
    "model.net": "Module",
    "model.optimizer": "Optimizer",
    "model.scheduler": "LRScheduler",
    "trainer.callbacks": "Callback",
    "trainer.logger": "Logger",
}
PARSER_FLAGS = ("config", "print_config", "help")


class ClassEntry(NamedTuple):
    """What the index knows of a class.

    Attributes:
        path: its import path.
        groups: the keys of ``GROUPS`` that may name it.
        options: arguments of its constructor and of its bases'.
        accepted: the options that the parser takes, which may be more; None if it cannot tell.
        changed: time of the last change of its file, in nanoseconds.
    """

    path: str
    groups: list[str]
    options: list[str]
    accepted: list[str] | None
    changed: int


class Index(NamedTuple):
    """The content of the index.

    Attributes:
        versions: of the packages, with the installed extras and the names of our own classes.
        flags: the keys that each verb takes, without dashes.
        classes: by short name.
    """

    versions: list[str]
    flags: dict[str, list[str]]
    classes: dict[str, ClassEntry]


def index_path() -> Path:
    """Return the file of the index in the user's cache, one for each installed copy."""
    return cache_file("flags")


def read_index() -> Index | None:
    """Return the index; None if there is none of these versions of the packages and classes."""
    try:
        content = json.loads(index_path().read_bytes())
        index = Index(**content)
        classes = {name: ClassEntry(*entry) for name, entry in index.classes.items()}
    except (OSError, ValueError, TypeError):
        return None
    return index._replace(classes=classes) if index.versions == _versions() else None


def _versions() -> list[str]:
    extras = [name for name in EXTRAS if find_spec(name) is not None]
    return [*package_versions(), *extras, *sorted(own_classes().values())]


# Mistyped flags


def check_flags(verb: str, args: Sequence[str], configs: Sequence[dict[str, Any]]) -> None:
    """Raise UserError for a flag that the parser would not know, if index or help is sure of it."""
    index = read_index()
    if index is not None:
        known = index.flags[verb]
    elif not (known := kept_flags(verb)):
        return
    for word in args:
        # `+=` adds to a list.
        name = word.removeprefix("--").partition("=")[0].removesuffix("+")
        is_flag = word.startswith("--") and name
        if not is_flag or name in (*known, *PARSER_FLAGS) or name.endswith(".help"):
            continue
        key = max((k for k in known if name.startswith(f"{k}.")), key=len, default=None)
        is_section = key not in GROUPS and any(k.startswith(f"{key}.") for k in known)
        if key is None or is_section:
            raise UserError(unknown_flag(word.partition("=")[0], known))
        if index is not None:
            _check_option(index, name, args, configs)


def _check_option(
    index: Index, name: str, args: Sequence[str], configs: Sequence[dict[str, Any]]
) -> None:
    """Raise UserError if the class that has an option does not know it."""
    key = max((group for group in GROUPS if name.startswith(f"{group}.")), key=len, default=None)
    if key is None or key.startswith("trainer"):
        return
    entry = class_of(index, key, args, configs)
    option = name.removeprefix(f"{key}.")
    first = option.split(".")[0]
    if entry is None or entry.accepted is None:
        return
    if first not in (*entry.options, *entry.accepted, "class_path", "init_args"):
        owner = entry.path.rpartition(".")[2]
        raise UserError(unknown_option(key, option, owner, entry.options))


def class_of(
    index: Index, key: str, args: Sequence[str], configs: Sequence[dict[str, Any]]
) -> ClassEntry | None:
    """Return the class that a key has; None if it is not certain."""
    name = None
    for word, next_word in zip(args, [*args[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == f"--{key}":
            name = value if equals else next_word
    if name is None:
        names = [_class_in(config, key) for config in configs]
        name = next((name for name in reversed(names) if name), None)
    entry = index.classes.get((name or "").rpartition(".")[2])
    if entry is None or name not in (entry.path, entry.path.rpartition(".")[2]):
        return None
    return entry if _changed(entry.path) == entry.changed else None


def _class_in(config: dict[str, Any], key: str) -> str | None:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part, value.get("init_args", {}).get(part))
    name = value.get("class_path") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None


def _changed(path: str) -> int:
    """Return the time of the last change of the file of one of our classes, 0 for other classes."""
    module = path.rpartition(".")[0].split(".")
    if module[0] != PACKAGE:
        return 0
    file = ROOT.joinpath(*module[1:])
    for candidate in (file.with_suffix(".py"), file / "__init__.py"):
        if candidate.exists():
            return candidate.stat().st_mtime_ns
    return 0


# Building


def build_in_background() -> None:
    """Start a process that builds the index. The terminal need not wait for it."""
    subprocess.Popen(
        [sys.executable, "-m", PACKAGE, "complete", "--build"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=Path.home(),
    )


def build_index(verbs: dict[str, tuple[str, str]]) -> None:
    """Build the index and write it.

    Args:
        verbs: module with function, and description, of each verb.
    """
    flags: dict[str, list[str]] = {}
    for verb, (place, _) in verbs.items():
        module, function = place.split(":")
        try:
            call = getattr(import_module(f"{PACKAGE}.engine.{module}"), function)
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            flags[verb] = []
            continue
        names = set(_flags_in_help(call)) | {option.name for option in COMMON_OPTIONS}
        flags[verb] = sorted(name for name in names if not name.endswith(".help"))
    index = Index(_versions(), flags, dict(_classes()))
    write_cache(index_path(), index._asdict())


def _flags_in_help(call: Any) -> list[str]:
    """Return the flags that a verb's help lists."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        call(["--help"])
    return flags_in(text.getvalue())


def _classes() -> Iterator[tuple[str, ClassEntry]]:
    """Yield the classes that have a short name, the first of each name."""
    paths = dict(own_classes())
    for module in SEARCHED_MODULES:
        for name in public_classes(module):
            paths.setdefault(name, f"{module}.{name}")
    for name, path in paths.items():
        module, _, attribute = path.rpartition(".")
        owner = getattr(import_module(module), attribute)
        bases = {base.__name__ for base in owner.__mro__[1:]}
        groups = [key for key, base in GROUPS.items() if base in bases and _fits(key, path)]
        accepted = _accepted(owner) if groups else []
        yield name, ClassEntry(path, groups, class_options(path), accepted, _changed(path))


def _accepted(owner: type) -> list[str] | None:
    """Return the options of a class as the parser finds them, also behind ``**kwargs``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(owner, "options", fail_untyped=False)
    except Exception:  # Any code of the class may run; the parser of the verb will say what it is.
        return None
    keys = [key.split(".") for key, _ in parser.get_defaults().items()]
    return sorted({key[1] for key in keys if len(key) > 1})


def _fits(key: str, path: str) -> bool:
    """Return whether a class is offered for a key: our nets only, not each layer of torch."""
    return key != "model.net" or path.startswith(f"{PACKAGE}.nets.")
