"""Read the YAML files that values of an experiment name in place of a class or a section."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proj.engine.class_paths import takes_class
from proj.engine.config.yaml_file import read_yaml
from proj.errors import UserError

SUFFIXES = (".yaml", ".yml", ".json")


def include_files(
    value: Any, sections: Iterable[str], folders: tuple[Path, ...], key: str = ""
) -> Any:
    """Return a value of an experiment with the contents of the files that it names.

    Only keys of a class and sections name files, as in ``model: model.yaml`` and
    ``net: {class_path: …}`` in a file of its own.

    Args:
        value: the value of ``key``, such as a whole config.
        sections: keys of sections.
        folders: where relative paths begin; the first file that exists counts.
        key: dotted key of the value; empty for a whole config.

    Raises:
        UserError: a file does not exist, cannot be read, or includes itself.
    """
    if isinstance(value, dict):
        return {
            name: include_files(inner, sections, folders, f"{key}.{name}".strip("."))
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [include_files(inner, sections, folders, key) for inner in value]
    named = key in sections or (takes_class(key) and not key.endswith("class_path"))
    if not (named and isinstance(value, str) and value.endswith(SUFFIXES)):
        return value
    file = next((path for folder in folders if (path := folder / value).is_file()), None)
    if file is None:
        raise UserError(f"{key}: expected a class or a YAML file, got {value}, which is no file.")
    if len(folders) > 10:
        raise UserError(f"{file}: expected a file that does not include itself; write it in one.")
    try:
        content = read_yaml(file)
    except OSError as error:
        raise UserError(f"{key}: cannot read {file}: {error.strerror}.") from error
    return include_files(content, sections, (file.parent, *folders), key)


def include_in_flag(flag: str, value: str, sections: Iterable[str]) -> str:
    """Return the value of a flag such as ``--model``, with the content of the file it names."""
    key = flag.lstrip("-").rstrip("+")
    content = include_files(value, sections, (Path(),), key)
    return value if content == value else json.dumps(content)
