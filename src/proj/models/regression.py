"""One or several numbers."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from proj.models.base import Model, Net
from proj.schema import Schema


class Regressor(Model):
    """One or several numbers; the raw outputs are the standardised targets, or the targets themselves.

    Args:
        net: inputs to raw outputs [rows, targets], by class path.
        loss: of raw outputs and targets, by class path: ``MSELoss`` if null, ``L1Loss``, ``HuberLoss``, or your own.
        standardize_target: train on targets of mean 0 and standard deviation 1 (by the training part's statistics), so
            that the loss and the learning rate do not depend on their unit. Metrics are in the target's unit either way.
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
        super().__init__(net, **kwargs)
        self.loss, self.standardize_target = loss or nn.MSELoss(), standardize_target

    def prepare(self, schema: Schema) -> None:
        if self.standardize_target and not schema.rows:
            rank_zero_warn(
                "model.standardize_target has no effect: the data module has no schema to tell the statistics."
            )
        on = self.standardize_target
        targets = schema.num_outputs
        self.register_buffer(
            "target_mean", torch.tensor(schema.target_mean if on else (0.0,) * targets)
        )
        self.register_buffer(
            "target_std", torch.tensor(schema.target_std if on else (1.0,) * targets)
        )

    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, float]:
        loss: Tensor = self.loss(
            outputs, ((y - self.target_mean) / self.target_std).to(outputs.dtype)
        )
        return loss, len(y)

    def average_members(self, outputs: Tensor) -> Tensor:
        return outputs.mean(1)

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Numbers in the target's own units: [rows, targets]."""
        return outputs * self.target_std + self.target_mean
