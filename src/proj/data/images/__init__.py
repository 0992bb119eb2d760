"""Data module for images."""

from proj.data.images.datamodule import Images

__all__ = ["Images"]
