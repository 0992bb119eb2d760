"""Images: decode files, bytes and arrays as in training. Needs Pillow."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .rows import InputError

Array = np.ndarray[Any, Any]

# The formats that are read, by the names of Pillow. EPS and PS would start another program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
SIXTEEN_BIT_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
CHANNELS = (1, 3, 4)


class Images:
    """Decoder of images.

    Args:
        spec: ``inputs`` of ``bundle.json``: channels, size, and how to scale.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.shape = (spec["channels"], spec["height"], spec["width"])
        self.max_pixels: int | None = spec["max_pixels"]
        self.resample, self.draft = spec["resample"], spec["draft"]

    def encode(self, images: Sequence[Any], first: int = 0) -> dict[str, Array]:
        """Return ``x`` uint8 [rows, channels, height, width].

        Args:
            images: files, their contents as bytes, images of Pillow, or arrays uint8 [height,
                width] or with channels.
            first: the position of the first row, for messages.

        Raises:
            InputError: for an image that cannot be read.
        """
        x = np.empty((len(images), *self.shape), np.uint8)
        for i, image in enumerate(images):
            try:
                x[i] = self._pixels(image)
            except (OSError, ValueError, SyntaxError, TypeError, EOFError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                name = f"{image}: " if isinstance(image, str | os.PathLike) else ""
                raise InputError(f"{name}cannot be read: {reason}", row=first + i) from error
        return {"x": x}

    def _pixels(self, image: Any) -> Array:
        """Return an image as uint8 [channels, height, width]: upright, grey or RGB, and scaled."""
        from PIL import Image, ImageOps  # Bundles of tables and arrays do not need Pillow.

        channels, height, width = self.shape
        if isinstance(image, np.ndarray):
            image = _channels_first(image)
            if image.shape == self.shape:
                pixels: Array = image
                return pixels
            image = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        with self._open(image) as opened:
            if self.draft:
                # A JPEG file is then decoded at no more than the necessary size.
                side = self.draft * max(height, width)
                opened.draft(None, (side, side))
            scaled = _to_mode(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
        if scaled.size != (width, height):
            scaled = scaled.resize((width, height), Image.Resampling[self.resample.upper()])
        return np.asarray(scaled).reshape(height, width, channels).transpose(2, 0, 1)

    def _open(self, image: Any) -> Any:
        from PIL import Image

        if isinstance(image, Image.Image):
            return image.copy()
        source = io.BytesIO(image) if isinstance(image, bytes | bytearray) else image
        if not isinstance(source, io.BytesIO) and not os.path.isfile(source):
            # Opening a named pipe would wait for its writer.
            raise ValueError("it is not a regular file")
        try:
            opened = Image.open(source, formats=FORMATS)
        except Image.DecompressionBombError as error:  # It is no subclass of the usual ones.
            raise ValueError(f"it has too many pixels: {error}") from error
        if self.max_pixels is not None and opened.width * opened.height > self.max_pixels:
            opened.close()
            raise ValueError(f"it has more than {self.max_pixels:,} pixels; scale it down")
        return opened


def to_list(images: Any) -> list[Any]:
    """Return images as a list: one file or its bytes, a list of images, or an array of them."""
    if isinstance(images, str | bytes | bytearray | os.PathLike) or hasattr(images, "convert"):
        return [images]
    if isinstance(images, np.ndarray):
        if images.ndim not in (3, 4) or images.dtype != np.uint8:
            raise InputError(
                "expected images, uint8 of shape [rows, height, width] or with channels, got "
                f"{images.dtype} of shape {images.shape}"
            )
        return list(images)
    return list(images)


def _channels_first(image: Array) -> Array:
    """Return an image as [channels, height, width]; channels may come first or last."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"expected an array of uint8, got {image.dtype} of shape {image.shape}")
    if image.ndim == 2:
        return image[None]
    if image.shape[2] in CHANNELS:
        return image.transpose(2, 0, 1)
    if image.shape[0] in CHANNELS:
        return image
    raise ValueError(f"expected 1, 3 or 4 channels first or last, got shape {image.shape}")


def _to_mode(image: Any, mode: str) -> Any:
    """Return an image in mode L or RGB, with transparent pixels white and 16 bits as 8."""
    from PIL import Image

    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("expected values of 8 or 16 bits, got others")
        image = Image.fromarray((values // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("expected values of 8 or 16 bits, got floats")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
