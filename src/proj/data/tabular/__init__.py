"""Tables in files: scan, encode, prepare, load, stream. Other data use some of its modules, too.

The classes are imported when first used, because images do not need polars.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proj.data.tabular.datamodule import Tabular
    from proj.data.tabular.stream import ParquetStream

__all__ = ["ParquetStream", "Tabular"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from proj.data.tabular import datamodule, stream  # see above

    return getattr(stream if name == "ParquetStream" else datamodule, name)
