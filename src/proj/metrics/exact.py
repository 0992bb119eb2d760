"""Metrics that are exact where torchmetrics' are not.

They are computed in float64, over all rows at once, and are NaN where they are not defined.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from proj.schema import SUM_DTYPE


class RankingMetrics(Metric):
    """Area under the ROC curve and average precision over all rows, each class against the rest.

    A class without both positive and negative rows has the value NaN; the mean is over the other
    classes and NaN if there are none.

    Args:
        columns: classes or labels; 1 for the positive class alone.
    """

    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add rows.

        Args:
            preds: probabilities [rows] or [rows, columns].
            target: class numbers [rows] or labels [rows, columns].
        """
        self.scores.append(preds)
        self.targets.append(target)

    def compute(self) -> dict[str, Tensor]:
        scores = dim_zero_cat(self.scores).view(-1, self.columns)
        target = dim_zero_cat(self.targets)
        if target.ndim == 1 and self.columns > 1:
            positives = (target == i for i in range(self.columns))
        else:
            positives = (column == 1 for column in target.view(-1, self.columns).T)
        areas = [
            ranking_areas(score, positive)
            for score, positive in zip(scores.T, positives, strict=True)
        ]
        names = ("auroc", "average_precision")
        per_class = dict(zip(names, torch.stack(areas).T, strict=True))
        means = {name: values.nanmean() for name, values in per_class.items()}
        if self.columns == 1:
            return means
        return means | {f"{name}/": values for name, values in per_class.items()}


def ranking_areas(score: Tensor, positive: Tensor) -> Tensor:
    """Return the area under the ROC curve and the average precision: [2], float64.

    Rows of equal score count as one threshold. The area is the Mann-Whitney statistic by the
    trapezoidal rule. Average precision is the sum over thresholds of the precision times the gain
    in recall, as in scikit-learn. Both are NaN without positive rows or without negative rows.

    Args:
        score: scores [rows].
        positive: whether a row is positive [rows], bool.
    """
    if not positive.any() or positive.all():
        return torch.full((2,), torch.nan, dtype=SUM_DTYPE, device=score.device)
    score, order = score.sort(descending=True)
    end = torch.ones(1, dtype=torch.bool, device=score.device)
    last_of_equal_scores = torch.cat([score.diff() != 0, end])
    true = positive[order].cumsum(0)[last_of_equal_scores]
    predicted = torch.arange(1, len(score) + 1, device=score.device)[last_of_equal_scores]
    true, false = true.to(SUM_DTYPE), (predicted - true).to(SUM_DTYPE)
    gained = true.diff(prepend=true.new_zeros(1))
    steps = false.diff(prepend=false.new_zeros(1))
    area = (steps * (true - gained / 2)).sum() / (true[-1] * false[-1])
    precision = (gained * true / (true + false)).sum() / true[-1]
    return torch.stack([area, precision])


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
        """Add mean losses [batches] with their weights [batches]."""
        self.total = _add_in_order(self.total, losses.to(SUM_DTYPE) * weights)
        self.weight = _add_in_order(self.weight, weights)

    def compute(self) -> Tensor:
        return self.total / self.weight


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

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add predictions and targets, both [rows, targets]."""
        preds, target = preds.to(SUM_DTYPE), target.to(SUM_DTYPE)
        error, centered = preds - target, target - self.center
        self.rows += len(target)
        self.squared = _add_in_order(self.squared, error.square())
        self.absolute = _add_in_order(self.absolute, error.abs())
        self.sum = _add_in_order(self.sum, centered)
        self.sum_of_squares = _add_in_order(self.sum_of_squares, centered.square())

    def compute(self) -> dict[str, Tensor]:
        mse = self.squared / self.rows
        variation = self.sum_of_squares - self.sum.square() / self.rows
        varies = (variation > 1e-12 * self.sum_of_squares) & (self.rows > 1)
        r2 = torch.where(varies, 1 - self.squared / variation, torch.nan)
        return {"mse": mse, "rmse": mse.sqrt(), "mae": self.absolute / self.rows, "r2": r2}


def _add_in_order(total: Tensor, values: Tensor) -> Tensor:
    """Add ``values`` [rows, ...] to ``total`` [...] row by row.

    On a CPU the bits do not depend on how the rows are divided into batches.
    """
    return torch.cat([total[None], values]).cumsum(0)[-1]
