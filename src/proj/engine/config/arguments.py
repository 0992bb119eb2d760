"""Read config files, flags and the run from a command line, without importing torch."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from proj.engine.class_paths import (
    add_working_directory,
    names_class,
    resolve_classes,
    resolve_flag,
)
from proj.engine.config.included_files import include_files, include_in_flag
from proj.engine.config.options import FIT_KEYS, OPTIONS
from proj.engine.config.parser import VerbParser
from proj.engine.config.yaml_file import read_yaml
from proj.errors import UserError, nearest, quoted

SECTIONS = ("trainer", "model", "data", "checkpoint", "early_stopping")
EXPERIMENT_KEYS = ("seed_everything", *SECTIONS, *FIT_KEYS)


class Arguments(NamedTuple):
    """A command line whose experiment has not been parsed yet.

    Attributes:
        files: values of ``--config``, in order.
        configs: contents of these files, with full class paths.
        flags: all other words, with full class paths.
        run: value of ``--run``.
        resume: value of ``--resume``; an empty string stands for the newest run.
    """

    files: list[str]
    configs: list[dict[str, Any]]
    flags: list[str]
    run: str | None
    resume: str | None

    @property
    def root(self) -> Path:
        """The folder of the runs: ``lightning_logs`` in the Trainer's ``default_root_dir``."""
        folder = None
        for config in self.configs:
            folder = config.get("trainer", {}).get("default_root_dir", folder)
        return Path(self.flag("--trainer.default_root_dir") or folder or ".") / "lightning_logs"

    def flag(self, name: str) -> str | None:
        """Return the value of a flag, the last one if it is repeated; None if it is missing."""
        value = None
        for word, next_word in zip(self.flags, [*self.flags[1:], None], strict=False):
            flag, equals, inline_value = word.partition("=")
            if flag == name:
                value = inline_value if equals else next_word
        return value


def read_arguments(args: list[str], verb: str) -> Arguments:
    """Separate config files and the options that select a run from the flags of an experiment.

    Raises:
        UserError: if a file is not a YAML file of an experiment, or an option has no value.
    """
    add_working_directory()
    parser = VerbParser(verb, add_help=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    for option in OPTIONS[verb]:
        if option.selects_run:
            optional: Any = {"nargs": "?", "const": ""} if option.value_optional else {}
            parser.add_argument(f"--{option.name}", **optional)
    known, words = parser.parse_known_args(args)
    return Arguments(
        known.config,
        [read_config(Path(file)) for file in known.config],
        _classes_first(_with_class_paths(words)),
        getattr(known, "run", None),
        getattr(known, "resume", None),
    )


def check_configs(args: list[str]) -> list[dict[str, Any]]:
    """Return the contents of the files of ``--config``, with class names as they are.

    Raises:
        UserError: if one is missing or is no experiment.
    """
    configs = []
    for word, next_word in zip(args, [*args[1:], None], strict=False):
        flag, equals, value = word.partition("=")
        file = value if equals else next_word
        # The parser answers a flag without a value.
        if flag in ("-c", "--config") and file is not None:
            configs.append(_read_config(Path(file)))
    return configs


def _with_class_paths(words: list[str]) -> list[str]:
    """Replace short class names among the values of flags by full class paths."""
    words = list(words)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and equals:
            words[i] = f"{flag}={_resolved(flag, value)}"
        elif flag.startswith("--") and i + 1 < len(words):
            words[i + 1] = _resolved(flag, words[i + 1])
    return words


def _resolved(flag: str, value: str) -> str:
    return resolve_flag(flag, include_in_flag(flag, value, SECTIONS))


def keep_text(key: str, text: str) -> str | list[str]:
    """Return a value of the data section so that the parser takes it as text.

    The parser reads texts as YAML once more: ``[x]`` may be a column and become a list.

    Raises:
        UserError: if it would read the text as null, and this cannot be avoided.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    name = key.rsplit(".", 1)[-1]
    if name == "target":
        return [text] if isinstance(value, list) else text
    if value is None and text.strip():
        raise UserError(
            f"{key}: expected a name that does not mean null, got {text!r}; rename the column or "
            "file."
        )
    return text


def _classes_first(words: list[str]) -> list[str]:
    """Put flags that name a class before all others, ``--model`` before ``--model.net``.

    The parser needs the class before its options; the user may write them in any order.

    >>> _classes_first(["--model.net", "a.Net", "--lr", "1", "--model", "a.Model"])
    ['--model', 'a.Model', '--model.net', 'a.Net', '--lr', '1']
    """
    flags: list[list[str]] = []
    for word in words:
        takes_value = flags and len(flags[-1]) == 1 and "=" not in flags[-1][0]
        if takes_value and not word.startswith("--"):
            flags[-1].append(word)
        else:
            flags.append([word])

    def place(flag: list[str]) -> int:
        name, _, value = flag[0].partition("=")
        value = flag[1] if len(flag) > 1 else value
        return name.count(".") if names_class(name.removeprefix("--"), value) else sys.maxsize

    return [word for flag in sorted(flags, key=place) for word in flag]


def as_flags(values: dict[str, Any]) -> list[str]:
    """Return dotted keys and plain values as flags of the command line.

    >>> as_flags({"trainer.max_epochs": 5, "data.path": Path("a.npz"), "data.predict_path": None})
    ['--trainer.max_epochs=5', '--data.path=a.npz', '--data.predict_path=null']

    A class stands for its import path.

    Raises:
        UserError: if a value is not plain, or a short class name is unknown.
    """
    flags = []
    for key, value in values.items():
        resolved = resolve_classes(import_paths(value, key), key)
        if isinstance(resolved, str) and key.startswith("data."):
            resolved = keep_text(key, resolved)
        try:
            is_text = isinstance(resolved, str | Path)
            text = str(resolved) if is_text else json.dumps(resolved)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{key}: expected a plain value (text, number, list, dictionary) or a class, got "
                f"{quoted(value)}; use the form that the value has in YAML."
            ) from error
        flags.append(f"--{key}={text}")
    return flags


def import_paths(value: Any, key: str) -> Any:
    """Return nested values with the import paths of classes in place of the classes.

    Raises UserError for a class inside a function, which has no import path.
    """
    if isinstance(value, type):
        path = f"{value.__module__}.{value.__qualname__}"
        if "<locals>" in path:
            raise UserError(
                f"{key}: expected a class of a module or a notebook, got {path}, which is inside a "
                "function; define it outside."
            )
        return path
    if isinstance(value, Mapping):
        return {name: import_paths(inner, f"{key}.{name}") for name, inner in value.items()}
    return [import_paths(inner, key) for inner in value] if isinstance(value, list) else value


def read_config(path: Path) -> dict[str, Any]:
    """Read an experiment's YAML file, with full class paths in place of short class names."""
    resolved: dict[str, Any] = resolve_classes(_read_config(path))
    return resolved


def _read_config(path: Path) -> dict[str, Any]:
    """Read an experiment's YAML file as it is, which imports nothing."""
    if not path.is_file():
        folder = path if path.is_dir() else path.parent if path.parent.is_dir() else Path("configs")
        hint = nearest(str(path), [str(file) for file in sorted(folder.glob("*.yaml"))])
        kind = "a folder" if path.is_dir() else "which does not exist"
        raise UserError(f"--config: expected a YAML file, got {path}, {kind}.{hint}")
    try:
        config = read_yaml(path)
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}.") from error
    if not isinstance(config, dict):
        raise UserError(
            f"{path}: expected the keys of an experiment (trainer, model, data, …), got "
            f"{'nothing' if config is None else type(config).__name__}."
        )
    included: dict[str, Any] = include_files(config, SECTIONS, (path.parent, Path()))
    for key in ("model", "data"):
        if isinstance(included.get(key), str):  # a class alone, as LightningCLI takes it
            included[key] = {"class_path": included[key]}
    _check_keys(path, included)
    return included


def _check_keys(path: Path, config: dict[Any, Any]) -> None:
    if "baseline" in config:
        raise UserError(
            f"{path}: expected an experiment, got the config of a baseline, whose model is a "
            "standard learner; use the config of the run that it is compared with."
        )
    if "ensemble" in config:
        raise UserError(
            f"{path}: expected an experiment, got the config of an ensemble, which is not trained; "
            "use the config of one of its members."
        )
    for key, value in config.items():
        if key not in EXPERIMENT_KEYS:
            hint = nearest(str(key), EXPERIMENT_KEYS)
            raise UserError(f"{path}: no such key {key!r} in an experiment.{hint}")
        if key in SECTIONS and not isinstance(value, dict):
            raise UserError(f"{path}: {key}: expected a section of keys and values, got {value!r}.")
