"""Tables in files: scan, encode, prepare, load. Other data use some of its modules, too.

The class is imported when first used, because images do not need polars.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proj.data.tabular.datamodule import Tabular

__all__ = ["Tabular"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from proj.data.tabular import datamodule  # see above

    return getattr(datamodule, name)
