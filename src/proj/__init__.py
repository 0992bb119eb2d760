"""A PyTorch Lightning project: from one YAML to a model that is trained, evaluated and found again."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proj.engine.predictor import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is: `--help` answers without torch."""
    if name == "load":
        from proj.engine.predictor import load

        return load
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
