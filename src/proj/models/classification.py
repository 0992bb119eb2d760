"""Two classes."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from proj.errors import UserError
from proj.models.base import Model, Net, mean_logit
from proj.models.checks import check_share, class_counts
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
        self,
        net: Net,
        pos_weight: float | Literal["auto"] | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(net, **kwargs)
        self.pos_weight, self.label_smoothing = pos_weight, label_smoothing

    def prepare(self, schema: Schema) -> None:
        check_share("model.label_smoothing", self.label_smoothing)
        weight = self.pos_weight
        if weight == "auto":
            negatives, positives = class_counts(schema, "model.pos_weight")
            weight = negatives / positives
        self.register_buffer(
            "positive", None if weight is None else torch.tensor(float(weight)), persistent=False
        )

    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, float]:
        target = y.to(outputs.dtype)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return binary_cross_entropy_with_logits(
            outputs[:, 0], target, pos_weight=self.positive
        ), len(y)

    def average_members(self, outputs: Tensor) -> Tensor:
        return mean_logit(outputs)

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Probability of the positive class: [rows]."""
        return outputs[:, 0].sigmoid()


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
            raise UserError(
                f"model.class_weights: expected {len(schema.classes)} weights, one for each of "
                f"{', '.join(schema.class_names)}, got {len(weights)}."
            )
        self.register_buffer(
            "class_weight", None if weights is None else torch.tensor(weights), persistent=False
        )

    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor | float]:
        weight = None if self.class_weight is None else self.class_weight.to(outputs.dtype)
        loss = cross_entropy(outputs, y, weight, label_smoothing=self.label_smoothing)
        return loss, len(y) if weight is None else weight[y].sum()

    def average_members(self, outputs: Tensor) -> Tensor:
        """Logarithms of the mean probabilities, up to a constant."""
        return outputs.log_softmax(2).logsumexp(1)

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Probability of each class: [rows, classes]."""
        return outputs.softmax(1)


class MultilabelClassifier(Model):
    """Several labels, any number of them a row; the raw outputs are their logits.

    Args:
        net: inputs to raw outputs [rows, labels], by class path.
        pos_weight: how much a row that carries a label counts in that label's loss, in label order; ``auto``: rows
            without it by rows with it in the training part.
    """

    task = "multilabel"
    positive: Tensor | None

    def __init__(
        self, net: Net, pos_weight: list[float] | Literal["auto"] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(net, **kwargs)
        self.pos_weight = pos_weight

    def prepare(self, schema: Schema) -> None:
        weights = self.pos_weight
        if weights == "auto":
            counts = class_counts(schema, "model.pos_weight")
            weights = [(schema.rows - count) / count for count in counts]
        if weights is not None and len(weights) != schema.num_outputs:
            raise UserError(
                f"model.pos_weight: expected {schema.num_outputs} weights, one for each of "
                f"{', '.join(schema.target_names)}, got {len(weights)}."
            )
        self.register_buffer(
            "positive", None if weights is None else torch.tensor(weights), persistent=False
        )

    def losses(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, float]:
        return binary_cross_entropy_with_logits(
            outputs, y.to(outputs.dtype), pos_weight=self.positive
        ), len(y)

    def average_members(self, outputs: Tensor) -> Tensor:
        return mean_logit(outputs)

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Probability of each label: [rows, labels]."""
        return outputs.sigmoid()
