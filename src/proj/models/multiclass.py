"""Several classes, one a row."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from proj.errors import UserError
from proj.models.base import Model, Net
from proj.models.fitting import check_share, class_counts
from proj.schema import Schema


class MulticlassClassifier(Model):
    """Several classes, one a row; the raw outputs are their logits.

    Args:
        net: inputs to raw outputs [rows, classes], by class path.
        class_weights: how much a row of each class counts in the loss, in class order; ``auto``: the inverse of its share
            in the training part.
        label_smoothing: share of the target's probability that is spread over all classes (Szegedy et al. 2016,
            arXiv:1512.00567).
    """

    task = "multiclass"
    class_weight: Tensor | None

    def __init__(
        self,
        net: Net,
        class_weights: list[float] | Literal["auto"] | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(net, **kwargs)
        self.class_weights, self.label_smoothing = class_weights, label_smoothing

    def prepare(self, schema: Schema) -> None:
        check_share("model.label_smoothing", self.label_smoothing)
        weights = self.class_weights
        if weights == "auto":
            counts = class_counts(schema, "model.class_weights")
            weights = [sum(counts) / (len(counts) * count) for count in counts]
        if weights is not None and len(weights) != len(schema.classes):
            raise UserError(f"model.class_weights: expected {len(schema.classes)} weights, one for each of "
                            f"{', '.join(schema.class_names)}, got {len(weights)}.")  # fmt: skip
        self.register_buffer("class_weight", None if weights is None else torch.tensor(weights), persistent=False)

    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor | float]:
        weight = None if self.class_weight is None else self.class_weight.to(outputs.dtype)
        loss = cross_entropy(outputs, y, weight, label_smoothing=self.label_smoothing)
        return loss, len(y) if weight is None else weight[y].sum()

    def average(self, outputs: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, up to a constant."""
        return outputs.log_softmax(2).logsumexp(1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probability of each class: [rows, classes]."""
        return outputs.softmax(1)
