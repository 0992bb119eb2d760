"""A PyTorch Lightning project: from one YAML to a model that is trained, evaluated and found again."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proj.predictor import load as load

__version__ = version("proj")
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when it is used: `--help` and `--version` answer without torch
        from proj.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
