"""Several labels, any number of them a row."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from proj.errors import UserError
from proj.models.base import Model, Net, mean_logit
from proj.models.fitting import class_counts
from proj.schema import Schema


class MultilabelClassifier(Model):
    """Several labels, any number of them a row; the raw outputs are their logits.

    Args:
        net: inputs to raw outputs [rows, labels], by class path.
        pos_weight: how much a row that carries a label counts in that label's loss, in label order; ``auto``: rows
            without it by rows with it in the training part.
    """

    task = "multilabel"
    positive: Tensor | None

    def __init__(self, net: Net, pos_weight: list[float] | Literal["auto"] | None = None, **kwargs: Any) -> None:
        super().__init__(net, **kwargs)
        self.pos_weight = pos_weight

    def prepare(self, schema: Schema) -> None:
        weights = self.pos_weight
        if weights == "auto":
            counts = class_counts(schema, "model.pos_weight")
            weights = [(schema.rows - count) / count for count in counts]
        if weights is not None and len(weights) != schema.outputs:
            raise UserError(f"model.pos_weight: expected {schema.outputs} weights, one for each of "
                            f"{', '.join(schema.target_names)}, got {len(weights)}.")  # fmt: skip
        self.register_buffer("positive", None if weights is None else torch.tensor(weights), persistent=False)

    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, float]:
        return binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype), pos_weight=self.positive), len(y)

    def average(self, outputs: Tensor) -> Tensor:
        return mean_logit(outputs)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probability of each label: [rows, labels]."""
        return outputs.sigmoid()
