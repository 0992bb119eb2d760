"""Tables in files: scan the files, encode the columns, prepare, load."""

from proj.data.tabular.datamodule import Tabular

__all__ = ["Tabular"]
