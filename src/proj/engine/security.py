"""Limits on what a config or a checkpoint may do.

It may name classes of known packages only, and it may write into the working directory only. Both
kinds of files may come from other people and be used unread. Words that are typed on the command
line come from the user and are trusted.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from proj.engine import PACKAGE
from proj.errors import UserError

# Parts of libraries that a config may name. Dependencies are allowed as a whole, except for
# PARTLY_ALLOWED: torch and lightning hold functions that run code or load files, and jsonargparse
# would let a value change these settings.
ALLOWED_PARTS = (
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "lightning.pytorch",
    "lightning.fabric.plugins",
    "lightning.LightningModule",
    "lightning.LightningDataModule",
)
PARTLY_ALLOWED = ("torch", "lightning", "jsonargparse")
# LambdaCallback takes bare Callables, so any function could be passed to it.
DENIED_PARTS = ("lightning.pytorch.callbacks.lambda_function",)

# By the key of a setting, the file or folder that this program creates in such a folder. If it
# exists, the user has allowed the folder before, so a config may write into it again.
KNOWN_FOLDER_MARKS = {"default_root_dir": "lightning_logs", "cache_dir": "CACHEDIR.TAG"}

# Packages that the user has allowed in this process.
allowed_packages: list[str] = []


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
    """Allow imports by name from known packages only, and configs from files only.

    The settings hold for the rest of this process.
    """
    # jsonargparse is imported late because `--help` does not need it.
    from jsonargparse import set_parsing_settings

    set_parsing_settings(
        import_path_denylist=["*", *DENIED_PARTS],
        import_path_allowlist=[PACKAGE, *ALLOWED_PARTS, *_dependencies(), *_local_modules()],
        instantiate_subclass_spec_in_any=False,  # No class is built where none is expected.
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,  # LightningCLI switches it on.
    )


@cache
def _dependencies() -> list[str]:
    """Return the import names of the packages that this one depends on."""
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []  # The package runs from its folder, without having been installed.
    required = {
        _normalized(re.split(r"[^\w.-]", requirement)[0])
        for requirement in requirements
        if "extra ==" not in requirement
    }
    return [
        name
        for name, distributions in metadata.packages_distributions().items()
        if name.isidentifier()
        and name not in PARTLY_ALLOWED
        and required & set(map(_normalized, distributions))
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


def check_paths(experiment: dict[str, Any], typed: list[str]) -> None:
    """Check that an experiment writes into the working directory only.

    Args:
        experiment: the resolved experiment.
        typed: words of the command line; a path among them is allowed anywhere.

    Raises:
        UserError: if a path leads elsewhere.
    """
    sections = {name: experiment[name] for name in ("trainer", "data") if experiment.get(name)}
    for key, text in _texts(sections):
        name = key.rpartition(".")[2]
        if not key.startswith("trainer.") and name != "cache_dir":
            continue
        mark = KNOWN_FOLDER_MARKS.get(name)
        known = mark is not None and (Path(text) / mark).exists()
        if _is_outside(text) and not known and not any(text in word for word in typed):
            raise UserError(
                f"{key}: expected a path in the working directory, because a config may write only "
                f"there, got {text}; to allow it, add --{key} {text} to the command line."
            )


def _is_outside(text: str) -> bool:
    """Return whether a text, taken as a path, is outside the working directory."""
    text = os.path.expanduser(os.path.expandvars(text))
    path = Path(text)
    # http:// and https:// name servers, not folders.
    other_file_system = "://" in text and not text.startswith(("http://", "https://"))
    return (
        other_file_system
        or ".." in path.parts
        or (path.is_absolute() and not path.is_relative_to(Path.cwd()))
    )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
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
        yield from _texts(inner, f"{key}.{name}".strip("."))


def check_callback_paths(checkpoint: dict[str, Any], source: Path) -> None:
    """Check that the state of each callback names files in its own folder only.

    Lightning deletes the file of the previous best checkpoint, so other paths would delete files of
    the user.

    Raises:
        UserError: if a path leads out of the folder.
    """
    for state in checkpoint.get("callbacks", {}).values():
        if not (isinstance(state, dict) and state.get("dirpath")):
            continue
        folder = os.path.normpath(state["dirpath"])
        paths = [state.get(f"{name}_model_path") for name in ("best", "kth_best", "last")]
        for path in filter(None, [*paths, *state.get("best_k_models", {})]):
            if not Path(os.path.normpath(path)).is_relative_to(folder):
                raise UserError(
                    f"{source}: expected the checkpoints of a callback to lie in {folder}, got "
                    f"{path}; use another file, because this one was tampered with."
                )
