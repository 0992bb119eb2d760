"""Two classes."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from proj.models.base import Model, Net, mean_logit
from proj.models.fitting import check_share, class_counts
from proj.schema import Schema


class BinaryClassifier(Model):
    """Two classes; the raw output is the logit of the second one, the positive.

    Args:
        net: inputs to raw outputs [rows, 1], by class path.
        pos_weight: how much a positive row counts in the loss; ``auto``: negatives by positives in the training part.
        label_smoothing: share by which the targets 0 and 1 are drawn towards one half.
    """

    task = "binary"
    positive: Tensor | None

    def __init__(
        self, net: Net, pos_weight: float | Literal["auto"] | None = None, label_smoothing: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(net, **kwargs)
        self.pos_weight, self.label_smoothing = pos_weight, label_smoothing

    def prepare(self, schema: Schema) -> None:
        check_share("model.label_smoothing", self.label_smoothing)
        weight = self.pos_weight
        if weight == "auto":
            negatives, positives = class_counts(schema, "model.pos_weight")
            weight = negatives / positives
        self.register_buffer("positive", None if weight is None else torch.tensor(float(weight)), persistent=False)

    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, float]:
        target = y.to(outputs.dtype)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return binary_cross_entropy_with_logits(outputs[:, 0], target, pos_weight=self.positive), len(y)

    def average(self, outputs: Tensor) -> Tensor:
        return mean_logit(outputs)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probability of the positive class: [rows]."""
        return outputs[:, 0].sigmoid()
