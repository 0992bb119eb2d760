"""The metrics of each task over a split, with exact ones where torchmetrics' are not exact.

Our own metrics are computed in float64, over all rows at once, and are NaN where they are not
defined.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics import Metric, MetricCollection, classification
from torchmetrics.utilities import dim_zero_cat

from proj.errors import UserError
from proj.schema import DEFAULT_THRESHOLD, SUM_DTYPE, Average, Schema, empty_pages


class StageMetrics(nn.Module):
    """All metrics of one split and its mean loss, updated batch by batch, computed once per epoch.

    The training split has no ranking metrics (AUROC, average precision): they would keep the scores
    of the whole epoch.

    Args:
        schema: schema of the data.
        split: train, val or test.
        extra: metrics of the user's own by name. They get what ``Model.predict_proba`` returns.
        average: how the values of several classes or labels become one.
    """

    def __init__(
        self,
        schema: Schema,
        split: str,
        extra: Mapping[str, Metric] | None = None,
        average: Average = "macro",
    ) -> None:
        super().__init__()
        self.names = schema.class_names or schema.target_names
        self.applies_threshold = schema.task in ("binary", "multilabel")
        self.loss = MeanLoss()
        ranked = schema.task != "regression" and split != "train"
        self.ranking = RankingMetrics(schema.num_outputs, average) if ranked else None
        self.counted = MetricCollection(_counted_metrics(schema, average))
        if extra and schema.weight_mean:
            raise UserError(
                f"model.metrics: expected none beside data.weight, got {', '.join(extra)}; metrics "
                "of torchmetrics take no weights of rows, so leave one of the two out."
            )
        self.extra = nn.ModuleDict(deepcopy(dict(extra or {})))

    def update(
        self,
        preds: Tensor,
        target: Tensor,
        losses: Tensor,
        weights: Tensor,
        thresholds: tuple[float, ...] = DEFAULT_THRESHOLD,
        row_weights: Tensor | None = None,
    ) -> None:
        """Add batches.

        Args:
            preds: what ``Model.predict_proba`` returns for all their rows.
            target: targets of all their rows, and ``row_weights`` their weights.
            losses: mean loss of each batch [batches].
            weights: weight of each mean loss [batches], or its factor and its divisor [batches, 2].
            thresholds: probability above which a row is of the positive class, or has a label: one
                value or one for each label.
        """
        # An empty shard too: all processes gather their scores together at the end.
        if self.ranking is not None:
            self.ranking.update(preds, target, row_weights)
        if len(target):
            for metric in self._extra_metrics():
                metric.update(preds, target)
            # torchmetrics takes one threshold for all labels, so it is applied here.
            if self.applies_threshold:
                limits = preds.new_tensor(thresholds) if len(thresholds) > 1 else thresholds[0]
                preds = (preds > limits).long()
            self.counted.update(preds, target, weight=row_weights)
            self.loss.update(losses, weights)

    def state(self) -> dict[str, Any]:
        """Return what has been counted so far, as tensors and lists of tensors."""
        return {
            f"{i}.{name}": value
            for i, metric in enumerate(self._stateful_metrics())
            for name, value in metric.metric_state.items()
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for i, metric in enumerate(self._stateful_metrics()):
            for name in metric.metric_state:
                setattr(metric, name, move_data_to_device(state[f"{i}.{name}"], metric.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all processes, then reset them.

        Metrics of single classes are named ``f1/CLASS``.
        """
        values = {"loss": self.loss.compute(), **self.counted.compute()}
        if self.ranking is not None:
            values |= self.ranking.compute()
            self.ranking.reset()
        for name, metric in zip(self.extra, self._extra_metrics(), strict=True):
            values[name] = _checked(f"metrics.{name}", metric.compute(), len(self.names))
            metric.reset()
        self.loss.reset()
        self.counted.reset()
        return _by_class(values, self.names)

    def _extra_metrics(self) -> list[Metric]:
        return cast(list[Metric], list(self.extra.values()))

    def _stateful_metrics(self) -> list[Metric]:
        assert self.ranking is None, "the scores of ranking metrics are not saved"
        counted = cast(list[Metric], list(self.counted.values(copy_state=False)))
        return [self.loss, *counted, *self._extra_metrics()]


def _counted_metrics(schema: Schema, average: Average) -> dict[str, Any]:
    """Return the metrics that need no scores; those named with ``/`` have a value per class."""
    if schema.task == "regression":
        return {"errors": RegressionErrors(schema.target_mean)}
    if schema.weight_mean:
        return {"counts": WeightedCounts(schema, average)}
    prefix = schema.task.capitalize()
    kinds = {
        name: getattr(classification, f"{prefix}{kind}")
        for name, kind in (("precision", "Precision"), ("recall", "Recall"), ("f1", "F1Score"))
    }
    if schema.task == "binary":
        kinds = {"accuracy": classification.BinaryAccuracy, **kinds}
        return {name: kind(validate_args=False) for name, kind in kinds.items()}
    count = len(schema.class_names)
    accuracy: Any = classification.MultilabelExactMatch(count, validate_args=False)
    if schema.task == "multiclass":
        accuracy = classification.MulticlassAccuracy(count, average="micro", validate_args=False)
    metrics = {"accuracy": accuracy}
    for end, kind_of_mean in (("", average), ("/", "none")):
        for name, kind in kinds.items():
            metrics[f"{name}{end}"] = kind(count, average=kind_of_mean, validate_args=False)
    return metrics


def _checked(option: str, value: Any, classes: int) -> Tensor:
    if not isinstance(value, Tensor) or value.shape not in ((), (classes,)):
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(
            f"model.{option}: expected a metric that gives one number, or one for each class, got "
            f"{got}; choose another metric or average."
        )
    return value


def _by_class(values: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Name the values of single classes or targets.

    ``{"f1/": [2]}`` becomes ``f1/cat`` and ``f1/dog``; ``{"mse": [2]}`` becomes the mean ``mse``
    beside ``mse/a`` and ``mse/b``.
    """
    flat: dict[str, Tensor] = {}
    for key, value in values.items():
        if value.ndim == 0:
            flat[key] = value
            continue
        if not key.endswith("/"):
            flat[key] = value.mean()
        if len(names) > 1:
            kind = key.removesuffix("/")
            flat |= {f"{kind}/{name}": v for name, v in zip(names, value, strict=True)}
    return flat


class RankingMetrics(Metric):
    """Area under the ROC curve and average precision over all rows, each class against the rest.

    A class without both positive and negative rows has the value NaN; the mean is over the other
    classes and NaN if there are none.

    Args:
        columns: classes or labels; 1 for the positive class alone.
        average: ``macro`` is the plain mean over the classes, ``weighted`` the mean by their
            positive rows, ``micro`` the value over all pairs of a row and a class.
    """

    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]
    weights: list[Tensor]

    def __init__(self, columns: int, average: Average = "macro") -> None:
        super().__init__()
        self.columns, self.average = columns, average
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")
        self.add_state("weights", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add rows.

        Args:
            preds: probabilities [rows] or [rows, columns].
            target: class numbers [rows] or labels [rows, columns]; ``weight`` [rows] for each.
        """
        is_label = target.ndim > 1 or self.columns == 1
        # They are kept until the end of the split, so the targets take as little as possible.
        dtype = torch.uint8 if is_label or self.columns < 256 else torch.int32
        self.targets.append((target == 1 if is_label else target).to(dtype))
        # In the heap they would lie between freed outputs of layers, and keep them in pieces.
        if preds.device.type == "cpu" and preds.nbytes >= 2**18:
            preds = empty_pages(preds.numel(), preds.dtype).view_as(preds).copy_(preds)
        self.scores.append(preds)
        self.weights += [] if weight is None else [weight]

    def compute(self) -> dict[str, Tensor]:
        scores: Any = self.scores  # A list, or a tensor of all processes.
        parts = [scores] if isinstance(scores, Tensor) else scores
        target = dim_zero_cat(self.targets)
        weight = dim_zero_cat(self.weights) if len(self.weights) else None

        def column(i: int) -> tuple[Tensor, Tensor]:
            is_label = target.ndim > 1 or self.columns == 1
            positive = target.view(-1, self.columns)[:, i] == 1 if is_label else target == i
            return torch.cat([part.view(-1, self.columns)[:, i] for part in parts]), positive

        classes, names = range(self.columns), ("auroc", "average_precision")
        per_class = torch.stack([ranking_areas(*column(i), weight) for i in classes])
        if self.average == "micro":
            repeated = None if weight is None else weight.repeat(self.columns)
            score, positive = map(torch.cat, zip(*map(column, classes), strict=True))
            means = ranking_areas(score, positive, repeated)
        elif self.average == "weighted":
            each = 1 if weight is None else weight
            rows = torch.stack([(column(i)[1] * each).sum() for i in classes])
            rows = rows * per_class[:, 0].isfinite()
            means = (per_class.nan_to_num() * rows[:, None]).sum(0) / rows.sum()
        else:
            means = per_class.nanmean(0)
        by_class = zip(names, per_class.T, strict=True) if self.columns > 1 else ()
        return dict(zip(names, means, strict=True)) | {f"{name}/": v for name, v in by_class}


def ranking_areas(score: Tensor, positive: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the area under the ROC curve and the average precision: [2], float64.

    Rows of equal score count as one threshold. The area is the Mann-Whitney statistic by the
    trapezoidal rule. Average precision is the sum over thresholds of the precision times the gain
    in recall, as in scikit-learn. Both are NaN without positive rows or without negative rows.

    Args:
        score: scores [rows].
        positive: whether a row is positive [rows], bool; ``weight`` [rows] for each.
    """
    positive, count = positive.bool(), len(score)
    found = positive if weight is None else positive * weight
    if not 0 < found.sum().item() < (count if weight is None else weight.sum().item()):
        return torch.full((2,), torch.nan, dtype=SUM_DTYPE, device=score.device)
    # Sorting takes several times the memory of the scores, so they are sorted in parts of about
    # 64 * 4096 rows, the highest first. With weights or NaN the bits depend on the order of rows.
    is_one_part = weight is not None or count <= 64 * 4096 or bool(score.isnan().any())
    sample = score[:0] if is_one_part else score[::4096]
    # No number is beyond NaN, the limit at both ends.
    limits = [torch.nan, *sample.sort().values[64::64].tolist(), torch.nan]
    area = precision = torch.zeros((), dtype=SUM_DTYPE, device=score.device)
    true = false = area.new_zeros(1)
    for low, high in zip(limits[-2::-1], limits[:0:-1], strict=True):
        part: Any = slice(None) if is_one_part else ~((score <= low) | (score > high))
        values, order = score[part].sort(descending=True)
        hits, each = positive[part][order], 1 if weight is None else weight[order]
        last_of_equal = torch.cat([values.diff() != 0, hits.new_ones(min(1, len(values)))])
        del part, values, order
        # The sums down to each threshold, after those down to the part before.
        true, false = (
            torch.cat([sums[-1:], sums[-1] + (kind * each).cumsum(0)[last_of_equal].to(SUM_DTYPE)])
            for sums, kind in ((true, hits), (false, ~hits))
        )
        gained = true.diff()
        area = area + (false.diff() * (true[1:] - gained / 2)).sum()
        precision = precision + (gained * true[1:] / (true + false)[1:]).nan_to_num(0.0).sum()
    return torch.stack([area / (true[-1] * false[-1]), precision / true[-1]])


class MeanLoss(Metric):
    """Weighted mean of the mean losses of batches. A NaN stays NaN; ``MeanMetric`` drops it.

    Batches are added one by one, so that the sum does not depend on how many are given at once.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")

    def update(self, losses: Tensor, weights: Tensor) -> None:
        """Add mean losses [batches] with their weights, as ``StageMetrics.update`` gets them."""
        factors, divisors = weights.T if weights.ndim == 2 else (weights, weights)
        self.total = _add_in_order(self.total, losses.to(SUM_DTYPE) * factors)
        self.weight = _add_in_order(self.weight, divisors)

    def compute(self) -> Tensor:
        return self.total / self.weight


class WeightedCounts(Metric):
    """Metrics of ``_counted_metrics`` for rows with weights, which torchmetrics' do not take."""

    full_state_update = False
    rows: Tensor
    correct: Tensor
    counts: Tensor

    def __init__(self, schema: Schema, average: Average) -> None:
        super().__init__()
        self.task, self.average, self.columns = schema.task, average, schema.num_outputs
        # True positives, predicted positives and actual positives of each class or label.
        for name, shape in (("rows", ()), ("correct", ()), ("counts", (3, self.columns))):
            self.add_state(name, torch.zeros(shape, dtype=SUM_DTYPE), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add rows: probabilities [rows, classes] or decisions, targets and weights [rows]."""
        if self.task == "multiclass":
            preds, target = (one_hot(v, self.columns) for v in (preds.argmax(1), target))
        predicted, actual = preds.reshape(len(target), -1), target.reshape(len(target), -1)
        weight = torch.ones(len(target), device=target.device) if weight is None else weight
        weight, correct = weight.to(SUM_DTYPE), (predicted == actual).all(1)
        counts = torch.stack([predicted * actual, predicted, actual], dim=1)
        self.rows = _add_in_order(self.rows, weight)
        self.correct = _add_in_order(self.correct, weight * correct)
        self.counts = _add_in_order(self.counts, weight[:, None, None] * counts)

    def compute(self) -> dict[str, Tensor]:
        true, predicted, actual = self.counts
        either = predicted + actual
        sums = {"precision": (true, predicted), "recall": (true, actual), "f1": (2 * true, either)}
        share = actual if self.average == "weighted" else torch.ones_like(actual)
        if self.task != "multilabel":
            share = share * (either > 0)
        values = {"accuracy": self.correct / self.rows}
        for name, (above, below) in sums.items():
            by_class = (above / below).nan_to_num(0.0)  # 0/0 is 0.
            mean = above.sum() / below.sum(), (by_class * share).sum() / share.sum()
            values[name] = mean[self.average != "micro"].nan_to_num(0.0)
            values |= {f"{name}/": by_class} if self.columns > 1 else {}
        return values


class RegressionErrors(Metric):
    """MSE, RMSE, MAE and R² of each target [targets], in the target's own unit.

    The sums for R² are taken around ``center`` in float64, so that targets far from zero lose no
    digits. R² is NaN for fewer than two rows and for a constant target.

    Args:
        center: the training mean of each target.
    """

    full_state_update = False
    center: Tensor
    rows: Tensor
    squared: Tensor
    absolute: Tensor
    sum: Tensor
    sum_of_squares: Tensor

    def __init__(self, center: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("center", torch.tensor(center, dtype=SUM_DTYPE), persistent=False)
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("squared", "absolute", "sum", "sum_of_squares"):
            zeros = torch.zeros(len(center), dtype=SUM_DTYPE)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add predictions and targets, both [rows, targets], and weights [rows]."""
        preds, target = preds.to(SUM_DTYPE), target.to(SUM_DTYPE)
        error, centered = preds - target, target - self.center
        if weight is None:
            self.rows, each = self.rows + len(target), torch.ones_like(target[:1])
        else:
            self.rows, each = _add_in_order(self.rows, weight), weight[:, None]
        self.squared = _add_in_order(self.squared, each * error.square())
        self.absolute = _add_in_order(self.absolute, each * error.abs())
        self.sum = _add_in_order(self.sum, each * centered)
        self.sum_of_squares = _add_in_order(self.sum_of_squares, each * centered.square())

    def compute(self) -> dict[str, Tensor]:
        mse = self.squared / self.rows
        variation = self.sum_of_squares - self.sum.square() / self.rows
        varies = variation > 1e-12 * self.sum_of_squares
        r2 = torch.where(varies, 1 - self.squared / variation, torch.nan)
        return {"mse": mse, "rmse": mse.sqrt(), "mae": self.absolute / self.rows, "r2": r2}


def _add_in_order(total: Tensor, values: Tensor) -> Tensor:
    """Add ``values`` [rows, ...] to ``total`` [...] row by row.

    On a CPU the bits do not depend on how the rows are divided into batches.
    """
    return torch.cat([total[None], values]).cumsum(0)[-1]
