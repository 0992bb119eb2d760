"""Short class names: ``MLP`` for ``proj.nets.mlp.MLP``, ``Adam`` for ``torch.optim.Adam``."""

import json
import os
import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from proj.errors import UserError, nearest

# Packages of the user's part; all their public classes have short names.
OWN_PACKAGES = ("nets", "models", "data", "metrics")

# Modules that are searched for a short name after our own classes, in this order.
# Our schedules of several schedulers come before torch's, which a config cannot hold, and
# Lightning's ReduceLROnPlateau, which takes a `monitor`, before torch's.
SEARCHED_MODULES = (
    "proj.engine.schedulers",
    "lightning.pytorch.cli",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torch.nn",
    "proj.engine.callbacks.finetuning",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
)

# Keys whose value is a class. The values of other keys are not resolved.
CLASS_KEYS = {
    "class_path",
    "model",
    "data",
    "net",
    "optimizer",
    "scheduler",
    "loss",
    "callbacks",
    "logger",
    "text_encoder",
}

LISTS_OF_CLASSES = ("trainer.callbacks", "trainer.logger")

# Class paths that older versions wrote into configs and checkpoints, and their present ones.
RENAMED = {
    "Arrays": "proj.data.ArrayDataModule",
    "proj.data.arrays.Arrays": "proj.data.ArrayDataModule",
    "proj.data.images.Images": "proj.data.Images",
    "proj.data.tabular.Tabular": "proj.data.Tabular",
    "proj.models.binary.BinaryClassifier": "proj.models.BinaryClassifier",
    "proj.models.multiclass.MulticlassClassifier": "proj.models.MulticlassClassifier",
    "proj.models.multilabel.MultilabelClassifier": "proj.models.MultilabelClassifier",
    "proj.models.regression.Regressor": "proj.models.Regressor",
    "proj.nets.cnn.CNN": "proj.nets.CNN",
    "proj.nets.dropout.Dropout": "proj.nets.layers.Dropout",
    "proj.nets.mlp.MLP": "proj.nets.MLP",
    "proj.nets.simple_nn.SimpleNN": "proj.nets.SimpleNN",
    "proj.nets.standardize.Standardize": "proj.nets.layers.Standardize",
    "proj.nets.tabm.TabM": "proj.nets.TabM",
}
# Classes of torch and Lightning that a config cannot hold, and ours in their place.
RENAMED |= {
    f"torch.optim.lr_scheduler.{name}": f"proj.engine.schedulers.{name}"
    for name in ("SequentialLR", "ChainedScheduler")
}
RENAMED["lightning.pytorch.callbacks.BackboneFinetuning"] = (
    "proj.engine.callbacks.finetuning.BackboneFinetuning"
)


def add_working_directory() -> None:
    """Make modules in the working directory importable.

    ``python -m`` does this. The console script and ``proj.load`` do not.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


@cache
def own_classes() -> dict[str, str]:
    """Return the import paths of our public classes by short name.

    The classes are found in the source text, so that nothing has to be imported.
    """
    package = Path(__file__).parent.parent
    paths = {}
    for folder in OWN_PACKAGES:
        for file in sorted((package / folder).rglob("*.py")):
            parts = (package.name, *file.relative_to(package).with_suffix("").parts)
            module = ".".join(parts).removesuffix(".__init__")
            for name in _classes_in(file):
                paths[name] = f"{module}.{name}"
    return paths


def working_classes() -> dict[str, list[str]]:
    """Return the import paths of public classes in files of the working directory, by short name.

    Several files may have a class of one name.
    """
    paths: dict[str, list[str]] = {}
    for file in sorted(Path().glob("*.py")):
        for name in _classes_in(file) if file.stem.isidentifier() else ():
            paths.setdefault(name, []).append(f"{file.stem}.{name}")
    return paths


def _classes_in(file: Path) -> list[str]:
    # A file beside the project may be anything.
    source = file.read_text(encoding="utf-8", errors="replace")
    return re.findall(r"^class ([A-Z]\w*)", source, re.MULTILINE)


def resolve_class(name: str, key: str) -> str:
    """Return the import path of a class.

    Args:
        name: a short name, or a dotted path, which is returned as it is unless it was renamed.
            Of equal names, a class of this package comes first, then one in the working directory.
        key: the key that has this value, for the message.

    Raises:
        UserError: if no class has this short name, or two in the working directory have it.
    """
    if "." in name or name in RENAMED:
        return RENAMED.get(name, name)
    if name in own_classes():
        return own_classes()[name]
    if paths := working_classes().get(name):
        if len(paths) > 1:
            raise UserError(
                f"{key}: expected one class {name}, got {' and '.join(paths)}; write its path."
            )
        return paths[0]
    known_names = [*own_classes(), *working_classes()]
    for module_name in SEARCHED_MODULES:
        module = import_module(module_name)
        if isinstance(getattr(module, name, None), type):
            return f"{module_name}.{name}"
        known_names += public_classes(module_name)
    raise UserError(
        f"{key}: no class {name!r} is known by that short name.{nearest(name, known_names)} "
        "Write other classes with their full path, as in my_package.MyNet."
    )


def public_classes(module: str) -> list[str]:
    """Return the names of the public classes in a module."""
    found = import_module(module)
    # A package that is imported in parts has names without values yet.
    names = [name for name in dir(found) if not name.startswith("_")]
    return [name for name in names if isinstance(getattr(found, name, None), type)]


def resolve_classes(config: Any, key: str = "") -> Any:
    """Return a config with full class paths in place of short class names.

    ``key`` is the dotted key of this part of the config.
    """
    if isinstance(config, dict):
        return {
            name: resolve_classes(value, f"{key}.{name}".strip("."))
            for name, value in config.items()
        }
    if isinstance(config, list):
        for number, value in enumerate(config if key in LISTS_OF_CLASSES else (), 1):
            if value is None or isinstance(value, bool | int | float | list):
                raise UserError(f"{key}: expected classes, got {value!r} as item {number}.")
        return [resolve_classes(value, key) for value in config]
    return resolve_class(config, key) if takes_class(key) and _is_name(config) else config


def resolve_flag(flag: str, value: str) -> str:
    """Return the value of a flag such as ``--model.net``, with full class paths.

    A value may be a name, or a list or section in YAML: ``[Timer, DeviceStatsMonitor]``.
    """
    key = flag.lstrip("-").rstrip("+").removesuffix(".help")
    if _is_name(value):
        return resolve_class(value, flag) if takes_class(key) else value
    if value[:1] not in ("[", "{"):
        return value
    try:
        content = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):  # The parser of the experiment reports it.
        return value
    resolved = resolve_classes(content, key)
    return value if resolved == content else json.dumps(resolved)


def names_class(key: str, value: str) -> bool:
    """Return whether a flag selects the class of a key that takes a single one."""
    is_list = key.rpartition(".")[2] in ("callbacks", "logger", "class_path")
    return takes_class(key) and not is_list and _is_name(value)


def update_class_paths(config: Any) -> Any:
    """Return a recorded config with the class paths of older versions replaced by present ones."""
    if isinstance(config, dict):
        return {name: update_class_paths(value) for name, value in config.items()}
    if isinstance(config, list):
        return [update_class_paths(value) for value in config]
    return RENAMED.get(config, config) if isinstance(config, str) and "." in config else config


def takes_class(key: str) -> bool:
    """Return whether the value of a dotted key is a class."""
    # A column of a table may have such a name: data.columns.loss
    return key.rsplit(".", 1)[-1] in CLASS_KEYS and ".columns." not in key


def _is_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and re.fullmatch(r"(?!(?i:true|false|null)$)[A-Za-z][\w.]*", value) is not None
    )
