"""Images in files and arrays: decode, list the sources, prepare, load."""

from proj.data.images.datamodule import Images

__all__ = ["Images"]
