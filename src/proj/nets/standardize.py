"""Input statistics of the training split, kept in the net."""

import torch
from torch import Tensor, nn

from proj.schema import Schema


class Standardize(nn.Module):
    """Inputs of mean 0 and standard deviation 1 a feature (a channel for images), by the schema's statistics.

    The statistics are buffers: they travel in the checkpoint and go out with an export.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        shape = (-1, *[1] * (len(schema.input_shape) - 1))
        self.register_buffer("mean", torch.tensor(schema.input_mean).view(shape))
        self.register_buffer("std", torch.tensor(schema.input_std).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
