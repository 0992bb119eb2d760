"""Regression of one or several numbers."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from proj.models.base import Model, Net
from proj.schema import SUM_DTYPE, Schema


class Regressor(Model):
    """One or several numbers. The raw outputs are the standardized targets, or the targets.

    Args:
        net: net from inputs to raw outputs [rows, targets].
        loss: module of raw outputs and targets, both [rows, targets]: ``MSELoss`` if null,
            ``L1Loss``, ``HuberLoss``, or your own.
        standardize_target: train on targets of mean 0 and standard deviation 1, by the statistics
            of the training split, so that loss and learning rate do not depend on their unit.
            Metrics are in the target's unit either way.
        clip: predict no number beyond a limit of the targets: a smallest or largest target that
            many training rows have, such as 0.
        **kwargs: arguments of ``Model``.
    """

    task = "regression"
    target_mean: Tensor
    target_std: Tensor
    target_limits: Tensor | None  # [2, targets], the lowest and the highest number

    def __init__(
        self,
        net: Net,
        loss: nn.Module | None = None,
        standardize_target: bool = True,
        clip: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(net, loss=loss or nn.MSELoss(), **kwargs)
        self.standardize_target, self.clip = standardize_target, clip

    def configure_loss(self, schema: Schema) -> None:
        if self.standardize_target and not schema.rows:
            rank_zero_warn(
                "model.standardize_target has no effect: the schema of the data has no statistics."
            )
        count = schema.num_outputs
        mean = schema.target_mean if self.standardize_target else (0.0,) * count
        std = schema.target_std if self.standardize_target else (1.0,) * count
        self.register_buffer("target_mean", torch.tensor(mean, dtype=SUM_DTYPE))
        self.register_buffer("target_std", torch.tensor(std, dtype=SUM_DTYPE))
        limits = torch.tensor([schema.target_low, schema.target_high], dtype=SUM_DTYPE)
        is_clipped = self.clip and limits.numel() > 0
        self.register_buffer("target_limits", limits if is_clipped else None, persistent=False)

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self.loss is not None
        standardized = ((targets - self.target_mean) / self.target_std).to(outputs.dtype)
        loss: Tensor = self.loss(outputs, standardized)
        return loss

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Return numbers in the target's own unit [rows, targets]."""
        numbers = outputs * self.target_std + self.target_mean
        return numbers if self.target_limits is None else numbers.clamp(*self.target_limits)
