"""Input statistics of the training split, kept in the net."""

import warnings

import torch
from torch import Tensor, nn

from proj.errors import UserError
from proj.schema import Column, Schema


class Standardize(nn.Module):
    """Inputs of mean 0 and standard deviation 1 a feature (a channel for images), by the schema's statistics.

    The statistics are buffers: they travel in the checkpoint and go out with an export.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        shape = (-1, *[1] * (len(schema.input_shape) - 1))
        self.register_buffer("mean", torch.tensor(schema.input_mean).view(shape))
        self.register_buffer("std", torch.tensor(schema.input_std).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Dropout(nn.Dropout):
    """Dropout by 16 random bits a unit. torch's own, on a CPU, draws so slowly that it takes a third of a TabM's step.

    In a compiled step this one is to be preferred, too: torch 2.13's Inductor may use the mask of torch's own before it is
    drawn.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1):
            return super().forward(x)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * (kept.to(x.dtype) / (1 - self.p))


MARGIN = 0.001  # so that the least and the greatest number have scores of about -3 and 3


class Normalize(nn.Module):
    """Numbers to normal scores by the training part's quantiles, with straight lines between them.

    A number's share of smaller training numbers becomes the point of the standard normal distribution with that share
    below it, so that outliers and skewed columns do no harm (as scikit-learn's QuantileTransformer does). A missing
    number becomes the median, 0, and where a column had missing ones in training, a flag tells of it.
    """

    edges: Tensor  # [numbers, quantiles], the last one repeated where a column has fewer
    scores: Tensor
    flagged: Tensor  # [flags], which columns have a flag

    def __init__(self, columns: tuple[Column, ...]) -> None:
        super().__init__()
        self.bins = [
            _scores(column) for column in columns
        ]  # of each column, the scores of its edges
        edges = [torch.tensor(column.edges) for column in columns]
        self.register_buffer("edges", _padded(edges))
        self.register_buffer("scores", _padded(self.bins))
        self.register_buffer(
            "flagged",
            torch.tensor([i for i, c in enumerate(columns) if c.missing], dtype=torch.int64),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` [rows, numbers] to scores [rows, numbers] and flags [rows, flags] of 0 and 1, int64."""
        missing = x.isnan()
        filled = torch.where(missing, self.edges[:, 0], x).T.contiguous()  # [numbers, rows]
        right = torch.searchsorted(self.edges, filled).clamp(1, self.edges.shape[1] - 1)
        low, high = self.edges.gather(1, right - 1), self.edges.gather(1, right)
        share = ((filled - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny)).clamp(0, 1)
        scores = torch.lerp(self.scores.gather(1, right - 1), self.scores.gather(1, right), share).T
        return torch.where(missing, 0.0, scores), missing[:, self.flagged].long()


def _scores(column: Column) -> Tensor:
    shares = torch.tensor(column.shares, dtype=torch.float64) * (1 - 2 * MARGIN) + MARGIN
    scores: Tensor = torch.special.ndtri(shares)
    return scores.float()


def _padded(rows: list[Tensor]) -> Tensor:
    width = max((len(row) for row in rows), default=0)
    return (
        torch.stack([torch.cat([row, row[-1:].expand(width - len(row))]) for row in rows])
        if rows
        else torch.zeros(0, 2)
    )


class Table(nn.Module):
    """A table's batch as numbers [rows, numbers] and categories [rows, categories and flags], with their sizes.

    Attributes:
        cardinalities: how many values each category can take: missing, another one, and those of the schema.
        bins: for each number, the scores between which an embedding is a straight line.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        if not schema.columns:
            raise UserError(
                f"this net is for tables: expected columns, got rows of shape {schema.input_shape}."
            )
        self.normalize = Normalize(schema.numeric)
        self.bins = self.normalize.bins
        flags = len(self.normalize.flagged)
        self.cardinalities = [2 + len(column.categories) for column in schema.categorical] + [
            2
        ] * flags

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        numbers, flags = self.normalize(x["numeric"])
        return numbers, torch.cat([x["categorical"].long(), flags], dim=1)


class Embedded(nn.Module):
    """A table's batch as one vector a row [rows, width]: piecewise linear embeddings of numbers (Gorishniy et al. 2022,
    arXiv:2203.05556), learned vectors for categories.
    """

    def __init__(self, schema: Schema, size: int = 8) -> None:
        super().__init__()
        self.table = Table(schema)
        bins, sizes = (
            self.table.bins,
            [min(50, (count + 3) // 2) for count in self.table.cardinalities],
        )
        self.numbers = piecewise_linear(bins, size) if bins else None
        self.categories = nn.ModuleList(
            nn.Embedding(count, width)
            for count, width in zip(self.table.cardinalities, sizes, strict=True)
        )
        self.width = size * len(bins) + sum(sizes)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        numbers, categories = self.table(x)
        parts = [embed(categories[:, i]) for i, embed in enumerate(self.categories)]
        if self.numbers is not None:
            parts.append(self.numbers(numbers).flatten(1))
        return torch.cat(parts, dim=1)


def piecewise_linear(bins: list[Tensor], size: int) -> nn.Module:
    """Embeddings of normalised numbers: [rows, numbers] to [rows, numbers, size]."""
    from rtdl_num_embeddings import (
        PiecewiseLinearEmbeddings,  # which imports scikit-learn; MLP on arrays needs neither
    )

    with (
        warnings.catch_warnings()
    ):  # truth values given as 0 and 1 have one bin, and that is all right
        warnings.filterwarnings("ignore", "The .* feature has just two bin edges")
        embeddings: nn.Module = PiecewiseLinearEmbeddings(bins, size, activation=False, version="B")
    return embeddings
