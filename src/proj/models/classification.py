"""Classifiers: two classes, several classes, several labels."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    logsigmoid,
)

from proj.errors import UserError
from proj.models.base import Model, Net
from proj.models.checks import check_fraction, check_no_loss, class_counts
from proj.schema import SUM_DTYPE, Average, Schema


class BinaryClassifier(Model):
    """Two classes. The raw output is the logit of the second one, the positive class.

    Args:
        net: net from inputs to raw outputs [rows, 1].
        pos_weight: weight of a positive row in the loss; auto: negatives divided by positives in
            the training split.
        label_smoothing: share by which the targets 0 and 1 are moved towards one half.
        **kwargs: arguments of ``Model``. ``loss`` gets outputs [rows] and targets [rows], floats.
    """

    task = "binary"
    positive_weight: Tensor | None

    def __init__(
        self,
        net: Net,
        pos_weight: float | Literal["auto"] | None = None,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(net, **kwargs)
        self.pos_weight, self.label_smoothing = pos_weight, label_smoothing
        check_no_loss(self.loss, pos_weight=pos_weight, label_smoothing=label_smoothing)

    def configure_loss(self, schema: Schema) -> None:
        check_fraction("model.label_smoothing", self.label_smoothing)
        weight = self.pos_weight
        if weight == "auto":
            negatives, positives = class_counts(schema, "model.pos_weight")
            weight = negatives / positives
        tensor = None if weight is None else torch.tensor(float(weight))
        self.register_buffer("positive_weight", tensor, persistent=False)

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits, targets = outputs[:, 0], targets.to(outputs.dtype)
        if self.loss is not None:
            loss: Tensor = self.loss(logits, targets)
            return loss
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return binary_cross_entropy_with_logits(logits, targets, pos_weight=self.positive_weight)

    def average_members(self, outputs: Tensor) -> Tensor:
        return _mean_logit(outputs)

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Return the probability of the positive class [rows]."""
        return outputs[:, 0].sigmoid()


class MulticlassClassifier(Model):
    """Several classes, one per row. The raw outputs are their logits.

    Args:
        net: net from inputs to raw outputs [rows, classes].
        class_weights: weight of a row of each class in the loss, in class order; auto: the inverse
            of the class' share of the training split.
        label_smoothing: share of the target's probability that is spread over all classes (Szegedy
            et al. 2016, arXiv:1512.00567).
        average: how precision, recall, F1 and the areas of the classes become one number: macro is
            their plain mean, weighted their mean by rows; micro counts the rows of all classes.
        **kwargs: arguments of ``Model``. ``loss`` gets outputs [rows, classes] and class numbers
            [rows].
    """

    task = "multiclass"
    class_weight: Tensor | None

    def __init__(
        self,
        net: Net,
        class_weights: list[float] | Literal["auto"] | None = None,
        label_smoothing: float = 0.0,
        average: Average = "macro",
        **kwargs: Any,
    ) -> None:
        super().__init__(net, **kwargs)
        self.average = average
        self.class_weights, self.label_smoothing = class_weights, label_smoothing
        check_no_loss(self.loss, class_weights=class_weights, label_smoothing=label_smoothing)

    def configure_loss(self, schema: Schema) -> None:
        check_fraction("model.label_smoothing", self.label_smoothing)
        weights = self.class_weights
        if weights == "auto":
            counts = class_counts(schema, "model.class_weights")
            weights = [sum(counts) / (len(counts) * count) for count in counts]
        if weights is not None and len(weights) != len(schema.classes):
            raise UserError(
                f"model.class_weights: expected {len(schema.classes)} weights, one for each of "
                f"{', '.join(schema.class_names)}, got {len(weights)}."
            )
        tensor = None if weights is None else torch.tensor(weights)
        self.register_buffer("class_weight", tensor, persistent=False)

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            loss: Tensor = self.loss(outputs, targets)
            return loss
        weight = None if self.class_weight is None else self.class_weight.to(outputs.dtype)
        return cross_entropy(outputs, targets, weight, label_smoothing=self.label_smoothing)

    def loss_weight(self, targets: Tensor) -> Tensor | float:
        if self.class_weight is None:
            return len(targets)
        return self.class_weight.to(SUM_DTYPE)[targets].sum()

    def average_members(self, outputs: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities, up to a constant."""
        return outputs.log_softmax(2).logsumexp(1)

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class [rows, classes]."""
        return outputs.softmax(1)


class MultilabelClassifier(Model):
    """Several labels, any number of them per row. The raw outputs are their logits.

    Args:
        net: net from inputs to raw outputs [rows, labels].
        pos_weight: weight of a row with a label in that label's loss, in label order; auto: rows
            without it divided by rows with it in the training split.
        average: how precision, recall, F1 and the areas of the labels become one number: macro is
            their plain mean, weighted their mean by rows; micro counts the rows of all labels.
        **kwargs: arguments of ``Model``. ``loss`` gets outputs and targets, floats [rows, labels].
    """

    task = "multilabel"
    positive_weight: Tensor | None

    def __init__(
        self,
        net: Net,
        pos_weight: list[float] | Literal["auto"] | None = None,
        average: Average = "macro",
        **kwargs: Any,
    ) -> None:
        super().__init__(net, **kwargs)
        self.average = average
        self.pos_weight = pos_weight
        check_no_loss(self.loss, pos_weight=pos_weight)

    def configure_loss(self, schema: Schema) -> None:
        weights = self.pos_weight
        if weights == "auto":
            counts = class_counts(schema, "model.pos_weight")
            weights = [(schema.rows - count) / count for count in counts]
        if weights is not None and len(weights) != schema.num_outputs:
            raise UserError(
                f"model.pos_weight: expected {schema.num_outputs} weights, one for each of "
                f"{', '.join(schema.target_names)}, got {len(weights)}."
            )
        tensor = None if weights is None else torch.tensor(weights)
        self.register_buffer("positive_weight", tensor, persistent=False)

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        targets = targets.to(outputs.dtype)
        if self.loss is not None:
            loss: Tensor = self.loss(outputs, targets)
            return loss
        return binary_cross_entropy_with_logits(outputs, targets, pos_weight=self.positive_weight)

    def average_members(self, outputs: Tensor) -> Tensor:
        return _mean_logit(outputs)

    def predict_proba(self, outputs: Tensor) -> Tensor:
        """Return the probability of each label [rows, labels]."""
        return outputs.sigmoid()


def _mean_logit(outputs: Tensor) -> Tensor:
    """Return the logits of the members' mean probabilities.

    Shapes: [rows, members, outputs] to [rows, outputs].
    """
    return logsigmoid(outputs).logsumexp(1) - logsigmoid(-outputs).logsumexp(1)
