"""A small residual net for images of 8×8 to 64×64 pixels."""

import torch
from torch import Tensor, nn

from proj.errors import UserError
from proj.nets.layers import Dropout, Standardize
from proj.schema import Schema

# Images at least this high and wide are pooled after the first convolution, whose cost per pixel is
# the largest.
POOL_FROM = 24


class CNN(nn.Module):
    """A residual net with pre-activation blocks (He et al. 2016, arXiv:1603.05027).

    After a first convolution, and a pooling that halves images of 24 pixels and more, each stage
    has ``blocks`` blocks. Each stage but the first halves the image and doubles the width. The last
    features are averaged over height and width.

    Args:
        schema: schema of the data; inputs are [channels, height, width].
        width: channels of the first stage.
        stages: number of stages; null halves down to 4 pixels with at most 4 stages.
        blocks: residual blocks per stage.
        dropout: share of the last features that are set to zero in each training step.
        mirror: evaluate each image and its mirror image, and average both predictions. It suits
            training with mirrored images (``data.flip``).
    """

    def __init__(
        self,
        schema: Schema,
        width: int = 32,
        stages: int | None = None,
        blocks: int = 1,
        dropout: float = 0.0,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.mirror = mirror
        if len(schema.input_shape) != 3:
            raise UserError(
                "net CNN: expected images [channels, height, width], got rows of shape "
                f"{schema.input_shape}; use the net MLP for them."
            )
        channels, *sides = schema.input_shape
        side = min(sides)
        pool = [nn.MaxPool2d(2)] if side >= POOL_FROM else []
        stages = _number_of_stages(side // 2 if pool else side) if stages is None else stages
        first = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers: list[nn.Module] = [Standardize(schema), first, *pool]
        for stage in range(stages):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(ResidualBlock(width, stride * width, stride))
                width *= stride
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        layers += [Dropout(dropout), nn.Linear(width, schema.num_outputs)]
        self.layers = nn.Sequential(*layers)
        # On CPUs, this memory format is up to 1.7 times faster.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Return raw outputs for ``x`` [rows, channels, height, width].

        The shape is [rows, outputs], or [rows, 2, outputs] for images and their mirror images.
        """
        if not self.mirror or self.training:
            outputs: Tensor = self.layers(x)
            return outputs
        pairs: Tensor = self.layers(torch.cat([x, x.flip(3)]))
        return pairs.view(2, len(x), -1).transpose(0, 1)


def _number_of_stages(side: int) -> int:
    """Return the stages that halve ``side`` pixels down to about 4: 8 -> 2, 16 -> 3, 32 -> 4."""
    return min(4, 1 + max(0, (side - 1).bit_length() - 2))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut.

    Shapes: [rows, inputs, height, width] to [rows, outputs, height / stride, width / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        identity = isinstance(self.shortcut, nn.Identity)
        shortcut: Tensor = x if identity else self.shortcut(activated)
        residual: Tensor = self.residual(activated)
        return residual + shortcut


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    # Pooling before a convolution without stride loses no pixels (ResNet-D, He et al. 2019,
    # arXiv:1812.01187). Besides, a 1×1 convolution with a stride and few channels writes past its
    # memory in channels_last on CPUs: https://github.com/uxlfoundation/oneDNN/issues/6035
    pool: nn.Module = nn.Identity()
    if stride > 1:
        pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1, bias=False))
