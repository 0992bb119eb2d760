"""Limits on the classes that a config or a checkpoint may name.

Both kinds of files may come from other people and be used unread. ``write_paths`` limits where they
may have files written.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

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
