"""PyTorch Lightning project template: from one YAML file to a trained and evaluated model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proj import data, deploy, metrics, models, nets
    from proj.engine.api import fit
    from proj.engine.predictor import load

    __version__: str

__all__ = ["__version__", "data", "deploy", "fit", "load", "metrics", "models", "nets"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is used, so that ``--help`` answers without torch (PEP 562)."""
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version(__name__)
    if name in ("data", "deploy", "metrics", "models", "nets"):
        return import_module(f"{__name__}.{name}")
    if module := {"fit": "engine.api", "load": "engine.predictor"}.get(name):
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
