"""Random changes to training pictures, made to whole batches on their device: another draw for each row."""

import torch
from torch import Tensor

AREA = 0.02, 0.33  # of an erased rectangle, as a share of the picture
ASPECT = 0.3, 3.3  # its height over its width


def augment(x: Tensor, flip: bool, crop: int, erase: float) -> Tensor:
    """``x`` [rows, channels, height, width], uint8 or float, changed as asked for; draws from its device's generator.

    The usual three of small pictures: mirrored and shifted (He et al. 2016, arXiv:1512.03385, section 4.2), erased
    (Zhong et al. 2020, arXiv:1708.04896).
    """
    x = random_hflip(x) if flip else x
    x = random_shift(x, crop) if crop else x
    return random_erase(x, erase) if erase else x


def random_hflip(x: Tensor) -> Tensor:
    """Left and right changed, in every second row by chance."""
    chosen = torch.rand(len(x), device=x.device) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def random_shift(x: Tensor, pixels: int) -> Tensor:
    """A crop of the picture's own size out of the picture padded by ``pixels`` on each side, which is a shift.

    The padding mirrors the picture at its outer pixels, so that no edge appears where there was none. ``pixels`` is
    below height and width.
    """
    rows, channels, height, width = x.shape
    down, right = torch.randint(-pixels, pixels + 1, (2, rows, 1), device=x.device)
    h = _reflected(torch.arange(height, device=x.device) + down, height)  # [rows, height]
    w = _reflected(torch.arange(width, device=x.device) + right, width)  # [rows, width]
    x = x.gather(2, h[:, None, :, None].expand(rows, channels, height, width))
    return x.gather(3, w[:, None, None, :].expand(rows, channels, height, width))


def _reflected(place: Tensor, length: int) -> Tensor:
    """Places outside 0 … ``length`` - 1, mirrored at these two: -1 is 1."""
    last = length - 1
    return last - (last - place.abs()).abs()


def random_erase(x: Tensor, probability: float) -> Tensor:
    """A rectangle of random size and place takes the picture's mean colour, in a share ``probability`` of the rows."""
    rows, _, height, width = x.shape
    draw = torch.rand(5, rows, 1, device=x.device)
    area = (AREA[0] + (AREA[1] - AREA[0]) * draw[0]) * height * width
    aspect = (
        ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** draw[1]
    )  # uniform in its logarithm: as often tall as wide
    inside_h = _span((area * aspect).sqrt(), height, draw[2])  # [rows, height]
    inside_w = _span((area / aspect).sqrt(), width, draw[3])  # [rows, width]
    inside = inside_h[:, :, None] & inside_w[:, None, :] & (draw[4] < probability)[:, :, None]
    mean = x.float().mean(dim=(2, 3), keepdim=True).to(x.dtype)
    return torch.where(inside[:, None], mean, x)


def _span(size: Tensor, length: int, place: Tensor) -> Tensor:
    """Which of ``length`` pixels a stretch of ``size`` [rows, 1] covers that lies at ``place`` (0 to 1): [rows, length]."""
    size = size.round().clamp(1, length)
    start = (place * (length - size + 1)).floor()
    pixel = torch.arange(length, device=size.device)
    return (pixel >= start) & (pixel < start + size)
