"""Images: decode → sources → prepare → datamodule; augment and experiment stand alone."""

from proj.data.images.datamodule import Images

__all__ = ["Images"]
