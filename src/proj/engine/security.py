"""What a config or a checkpoint may do here: name classes of known packages, and write into the working directory.

Both may come from a stranger, with nobody having read them. What is typed on the command line is the user's own.
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

LIBRARIES = (
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "lightning.pytorch",
    "lightning.fabric.plugins",
    "lightning.LightningModule",
    "lightning.LightningDataModule",
)
# of torch and lightning no more than that; jsonargparse would let a value change these very settings
IN_PARTS = ("torch", "lightning", "jsonargparse")
# any function at all is taken where a parameter is a bare Callable
WITHOUT = ("lightning.pytorch.callbacks.lambda_function",)

# Signs that the user has let this program write there before, by the name of the setting.
SIGNS = {"default_root_dir": "lightning_logs", "cache_dir": "CACHEDIR.TAG"}

allowed_packages: list[str] = []  # by the user, in this process


def allow_package(package: str) -> None:
    """Let configs and checkpoints name what is in a package, from now on in this process."""
    from jsonargparse import set_parsing_settings

    try:
        set_parsing_settings(import_path_allowlist=[package])
    except ValueError as error:
        raise UserError(
            f"--allow: expected a package, as in timm or torch.hub, got {package or 'nothing'}."
        ) from error
    allowed_packages.append(package)


def restrict_imports() -> None:
    """Let nothing be imported by name but what is known, and no config be read from a URL, from now on in this process."""
    from jsonargparse import set_parsing_settings

    set_parsing_settings(
        import_path_denylist=["*", *WITHOUT],
        import_path_allowlist=[PACKAGE, *LIBRARIES, *_declared(), *_beside()],
        instantiate_subclass_spec_in_any=False,  # no class is made where none is expected
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,  # which LightningCLI switches on
    )


@cache
def _declared() -> list[str]:
    """The packages that this one depends on."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []  # run from its folder, without having been installed
    names = {_normal(re.split(r"[^\w.-]", line)[0]) for line in lines if "extra ==" not in line}
    found = {
        name: owners
        for name, owners in metadata.packages_distributions().items()
        if name.isidentifier()
    }
    return [
        name
        for name, owners in found.items()
        if name not in IN_PARTS and names & set(map(_normal, owners))
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _beside() -> Iterator[str]:
    """The modules and packages in the working directory. A folder of runs is none: runs travel."""
    here = Path.cwd()
    for path in here.iterdir():
        package = path.is_dir() and path.name != "lightning_logs" and next(path.glob("*.py"), None)
        if not (package or path.suffix == ".py") or not path.stem.isidentifier():
            continue
        spec = find_spec(
            path.stem
        )  # another module of this name may come first, or be imported already
        places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
        if any(Path(place).is_relative_to(here) for place in places if place):
            yield path.stem


def check_paths(experiment: dict[str, Any], typed: list[str]) -> None:
    """Raise UserError where an experiment would write outside the working directory, unless the path was ``typed``."""
    for key, text in _texts(
        {name: experiment[name] for name in ("trainer", "data") if experiment.get(name)}
    ):
        name = key.rpartition(".")[2]
        if not key.startswith("trainer.") and name != "cache_dir":
            continue
        known = name in SIGNS and (Path(text) / SIGNS[name]).exists()
        if _leads_out(text) and not known and not any(text in word for word in typed):
            raise UserError(
                f"{key}: expected a place in the working directory, where a config may write, got {text}; if "
                f"you mean it, give it on the command line: --{key} {text}"
            )


def _leads_out(text: str) -> bool:
    text = os.path.expanduser(os.path.expandvars(text))
    path = Path(text)
    elsewhere = "://" in text and not text.startswith(
        ("http://", "https://")
    )  # which are servers, not folders
    return (
        elsewhere
        or ".." in path.parts
        or (path.is_absolute() and not path.is_relative_to(Path.cwd()))
    )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    for name, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from _texts(inner, f"{key}.{name}".strip("."))


def check_callback_paths(checkpoint: dict[str, Any], source: Path) -> None:
    """Raise UserError where a callback's state names files outside its folder: Lightning deletes what was the best once."""
    for state in checkpoint.get("callbacks", {}).values():
        if not (isinstance(state, dict) and state.get("dirpath")):
            continue
        folder = os.path.normpath(state["dirpath"])
        paths = [state.get(f"{which}_model_path") for which in ("best", "kth_best", "last")]
        for path in filter(None, [*paths, *state.get("best_k_models", {})]):
            if not Path(os.path.normpath(path)).is_relative_to(folder):
                raise UserError(
                    f"{source}: expected the checkpoints of a callback to lie in {folder}, got {path}; "
                    "this file was tampered with."
                )
