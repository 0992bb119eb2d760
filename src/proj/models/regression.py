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
        **kwargs: arguments of ``Model``.
    """

    task = "regression"
    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        net: Net,
        loss: nn.Module | None = None,
        standardize_target: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(net, loss=loss or nn.MSELoss(), **kwargs)
        self.standardize_target = standardize_target

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

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self.loss is not None
        standardized = ((targets - self.target_mean) / self.target_std).to(outputs.dtype)
        loss: Tensor = self.loss(outputs, standardized)
        return loss

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Return numbers in the target's own unit [rows, targets]."""
        return outputs * self.target_std + self.target_mean
