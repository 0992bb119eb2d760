"""Short class names: ``MLP`` for ``proj.nets.mlp.MLP``, ``Adam`` for ``torch.optim.Adam``."""

import os
import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from proj.errors import UserError, nearest

FOLDERS = ("nets", "models", "data", "metrics")

# Where a short name is looked up after our own classes; the first that has it wins. Lightning's ReduceLROnPlateau, which
# takes a `monitor`, comes before torch's.
MODULES = (
    "lightning.pytorch.cli",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torch.nn",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
)

# Keys whose value is a class; elsewhere a text stays a text.
SLOTS = {
    "class_path",
    "model",
    "data",
    "net",
    "optimizer",
    "scheduler",
    "loss",
    "callbacks",
    "logger",
}


# Class paths that older versions wrote into configs and checkpoints, and where the classes are now.
RENAMED = {
    "Arrays": "proj.data.arrays.ArrayDataModule",
    "proj.data.arrays.Arrays": "proj.data.arrays.ArrayDataModule",
    "proj.data.images.Images": "proj.data.images.Images",
    "proj.data.tabular.Tabular": "proj.data.tabular.Tabular",
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


def add_working_directory() -> None:
    """Find a user's modules beside the project, as `python -m` does: the console script and `load` would not."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


@cache
def own_classes() -> dict[str, str]:
    """Our public classes by short name, found in the source text: nothing is imported."""
    package = Path(__file__).parent.parent
    found = {}
    for folder in FOLDERS:
        for path in sorted((package / folder).rglob("*.py")):
            module = ".".join(
                (package.name, *path.relative_to(package).with_suffix("").parts)
            ).removesuffix(".__init__")
            for name in re.findall(
                r"^class ([A-Z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE
            ):
                found[name] = f"{module}.{name}"
    return found


def resolve_class(name: str, key: str) -> str:
    """The import path of a class given by a short name; a dotted path comes back as it is. UserError for a stranger."""
    if "." in name:
        return RENAMED.get(name, name)
    if name in RENAMED:
        return RENAMED[name]
    if name in own_classes():
        return own_classes()[name]
    known = list(own_classes())
    for module_name in MODULES:
        module = import_module(module_name)
        if isinstance(getattr(module, name, None), type):
            return f"{module_name}.{name}"
        known += [
            n
            for n, value in vars(module).items()
            if isinstance(value, type) and not n.startswith("_")
        ]
    raise UserError(
        f"{key}: no class {name!r} is known by that short name.{nearest(name, known)} "
        "Write other classes with their full path, as in my_package.MyNet."
    )


def resolve_classes(config: Any, key: str = "") -> Any:
    """A config with every short class name made a full path; ``key`` is the place of this part of it."""
    if isinstance(config, dict):
        return {
            name: resolve_classes(value, f"{key}.{name}".strip("."))
            for name, value in config.items()
        }
    if isinstance(config, list):
        return [resolve_classes(value, key) for value in config]
    return resolve_class(config, key) if _is_slot(key) and _is_name(config) else config


def update_class_paths(config: Any) -> Any:
    """A recorded config with the class paths of older versions replaced by today's."""
    if isinstance(config, dict):
        return {name: update_class_paths(value) for name, value in config.items()}
    if isinstance(config, list):
        return [update_class_paths(value) for value in config]
    return RENAMED.get(config, config) if isinstance(config, str) and "." in config else config


def resolve_flag(flag: str, value: str) -> str:
    """The value of a flag like ``--model.net``, with a short class name made a full path."""
    slot = _is_slot(flag.lstrip("-").rstrip("+").removesuffix(".help"))
    return resolve_class(value, flag) if slot and _is_name(value) else value


def _is_slot(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in SLOTS


def _is_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and re.fullmatch(r"(?!(?i:true|false|null)$)[A-Za-z][\w.]*", value) is not None
    )
