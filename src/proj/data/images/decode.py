"""Pictures as pixels: any file Pillow reads, in any mode, as uint8 of one size."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from proj.errors import UserError

Array: TypeAlias = np.ndarray[Any, Any]
Picture: TypeAlias = Path | Image.Image | Array  # an array is uint8 [channels, height, width]
Shape: TypeAlias = tuple[int, ...]  # channels, height, width

GREY = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"}
SIXTEEN_BITS = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
ORIENTATION = 0x0112  # of EXIF; from 5 on, height and width are exchanged
STRETCH = 32  # pictures a thread takes at once


def look(picture: Picture) -> Shape:
    """Channels (1 for grey, else 3), height and width, from the file's head alone."""
    if isinstance(picture, np.ndarray):
        return 1 if len(picture) == 1 else 3, *picture.shape[1:]
    with _opened(picture) as image:
        unknown = (
            image.format == "PNG" and "exif" not in image.info
        )  # to search its end would mean to decode it
        turned = not unknown and image.getexif().get(ORIENTATION, 1) >= 5
        size = image.size if turned else image.size[::-1]
        return 1 if image.mode in GREY else 3, *size


def pixels(picture: Picture, shape: Shape, resize: bool) -> Array:
    """The picture as uint8 of ``shape``: turned as its EXIF data say, grey or RGB, and scaled if ``resize``.

    What is transparent becomes white. 16 bits become 8 by their whole range: 65535 is 255.
    """
    if isinstance(picture, np.ndarray):
        if picture.shape == shape:
            return picture
        picture = Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0))
    with _opened(picture) as opened:
        if resize:
            opened.draft(
                None, (2 * max(shape[1:]), 2 * max(shape[1:]))
            )  # JPEG alone: decode no more than is needed
        image = _plain(ImageOps.exif_transpose(opened), "L" if shape[0] == 1 else "RGB")
    if image.size != (shape[2], shape[1]):
        if not resize:
            raise UserError(
                f"{_name(picture)}: expected {shape[1]}×{shape[2]} pixels, as others have, got {image.height}×"
                f"{image.width}; set data.size to [{shape[1]}, {shape[2]}] to scale them."
            )
        image = image.resize((shape[2], shape[1]), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(shape[1], shape[2], shape[0]).transpose(2, 0, 1)


def _opened(picture: Path | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.copy()
    if not picture.stat().st_size:
        raise ValueError("it has 0 bytes")
    return Image.open(picture)


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"expected values of 8 or 16 bits, got some from {values.min()} to {values.max()}"
            )
        image = Image.fromarray((values // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("expected values of 8 or 16 bits, got floats")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def decode(pictures: Sequence[Picture], out: Array, resize: bool) -> dict[int, str]:
    """Fill ``out`` [rows, channels, height, width]. Returns the rows that cannot be read, and why."""

    def write(i: int) -> None:
        out[i] = pixels(pictures[i], out.shape[1:], resize)

    return in_parallel(write, len(pictures), "decoding pictures")


def in_parallel(work: Callable[[int], None], count: int, title: str) -> dict[int, str]:
    """Call ``work`` with each number below ``count``. Returns those it fails on, and why.

    Threads are enough, since Pillow decodes outside of Python's lock, and they work in every program.
    """
    pool = ThreadPoolExecutor(os.cpu_count())

    def stretch(start: int) -> dict[int, str]:
        tried = {i: _tried(work, i) for i in range(start, min(start + STRETCH, count))}
        return {i: why for i, why in tried.items() if why}

    console, total = Console(stderr=True), -(-count // STRETCH)
    try:
        done = pool.map(stretch, range(0, count, STRETCH))
        shown = track(
            done, title, total, console=console, transient=True, disable=not console.is_terminal
        )
        return {i: why for failed in shown for i, why in failed.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _tried(work: Callable[[int], None], i: int) -> str:
    try:
        work(i)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # Pillow raises many kinds for damaged files; all of them mean the same to the user
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _name(picture: Picture) -> str:
    return str(picture) if isinstance(picture, Path) else "a picture"
