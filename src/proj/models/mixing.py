"""Training on mixtures of two images of a batch: mixup and CutMix."""

import math
from typing import Any

import torch
from torch import Tensor

from proj.errors import UserError
from proj.schema import Schema


def check_mixing(mixup: float, cutmix: float, schema: Schema) -> None:
    """Raise UserError unless rows of this schema can be mixed."""
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        # Below a hundredth, the gamma numbers of which a share is made are too small for floats.
        if not (alpha == 0 or 0.01 <= alpha < math.inf):
            raise UserError(
                f"model.{name}: expected 0, which is off, or a number from 0.01 up, got {alpha}."
            )
        if alpha and len(schema.input_shape) != 3:
            raise UserError(
                f"model.{name}: expected images [channels, height, width], got other inputs; leave "
                "it out."
            )


def mix_images(x: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix each training image with the one before it in the batch.

    With mixup (Zhang et al. 2018, arXiv:1710.09412) a mixture is the weighted mean of both images.
    With CutMix (Yun et al. 2019, arXiv:1905.04899) a random rectangle is that of the other image.
    The share is drawn from Beta(alpha, alpha), one for the whole batch. With both options, each
    batch gets one of them, with equal probability.

    Args:
        x: images [rows, channels, height, width], floats.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off.

    Returns:
        The mixtures, and the share of each image in its own mixture, a number on the device.
    """
    # Tensors throughout, so that a step can be compiled. The generator is the CPU's, because some
    # devices have no gamma numbers in float64, which small alphas need.
    draw = torch.rand(3)
    use_cutmix = draw[0] < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = torch.where(use_cutmix, float(cutmix), float(mixup)).double().expand(2)
    gamma = torch.distributions.Gamma(alpha, torch.ones_like(alpha), validate_args=False).sample()
    share, use_cutmix = (gamma[0] / gamma.sum()).float().to(x.device), use_cutmix.to(x.device)
    if cutmix:
        outside = ~_rectangle(x.shape[2:], 1 - share, draw[1:].to(x.device))
        share = torch.where(use_cutmix, outside.float(), share)
    own = share.to(x.dtype)
    return own * x + (1 - own) * x.roll(1, 0), share.mean()


def _rectangle(sizes: Any, area: Tensor, place: Tensor) -> Tensor:
    """Return which pixels [height, width] a rectangle with the sides' ratio of the image covers.

    ``area`` is its share of the image, and ``place`` [2] from 0 (first pixel) to 1 (last).
    """
    inside = torch.ones((), dtype=torch.bool, device=area.device)
    for size, start in zip(sizes, place, strict=True):
        length = (size * area.sqrt()).round()
        first = (start * (size - length + 1)).floor()
        pixel = torch.arange(size, device=area.device)
        inside = inside[..., None] & (pixel >= first) & (pixel < first + length)
    return inside
