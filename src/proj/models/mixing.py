"""Training on mixtures of two images of a batch: mixup and CutMix."""

import math
from typing import Any

import torch

from proj.errors import UserError
from proj.schema import Schema


def check_mixing(mixup: float, cutmix: float, schema: Schema) -> None:
    """Raise UserError unless rows of this schema can be mixed."""
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if not 0 <= alpha < math.inf:
            raise UserError(f"model.{name}: expected a number from 0 up, got {alpha}; 0 is off.")
        if alpha and len(schema.input_shape) != 3:
            raise UserError(
                f"model.{name}: expected images [channels, height, width], got other inputs; leave "
                "it out."
            )
        if alpha and schema.weight_mean:
            raise UserError(
                f"model.{name}: expected 0 beside data.weight, got {alpha}; leave one of them out."
            )


def mix_images(model: Any, x: Any) -> tuple[Any, float]:
    """Mix each training image with the one before it in the batch.

    With mixup (Zhang et al. 2018, arXiv:1710.09412) a mixture is the weighted mean of both images.
    With CutMix (Yun et al. 2019, arXiv:1905.04899) a random rectangle is that of the other image.
    The share is drawn from Beta(alpha, alpha), one for the whole batch. With both options, each
    batch gets one of them, with equal probability.

    Args:
        model: a model with the options ``mixup`` and ``cutmix``, their alphas; 0 is off.
        x: images [rows, channels, height, width], uint8 or floats.

    Returns:
        The mixtures, and the share of each image in its own mixture; ``x`` itself and 1 without
        the options.
    """
    if not model.mixup and not model.cutmix:
        return x, 1.0
    # Numbers of the CPU's generator: those of a GPU would have to be waited for.
    use_cutmix = model.cutmix and (not model.mixup or torch.rand(()) < 0.5)
    alpha = torch.tensor(float(model.cutmix if use_cutmix else model.mixup))
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = x.roll(1, 0)
    if not use_cutmix:
        if not x.is_floating_point():
            x, other = (values.to(model.dtype) / 255 for values in (x, other))
        return torch.lerp(other, x, share), share
    height, width = x.shape[2:]
    rows, columns = (round(size * math.sqrt(1 - share)) for size in (height, width))
    top, left = (int(torch.randint(n, ())) for n in (height - rows + 1, width - columns + 1))
    x, box = x.clone(), (..., slice(top, top + rows), slice(left, left + columns))
    x[box] = other[box]
    return x, 1 - rows * columns / (height * width)
