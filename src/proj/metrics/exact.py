"""Metrics that are exact where torchmetrics' own are not: in float64, over all rows at once, NaN where not defined."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

# Sums and areas are computed in float64, but Apple's GPUs have none.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


class RankingMetrics(Metric):
    """Exact area under the ROC curve and average precision, one against the rest, over all rows of a stage.

    A class without both kinds of row has no such area: its value is NaN, and the mean is over the others (NaN if none).

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
        """``preds`` [rows] or [rows, columns] probabilities, ``target`` class numbers [rows] or labels [rows, columns]."""
        self.scores.append(preds)
        self.targets.append(target)

    def compute(self) -> dict[str, Tensor]:
        scores, target = (
            dim_zero_cat(self.scores).view(-1, self.columns),
            dim_zero_cat(self.targets),
        )
        classes = target.ndim == 1 and self.columns > 1
        hits = (
            target == i if classes else target.view(-1, self.columns)[:, i] == 1
            for i in range(self.columns)
        )
        areas = [ranking_areas(score, hit) for score, hit in zip(scores.T, hits, strict=True)]
        per_class = dict(zip(("auroc", "average_precision"), torch.stack(areas).T, strict=True))
        means = {name: values.nanmean() for name, values in per_class.items()}
        return (
            means
            if self.columns == 1
            else means | {f"{name}/": values for name, values in per_class.items()}
        )


def ranking_areas(score: Tensor, hit: Tensor) -> Tensor:
    """Area under the ROC curve and average precision of ``score`` [rows] for ``hit`` [rows] of bool: [2], float64.

    Rows of equal score count as one threshold. The first is the Mann-Whitney statistic by the trapezoid rule, the second
    the sum over thresholds of precision times the recall gained (as in scikit-learn). NaN without both kinds of row.
    """
    if not hit.any() or hit.all():
        return torch.full((2,), torch.nan, dtype=EXACT, device=score.device)
    score, order = score.sort(descending=True)
    last = torch.cat(
        [score.diff() != 0, torch.ones(1, dtype=torch.bool, device=score.device)]
    )  # of each equal score
    true = hit[order].cumsum(0)[last]
    seen = torch.arange(1, len(last) + 1, device=score.device)[last]
    true, false = true.to(EXACT), (seen - true).to(EXACT)
    gained = true.diff(prepend=true.new_zeros(1))
    area = (false.diff(prepend=false.new_zeros(1)) * (true - gained / 2)).sum() / (
        true[-1] * false[-1]
    )
    return torch.stack([area, (gained * true / (true + false)).sum() / true[-1]])


class MeanLoss(Metric):
    """Mean of batch means by their weights. A NaN stays one, where torchmetrics' ``MeanMetric`` drops it.

    Batches are added one by one, so that the sum is the same however many are given at once.
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=EXACT), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=EXACT), dist_reduce_fx="sum")

    def update(self, loss: Tensor, weight: Tensor) -> None:
        """Mean losses of batches [batches], and their weights [batches]."""
        self.total = _added(self.total, loss.to(EXACT) * weight)
        self.weight = _added(self.weight, weight)

    def compute(self) -> Tensor:
        return self.total / self.weight


class RegressionErrors(Metric):
    """Mean squared error, its root, mean absolute error and R² of each target: [targets], in the target's own units.

    Sums are kept in float64, those for R² around ``center`` (the training mean), so that targets far from zero lose no
    digits. R² of less than two rows, or of a target that does not vary, is not defined: NaN.
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
        self.register_buffer("center", torch.tensor(center), persistent=False)
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("squared", "absolute", "sum", "sum_of_squares"):
            self.add_state(name, torch.zeros(len(center), dtype=EXACT), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """``preds`` and ``target`` [rows, targets]."""
        preds, target = preds.to(EXACT), target.to(EXACT)
        error, centered = preds - target, target - self.center
        self.rows += len(target)
        self.squared = _added(self.squared, error.square())
        self.absolute = _added(self.absolute, error.abs())
        self.sum = _added(self.sum, centered)
        self.sum_of_squares = _added(self.sum_of_squares, centered.square())

    def compute(self) -> dict[str, Tensor]:
        mse = self.squared / self.rows
        variation = self.sum_of_squares - self.sum.square() / self.rows
        varies = (variation > 1e-12 * self.sum_of_squares) & (self.rows > 1)
        r2 = torch.where(varies, 1 - self.squared / variation, torch.nan)
        return {"mse": mse, "rmse": mse.sqrt(), "mae": self.absolute / self.rows, "r2": r2}


def _added(total: Tensor, values: Tensor) -> Tensor:
    """``total`` [...] plus ``values`` [rows, ...], row by row: the same bits (on a CPU) however the rows are batched."""
    return torch.cat([total[None], values]).cumsum(0)[-1]
