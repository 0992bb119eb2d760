"""Tables: files → columns → prepare → datamodule."""

from proj.data.tabular.datamodule import Tabular

__all__ = ["Tabular"]
