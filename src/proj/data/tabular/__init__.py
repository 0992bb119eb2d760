"""Data module for tables."""

from proj.data.tabular.datamodule import Tabular

__all__ = ["Tabular"]
