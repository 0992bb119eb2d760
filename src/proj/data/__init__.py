"""Data modules: each reads one kind of source, splits it, fits the schema, and loads batches.

The classes are imported when first used, so that arrays need neither polars nor Pillow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proj.data.arrays import ArrayDataModule
    from proj.data.base import DataModule
    from proj.data.images.datamodule import Images
    from proj.data.loader import ArrayLoader
    from proj.data.tabular.datamodule import Tabular

__all__ = ["ArrayDataModule", "ArrayLoader", "DataModule", "Images", "Tabular"]

_MODULES = {
    "ArrayDataModule": "arrays",
    "ArrayLoader": "loader",
    "DataModule": "base",
    "Images": "images.datamodule",
    "Tabular": "tabular.datamodule",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
