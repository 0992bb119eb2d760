"""A small residual net for pictures of 8×8 to 64×64."""

import torch
from torch import Tensor, nn

from proj.errors import UserError
from proj.nets.layers import Dropout, Standardize
from proj.schema import Schema


class CNN(nn.Module):
    """A residual net with pre-activation blocks (He et al. 2016, arXiv:1603.05027).

    After a first convolution, and a pooling that halves pictures of 24 pixels and more, each stage has ``blocks`` blocks;
    each stage but the first halves the picture and doubles the width. Pictures end as a mean over what is left of height
    and width.

    With ``mirror``, evaluation looks at each picture and at its mirror image and takes the mean prediction of both. That
    suits training with mirrored pictures (``data.flip``), and is worth more than it costs.

    Args:
        schema: what is known of the data; its inputs are [channels, height, width].
        width: channels of the first stage.
        stages: number of stages; null means halving down to 4 pixels, with at most 4 stages.
        blocks: residual blocks a stage.
        dropout: share of the last features switched off at each training step.
        mirror: evaluate by the mean prediction for a picture and its mirror image.
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
                f"net CNN: expected pictures [channels, height, width], got rows of shape "
                f"{schema.input_shape}; use the net MLP for them."
            )
        channels, *sides = schema.input_shape
        pool = (
            [nn.MaxPool2d(2)] if min(sides) >= 24 else []
        )  # there it costs most to look at every pixel
        side = min(sides) // 2 if pool else min(sides)
        halvings = max(0, (side - 1).bit_length() - 2)  # 8 -> 1, 14 -> 2, 16 -> 2, 32 -> 3
        stages = min(4, 1 + halvings) if stages is None else stages
        layers: list[nn.Module] = [
            Standardize(schema),
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            *pool,
        ]
        for stage in range(stages):
            for block in range(blocks):
                halve = stage > 0 and block == 0
                layers.append(Block(width, 2 * width if halve else width, stride=2 if halve else 1))
                width = 2 * width if halve else width
        layers += [
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            Dropout(dropout),
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(width, schema.num_outputs))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster, on CPUs up to 1.7 times

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [rows, channels, height, width] to raw outputs [rows, outputs], or [rows, 2, outputs] of a mirrored pair."""
        if not self.mirror or self.training:
            outputs: Tensor = self.layers(x)
            return outputs
        both: Tensor = self.layers(torch.cat([x, x.flip(3)]))
        return both.view(2, len(x), -1).transpose(0, 1)


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut: [rows, inputs, h, w] to [rows, outputs, h/stride, w/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        same = inputs == outputs and stride == 1
        # The mean first, then a convolution without a stride: nothing is thrown away (He et al. 2019, arXiv:1812.01187,
        # ResNet-D), and a 1×1 convolution with a stride writes past its memory in channels_last on CPUs, if it has few
        # channels: https://github.com/uxlfoundation/oneDNN/issues/6035
        mean = (
            nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            if stride > 1
            else nn.Identity()
        )
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(mean, nn.Conv2d(inputs, outputs, 1, bias=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        shortcut: Tensor = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(activated)
        residual: Tensor = self.residual(activated)
        return residual + shortcut
