"""Random augmentation of training images, for whole batches on their device."""

import torch
from torch import Tensor

# Ranges of an erased rectangle: its share of the image's area, and its height divided by its width.
AREA_RANGE = 0.02, 0.33
ASPECT_RANGE = 0.3, 3.3


def augment(x: Tensor, flip: bool, crop: int, erase: float) -> Tensor:
    """Return ``x`` [rows, channels, height, width], uint8 or float, augmented.

    The usual three augmentations of small images: flips and shifts (He et al. 2016,
    arXiv:1512.03385, section 4.2), and random erasing (Zhong et al. 2020, arXiv:1708.04896). Each
    row has its own random numbers, from the generator of the device.

    Args:
        flip: whether to flip images left to right with probability 0.5.
        crop: largest shift in pixels.
        erase: probability that a rectangle is erased.
    """
    if flip:
        x = random_hflip(x)
    if crop:
        x = random_shift(x, crop)
    if erase:
        x = random_erase(x, erase)
    return x


def random_hflip(x: Tensor) -> Tensor:
    """Flip each image left to right with probability 0.5."""
    chosen = torch.rand(len(x), device=x.device) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def random_shift(x: Tensor, pixels: int) -> Tensor:
    """Shift each image by up to ``pixels``, less than its height and width, in both directions.

    This equals a random crop of the padded image. The padding reflects the image at its outer
    pixels, so that no edge appears.
    """
    rows, channels, height, width = x.shape
    down, right = torch.randint(-pixels, pixels + 1, (2, rows, 1), device=x.device)
    source_rows = _reflect(torch.arange(height, device=x.device) + down, height)
    source_columns = _reflect(torch.arange(width, device=x.device) + right, width)
    x = x.gather(2, source_rows[:, None, :, None].expand(rows, channels, height, width))
    return x.gather(3, source_columns[:, None, None, :].expand(rows, channels, height, width))


def _reflect(position: Tensor, length: int) -> Tensor:
    """Reflect positions outside 0 … ``length`` - 1 at these limits: -1 becomes 1."""
    last = length - 1
    return last - (last - position.abs()).abs()


def random_erase(x: Tensor, probability: float) -> Tensor:
    """Fill a random rectangle with the mean colour of the image, with ``probability`` per image."""
    rows, _, height, width = x.shape
    draw = torch.rand(5, rows, 1, device=x.device)
    area = (AREA_RANGE[0] + (AREA_RANGE[1] - AREA_RANGE[0]) * draw[0]) * height * width
    # The logarithm is uniform, so that rectangles are tall as often as wide.
    aspect = ASPECT_RANGE[0] * (ASPECT_RANGE[1] / ASPECT_RANGE[0]) ** draw[1]
    inside_rows = _interval((area * aspect).sqrt(), height, draw[2])  # [rows, height]
    inside_columns = _interval((area / aspect).sqrt(), width, draw[3])  # [rows, width]
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    inside &= (draw[4] < probability)[:, :, None]
    mean = x.float().mean(dim=(2, 3), keepdim=True).to(x.dtype)
    return torch.where(inside[:, None], mean, x)


def _interval(size: Tensor, length: int, place: Tensor) -> Tensor:
    """Return which of ``length`` pixels an interval covers: [rows, length] bool.

    ``size`` [rows, 1] is in pixels, and ``place`` [rows, 1] from 0 (first pixel) to 1 (last).
    """
    size = size.round().clamp(1, length)
    start = (place * (length - size + 1)).floor()
    pixel = torch.arange(length, device=size.device)
    return (pixel >= start) & (pixel < start + size)
