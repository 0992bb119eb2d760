"""Dropout that draws faster than torch's own."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout by 16 random bits a unit. torch's own, on a CPU, draws so slowly that it takes a third of a TabM's step.

    In a compiled step this one is to be preferred, too: torch 2.13's Inductor may use the mask of torch's own before it is
    drawn.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1):
            return super().forward(x)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * (kept.to(x.dtype) / (1 - self.p))
