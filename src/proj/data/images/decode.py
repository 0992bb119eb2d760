"""Decode images: any file that Pillow reads, in any mode, as uint8 pixels of one size."""

import os
import stat
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from proj.data.tabular.memory import VARIABLE, requested_limit
from proj.errors import UserError
from proj.schema import Array

# A file, an image of Pillow, or an array: uint8 [channels, height, width].
AnyImage: TypeAlias = Path | Image.Image | Array
Shape: TypeAlias = tuple[int, ...]  # channels, height, width

# The formats that are read, by the names of Pillow. Others are left out because they are rare, and
# each is one more parser of files from others; EPS and PS would start Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

# Pillow would do this when it opens the first image, and not safely in several threads.
Image.init()

GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"}
SIXTEEN_BIT_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}

# Larger images are refused. Pillow only warns of images up to twice as large.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
BYTES_PER_PIXEL = 12  # with transparency, on white, and in the mode of the others
if (limit := requested_limit()) is not None:
    Image.MAX_IMAGE_PIXELS = limit // BYTES_PER_PIXEL
MAX_PIXELS = Image.MAX_IMAGE_PIXELS

# Images above this size are decoded one at a time.
LARGE_PIXELS = 2**24
large_image = threading.Lock()

# How images are scaled. A JPEG file is first decoded at no less than DRAFT times the size.
RESAMPLE, DRAFT = Image.Resampling.BICUBIC, 2

# Tag of EXIF data. Orientations from 5 on exchange height and width.
ORIENTATION = 0x0112
FIRST_TURNED = 5

# Images that a thread decodes before it takes the next ones.
IMAGES_PER_TASK = 32


def read_shape(image: AnyImage) -> Shape:
    """Return channels (1 for grey, else 3), height and width, without decoding the image."""
    if isinstance(image, np.ndarray):
        return 1 if len(image) == 1 else 3, *image.shape[1:]
    with _open(image) as opened:
        # EXIF data at the end of a PNG would have to be searched by decoding the image.
        has_exif = opened.format != "PNG" or "exif" in opened.info
        turned = has_exif and opened.getexif().get(ORIENTATION, 1) >= FIRST_TURNED
        size = opened.size if turned else opened.size[::-1]
        return 1 if opened.mode in GREY_MODES else 3, *size


def read_pixels(image: AnyImage, shape: Shape, resize: bool) -> Array:
    """Return the image as uint8 of ``shape``: upright, grey or RGB, and scaled if ``resize``.

    The orientation comes from EXIF data. Transparent pixels become white. 16 bits are scaled to 8
    bits, 65535 to 255. Raises UserError for another size without ``resize``.
    """
    if isinstance(image, np.ndarray):
        if image.shape == shape:
            return image
        image = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    with _open(image) as opened:
        if resize:
            # A JPEG file is then decoded at no more than the necessary size.
            opened.draft(None, (DRAFT * max(shape[1:]), DRAFT * max(shape[1:])))
        mode = "L" if shape[0] == 1 else "RGB"
        # The threads together would need the memory of as many large images.
        is_large = opened.width * opened.height > LARGE_PIXELS
        with large_image if is_large else nullcontext():
            pixels = _to_mode(ImageOps.exif_transpose(opened), mode)
    channels, height, width = shape
    if pixels.size != (width, height):
        if not resize:
            name = str(image) if isinstance(image, Path) else "an image"
            raise UserError(
                f"{name}: expected {height}×{width} pixels, like the others, got "
                f"{pixels.height}×{pixels.width}; set data.size to [{height}, {width}] to scale "
                "all images."
            )
        pixels = pixels.resize((width, height), RESAMPLE)
    return np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1)


def _open(image: Path | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.copy()
    found = image.stat()
    if not stat.S_ISREG(found.st_mode):
        # Opening a named pipe would wait for its writer.
        raise ValueError("it is not a regular file")
    if not found.st_size:
        raise ValueError("it has 0 bytes")
    try:
        opened = Image.open(image, formats=FORMATS)
        if MAX_PIXELS is None or opened.width * opened.height <= MAX_PIXELS:
            return opened
        opened.close()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow has closed the file, and the message below says how to allow it.
        pass
    raise ValueError(
        f"it has more than {MAX_PIXELS:,} pixels; scale it down, or allow more: {VARIABLE}=NUMBER"
    )


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in mode L or RGB."""
    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"expected values of 8 or 16 bits, got values from {values.min()} to {values.max()}"
            )
        image = Image.fromarray((values // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("expected values of 8 or 16 bits, got floats")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def sixteen_bit_range(images: Sequence[AnyImage]) -> tuple[int, int]:
    """Return how many of some images have 16 bits, and their largest value."""
    count, largest = 0, 0
    for image in images:
        if isinstance(image, np.ndarray):
            continue
        # What cannot be read is reported when it is decoded.
        with suppress(OSError, ValueError, SyntaxError), _open(image) as opened:
            if opened.mode in SIXTEEN_BIT_MODES:
                count, largest = count + 1, max(largest, int(np.asarray(opened).max()))
    return count, largest


def decode(images: Sequence[AnyImage], out: Array, resize: bool) -> dict[int, str]:
    """Fill ``out`` [rows, channels, height, width]; return the reason of each failure by row."""

    def write(i: int) -> None:
        out[i] = read_pixels(images[i], out.shape[1:], resize)

    return run_parallel(write, len(images), "decoding images")


def run_parallel(function: Callable[[int], None], count: int, title: str) -> dict[int, str]:
    """Call ``function`` with each number below ``count``; return the reasons of failures.

    Threads are enough, because Pillow decodes without the global interpreter lock, and they need no
    main guard in a script.
    """
    pool = ThreadPoolExecutor(os.cpu_count())

    def run_task(start: int) -> dict[int, str]:
        numbers = range(start, min(start + IMAGES_PER_TASK, count))
        failures = {i: _failure(function, i) for i in numbers}
        return {i: reason for i, reason in failures.items() if reason}

    console, tasks = Console(stderr=True), -(-count // IMAGES_PER_TASK)
    hidden = not console.is_terminal
    try:
        results = pool.map(run_task, range(0, count, IMAGES_PER_TASK))
        shown = track(results, title, tasks, console=console, transient=True, disable=hidden)
        return {i: reason for failures in shown for i, reason in failures.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def _failure(function: Callable[[int], None], i: int) -> str:
    """Return the reason why a call fails; empty if it succeeds."""
    try:
        function(i)
    except UserError:
        raise
    except Exception as error:
        # Pillow raises many types for damaged files.
        return " ".join(str(error).split()) or type(error).__name__
    return ""
