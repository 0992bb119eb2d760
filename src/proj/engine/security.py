"""Limits on the classes that a config or a checkpoint may name.

It may name classes of known packages and kinds only. Both kinds of files may come from other people
and be used unread. ``write_paths`` limits where they may have files written.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from inspect import isroutine
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from proj.engine import PACKAGE
from proj.errors import UserError

# Parts of libraries that a config may name; torch and Lightning also hold code that runs programs
# or loads pickled files. Other dependencies are named as a whole, except for WITHOUT_CLASSES.
ALLOWED_PARTS = (
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "lightning.LightningDataModule",
    "lightning.LightningModule",
    "lightning.fabric.plugins",
    "lightning.pytorch.Callback",
    "lightning.pytorch.LightningDataModule",
    "lightning.pytorch.LightningModule",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.cli",
    "lightning.pytorch.core",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
)
PARTLY_ALLOWED = ("torch", "lightning", "jsonargparse", "torchmetrics")
# Dependencies without a class that a config could use. Their modules are not imported by name.
WITHOUT_CLASSES = (
    "jinja2",
    "matplotlib",
    "numpy",
    "pillow",
    "polars",
    "pyyaml",
    "rich",
    "scikit-learn",
    "tensorboard",
)
# Modules whose classes do more than their place needs.
DENIED_PARTS = (
    # LambdaCallback takes bare Callables, so any function could be passed to it.
    "lightning.pytorch.callbacks.lambda_function",
    # The options file of DeepSpeed names folders and other programs.
    "lightning.pytorch.strategies.deepspeed",
    # Metrics that download a model, or load one from a folder that the config names.
    "torchmetrics.audio.dnsmos",
    "torchmetrics.audio.nisqa",
    "torchmetrics.image.arniqa",
    "torchmetrics.image.dists",
    "torchmetrics.image.fid",
    "torchmetrics.image.inception",
    "torchmetrics.image.kid",
    "torchmetrics.image.lpip",
    "torchmetrics.image.mifid",
    "torchmetrics.image.perceptual_path_length",
    "torchmetrics.multimodal",
    "torchmetrics.text.bert",
    "torchmetrics.text.infolm",
    "torchmetrics.text.rouge",
    "torchmetrics.text.sacre_bleu",
    "torchmetrics.video.vmaf",
)
# Loggers whose level the verbs change.
SILENCED_LOGGERS = (
    "lightning.pytorch",
    "lightning.fabric",
    "lightning.pytorch.profilers",
    "tensorboard",
)


class NameRefused(ImportError, ValueError):
    """Refusal of a name in a config, of the kinds that jsonargparse converts to its own error."""


# Packages that the user has allowed in this process.
allowed_packages: list[str] = []
# Modules of the user: this package, and those in the working directory.
own_modules: list[str] = []


def allow_package(package: str) -> None:
    """Let configs and checkpoints name the contents of a package, for the rest of this process."""
    # jsonargparse is imported late because `--help` does not need it.
    from jsonargparse import set_parsing_settings

    try:
        set_parsing_settings(import_path_allowlist=[package])
    except ValueError as error:
        raise UserError(
            f"--allow: expected a package, as in timm or torch.hub, got {package or 'nothing'}."
        ) from error
    allowed_packages.append(package)


def restrict_imports() -> None:
    """Allow imports by name as ``check_object`` does, and configs from files only.

    Every parser of an experiment or a checkpoint is made after this call. The settings hold for the
    rest of this process, or until the end of ``restored``.
    """
    # These are imported late because `--help` does not need them.
    from jsonargparse import set_parsing_settings

    from proj.engine.lightning_internals import accept_functions, check_imports

    # The user's own program or notebook is `__main__`.
    own_modules[:] = [PACKAGE, "__main__", *_local_modules()]
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*own_modules, *ALLOWED_PARTS, *_dependencies()],
        instantiate_subclass_spec_in_any=False,  # No class is built where none is expected.
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,  # LightningCLI switches it on.
    )
    check_imports(check_object)
    accept_functions(_is_trusted)


@contextmanager
def restored() -> Iterator[None]:
    """Restore the process at the end: limits on imports, log levels, ignored warnings.

    A program or a notebook goes on after ``proj.fit`` and ``proj.load``, with parsers and Trainers
    of its own.
    """
    # These are imported late because `--help` does not need them.
    import torch

    from proj.engine.lightning_internals import restored_parser_settings

    loggers = [logging.getLogger(name) for name in SILENCED_LOGGERS]
    levels, precision = [logger.level for logger in loggers], torch.get_float32_matmul_precision()
    lists = [(values, list(values)) for values in (allowed_packages, own_modules)]
    try:
        with restored_parser_settings(), warnings.catch_warnings():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        torch.set_float32_matmul_precision(precision)
        for values, before in lists:
            values[:] = before


def check_object(path: str, value: object, called: bool = False, has_base: bool = True) -> None:
    """Check an object that a value of a config or a checkpoint names.

    jsonargparse calls this for each object that it imports by a name, and again before it calls
    the object. A class must be of one of the kinds of ``_kinds``, and jsonargparse checks that it
    derives from what its place expects. Functions must be the user's own. Whatever the user has
    allowed with ``--allow`` passes.

    Args:
        path: the import path in the config.
        value: the object.
        called: the object will be called with arguments from the config.
        has_base: the place of the name expects a class derived from a certain one.

    Raises:
        NameRefused: if a config may not name the object.
    """
    source = _source(value) or path
    if _is_in(source, allowed_packages):
        return
    is_own = _is_in(source, own_modules) and not _is_in(source, [f"{PACKAGE}.engine"])
    if isinstance(value, type):
        is_kind = is_dataclass(value) or issubclass(value, _kinds())
        is_allowed = is_own or (is_kind and has_base and not _is_in(source, DENIED_PARTS))
    else:
        is_allowed = is_own and not isinstance(value, ModuleType)
    if not is_allowed:
        raise NameRefused(f"Importing '{path}' is not allowed")
    if called and not isinstance(value, type) and not _makes_object(value, source):
        raise NameRefused(f"The function '{path}' needs a return annotation")


def _source(value: object) -> str | None:
    """Return where a class or function is defined; None for other objects."""
    if not (isinstance(value, type) or isroutine(value)):
        return None
    return f"{value.__module__}.{value.__qualname__}"


def _is_in(path: str, packages: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{package}.") for package in packages)


@cache
def _kinds() -> tuple[type, ...]:
    """Return the base classes of everything that a config may build."""
    # torch and Lightning are imported late because `--help` does not need them.
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, Precision
    from lightning.pytorch import Callback, LightningDataModule
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins import LayerSync
    from lightning.pytorch.profilers import Profiler
    from lightning.pytorch.strategies import Strategy
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    # Metrics and LightningModules are Modules.
    training = (nn.Module, Optimizer, LRScheduler, LightningDataModule)
    plugins = (CheckpointIO, ClusterEnvironment, LayerSync, Precision)
    return (*training, Callback, Logger, Profiler, Strategy, Accelerator, *plugins)


def _return_type(function: Any) -> Any:
    try:
        return get_type_hints(function).get("return", Any)
    except (NameError, TypeError):  # A name that only the type checker knows, or a builtin.
        return Any


def _is_trusted(function: Any) -> bool:
    """Return whether a user's function has no return annotation, so that it may make anything."""
    source = _source(function)
    is_users = source is not None and _is_in(source, (*own_modules, *allowed_packages))
    return is_users and not _is_in(source or "", [PACKAGE]) and _return_type(function) is Any


def _makes_object(function: Any, source: str) -> bool:
    """Return whether a user's function makes something that a config may build.

    Its return annotation says so. Without one, functions in the working directory are trusted;
    functions of this package are not, because they are known to everybody.
    """
    made = _return_type(function)
    if made is Any:
        return not _is_in(source, [PACKAGE])
    alternatives = get_args(made) if get_origin(made) in (Union, UnionType) else (made,)
    for alternative in alternatives:
        kind = get_origin(alternative) or alternative
        if kind is Callable or (isinstance(kind, type) and issubclass(kind, _kinds())):
            return True
    return False


@cache
def _dependencies() -> list[str]:
    """Return the import names of dependencies that may hold classes for a config."""
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []  # The package runs from its folder, without having been installed.
    required = {
        _normalized(re.split(r"[^\w.-]", requirement)[0])
        for requirement in requirements
        if "extra ==" not in requirement
    }
    # jsonargparse would let a value change these settings.
    required -= {"torch", "lightning", "jsonargparse", *WITHOUT_CLASSES}
    return [
        name
        for name, distributions in metadata.packages_distributions().items()
        if name.isidentifier() and required & set(map(_normalized, filter(None, distributions)))
    ]


def _normalized(distribution: str) -> str:
    """Return the normalized name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _local_modules() -> Iterator[str]:
    """Yield the modules and packages in the working directory.

    The folder of runs is not among them, because runs are passed on to other people.
    """
    folder = Path.cwd()
    for path in folder.iterdir():
        package = path.is_dir() and path.name != "lightning_logs" and next(path.glob("*.py"), None)
        if not (package or path.suffix == ".py") or not path.stem.isidentifier():
            continue
        # Another module of this name may come first on the path, or be imported already.
        spec = find_spec(path.stem)
        origins = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
        if any(Path(origin).is_relative_to(folder) for origin in origins if origin):
            yield path.stem
